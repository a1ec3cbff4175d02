"A model's name: what serves as one, and what is told where it does not."
import json, shutil
from pathlib import Path
import pytest

from selfalign.checks import InputError
from selfalign.model_files import _gguf_file
from selfalign.models import load_model, load_tokenizer, resolve_model

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
    assert tok.decode(tok.encode("Three green frogs.")) == "Three green frogs."
    assert load_tokenizer(str(gguf)).eos_token == tok.eos_token

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

# --- adapters

@pytest.fixture
def adapter(tmp_path, monkeypatch):
    "A tiny base, a LoRA adapter on it whose weights are not zero, and a cache of its own."
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM
    tok = load_tokenizer("embedded") # from the usual cache
    monkeypatch.setenv("SELFALIGN_CACHE", str(tmp_path/"cache"))
    torch.manual_seed(0)
    base = LlamaForCausalLM(LlamaConfig(vocab_size=len(tok), hidden_size=32, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2))
    base.save_pretrained(tmp_path/"base"); tok.save_pretrained(tmp_path/"base")
    model = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
    for n, p in model.named_parameters():
        if "lora_B" in n: torch.nn.init.normal_(p)
    model.peft_config["default"].base_model_name_or_path = str(tmp_path/"base")
    model.save_pretrained(tmp_path/"adapter")
    return tmp_path/"adapter", model.eval(), tok

@pytest.mark.parametrize("with_tokenizer", [True, False])
def test_an_adapter_is_a_model(adapter, with_tokenizer):
    import torch
    folder, model, tok = adapter
    if with_tokenizer: tok.save_pretrained(folder)
    merged, mine = load_model(str(folder), dtype=torch.float32, device="cpu")
    ids = tok("Three green frogs", return_tensors="pt")
    with torch.inference_mode(): assert (merged(**ids).logits - model(**ids).logits).abs().max() < 1e-4
    made = resolve_model(str(folder))
    assert made.name == str(folder) and made.sha256 != resolve_model(str(folder.parent/"base")).sha256
    assert len(mine) == len(tok)
    assert resolve_model(str(folder)).path == made.path
    (folder/"adapter_model.safetensors").touch()
    assert resolve_model(str(folder)).path != made.path # trained again: another model

def test_an_adapter_serves_in_an_engine(adapter):
    from selfalign.generation import Sampling, load_engine
    with load_engine(f"torch:{adapter[0]}") as e:
        assert e.generate(["One two"], Sampling(max_new_tokens=2, temperature=0))[0].n_tokens == 2

@pytest.mark.parametrize("base, words", [("nobody/at-home nor here", "an adapter of 'nobody/at-home nor here', "
    "which is not at hand; write the base model's folder"), (None, "names no base_model_name_or_path")])
def test_an_adapter_without_its_base(adapter, base, words):
    file = adapter[0]/"adapter_config.json"
    file.write_text(json.dumps(dict(json.loads(file.read_text()), base_model_name_or_path=base)))
    with pytest.raises(InputError, match=words) as e: resolve_model(str(adapter[0]))
    assert "\n" not in str(e.value)

def test_an_adapter_of_another_base(adapter):
    from transformers import LlamaConfig, LlamaForCausalLM
    folder = adapter[0]
    shutil.rmtree(folder.parent/"base"); tok = adapter[2]
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tok), hidden_size=64, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2)).save_pretrained(folder.parent/"base")
    tok.save_pretrained(folder.parent/"base")
    with pytest.raises(InputError, match="does not fit its base"): resolve_model(str(folder))
    assert not [p for p in Path(folder.parent/"cache").glob("adapter-*") if p.is_dir()]
