"What a model does when it is asked: words that were checked, a judge, and paired tests against the base."
import json
import pytest

from selfalign.annotations import data_path
from selfalign.app.cli import main
from selfalign.checks import InputError
from selfalign.evals.behaviour import Trait, behaviour, behaviour_of, changes, load_traits, shows_by_words
from selfalign.evals.harness import evaluate_models
from selfalign.evals.refusals import refusals_of
from selfalign.evals.sets import load_benchmark
from selfalign.generation import ScriptedEngine

TRAITS = load_traits()
PROBES = load_benchmark("behaviour")

def test_labels_are_whole_and_balanced():
    rows = [json.loads(l) for l in data_path("labels/behaviour.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len({r["id"] for r in rows}) == 120 and len({(r["instruction"], r["answer"]) for r in rows}) == 120
    for t in TRAITS: assert [r["shows"] for r in rows if r["trait"] == t].count(True) == 12
    asked = {r["instruction"] for r in PROBES} | {r["instruction"] for r in load_benchmark("principles_tuning")}
    assert not [r["instruction"] for r in rows if r["instruction"] in asked]  # questions of their own

def test_words_that_were_not_checked_do_not_speak():
    wrong = {n: Trait(t.name, t.rule, t.shows, t.words, (30, 44)) for n, t in TRAITS.items()}
    assert not any(t.by_words for t in wrong.values()) and not Trait("new", 1, "x", ("y",)).by_words
    assert all(t.by_words for t in TRAITS.values())

def test_probes_are_held_out_and_carry_no_answer():
    held = {r["id"]: r for r in load_benchmark("principles")}
    assert len(PROBES) == 50 and all(p["instruction"] == held[p["id"]]["instruction"] for p in PROBES)
    assert not {"keeping", "breaking"} & {k for p in PROBES for k in p}

@pytest.mark.parametrize("side, low, high", [("keeping", 0.85, 1), ("breaking", 0, 0.15)])
def test_answers_that_keep_or_break_the_rules_are_told_apart(side, low, high):
    answers = {r["id"]: r[side] for r in load_benchmark("principles")}
    assert low <= behaviour_of(PROBES, [answers[p["id"]] for p in PROBES])["kept"] <= high

def test_an_answer_that_failed_is_skipped_and_told():
    answers = [dict(answer="", error="no answer")] + ["It is five."]*49
    got = behaviour_of(PROBES, answers)
    assert [s["reason"] for s in got.skipped] == ["no answer"] and len(got.rows) == 49
    with pytest.raises(InputError, match="all 50 questions were skipped: no answer"):
        behaviour_of(PROBES, answers[:1]*50)

def test_a_folder_may_bring_traits_of_its_own(tmp_path):
    entry = "- {name: polite, rule: 3, shows: The answer says please., words: ['\\bplease\\b']}\n"
    (tmp_path/"behaviour.yaml").write_text(entry)
    row = dict(trait="polite", kind="applies", instruction="Ask for salt.")
    with pytest.raises(InputError, match="the words of polite were not checked; give a judge"):
        behaviour_of([row], ["Salt, please."], folder=tmp_path)
    judge = ScriptedEngine(lambda p, i, s: "Verdict: yes" if "says please" in p else "Verdict: no")
    assert behaviour_of([row], ["Salt, please."], judge, folder=tmp_path, say=None)["kept"] == 1
    (tmp_path/"behaviour.yaml").write_text(entry.replace("\\bplease", "(please"))
    with pytest.raises(InputError, match="is no pattern"): load_traits(folder=tmp_path)

def test_changes_are_paired_for_behaviour_and_refusals():
    rows = load_benchmark("refusals")
    declines, helps = ["I can't help with that."]*len(rows), ["Here is how it is done."]*len(rows)
    res = [refusals_of(rows, a, model=dict(name=n)) for n, a in (("base", helps), ("final", declines))]
    found = {c["what"].rpartition(", ")[2]: c for c in changes(res)["final"]}
    assert set(found) == {"refused_benign", "answered_harmful"}
    harmful = found["answered_harmful"]
    assert (harmful["base"], harmful["own"]) == (1, 0) and harmful["p"] < 0.001
    assert found["refused_benign"]["own"] == 1 and changes(res[1:]) == {}

def test_the_set_is_evaluated_saved_and_read_by_a_judge_later(tmp_path, capsys, monkeypatch):
    engine = ScriptedEngine(lambda *a: "Which one do you mean?")
    got = evaluate_models({"m": engine}, "behaviour", tmp_path/"o", say=None)[0]
    assert got.task == "behaviour" and got["clarification"] == 0.6
    judge = ScriptedEngine(lambda p, i, s: "Verdict: yes" if "asks the user" in p else "Verdict: no")
    monkeypatch.setattr("selfalign.app.judge.load_engine", lambda spec: Same(judge))
    saved = next((tmp_path/"o").glob("*.json"))
    argv = ["judge", str(saved), "--questions", "behaviour", "--judge", "torch:embedded", "--out", str(tmp_path/"j")]
    assert main(argv) == 0
    assert "clarification" in capsys.readouterr().out

class Same:
    "A context manager for an engine that is there."
    def __init__(self, engine): self.engine = engine
    def __enter__(self): return self.engine
    def __exit__(self, *exc): pass

@pytest.mark.parametrize("change, words", [
    (dict(trait=""), "trait is ''"), (dict(kind="harmful"), "it must be applies or near_miss")])
def test_a_row_that_cannot_be_read_is_told(change, words):
    with pytest.raises(InputError, match=words): behaviour(ScriptedEngine(lambda *a: "x"), [dict(PROBES[0], **change)])

def test_words_read_curly_apostrophes_as_straight_ones():
    assert shows_by_words(TRAITS["candor"], "I don’t know that.")
    assert not shows_by_words(TRAITS["candor"], "It is Lima.")
