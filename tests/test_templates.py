"Chat templates of many families: how texts begin, how turns end, what is trained, asked and saved."
import json
from pathlib import Path

import pytest, torch, yaml
from tokenizers import Tokenizer, decoders, models as tkm, pre_tokenizers, processors
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from selfalign.checks import InputError
from selfalign.config import TrainConfig
from selfalign.encoding import encode_row
from selfalign.engines.choosing import Chooser
from selfalign.engines.local import TorchEngine
from selfalign.generation import Sampling
from selfalign.models import load_tokenizer
from selfalign.tokens import (Prompts, check_template, end_of_turn, read_turn, turn_ends, with_chat_template)
from selfalign.training import save_model

CASES = yaml.safe_load((Path(__file__).parent/"cases"/"templates.yaml").read_text(encoding="utf-8"))
GOOD = [n for n, c in CASES.items() if not c.get("refused")]
TALK = [dict(role="system", content="Be brief."), dict(role="user", content="Name a river.")]
ANSWER = "The Elbe."

def tokenizer(name):
    "A byte-level tokenizer with the family's tokens and template."
    c = CASES[name]
    t = Tokenizer(tkm.BPE({b: i for i, b in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, []))
    t.pre_tokenizer, t.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tok = PreTrainedTokenizerFast(tokenizer_object=t)
    tok.add_tokens(c["controls"], special_tokens=True)
    if c["eos"]: tok.eos_token = c["eos"]
    if c["bos"]: tok.add_special_tokens(dict(bos_token=c["bos"]))
    if c["adds_bos"]:
        tok.backend_tokenizer.post_processor = processors.TemplateProcessing(single=f"{c['bos']} $A",
            special_tokens=[(c["bos"], tok.bos_token_id)])
    tok.chat_template = c["template"]
    return tok

def tiny(tok):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", vocab_size=len(tok), hidden_size=16,
        intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=4096, eos_token_id=tok.eos_token_id,
        bos_token_id=tok.bos_token_id, pad_token_id=None)).eval()

def says(monkeypatch, *tokens):
    "Let every model choose these tokens, then the last one again and again."
    monkeypatch.setattr(Chooser, "__call__",
        lambda self, logits, rows: [tokens[min(len(r.out), len(tokens)-1)] for r in rows])

def test_the_zoo_has_twenty_families(): assert len(GOOD) >= 20

@pytest.mark.parametrize("name", GOOD)
def test_a_family_goes_round(name, tmp_path, monkeypatch):
    base = tokenizer(name); model = tiny(base)
    base.save_pretrained(tmp_path/"base"); model.save_pretrained(tmp_path/"base")
    tok = load_tokenizer(str(tmp_path/"base"))
    check_template(tok)
    tok = with_chat_template(tok); p = Prompts(tok)
    # prompt: one beginning, the same for text and messages
    ids, text = p.messages(TALK), tok.decode(p.messages(TALK))
    assert all(m["content"] in text for m in TALK)
    if CASES[name]["adds_bos"]:
        b = tok.bos_token_id
        assert ids[0] == p.text("Hi")[0] == b
        assert ids.count(b) == p.text("Hi").count(b) == p.pair("Hi", " you")[0].count(b) == 1
    # training row: what the template writes for a finished turn
    eot = end_of_turn(tok)
    row = encode_row(p, TALK, ANSWER, eot)
    done = tok.apply_chat_template([*TALK, dict(role="assistant", content=ANSWER)], tokenize=False)
    written = tok.decode(row["input_ids"])
    assert (done.startswith(written) or written == done.rstrip() + read_turn(tok).tail
        or written.startswith(done.rstrip()) and read_turn(tok).tail in written)
    assert row["input_ids"][:len(ids)] == ids and eot in row["labels"]
    assert row["labels"][len(ids):] == row["input_ids"][len(ids):]
    assert "<think>" not in text or "</think>" in text.split("<think>")[-1]
    assert eot not in encode_row(p, TALK, ANSWER, eot, ended=False)["labels"]
    # generation: each end of the template ends an answer
    for end in turn_ends(tok):
        says(monkeypatch, p.text("x", bos=False)[0], end)
        with TorchEngine((model, tok)) as e: out, = e.generate([TALK], Sampling(max_new_tokens=4))
        assert (out.finish_reason, out.text, out.error) == ("stop", "x", None), end
    # saved model: all files agree on the end, and a second turn is asked as before
    save_model(model, tok, str(tmp_path/"base"), tmp_path/"out", TrainConfig(lora_r=0), [dict(step=1, loss=1.0)], {})
    files = {f: json.loads((tmp_path/"out"/f"{f}.json").read_text())
        for f in ("config", "generation_config", "tokenizer_config")}
    again = load_tokenizer(str(tmp_path/"out"))
    assert again.eos_token_id == end_of_turn(again) == eot == again.convert_tokens_to_ids(
        files["tokenizer_config"]["eos_token"])
    assert files["config"]["eos_token_id"] == files["generation_config"]["eos_token_id"]
    ends = files["config"]["eos_token_id"] # one id stands alone, as the base model's does
    assert {eot, *turn_ends(again)} <= (set(ends) if isinstance(ends, list) and len(ends) > 1 else {ends})
    more = [*TALK, dict(role="assistant", content=ANSWER), dict(role="user", content="And a lake?")]
    assert Prompts(again).messages(TALK) == ids and Prompts(again).messages(more) == p.messages(more)
    assert encode_row(Prompts(again), TALK, ANSWER, eot) == row
    second = again.decode(Prompts(again).messages(more))
    assert ANSWER in second and "And a lake?" in second and second.index(ANSWER) < second.index("And a lake?")

@pytest.mark.parametrize("name", [n for n in CASES if n not in GOOD])
def test_a_template_that_cannot_be_used_is_one_clear_line(name, tmp_path):
    base = tokenizer(name); base.save_pretrained(tmp_path)
    tiny(base).config.save_pretrained(tmp_path)
    with pytest.raises(InputError, match=CASES[name]["refused"]) as e: check_template(load_tokenizer(str(tmp_path)))
    assert "\n" not in str(e.value)

def test_text_runs_over_the_end_of_a_turn_and_messages_stop_there(monkeypatch):
    tok = with_chat_template(tokenizer("qwen2.5 base")); model = tiny(tok)
    assert end_of_turn(tok) != tok.eos_token_id
    says(monkeypatch, end_of_turn(tok))
    with TorchEngine((model, tok)) as e: text, talk = e.generate(["Name a river.", TALK], Sampling(max_new_tokens=3))
    assert (text.finish_reason, talk.finish_reason, talk.n_tokens) == ("length", "stop", 1)

def test_a_tokenizer_that_ends_texts_by_itself_ends_no_prompt():
    tok = tokenizer("none")
    tok.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A <|endoftext|>",
        special_tokens=[("<|endoftext|>", tok.eos_token_id)])
    assert Prompts(tok).text("Hi") == Prompts(tok).text("Hi", bos=False)

def test_padding_is_no_end_where_there_is_a_token_for_it():
    tok = tokenizer("gemma2"); tok.pad_token = "<end_of_turn>"
    assert with_chat_template(tok).pad_token == "<pad>"
