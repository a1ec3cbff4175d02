"Distillation: the teacher's distribution reaches the loss token by token, and the label loss stays what it was."

import numpy as np
import pytest
import torch
from selfalign.annotations import example_rows, query_text
from selfalign.checks import InputError
from selfalign.config import TrainConfig
from selfalign.distil import answer_targets, label_target, load_targets, save_targets, top_logprobs
from selfalign.encoding import encode_rows
from selfalign.generation import load_engine
from selfalign.models import load_tokenizer
from selfalign.sft import teacher_engine, with_targets
from selfalign.tokens import with_chat_template
from selfalign.trainers import _recipe
from selfalign.training import fit

ROWS = [dict(r, ended=True) for r in example_rows("responses")][:4]
CONFIG = dict(global_batch=2, micro_batch=2, learning_rate=1e-3, warmup_steps=0, identity_share=0)

def behind(row): return f"Rules: be kind.\n\nUser: {query_text(row)}\n\nAster:"

@pytest.fixture(scope="module")
def encoded():
    tok, told = with_chat_template(load_tokenizer("embedded")), []
    cfg = TrainConfig(**CONFIG, objective="distil", distil_top=8)
    rows, _ = encode_rows(ROWS, tok, cfg, told=told)
    return tok, cfg, with_targets(told, rows, (*teacher_engine("embedded"), behind), 8)

def test_a_target_for_every_answer_token(encoded):
    "As many as labels; the teacher's probabilities; the end of a turn keeps its label."
    tok, _, rows = encoded
    for row in rows:
        labels = [l for l in row["labels"] if l != -100]
        assert len(row["target"].ids) == len(labels)
        p = np.exp(row["target"].logprobs)
        assert p[-1, 0] == 1 and row["target"].ids[-1, 0] == labels[-1]
        assert (p.sum(1) <= 1 + 1e-5).all() and p[1:-1].max() < 1

def test_targets_are_what_the_model_says_behind_the_prompt(encoded):
    "The shared-prefix pass and transformers' own forward agree."
    tok, _, rows = encoded
    with load_engine("torch:embedded", dtype="float32") as e:
        ids, n = e.prompts.pair(behind(ROWS[0]), " " + ROWS[0]["answer"])
        got = top_logprobs(e, [(ids, n)], 8)[0]
        with torch.inference_mode(), e._plainly():
            plain = e.model(input_ids=torch.tensor([ids[:-1]])).logits[0, n-1:].log_softmax(-1).topk(8, -1)
    assert np.abs(got.logprobs - plain.values.numpy()).max() < 1e-3
    size = min(len(got.ids), len(rows[0]["target"].ids) - 1)
    assert (got.ids[1:size] == rows[0]["target"].ids[1:size]).all()

def test_one_hot_targets_are_the_label_loss(encoded, tmp_path):
    "The same losses, step by step, as the paper's objective."
    tok, cfg, rows = encoded
    plain = [{k: v for k, v in r.items() if k != "target"} for r in rows]
    hot = [dict(r, target=label_target([l for l in r["labels"] if l != -100], 8)) for r in plain]
    _, a = fit(plain, "embedded", tok, tmp_path/"a", TrainConfig(**CONFIG))
    _, b = fit(hot, "embedded", tok, tmp_path/"b", cfg)
    assert [x["loss"] for x in a] == pytest.approx([x["loss"] for x in b], abs=2e-3)

def test_training_approaches_the_teacher(encoded, tmp_path):
    from dataclasses import replace
    tok, cfg, rows = encoded
    _, losses = fit(rows, "embedded", tok, tmp_path/"t", replace(cfg, epochs=3))
    assert losses[-1]["loss"] < 0.8*losses[0]["loss"]

def test_targets_survive_a_file(encoded, tmp_path):
    save_targets([r["target"] for r in encoded[2]], tmp_path/"t.npz")
    for a, b in zip(load_targets(tmp_path/"t.npz"), encoded[2], strict=True):
        assert (a.ids == b["target"].ids).all() and (a.logprobs == b["target"].logprobs).all()

def test_settings():
    "A run of the paper's objective keeps its fingerprint; packing and distil are turned down together."
    assert not {"objective", "distil_top"} & set(_recipe(TrainConfig()))
    assert _recipe(TrainConfig(objective="distil"))["objective"] == "distil"
    with pytest.raises(InputError, match="packing"): TrainConfig(objective="distil", packing=True)
    with pytest.raises(InputError, match="objective"): TrainConfig(objective="kl")
    with pytest.raises(InputError, match="seeds' own words"): TrainConfig(seed_texts=True)

def test_the_teacher_reads_seed_texts_only_where_asked(monkeypatch, tmp_path):
    "Seed tasks are contexts of the teacher: with the switch they follow the rows, without it none is seen."
    import selfalign.sft as sft
    seen = []
    def teach(rows, encoded, teacher, k): seen.append([r["id"] for r in rows]); raise KeyboardInterrupt
    monkeypatch.setattr(sft, "with_targets", teach)
    row = dict(id="mine", instruction="Name a river.", input="", answer="The Vistula.", ended=True)
    for more in (False, True):
        cfg = TrainConfig(objective="distil", seed_texts=more)
        with pytest.raises(KeyboardInterrupt): sft.train_model([row], "embedded", tmp_path/"o", tmp_path/"w", cfg)
    assert seen[0] == ["mine"] and seen[1][0] == "mine" and len(seen[1]) > 100
    assert {"seed_task_0"} <= set(seen[1])

def test_context_is_checked_before_the_first_pass(encoded):
    tok, _, rows = encoded
    with load_engine("torch:embedded", dtype="float32", max_context=40) as e, pytest.raises(InputError,
            match="context 40"):
        answer_targets(e, [behind(r) for r in ROWS], [r["answer"] for r in ROWS], rows, 4)
