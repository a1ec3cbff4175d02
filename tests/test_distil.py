"Distillation: the teacher's distribution reaches the loss token by token, and the label loss stays what it was."

import numpy as np
import pytest
import torch
from selfalign import sft
from selfalign.annotations import example_rows, query_text
from selfalign.checks import InputError
from selfalign.config import EngraveConfig, RespondConfig, TrainConfig, load_config
from selfalign.distil import answer_targets, divergence, label_target, load_targets, save_targets, top_logprobs
from selfalign.encoding import encode_rows
from selfalign.gate import check_before, check_trainable, outline
from selfalign.generation import load_engine
from selfalign.models import load_model, load_tokenizer
from selfalign.principle_engraving import load_principle_set
from selfalign.principle_pairs import behind_principles, in_their_form
from selfalign.rows import write_jsonl
from selfalign.runs import Run
from selfalign.sft import control_prompt, teacher_engine, with_targets
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

def test_the_first_token_is_told_by_its_twin(encoded):
    "The teacher's ` I` is the student's `I`, with the teacher's probability; a word without a twin is left out."
    tok, _, rows = encoded
    for row, x in zip(ROWS, rows):
        with load_engine("torch:embedded", dtype="float32") as e, torch.inference_mode(), e._plainly():
            logits = e.model(input_ids=torch.tensor([e.prompts.encode(behind(row))])).logits[0, -1]
        lp, ids = logits.log_softmax(-1).topk(8)
        bare = [tok(t.removeprefix(" "))["input_ids"] for t in tok.batch_decode(ids[:, None])]
        want = {b[0]: p for b, p in zip(bare, lp.tolist()) if len(b) == 1}
        first = x["target"]
        got = {int(i): float(p) for i, p in zip(first.ids[0], first.logprobs[0]) if np.isfinite(p)}
        assert got == pytest.approx(want, abs=1e-3) and len(got) > 3

def test_an_answer_of_one_word_has_a_first_token_too(encoded):
    tok, label = encoded[0], encoded[0]("Yes")["input_ids"]
    with load_engine("torch:embedded", dtype="float32") as e:
        row = dict(labels=[-100, *label, tok.eos_token_id])
        t, = answer_targets(e, ["Is it?\n\nAster:"], ["Yes"], [row], 8)
        assert len(label) == 1 and np.exp(t.logprobs[0]).max() < 1 and len(t.ids) == 2
        other = dict(labels=[-100, *tok("Never ever")["input_ids"][:2]]) # cut otherwise: read as it is, but the first
        t, = answer_targets(e, ["Is it?\n\nAster:"], ["Yes, it is."], [other], 8)
    assert t.ids[0, 0] == other["labels"][1] and np.exp(t.logprobs[0, 0]) == 1 > np.exp(t.logprobs[1]).max()

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

def test_targets_are_not_asked_for_again_after_a_stop(encoded, tmp_path, monkeypatch):
    "Those of the same rows, prompts and width are read; others are told anew; a finished training leaves no file."
    plain = [{k: v for k, v in r.items() if k != "target"} for r in encoded[2]]
    asked, keep = [], tmp_path/"work"/"engraved.targets.npz"
    real = sft.answer_targets
    monkeypatch.setattr(sft, "answer_targets", lambda *a, **kw: asked.append(1) or real(*a, **kw))
    taught = lambda ask, k=8: with_targets(ROWS, plain, (*teacher_engine("embedded"), ask), k, keep)
    first, again = taught(behind), taught(behind)
    assert len(asked) == 1 and all((a["target"].logprobs == b["target"].logprobs).all() for a, b in zip(first, again))
    taught(alone)
    taught(alone, 4)
    assert len(asked) == 3
    cfg = EngraveConfig(**CONFIG, objective="distil", distil_top=4)
    stop = lambda *a, **kw: (_ for _ in ()).throw(KeyboardInterrupt())
    fit_, asks = sft.fit, (*teacher_engine("embedded"), behind)
    monkeypatch.setattr(sft, "fit", stop)
    train = lambda: sft.train_model(ROWS, "embedded", tmp_path/"out", tmp_path/"work"/"engraved", cfg, teacher=asks)
    with pytest.raises(KeyboardInterrupt): train()
    assert keep.exists() and len(asked) == 4
    monkeypatch.setattr(sft, "fit", fit_)
    train()
    assert len(asked) == 4 and not keep.exists() and (tmp_path/"out").exists()

def test_settings():
    "A run of the paper's objective keeps its fingerprint; packing and distil are turned down together."
    assert not {"objective", "distil_top"} & set(_recipe(TrainConfig()))
    assert _recipe(TrainConfig(objective="distil"))["objective"] == "distil"
    with pytest.raises(InputError, match="packing"): TrainConfig(objective="distil", packing=True)
    with pytest.raises(InputError, match="objective"): TrainConfig(objective="kl")
    with pytest.raises(InputError, match="seeds' own words"): TrainConfig(seed_texts=True)

def test_the_teacher_reads_seed_texts_only_where_asked(monkeypatch, tmp_path):
    "Seed tasks are contexts of the teacher: with the switch they follow the rows, without it none is seen."
    seen = []
    def teach(rows, encoded, teacher, k, keep, weight):
        assert weight == 1.5
        seen.append([r["id"] for r in rows])
        raise KeyboardInterrupt
    monkeypatch.setattr(sft, "with_targets", teach)
    row = dict(id="mine", instruction="Name a river.", input="", answer="The Vistula.", ended=True)
    for more in (False, True):
        cfg = TrainConfig(objective="distil", seed_texts=more)
        with pytest.raises(KeyboardInterrupt):
            sft.train_model([row], "embedded", tmp_path/"o", tmp_path/"w", cfg, weight=1.5)
    assert seen[0] == ["mine"] and seen[1][0] == "mine" and len(seen[1]) > 100
    assert {"seed_task_0"} <= set(seen[1])

def test_context_is_checked_before_the_first_pass(encoded):
    tok, _, rows = encoded
    with load_engine("torch:embedded", dtype="float32", max_context=40) as e, pytest.raises(InputError,
            match="context 40"):
        answer_targets(e, [behind(r) for r in ROWS], [r["answer"] for r in ROWS], rows, 4)


def alone(row): return f"User: {query_text(row)}\n\nAster:"

@pytest.fixture(scope="module")
def own(encoded): # the student's log-probabilities at each answer token, by transformers
    model, _ = load_model("embedded", dtype=torch.float32, device="cpu")
    with torch.inference_mode():
        logits = [model(input_ids=torch.tensor([r["input_ids"]])).logits[0, :-1] for r in encoded[2]]
    return [x[-len(r["target"].ids):] for x, r in zip(logits, encoded[2])]

def moved(encoded, *asks, weight=1.):
    plain = [{k: v for k, v in r.items() if k != "target"} for r in encoded[2]]
    return [r["target"] for r in with_targets(ROWS, plain, (*teacher_engine("embedded"), *asks), 8, weight=weight)]

def far(own, targets):
    return [divergence(x, torch.tensor(t.ids), torch.tensor(t.logprobs)).mean().item() for x, t in zip(own, targets)]

def test_what_the_form_alone_does_is_not_learnt(encoded, own):
    "Prompts that do not differ move nothing, however far both are from the student's; the principles' part is moved."
    assert max(map(abs, far(own, moved(encoded, alone, alone)))) < 0.02
    assert min(far(own, [r["target"] for r in encoded[2]])) > 0.1
    assert min(far(own, moved(encoded, behind, alone))) > 0.02

@pytest.mark.parametrize("weight", [1., 1.5])
def test_moved_targets_are_own_times_the_ratio(encoded, own, weight):
    "Against the formula, with transformers' own forward; the end of a turn stays the student's."
    row, x, target = ROWS[0], own[0].log_softmax(-1), moved(encoded, behind, alone, weight=weight)[0]
    with load_engine("torch:embedded", dtype="float32") as e, torch.inference_mode(), e._plainly():
        def told(ask):
            ids, n = e.prompts.pair(ask(row), " " + row["answer"])
            return e.model(input_ids=torch.tensor([ids])).logits[0, n-1:-1].log_softmax(-1)
        ratio = told(behind) - told(alone)
    tok, vocab = encoded[0], encoded[0].get_vocab()
    for j in (0, 1, 2, 5):
        ids = torch.tensor(target.ids[j], dtype=torch.int64)
        assert ids.tolist() == x[j].topk(8).indices.tolist()
        twins = [vocab.get("Ġ" + w) for w in tok.convert_ids_to_tokens(ids.tolist())] if j == 0 else ids.tolist()
        by = torch.tensor([0. if i is None else ratio[j, i] for i in twins])
        assert by.abs().max() > 0.1
        p = (x[j, ids] + weight*by).exp()
        whole = p.sum() + 1 - x[j, ids].exp().sum()
        assert np.exp(target.logprobs[j]) == pytest.approx((p/whole).numpy(), rel=0.02, abs=1e-5)
    assert target.logprobs[-1] == pytest.approx(x[-1].topk(8).values.numpy(), abs=1e-3)

def test_from_its_own_distribution_is_a_setting_of_stage_3(monkeypatch):
    "Runs that were made before go on; labels have no teacher; a model that knows no chat is told before the first token."
    assert not {"distil_from", "distil_weight"} & set(_recipe(EngraveConfig(objective="distil")))
    assert _recipe(EngraveConfig(objective="distil", distil_from="own"))["distil_from"] == "own"
    with pytest.raises(InputError, match="engrave.distil_from is own and engrave.objective is labels"):
        EngraveConfig(distil_from="own")
    with pytest.raises(InputError, match="engrave.distil_weight is 1.5 and engrave.distil_from is prompt"):
        EngraveConfig(objective="distil", distil_weight=1.5)
    with pytest.raises(InputError, match="distil_weight"):
        EngraveConfig(objective="distil", distil_from="own", distil_weight=0)
    recipe = _recipe(EngraveConfig(objective="distil", distil_from="own", distil_weight=1.5))
    assert recipe["distil_weight"] == 1.5
    cfg = load_config("demo", engrave=EngraveConfig(objective="distil", distil_from="own"))
    check_before(cfg, "embedded", ["engrave"], ["engrave"])
    model, tok = outline("embedded")
    tok.chat_template = None
    with_template = EngraveConfig(objective="distil")
    check_trainable(model, with_chat_template(tok), "gemma", engrave=with_template)
    tok.chat_template = None
    with pytest.raises(InputError, match="engrave.distil_from is own, and gemma has no chat template"):
        check_trainable(model, tok, "gemma", engrave=cfg.engrave)

@pytest.mark.parametrize("source", ["prompt", "own"])
def test_stage_3_hands_its_teachers_on(source, monkeypatch, tmp_path):
    "The engraved model's teachers differ by the principles, the control arm's by nothing."
    taught, pset = {}, load_principle_set(RespondConfig())
    def train(rows, base, out, *_, teacher, weight, **kw):
        assert weight == cfg.distil_weight
        taught[out.name] = teacher[2:]
        out.mkdir()
        return dict(answer_tokens=1)
    monkeypatch.setattr(sft, "train_model", train)
    cfg = EngraveConfig(objective="distil", distil_from=source, held_out=0, distil_weight=1.5 if source == "own" else 1.)
    with Run(tmp_path/"run") as run:
        for stage, name in (("responses", "responses.jsonl"), ("control answers", "control_answers.jsonl")):
            with run.stage(stage, {}, files=[name]):
                write_jsonl(run/name, ROWS)
        sft.engrave(run, "embedded", cfg, behind=behind_principles(pset), alone=in_their_form(pset))
        sft.engrave_control(run, "embedded", cfg)
    ask, bare = taught["engraved"]
    assert pset.rules() in ask(ROWS[0])
    if source == "prompt": assert (bare, taught["control"][1]) == (None, None)
    else:
        assert pset.rules() not in bare(ROWS[0]) and bare(ROWS[0]).endswith("Aster:")
        assert taught["control"][0](ROWS[0]) == taught["control"][1](ROWS[0]) == control_prompt(ROWS[0])
