"""What meets a user in the first days: consoles that show few signs, `~`, commands given from another folder, addresses
of the hub, no network."""
import gzip
import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from selfalign import models
from selfalign.app.cli import main
from selfalign.app.run import parse_run
from selfalign.checks import InputError, expand_home, plain_sign, safe_console
from selfalign.config import PromptsConfig, config_from
from selfalign.generation import ScriptedEngine
from selfalign.models import hub_answers, hub_id, load_tokenizer, weights_sha256
from selfalign.pipeline import started_in
from selfalign.rows import read_jsonl
from selfalign.runs import Run
from selfalign.sources import read_prompts, read_source
from selfalign.topic_prompting import write_prompts

OWN = ["--prompts.self-instruct", "0", "--prompts.topics-per-type", "0"]
SIGNS = "6 of 8 · 75 % ± 3 → “naïve” – 水 \udce4"


def plain(encoding):
    return dict(os.environ, PYTHONIOENCODING=encoding, PYTHONUTF8="0", PYTHONCOERCECLOCALE="0", LANG="C", LC_ALL="C")


# ---- consoles

@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "cp437", "utf-8"])
def test_no_sign_ends_an_output(encoding, monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding, write_through=True))
    safe_console()
    print(SIGNS)
    said = raw.getvalue().decode(encoding)
    assert said.startswith("6 of 8") and "na" in said and said.count("\n") == 1 and len(said) < 60
    assert ("→" in said) == (encoding == "utf-8")


def test_a_sign_falls_back_on_what_looks_like_it():
    assert plain_sign(SIGNS) == '6 of 8 - 75 % +- 3 -> "naive" - ? ?' and plain_sign("plain") == "plain"


@pytest.mark.parametrize("argv", [["run", "--help"], ["evaluate", "→"]])
def test_commands_end_well_on_an_ascii_console(argv, tmp_path):
    r = subprocess.run([sys.executable, "-m", "selfalign.pipeline", *argv], env=plain("ascii"),
        capture_output=True, cwd=tmp_path)
    assert b"Traceback" not in r.stderr and r.returncode == (argv[0] == "evaluate"), r.stderr.decode()[-500:]
    assert r.stdout.isascii() and r.stderr.isascii()


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with a model by name, annotations and prompts, all named by relative paths; nothing of them is loaded in
    stage 1."""
    here = tmp_path / "a"
    (here / "models" / "mine").mkdir(parents=True); (here / "rules").mkdir(); (tmp_path / "b").mkdir()
    from transformers import LlamaConfig, LlamaForCausalLM
    LlamaForCausalLM(LlamaConfig(vocab_size=32, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=1, max_position_embeddings=4096)).save_pretrained(here / "models" / "mine")
    load_tokenizer_files(here / "models" / "mine")
    (here / "rules" / "seed_questions.jsonl").write_text(json.dumps(dict(type="local rules", topic="Quiet hours",
        question="From what time may my neighbour not use a drill?")) + "\n")
    (here / "my.txt").write_text("How do I read a water meter?\nWie lange hält ein Brot im Schrank?\n",
        encoding="utf-8")
    monkeypatch.chdir(here)
    return here


def load_tokenizer_files(folder):
    from tokenizers import Tokenizer, models as tm
    from transformers import PreTrainedTokenizerFast
    PreTrainedTokenizerFast(tokenizer_object=Tokenizer(tm.WordLevel({"<s>": 0, "a": 1}, unk_token="a")),
        eos_token="<s>").save_pretrained(folder)


def start(out="runs/x", *more):
    return main(["prompts", out, "--preset", "demo", "--model", "models/mine", *OWN, "--prompts.source", "my.txt",
        "--annotations", "rules", "--no-control", *more])


@pytest.mark.parametrize("name, data", [
    ("d.jsonl", b'{"que\\nry": "a", "\\u001b[2Jid": 1}\n'),                     # a column's name
    ("d.csv", '"que\nry","b\u2028c"\r\n1,2\r\n'.encode()),
    ("d\ne.csv", b"a,b\r\n1,2\r\n"),                                            # a file's name
    ("d.json", b'{"a\\r\\nb": 1}')])
def test_what_a_file_says_breaks_no_line(tmp_path, name, data, capsys):
    (tmp_path/name).write_bytes(data)
    with pytest.raises(InputError) as e: list(read_prompts(str(tmp_path/name)))
    assert len(str(e.value).splitlines()) == 1 and str(e.value).isprintable()
    source = ["--prompts.source", str(tmp_path/name), *OWN]
    assert main(["prompts", str(tmp_path/"run"), "--model", "embedded", *source]) == 1
    said = capsys.readouterr().err.rstrip("\n").splitlines()
    assert "no column" in said[-1] and all(x.isprintable() for x in said)


# ---- ~ and folders

def test_home_is_opened_wherever_a_path_stands(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert [expand_home(t) for t in ("~", "~/m", "--model=~/m", "torch:~/m", "openai:http://h:1/v1#~/m")] == [
        "/home/me", "/home/me/m", "--model=/home/me/m", "torch:/home/me/m", "openai:http://h:1/v1#/home/me/m"]
    assert [expand_home(t) for t in ("a~/b", "http://h/~me", "~me/x", "about ~ 5", "x:~5")] == ["a~/b", "http://h/~me",
        "~me/x", "about ~ 5", "x:~5"]
    cfg = config_from(dict(model="~/m", annotations="~/rules", respond=dict(principles=["~/p.yaml"])))
    assert (cfg.model, cfg.annotations, cfg.respond.principles) == ("/home/me/m", "/home/me/rules",
        ("/home/me/p.yaml",))


def test_home_in_options(project, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(project))
    monkeypatch.chdir(project.parent / "b")
    assert main(["prompts", "~/runs/h", "--preset", "demo", "--model=~/models/mine", *OWN, "--prompts.source=~/my.txt",
        "--annotations=~/rules"]) == 0, capsys.readouterr().err
    assert not Path("~").exists() and (project / "runs" / "h" / "prompts.jsonl").exists()


def test_a_run_goes_on_from_another_folder(project, monkeypatch, capsys):
    assert start() == 0, capsys.readouterr().err
    monkeypatch.chdir(project.parent / "b")
    assert started_in("../a/runs/x") == project
    out, cfg, _ = parse_run("respond", ["../a/runs/x"])
    assert Path.cwd() == project and Path(out) == project / "runs" / "x" and cfg.annotations == "rules"
    assert Path(cfg.prompts.source).exists()
    monkeypatch.chdir(project.parent / "b")
    assert main(["prompts", "../a/runs/x"]) == 0, capsys.readouterr().err


def test_paths_of_the_new_command_mean_the_new_folder(project, monkeypatch):
    assert start() == 0
    other = project.parent / "b" / "rules"
    other.mkdir()
    monkeypatch.chdir(project.parent / "b")
    assert parse_run("respond", ["../a/runs/x", "--annotations", "rules"])[1].annotations == str(other)
    monkeypatch.chdir(project.parent / "b")
    assert parse_run("respond", ["../a/runs/x", "--annotations=rules"])[1].annotations == str(other)


def test_run_and_folder_may_move(project, monkeypatch, capsys):
    assert start() == 0
    (project / "runs" / "x").rename(project / "runs" / "renamed")
    monkeypatch.chdir(project.parent)
    project.rename(project.parent / "c")
    assert started_in("c/runs/renamed") == project.parent / "c"
    assert main(["prompts", "c/runs/renamed"]) == 0, capsys.readouterr().err


def test_the_same_source_under_another_path_is_the_same(project, capsys):
    assert start() == 0
    (project / "data").mkdir(); (project / "my.txt").rename(project / "data" / "my.txt")
    assert main(["prompts", "runs/x", "--prompts.source", "data/my.txt"]) == 0, capsys.readouterr().err
    (project / "data" / "my.txt").write_text("Another one, is it?\n")
    assert main(["prompts", "runs/x", "--prompts.source", "data/my.txt"]) == 1
    assert "source_content" in capsys.readouterr().err


# ---- the hub

@pytest.mark.parametrize("spec, want", [("https://huggingface.co/Qwen/Qwen3-4B", "Qwen/Qwen3-4B"),
    ("https://huggingface.co/Qwen/Qwen3-4B/", "Qwen/Qwen3-4B"), ("https://huggingface.co/Qwen/Qwen3-4B/tree/main",
    "Qwen/Qwen3-4B"), ("https://huggingface.co/Qwen/Qwen3-4B?library=x", "Qwen/Qwen3-4B"), ("hf://Qwen/Qwen3-4B",
    "Qwen/Qwen3-4B"), ("https://hf.co/datasets/o/n", "o/n"), ("models/mine", "models/mine"), ("embedded", "embedded")])
def test_addresses_of_the_hub_are_names(spec, want): assert hub_id(spec) == want


def test_a_model_may_be_named_by_its_address():
    assert models.resolve_model("https://huggingface.co/Qwen/Qwen3-4B/").name == "Qwen/Qwen3-4B"


def test_without_a_network_it_is_told_at_once(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://192.0.2.1:9") # nobody answers there
    hub_answers.cache_clear()
    start = time.monotonic()
    try:
        with pytest.raises(InputError, match="cannot be loaded"): load_tokenizer("selfalign/no-such-model")
        with pytest.raises(InputError, match="cannot be read"): list(read_source("selfalign/no-such-set"))
    finally: hub_answers.cache_clear()
    assert time.monotonic() - start < 20


@pytest.mark.parametrize("name",
    ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "model.safetensors", "adapter_model.bin", "model.gguf"])
def test_weights_of_any_kind_have_an_identity(tmp_path, name):
    (tmp_path / name).write_bytes(b"one"); first = weights_sha256(tmp_path)
    (tmp_path / name).write_bytes(b"two!")
    assert first and weights_sha256(tmp_path) not in (None, first)
    assert weights_sha256(tmp_path / "nothing") is None


def test_a_model_beside_an_engine_that_names_one_is_told(tmp_path):
    (tmp_path / "p.yaml").write_text("engine: torch:embedded\n")
    for argv in (["r", "--preset", str(tmp_path / "p.yaml"), "--model", "a/b"],
            ["r", "--preset", str(tmp_path / "p.yaml"), "--model=a/b"]):
        with pytest.raises(InputError, match="names its model already .torch:embedded.*--model would change nothing"):
            parse_run("run", argv)
    assert parse_run("run",
        ["r", "--preset", str(tmp_path / "p.yaml"), "--model", "a/b", "--engine", "vllm"])[1].model == "a/b"
    assert parse_run("run", ["r", "--preset", "demo", "--model", "a/b"])[1].model == "a/b"


class Broken:
    "A data set that ends in an error while it is read."
    def __init__(self, error): self.error = error
    def __iter__(self):
        yield dict(text="Why is it so?")
        raise self.error


@pytest.mark.parametrize("error, words", [
    (RuntimeError("Dataset scripts are no longer supported, but found set.py"), "give o/set@refs/convert/parquet"),
    (FileNotFoundError("no such set"), "check prompts.source"),
    (Exception("DatasetGenerationError"), "check prompts.source"),
    (NotImplementedError("nested\n type"), r"\(nested type\)"), (ImportError("lz4 is missing"), "lz4 is missing")])
@pytest.mark.parametrize("late", [False, True])
def test_a_set_of_the_hub_that_cannot_be_read_is_one_line(monkeypatch, error, words, late):
    def load(*a, **kw):
        if late: return Broken(error)
        raise error
    monkeypatch.setattr("datasets.load_dataset", load)
    with pytest.raises(InputError, match=f"o/set@main: cannot be read .*{words}") as e: list(read_source("o/set@main"))
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("first, then, goes_on", [
    ("c1", None, True), (None, "c1", True), ("c1", "c1", True), (None, None, True), ("c1", "c2", False)])
def test_a_set_of_the_hub_is_gone_on_with_while_the_hub_is_away(tmp_path, monkeypatch, first, then, goes_on):
    "Without the hub nobody can say whether it changed; with it, another commit is another set."
    now = dict(commit=first)
    monkeypatch.setattr("selfalign.sources._hub_commit", lambda source: now["commit"])
    monkeypatch.setattr("datasets.load_dataset", lambda *a, **kw: [dict(text="Why does bread rise in a warm place?")])
    cfg = PromptsConfig(source="o/set", self_instruct=0, topics_per_type=0)
    def go():
        with Run(tmp_path / "r", say=lambda *a: None) as run: return write_prompts(run, ScriptedEngine(), cfg)["kept"]
    assert go() == 1
    now["commit"] = then
    if goes_on: assert go() == 1
    else:
        with pytest.raises(InputError, match="source_content"): go()


# ---- files in other encodings

FILES = {
    ".csv": "text,id\nWhy does bread rise?,1\nHow do tides come?,2\n",
    ".tsv": "id\ttext\n1\tWhy does bread rise?\n2\tHow do tides come?\n",
    ".txt": "Why does bread rise?\nHow do tides come?\n",
    ".json": '[{"text": "Why does bread rise?"},\n {"text": "How do tides come?"}]',
    ".jsonl": '{"text": "Why does bread rise?"}\n{"text": "How do tides come?"}\n'}


@pytest.mark.parametrize("code", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("ending", FILES)
@pytest.mark.parametrize("packed", [False, True])
def test_wide_encodings_are_read_with_a_mark_or_without(tmp_path, ending, code, packed):
    p = tmp_path / f"d{ending}{'.gz' if packed else ''}"
    data = FILES[ending].replace("\n", "\r\n").encode(code)
    p.write_bytes(gzip.compress(data) if packed else data)
    assert [r.instruction for r in read_prompts(str(p))] == ["Why does bread rise?", "How do tides come?"]


@pytest.mark.parametrize("ending", FILES)
def test_line_ends_of_old_macs_are_read_or_told_in_one_line(tmp_path, ending):
    p = tmp_path / f"d{ending}"
    p.write_bytes(FILES[ending].replace("\n", "\r").encode())
    if ending == ".json": assert len(list(read_prompts(str(p)))) == 2 # there a line end is a space
    else:
        with pytest.raises(InputError, match=r"lines end by \\r alone.*save it with"): list(read_prompts(str(p)))


@pytest.mark.parametrize("data",
    [b"\xff\xfeW", "Why?\n".encode("utf-16")[:-1], "Ähnlich?\n".encode("latin-1"), b"\xff\xfe\0\0W"])
def test_a_damaged_encoding_is_one_line(tmp_path, data):
    (tmp_path / "d.txt").write_bytes(data)
    with pytest.raises(InputError, match="not UTF-8; save the file as UTF-8"):
        list(read_prompts(str(tmp_path / "d.txt")))


def test_own_lists_of_tasks_in_other_encodings(tmp_path):
    task = '{"instruction": "Explain how bread rises.", "input": ""}'
    (tmp_path / "a.jsonl").write_bytes(f"{task}\n{task}\n".encode("utf-16-le"))
    assert len(read_jsonl(tmp_path / "a.jsonl")) == 2
    (tmp_path / "b.jsonl").write_bytes(f"{task}\r{task}\r".encode())
    with pytest.raises(InputError, match="alone"): read_jsonl(tmp_path / "b.jsonl")
