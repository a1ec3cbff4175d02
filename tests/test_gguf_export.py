"GGUF files, read back by gguf's own reader and by transformers, which knows each family's order of weights."
import json

import pytest, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
import transformers as T

from selfalign.app.cli import main
from selfalign.checks import InputError
from selfalign.gguf_export import FAMILIES, modelfile, pieces, pre_tokenizer, write_gguf, _scores
from selfalign.models import load_tokenizer
from selfalign.rows import write_json
from selfalign.tokens import CHAT_TEMPLATE

SIZES = dict(hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)

@pytest.fixture(scope="module")
def tok(): return load_tokenizer("embedded")

def small(name, tok, **more):
    "A random model of a family, whose norms are no ones."
    config = getattr(T, name.replace("ForCausalLM", "TextConfig" if "Gemma3" in name else "Config"))
    torch.manual_seed(0)
    net = getattr(T, name)(config(vocab_size=len(tok) + 8, **SIZES, **more)).float().eval()
    for n, p in net.named_parameters():
        if "norm" in n or "bias" in n: p.data = torch.randn_like(p) / 4 + (0 if "Gemma" in name or "bias" in n else 1)
    return net

def saved(net, tok, folder):
    for part in (net, tok): part.save_pretrained(folder)
    return folder

def logits(net, ids):
    with torch.no_grad(): return net(input_ids=ids).logits

# transformers reads no size of heads for Qwen3 and takes its own default
EACH = [(n, dict(head_dim=128 if "Qwen3" in n else 16)) for n in FAMILIES]
EACH.append(("LlamaForCausalLM", dict(tie_word_embeddings=True)))

@pytest.mark.parametrize("name, more", EACH)
def test_every_family_gives_the_same_logits_back(tok, tmp_path, name, more):
    net = small(name, tok, **({} if name == "Qwen2ForCausalLM" else more))
    write_gguf(saved(net, tok, tmp_path/"m"), tmp_path/"m.gguf", "f32")
    back = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="m.gguf", dtype=torch.float32).eval()
    ids = torch.tensor([tok("The sea is wide, and 3 ships sail on it.")["input_ids"]])
    assert torch.allclose(logits(net, ids), logits(back, ids), atol=2e-5)

@pytest.mark.parametrize("kind, far", [("f16", 1e-2), ("bf16", 5e-2), ("q8_0", 5e-2)])
def test_smaller_types_are_near(tok, tmp_path, kind, far):
    net = small("LlamaForCausalLM", tok)
    file = write_gguf(saved(net, tok, tmp_path/"m"), tmp_path/"m.gguf", kind)
    back = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=file.name, dtype=torch.float32).eval()
    ids = torch.tensor([tok("Ships sail on the sea.")["input_ids"]])
    gap = (logits(net, ids) - logits(back, ids)).abs().max()
    assert 0 < gap < far

def test_tokens_and_template_are_the_models_own(tok, tmp_path):
    import gguf
    write_gguf(saved(small("LlamaForCausalLM", tok), tok, tmp_path/"m"), tmp_path/"m.gguf")
    reader = gguf.GGUFReader(tmp_path/"m.gguf")
    said = lambda key: reader.get_field(key).contents()
    assert said("tokenizer.chat_template") == AutoTokenizer.from_pretrained(tmp_path/"m").chat_template
    assert said("tokenizer.ggml.eos_token_id") == tok.eos_token_id and said("tokenizer.ggml.pre") == "smollm"
    assert said("tokenizer.ggml.tokens")[-8:] == [f"[PAD{i}]" for i in range(len(tok), len(tok) + 8)]
    assert said("llama.context_length") == 2048 and said("general.architecture") == "llama"
    back = AutoTokenizer.from_pretrained(tmp_path, gguf_file="m.gguf")
    for text in ("Ships sail.", "1234 ways – naïve 日本語 😀", "a\n\n  b", "<|im_start|>user\nHi<|im_end|>"):
        assert back(text)["input_ids"] == tok(text)["input_ids"]

def test_scores_join_in_the_order_of_the_merges():
    merges = ["a b", "ab c", "c d"]
    scores = dict(zip(("a", "ab", "abc", "cd"), _scores(("a", "ab", "abc", "cd"), merges)))
    assert scores["ab"] > scores["abc"] > scores["cd"] > scores["a"]

TALKS = [["system", "user"], ["system", "user", "assistant", "user"], ["system"] + ["user", "assistant"] * 3 + ["user"]]
FOLDED = ("{% for m in messages %}{% set who = 'model' if m.role == 'assistant' else m.role %}"
          "{{ '<turn>' + who + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}"
          "{% if add_generation_prompt %}{{ '<turn>model\\n' }}{% endif %}")

@pytest.mark.parametrize("template", [None, CHAT_TEMPLATE, "folded"])
@pytest.mark.parametrize("roles", TALKS)
def test_the_pieces_of_a_modelfile_give_the_template_back(tok, template, roles):
    import copy
    own = copy.deepcopy(tok)
    if template: own.chat_template = FOLDED if template == "folded" else template
    talk = [dict(role=r, content=f"text {i}") for i, r in enumerate(roles)]
    want = own.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)
    assert pieces(own).text(talk) == want

def test_a_template_that_is_more_than_pieces_is_one_line(tok):
    import copy
    own = copy.deepcopy(tok)
    own.chat_template = "{{ messages|length }}" + tok.chat_template
    with pytest.raises(InputError, match="more than pieces around turns"): modelfile(own, "x.gguf")
    own.chat_template = tok.chat_template.replace("assistant", "{{ '{{' }}")
    with pytest.raises(InputError): modelfile(own, "x.gguf")
    own.chat_template = None
    with pytest.raises(InputError, match="it has no chat template"): modelfile(own, "x.gguf")

@pytest.fixture(scope="module")
def run(tok, tmp_path_factory):
    out = tmp_path_factory.mktemp("run")
    saved(small("LlamaForCausalLM", tok), tok, out/"final")
    write_json(out/"manifest.json", dict(config=dict(engine="torch:embedded")))
    return out

def test_the_command_writes_a_file_and_a_modelfile(run, capsys):
    assert main(["export", "gguf", str(run), "--type", "q8_0"]) == 0
    said, text = capsys.readouterr().out, (run/"gguf"/"Modelfile").read_text()
    assert f"ollama create final -f {run/'gguf'/'Modelfile'}" in said and (run/"gguf"/"final-q8_0.gguf").exists()
    assert text.startswith("FROM ./final-q8_0.gguf\n") and "SYSTEM" in text and str(run) not in text
    assert 'PARAMETER stop "<|im_end|>"' in text

def gone(c): c["architectures"] = ["FalconForCausalLM"]
def yarn(c):
    c["rope_parameters"] = dict(rope_type="yarn", factor=4.0, rope_theta=1e4, original_max_position_embeddings=512)
def short(c): c["vocab_size"] = 100

@pytest.mark.parametrize("change, words", [(gone, "FalconForCausalLM is not written here"),
                                           (yarn, "type yarn are not written here"), (short, "has no row")])
def test_a_model_that_is_not_written_here_is_one_line(run, tmp_path, capsys, change, words):
    import shutil
    shutil.copytree(run/"final", tmp_path/"m")
    config = json.loads((tmp_path/"m"/"config.json").read_text())
    change(config)
    (tmp_path/"m"/"config.json").write_text(json.dumps(config))
    assert main(["export", "gguf", str(tmp_path/"m"), "--out", str(tmp_path/"out")]) == 1
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1 and not list(tmp_path.glob("out/*.gguf"))

def test_a_run_without_a_final_model_and_an_unknown_type_are_one_line(run, tmp_path, capsys):
    write_json(tmp_path/"manifest.json", dict(config=dict(engine="torch:embedded")))
    assert main(["export", "gguf", str(tmp_path)]) == 1 and "has no such model yet" in capsys.readouterr().err
    assert main(["export", "gguf", str(run), "--type", "q2"]) == 1 and "type is 'q2'" in capsys.readouterr().err

def test_a_tokenizer_that_splits_by_another_rule_is_refused():
    split = dict(type="Split", pattern=dict(Regex="x"))
    with pytest.raises(InputError, match="convert_hf_to_gguf.py"): pre_tokenizer(dict(model={}, pre_tokenizer=split))
