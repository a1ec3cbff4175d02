"A model's name: what serves as one, and what is told where it does not."
import shutil
import pytest

from selfalign.checks import InputError
from selfalign.models import _gguf_file, load_model, load_tokenizer, resolve_model

@pytest.fixture(scope="module")
def gguf(tmp_path_factory):
    "The embedded model's GGUF file under another name, and a cache of its own."
    if _gguf_file() is None: pytest.skip("the embedded model's package is not installed")
    folder = tmp_path_factory.mktemp("gguf")
    shutil.copy(_gguf_file(), folder/"own model.gguf")
    with pytest.MonkeyPatch.context() as m:
        m.setenv("SELFALIGN_CACHE", str(folder/"cache"))
        yield folder/"own model.gguf"

def test_a_gguf_file_is_a_model(gguf):
    made = resolve_model(str(gguf))
    assert made.name == str(gguf) and made.sha256 and not made.stand_in
    model, tok = load_model(str(gguf))
    assert tok.chat_template and model.config.vocab_size == len(model.get_input_embeddings().weight)
    assert tok.decode(tok.encode("Three green frogs.")) == "Three green frogs." and load_tokenizer(str(gguf)).eos_token == tok.eos_token

def test_it_is_converted_once_and_its_folder_serves_too(gguf):
    made = resolve_model(str(gguf))
    before = (gguf.parent/"cache").stat().st_mtime_ns
    assert resolve_model(str(gguf.parent)).path == made.path == resolve_model(str(gguf)).path
    assert (gguf.parent/"cache").stat().st_mtime_ns == before

@pytest.mark.parametrize("content", [b"", b"GGUF", b"not a model"])
def test_what_is_no_gguf_is_told_in_one_line(tmp_path, monkeypatch, content):
    monkeypatch.setenv("SELFALIGN_CACHE", str(tmp_path/"cache"))
    (tmp_path/"x.gguf").write_bytes(content)
    with pytest.raises(InputError, match="x.gguf: cannot be converted") as e: resolve_model(str(tmp_path/"x.gguf"))
    assert "\n" not in str(e.value) and not [p for p in (tmp_path/"cache").glob("gguf-*") if p.is_dir()]

def test_of_several_gguf_files_one_must_be_named(tmp_path):
    for n in "ab": (tmp_path/f"{n}.gguf").write_bytes(b"")
    with pytest.raises(InputError, match="holds 2 GGUF files; name one of them"): resolve_model(str(tmp_path))
