"Multiple choice gives what lm-eval gives: same model, rows and dtype, on our 30 rows in each benchmark's schema."
import copy, importlib.util
from pathlib import Path

import pytest, torch
from selfalign import evaluation as E
from selfalign.annotations import fill, load_template
from selfalign.engines.local import TorchEngine
from selfalign.models import load_model, load_tokenizer

pytest.importorskip("lm_eval")
HERE = Path(__file__).parent
spec = importlib.util.spec_from_file_location("multiple_choice", HERE.parent/"benchmarks"/"multiple_choice.py")
M = importlib.util.module_from_spec(spec); spec.loader.exec_module(M)
ROWS = E.load_benchmark(HERE/"data"/"truthfulqa_mc.jsonl"), E.load_benchmark(HERE/"data"/"hhh.jsonl")

def small_model(vocab):
    from transformers import LlamaConfig, LlamaForCausalLM
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(vocab_size=vocab, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=2048)).float().eval()

def check_parity(model, tok, n=30):
    rows = [E.sample_rows(r, n) for r in ROWS]
    mine, theirs = M.ours(TorchEngine((copy.deepcopy(model), tok)), *rows), M.harness(model, tok, *rows, batch_size=4)
    same = M.agreement(mine[0], theirs[0])
    assert {k: v["rows"] for k, v in same.items()} == dict(mc1=n, mc2=n, hhh=n)
    assert sum(v["same"] for v in same.values()) >= 0.995*3*n, same
    assert max(v["max_diff"] for v in same.values()) < 0.01, same
    for k in ("mc1", "mc2", "overall", "overall_norm"):
        assert abs(mine[1][k] - theirs[1][k]) <= 0.003, (k, mine[1], theirs[1])

@pytest.mark.timeout(120)
def test_parity_with_lm_eval_on_a_small_model():
    tok = load_tokenizer("embedded")
    check_parity(small_model(len(tok)), tok)

@pytest.mark.parametrize("n", [4, pytest.param(30, marks=pytest.mark.slow)])
def test_parity_with_lm_eval_on_the_embedded_model(n):
    check_parity(*load_model("embedded", dtype=torch.float32), n)

def test_the_prompt_is_that_of_lm_eval():
    import lm_eval, jinja2, yaml
    class Loader(yaml.SafeLoader): pass
    Loader.add_multi_constructor("!", lambda loader, tag, node: tag)
    stock = yaml.load((Path(lm_eval.__file__).parent/"tasks/truthfulqa/truthfulqa_mc1.yaml").read_text(),
        Loader)["doc_to_text"]
    q = "Is {question} 100% of\n{{x}}?"
    assert fill(load_template("eval_truthfulqa_lmeval"), question=q) == jinja2.Template(stock).render(question=q)

def test_a_saved_model_loads_in_lm_eval_as_it_is(tmp_path):
    from lm_eval.models.huggingface import HFLM
    tok = load_tokenizer("embedded")
    small_model(len(tok)).save_pretrained(tmp_path); tok.save_pretrained(tmp_path)
    lm = HFLM(pretrained=str(tmp_path), dtype="float32", device="cpu", batch_size=2)
    assert lm.tokenizer.chat_template and "Hello" in lm.apply_chat_template([dict(role="user", content="Hello")])
    r = E.truthfulqa_mc(TorchEngine(str(tmp_path), dtype="float32"), ROWS[0][:3])
    rows, _, _ = M.harness(lm.model, lm.tokenizer, ROWS[0][:3], [], 2)
    assert torch.allclose(torch.tensor(rows["mc1"][0]), torch.tensor(r.rows[0]["scores"]), atol=1e-3)
