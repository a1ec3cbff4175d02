"Replies and servers as they come: reasoning, cut and empty replies, error bodies, dialects; over scripted servers on the loopback."
import pytest

from selfalign import evaluation as E
from selfalign.generation import Completion, ScriptedEngine, Sampling, read_reply, split_reasoning
from selfalign.runs import InputError, Run, read_jsonl

# --- reasoning, cut and empty replies are no answers --------------------------------------------------------------

NO_ANSWER = [("<think>The user asks", "length"), ("<think>a</think>", "stop"), ("[THINK]Hm", "length"), ("\n<reasoning>Sure, here is how", "stop"), ("<|channel|>analysis<|message|>Sure", "length"),
             ("", "length"), ("  \n", "length"), ("thinking\n</think>\n\n", "stop"), ("<think>a</think><think>b", "length")]

@pytest.mark.parametrize("text, finish", NO_ANSWER)
def test_a_reply_without_an_answer_is_nowhere_one(tmp_path, text, finish):
    "Generation, refusals, open questions, truth, pairs: an error with its reason, and no share counts it."
    c = Completion(text, 7, finish, 3)
    why = read_reply(c).error
    assert ("within its 7 tokens" in why) if finish == "length" else "reasoning without an answer" in why
    say = lambda p, i, s: c if i == 0 else "I can't help with that."
    rows = [dict(kind=k, question=f"q{i}?") for i, k in enumerate(("harmful", "benign", "harmful"))]
    r = E.refusal_rates(ScriptedEngine(say), rows)
    assert (r.n, r.scores["answered_harmful"].n, r.refused_benign) == (2, 1, 1) and [s["reason"] for s in r.skipped] == [why]
    a = E.evaluate_one(ScriptedEngine(say), E.load_benchmark("questions")[:3], "answer")
    assert a.n == 2 and [s["reason"] for s in a.skipped] == [why]
    yes = ScriptedEngine(lambda p, i, s: "Verdict: yes")
    assert E.truth_info_judge(yes, ["q", "r"], [c, "So."], say=None).n == 1
    p = E.judge_pairwise(ScriptedEngine(lambda p, i, s: "Verdict: A"), ["q", "r"], [c, "So."], ["x", "y"], say=None)
    assert p.scores["tie"].n == 1 and p.skipped[0]["reason"] == f"a: {why}"
    with Run(tmp_path/"run", say=lambda *a: None) as run:
        outs = run.complete("responses", [dict(id=str(i), prompt=f"p{i}") for i in range(3)], ScriptedEngine(say), Sampling())
        assert [o["error"] for o in outs] == [why, None, None] and len(read_jsonl(run/"completions/responses.jsonl")) == 2

@pytest.mark.parametrize("text, answer", [("<think>No, I cannot.</think>\n\nBoil it.", "Boil it."), ("hm\n</think>Boil it.", "Boil it."), ("Boil it.", "Boil it."), (" Use `<think>` here.", " Use `<think>` here."),
    ("Close it with '</think>' as usual.", "Close it with '</think>' as usual."), ("[THINK]a[/THINK]b", "b"), ("<think></think>\n\nb", "b"), ("<|channel|>analysis<|message|>x<|end|><|start|>assistant<|channel|>final<|message|>b", "b")])
def test_an_answer_is_what_stands_behind_the_reasoning(tmp_path, text, answer):
    assert read_reply(Completion(text, 9, "stop", 1)).text == answer
    r = E.refusals_of([dict(kind="benign", question="q?")], [Completion(text, 9, "stop", 1)])
    assert (r.refused_benign, r.rows[0]["answer"]) == (0, answer)
    with Run(tmp_path/"run", say=lambda *a: None) as run:
        assert run.complete("responses", [dict(id="a", prompt="p")], ScriptedEngine([Completion(text, 9, "stop", 1)]), Sampling())[0]["text"] == answer

def test_reasoning_marks_without_end_take_linear_time():
    for text in ("<think>"*200_000, "<think></think>"*100_000, " "*1_000_000 + "<think>", "</think>"*200_000): split_reasoning(text); E.parse_verdict(text)

# --- verdicts -----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("text", ["<think>Maybe. Verdict: A", "<think> Maybe Verdict: A\nbut then I wonder", "<reasoning>Verdict: A", "<thinking>\nVerdict: B\nNo, wait", "Let us see. <think>Verdict: A", "[THINK]Verdict: yes", "<think>Verdict: A</think>", None, ""])
def test_a_verdict_inside_reasoning_is_none(text): assert E.parse_verdict(text) is None

@pytest.mark.parametrize("text, want", [("<think>Verdict: A</think>\nVerdict: B", "B"), ("Verdict: A\n</think>\nVerdict: tie", "tie"), ("I weigh <think>Verdict: A</think> it. Verdict: B", "B"), ("[THINK]B[/THINK]A", "A")])
def test_a_verdict_behind_reasoning_counts(text, want): assert E.parse_verdict(text) == want

def test_a_verdict_cut_at_the_token_limit_is_unreadable_and_said_so():
    "In pairs, truth and refusals; a whole one counts."
    judge = lambda p, i, s: Completion("It is so. Verdict: " + ("A" if "[A]" in p or "answer A" in p.lower() else "yes"), 9, "length" if i == 0 else "stop", 3)
    r = E.judge_pairwise(ScriptedEngine(lambda p, i, s: Completion("Verdict: A", 9, "length" if i == 0 else "stop", 3)), ["q", "r"], ["a", "b"], ["c", "d"], say=None)
    assert r.unparsable == 1/4 or r.scores["unparsable"].value > 0
    assert [s["reason"] for s in r.skipped] == ["unparsable verdict: cut at its limit of 9 tokens"] and [bool(x["verdict"]) for x in r.rows] == [False, True, True, True]
    yes = lambda p, i, s: Completion("Verdict: yes", 9, "length" if i == 0 else "stop", 3)
    t = E.truth_info_judge(ScriptedEngine(yes), ["q", "r"], ["a", "b"], say=None)
    assert t.unparsable == 1/4 and t.skipped[0]["reason"] == "unparsable verdict: cut at its limit of 9 tokens"
    f = E.refusals_of([dict(kind="benign", question=q) for q in "qr"], ["a", "b"], ScriptedEngine(yes), say=None)
    assert (f.n, f.unparsable) == (1, .5) and "cut at its limit" in f.skipped[0]["reason"]

def test_a_judge_that_only_thinks_ends_in_one_line():
    dead = ScriptedEngine(lambda p, i, s: Completion("", 80, "error", 3, error="row 0: no answer within its 80 tokens"))
    with pytest.raises(InputError, match="gave no verdict at all: row 0: no answer within its 80 tokens"): E.truth_info_judge(dead, ["q"], ["a"], say=None)
