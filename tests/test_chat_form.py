"The principles as a chat: stage 2 asks so, lift and teacher read them so, and a model without a chat is told first."
from dataclasses import replace

import numpy as np
import pytest
import torch

from selfalign.annotations import example_rows
from selfalign.checks import InputError
from selfalign.config import EngraveConfig, RespondConfig, TrainConfig, config_from, load_config
from selfalign.distil import divergence
from selfalign.encoding import encode_rows, plain_messages, plain_prompts
from selfalign.gate import check_before, check_principles, outline
from selfalign.generation import ScriptedEngine, load_engine
from selfalign.human import OURS
from selfalign.models import load_model, load_tokenizer
from selfalign.principle_engraving import PrincipleSet, load_principle_set, parse_response, respond
from selfalign.principle_pairs import FORM, UPTAKE, behind_principles, in_their_form, load_pairs, score_principles
from selfalign.rows import read_jsonl, write_jsonl
from selfalign.runs import Run
from selfalign.sft import answer_plainly, control_prompt, teacher_engine, with_targets
from selfalign.tokens import with_chat_template

CHAT, TEXT = PrincipleSet.load(form="chat"), PrincipleSet.load()
REPLY = ("Aster (internal thoughts): Role: Aster, AI assistant. Request: a question. Rules: 2 (informative).\n\nAster: "
    "A river carries water from the hills to the sea, and on its way it feeds fields, mills and towns beside it.")
ROW = dict(id="1", instruction="Tell me about rivers.", input="")


@pytest.fixture
def run(tmp_path):
    with Run(tmp_path / "r", say=lambda s: None) as r:
        with r.stage("prompts", {}, files=["prompts.jsonl"]): write_jsonl(r / "prompts.jsonl", [ROW])
        yield r


def test_both_forms_say_the_same():
    "Every word of the text form's header, rules and exemplars stands in the chat, and nothing else but the query."
    said = "\n".join(m["content"] for m in CHAT.render("Why?"))
    words = lambda text: " ".join(text.split())
    text = TEXT.render("Why?")
    for p in ("User:", "### Example", "## Examples"): text = text.replace(p, "\n")
    kept = [l for l in text.splitlines() if words(l) and not words(l).isdigit()]
    assert kept[-1] == "Aster (internal thoughts):" and kept[-2].strip() == "Why?"
    assert all(words(l) in words(said) for l in kept)
    assert len(words(said)) <= len(words("\n".join(kept)))


def test_stage_2_asks_in_turns_and_parses_the_reply(run):
    asked = []
    def answer(prompt, index, seed): return asked.append(prompt) or REPLY
    rec = respond(run, ScriptedEngine(answer), RespondConfig(min_chars=20, form="chat"))
    row, = read_jsonl(run / "responses.jsonl")
    assert rec["kept"] == 1 and row["answer"].startswith("A river") and row["cited"] == [2]
    assert row["raw"] == REPLY and row["thoughts"].startswith("Role: Aster")
    assert [m["role"] for m in asked[0]] == ["system"] + ["user", "assistant"] * 6 + ["user"]
    assert asked[0][-1]["content"] == "Tell me about rivers."


@pytest.mark.parametrize("reply, why", [("A river carries water from the hills to the sea and feeds fields.",
    "missing role"), (REPLY.split("\n\n")[0], "missing answer"), (REPLY + "\n\nUser: More?\n\nAster: No.", None)])
def test_faults_are_found_as_in_the_form_of_a_text(reply, why):
    text = reply.removeprefix("Aster (internal thoughts):")
    a, b = parse_response(reply, CHAT), parse_response(text, TEXT)
    assert (a.thoughts, a.answer, a.role, a.cited) == (b.thoughts, b.answer, b.role, b.cited)
    assert a.role == (why != "missing role") and (a.answer is None) == bool(why)


def test_the_form_is_a_setting_that_older_runs_do_not_have(run):
    "Text is what they did; the other form makes other answers."
    cfg = RespondConfig(min_chars=20)
    answer = lambda p, i, s: REPLY if isinstance(p, list) else REPLY.removeprefix("Aster (internal thoughts):")
    respond(run, ScriptedEngine(answer), cfg)
    assert "form" not in run.manifest["stages"]["responses"]["settings"]
    assert load_principle_set(replace(cfg, form="chat")).form == "chat" and config_from({}).respond.form == "text"
    with pytest.raises(InputError, match="form"): respond(run, ScriptedEngine(answer), replace(cfg, form="chat"))
    with pytest.raises(InputError, match="form is 'talk'"): replace(cfg, form="talk")


def test_a_model_without_a_chat_template_is_told_before_the_first_token():
    model, tok = outline("embedded")
    check_principles(RespondConfig(form="chat"), None, model, tok)
    tok.chat_template = None
    check_principles(RespondConfig(), None, model, tok)
    with pytest.raises(InputError, match="respond.form is chat: .*no chat template.*set respond.form to text"):
        check_principles(RespondConfig(form="chat"), None, model, tok)


def test_a_chat_that_leaves_no_room_is_told_before_the_first_token():
    demo = load_config("demo")
    cfg = replace(demo, respond=replace(demo.respond, form="chat", max_new_tokens=7000))
    with pytest.raises(InputError, match="no room for a query and 7000 new tokens"):
        check_before(cfg, "embedded", ["respond"], ["respond"])


def test_teacher_and_student_read_the_same_tokens_of_an_answer():
    "In one template the whole answer has a teacher, its first token too."
    tok, told = with_chat_template(load_tokenizer("embedded")), []
    cfg = TrainConfig(global_batch=2, micro_batch=2, identity_share=0, objective="distil", distil_top=8)
    rows, _ = encode_rows([dict(r, ended=True) for r in example_rows("responses")][:3], tok, cfg, told=told)
    taught = with_targets(told, rows, (*teacher_engine("embedded"), behind_principles(CHAT)), 8)
    for row in taught:
        p = np.exp(row["target"].logprobs)
        assert p[-1, 0] == 1 and p[0].max() < 1 and (p[:-1].sum(1) > .2).all()


def test_a_control_arm_in_its_own_form_has_nothing_to_learn():
    "Its teacher reads what the student reads, so the divergence is zero before the first step; behind the rules it is not."
    tok, told = with_chat_template(load_tokenizer("embedded")), []
    cfg = TrainConfig(global_batch=2, micro_batch=2, identity_share=0, objective="distil", distil_top=8)
    rows, _ = encode_rows([dict(r, ended=False) for r in example_rows("responses")][:2], tok, cfg, told=told)
    model, _ = load_model("embedded", dtype=torch.float32, device="cpu")
    def far(behind):
        taught = with_targets(told, rows, (*teacher_engine("embedded"), behind), 8)
        with torch.inference_mode():
            logits = [model(input_ids=torch.tensor([r["input_ids"]])).logits[0, :-1] for r in rows]
        return [divergence(x[-len(r["target"].ids):], torch.tensor(r["target"].ids),
            torch.tensor(r["target"].logprobs)).mean().item() for x, r in zip(logits, taught)]
    assert max(map(abs, far(lambda r: control_prompt(r, form="chat")))) < 0.02
    assert min(far(behind_principles(CHAT))) > 0.02


def test_uptake_is_measured_in_that_form():
    "Without rules and exemplars the chat is the model's own, and the shared prefix scores as the whole pass does."
    pairs = load_pairs()[:2]
    with load_engine("torch:embedded", dtype="float32") as e:
        ways = {"base": plain_prompts(with_chat_template(load_tokenizer("embedded"))), FORM: in_their_form(CHAT),
            UPTAKE: behind_principles(CHAT)}
        got = {n: score_principles(e, pairs, ask) for n, ask in ways.items()}
        e.why_plain = "a test"
        again = score_principles(e, pairs, ways[UPTAKE])
    assert {len(s.rows) for s in got.values()} == {2}
    assert got[UPTAKE].odds() == pytest.approx(again.odds(), abs=1e-2) and got[UPTAKE].odds() != got[FORM].odds()


def test_the_control_arm_is_asked_in_the_same_form(run):
    "Its prompt is then the student's own, so a teacher of the same weights has nothing to teach."
    text, chat = control_prompt(ROW), control_prompt(ROW, form="chat")
    assert isinstance(text, str) and chat == plain_messages(ROW, OURS.systems)
    asked = []
    def answer(prompt, index, seed): return asked.append(prompt) or REPLY
    respond(run, ScriptedEngine(answer), RespondConfig(min_chars=20, form="chat"))
    answer_plainly(run, ScriptedEngine(answer), EngraveConfig(held_out=0), form="chat")
    assert asked[-1] == chat and len(asked) == 2
