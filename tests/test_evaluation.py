"Evaluation: bad input in one line, known verdicts in, known rates out, results that come back from the disk."
import json, math, random
from pathlib import Path

import numpy as np
import pytest
from selfalign import evaluation as E
from selfalign.annotations import data_path, load_template
from selfalign.checks import InputError
from selfalign.generation import Completion, ScriptedEngine, load_engine

DATA = Path(__file__).parent/"data"
MC, HHH, VICUNA = (DATA/f for f in ("truthfulqa_mc.jsonl", "hhh.jsonl", "vicuna_questions.jsonl"))
flat = ScriptedEngine(scores=lambda p, c: -len(c)/7)

def one_line(error):
    text = str(error.value)
    assert "\n" not in text and len(text) < 400, text
    return text

@pytest.fixture
def bad_set(tmp_path):
    "Writes a set whose second row was changed, and reads it."
    def make(source, change):
        rows = [json.loads(l) for l in source.read_text(encoding="utf-8").splitlines()[:2]]
        change(rows[1])
        path = tmp_path/"set.jsonl"; path.write_text("\n".join(json.dumps(r) for r in rows))
        with pytest.raises(InputError) as e: E.load_benchmark(path)
        text = one_line(e)
        assert "set.jsonl:2" in text, text
        return text
    return make

def put(key, **kw): return lambda r: r[key].update(kw)

# --- sets

@pytest.mark.parametrize("name,n", [("facts", 40), ("choices", 40), ("questions", 20), ("refusals", 40)])
def test_our_sets(name, n): assert len(E.load_benchmark(name)) >= n

@pytest.mark.parametrize("path,name", [(MC, "truthfulqa"), (HHH, "hhh"), (VICUNA, "vicuna")])
def test_test_rows_in_the_benchmarks_schema(path, name):
    rows = E.load_benchmark(path)
    assert len(rows) == 30 and E.schema(rows[0], "row") == name

def test_our_sets_are_not_the_benchmarks():
    names = {p.stem for p in data_path("eval/facts_mc.jsonl").parent.iterdir()}
    assert not [n for n in names if any(b in n for b in ("truthful", "vicuna")) or n == "hhh"]

def test_choices_cover_the_subsets():
    for rows in (E.load_benchmark("choices"), E.load_benchmark(HHH)):
        assert {r["subset"] for r in rows} == set(E.SUBSETS)

def test_sets_share_no_question():
    ours = [s for s in E.OUR_SETS if s != "behaviour"]  # it asks the questions of the held-out pairs
    texts = [E.question_text(r) for s in (*ours, MC, HHH, VICUNA) for r in E.load_benchmark(s)]
    assert len(texts) == len(set(texts))

def test_benchmarks_from_the_folder(monkeypatch, tmp_path):
    (tmp_path/"truthfulqa_mc.jsonl").write_bytes(MC.read_bytes())
    monkeypatch.setenv("SELFALIGN_BENCHMARKS", str(tmp_path))
    assert len(E.load_benchmark("truthfulqa")) == 30
    assert E.question_text(E.load_benchmark(MC)[0]) in E.eval_questions()
    with pytest.raises(InputError, match="hhh.jsonl"): E.load_benchmark("hhh")

def test_offline_is_one_clear_line(monkeypatch):
    monkeypatch.delenv("SELFALIGN_BENCHMARKS", raising=False)
    def fail(name): raise ConnectionError("no route\nto host")
    monkeypatch.setattr("selfalign.evals.sets._fetch", fail)
    monkeypatch.setattr("selfalign.evals.sets.hub_answers", lambda: True)
    with pytest.raises(InputError) as e: E.load_benchmark("truthfulqa")
    assert "SELFALIGN_BENCHMARKS" in one_line(e)

def test_an_unreachable_hub_fails_fast_and_leaves_the_client_as_it_was(monkeypatch, tmp_path):
    import datasets.config, huggingface_hub.constants, time, urllib.request
    def fail(*a, **kw): raise OSError("Name or service not known")
    monkeypatch.delenv("SELFALIGN_BENCHMARKS", raising=False)
    monkeypatch.setattr(urllib.request, "urlopen", fail)
    for place in (datasets.config, huggingface_hub.constants): monkeypatch.setattr(place, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path))
    start = time.monotonic()
    for name in ("truthfulqa", "hhh"):
        with pytest.raises(InputError) as e: E.load_benchmark(name)
        assert "go online" in one_line(e)
    assert time.monotonic() - start < 5 and not huggingface_hub.constants.HF_HUB_OFFLINE
    assert not datasets.config.HF_HUB_OFFLINE

@pytest.mark.skipif("SELFALIGN_BENCHMARKS" not in __import__("os").environ, reason="SELFALIGN_BENCHMARKS is not set")
def test_the_public_sets_pass_the_checks_and_hold_none_of_our_texts():
    assert [len(E.load_benchmark(b)) for b in E.BENCHMARKS] == [813, 221, 80]
    public = {E.question_text(r) for b in E.BENCHMARKS for r in E.load_benchmark(b)}
    assert not public & {E.question_text(r) for s in (*E.OUR_SETS, MC, HHH, VICUNA) for r in E.load_benchmark(s)}

# --- bad rows

def test_missing_label(bad_set):
    assert "3 labels" in bad_set(MC, put("mc1_targets", choices=list("abcd"), labels=[1, 0, 0]))
def test_no_labels(bad_set): assert "no labels" in bad_set(MC, lambda r: r["mc1_targets"].pop("labels"))
def test_one_choice(bad_set): assert "1 choice" in bad_set(MC, put("mc1_targets", choices=["a"], labels=[1]))
def test_two_right(bad_set):
    assert "marks 2 answers" in bad_set(MC, put("mc1_targets", choices=list("abc"), labels=[1, 1, 0]))
def test_none_right(bad_set):
    assert "marks 0 answers" in bad_set(MC, put("mc1_targets", choices=list("abc"), labels=[0, 0, 0]))
def test_empty_answer(bad_set):
    assert "choice 2 is empty" in bad_set(MC, put("mc2_targets", choices=["a", " "], labels=[1, 0]))
def test_odd_label(bad_set): assert "label" in bad_set(MC, put("mc1_targets", choices=["a", "b"], labels=[1, "x"]))
def test_all_right_in_mc2(bad_set):
    assert "right and wrong" in bad_set(MC, put("mc2_targets", choices=["a", "b"], labels=[1, 1]))
def test_empty_question(bad_set): assert "question is empty" in bad_set(MC, lambda r: r.update(question=""))
def test_hhh_three_choices(bad_set):
    assert "two choices" in bad_set(HHH, put("targets", choices=list("abc"), labels=[1, 0, 0]))
def test_hhh_subset(bad_set): assert "subset" in bad_set(HHH, lambda r: r.update(subset="nice"))
def test_vicuna_turns(bad_set): assert "turns" in bad_set(VICUNA, lambda r: r.update(turns=[]))

def test_empty_and_foreign_files(tmp_path):
    p = tmp_path/"x.jsonl"; p.write_text("")
    with pytest.raises(InputError) as e: E.load_benchmark(p)
    assert "no rows" in one_line(e)
    p.write_text('{"prompt": 1}\n')
    with pytest.raises(InputError) as e: E.load_benchmark(p)
    assert "x.jsonl:1" in one_line(e)

# --- multiple choice

@pytest.mark.parametrize("format", ["lm-eval", "paper"])
def test_percent_braces_and_newlines_are_text(format):
    seen = []
    rows = E.load_benchmark(MC)
    engine = ScriptedEngine(scores=lambda p, c: seen.append(p + c) or -1.0)
    nasty = dict(rows[0], question="100%s of {question} {answer} %d\n\nQ: {0}?",
        mc1_targets=dict(choices=["{question}%", "b\n{}"], labels=[1, 0]))
    assert E.truthfulqa_mc(engine, [nasty], format).n == 1
    assert all("100%s of {question} {answer} %d\n\nQ: {0}?" in s for s in seen)
    assert any("{question}%" in s for s in seen)

def test_the_place_of_the_right_answer_earns_nothing():
    "The data put the right answer first; a model without knowledge must not profit (defect 11)."
    rows = [dict(question=f"Question {i}?", mc1_targets=dict(choices=[f"r{i}", f"w{i}"], labels=[1, 0]),
        mc2_targets=dict(choices=[f"r{i}", f"w{i}"], labels=[1, 0])) for i in range(400)]
    r = E.truthfulqa_mc(ScriptedEngine(scores=lambda p, c: -2.0), rows)
    assert 0.4 < r.mc1 < 0.6 and r.mc2 == pytest.approx(0.5) and r.mc1_as_released == 1.0
    hh = [dict(subset="other", input=f"Input {i}", targets=dict(choices=[f"r{i}", f"w{i}"], labels=[1, 0]))
        for i in range(400)]
    for f in E.HHH_FORMATS: assert 0.4 < E.hhh(ScriptedEngine(scores=lambda p, c: -2.0), hh, f).overall < 0.6

def test_file_order_does_not_matter():
    rows = E.load_benchmark(MC)
    turned = [dict(r, mc1_targets={k: v[::-1] for k, v in r["mc1_targets"].items()}) for r in rows]
    assert E.truthfulqa_mc(flat, rows).mc1 == E.truthfulqa_mc(flat, turned).mc1

def test_as_released_sees_the_first_half():
    row = dict(question="Q?", mc1_targets=dict(choices=["right", "w", "wr", "x"], labels=[1, 0, 0, 0]),
        mc2_targets=dict(choices=["right", "x"], labels=[1, 0]))
    r = E.truthfulqa_mc(ScriptedEngine(scores=lambda p, c: {" right": -2, " w": -3, " wr": -1, " x": -1.5}[c]), [row])
    assert (r.mc1, r.mc1_as_released) == (0, 1)
    # the half is rounded up
    odd = dict(question="Q?", mc1_targets=dict(choices=["right", "wr", "x"], labels=[1, 0, 0]),
        mc2_targets=dict(choices=["right", "x"], labels=[1, 0]))
    r = E.truthfulqa_mc(ScriptedEngine(scores=lambda p, c: {" right": -2, " wr": -1, " x": -.5}[c]), [odd])
    assert (r.mc1, r.mc1_as_released) == (0, 0)

@pytest.mark.parametrize("score", [float("nan"), float("inf"), -float("inf")])
def test_nan_is_an_error(score):
    engine = ScriptedEngine(scores=lambda p, c: score)
    for run in (lambda: E.truthfulqa_mc(engine, E.load_benchmark(MC)), lambda: E.hhh(engine, E.load_benchmark(HHH)),
                lambda: E.internalization([dict(id=1, answer="x")], engine, engine, lambda r: "a", lambda r: "b")):
        with pytest.raises(InputError) as e: run()
        one_line(e)

class Short(ScriptedEngine):
    "Has room for few words."
    def score(self, prompts, continuations):
        out = super().score(prompts, continuations)
        for i, p in enumerate(prompts):
            if len(p.split()) > 200: out[i].error, out[i].logprob = f"row {i}: too long", math.nan
        return out

def test_a_question_longer_than_the_context_is_counted():
    rows = E.load_benchmark(MC)[:3]
    rows[1] = dict(rows[1], question="why " * 300 + "?")
    r = E.truthfulqa_mc(Short(scores=lambda p, c: -len(c)), rows)
    assert r.n == 2 and r.skipped == [dict(row=2, id=r.skipped[0]["id"], reason="too long")] and r.scores["mc1"].n == 2
    assert E.table(r)[0]["skipped"] == 1
    with pytest.raises(InputError, match="all 1 rows"): E.truthfulqa_mc(Short(scores=lambda p, c: -1), rows[1:2])

def test_equal_texts_are_scored_once():
    asked = []
    E.truthfulqa_mc(ScriptedEngine(scores=lambda p, c: asked.append((p, c)) or -1.0), E.load_benchmark(MC))
    assert len(asked) == len(set(asked))

def test_paper_format_with_a_chat_template_cancels_the_cue():
    seen = []
    r = E.truthfulqa_mc(ScriptedEngine(scores=lambda p, c: seen.append((p, c)) or -len(c)), E.load_benchmark(MC)[:2],
        "paper", chat=True, system="Be true.")
    assert r.format == "paper, chat" and isinstance(seen[0][0], list) and seen[0][0][0]["role"] == "system"
    assert {c for _, c in seen} == {"This answer is true", "This answer is false"}

# --- statistics

def test_intervals_cover():
    rng, hits = random.Random(0), 0
    for _ in range(300):
        e = E.wilson(sum(rng.random() < 0.3 for _ in range(60)), 60)
        hits += e.low <= 0.3 <= e.high
    assert 270 <= hits <= 299

def test_paired_compare_says_what_it_means():
    x = {i: 1 for i in range(100)}
    y = {i: int(i > 30) for i in range(100)}
    better = E.paired_compare(x, y, names=("new", "old"))
    assert better.p < 1e-6 and "new is better" in better.sentence and "+31.0 points" in better.sentence
    noise = E.paired_compare({i: int(i % 2) for i in range(20)}, {i: int(i % 3 == 0) for i in range(20)})
    assert noise.p > 0.05 and "chance" in noise.sentence
    assert E.paired_compare({i: .5 + .01*(i % 3) for i in range(50)}, {i: .5 for i in range(50)}).p is None

def test_rows_without_a_score_are_left_out_and_counted():
    c = E.paired_compare({1: 1, 2: None, 3: 0, 4: 1}, {1: 0, 2: 1, 3: None, 5: 1, 6: 0}, names=("new", "old"))
    assert (c.n, c.unscored, c.unshared, c.difference.value) == (1, 2, 3, 1.0) and math.isfinite(c.score_a)
    assert "Left out: 2 rows without a score, 3 rows that only one has." in c.sentence
    with pytest.raises(InputError) as e: E.paired_compare({1: None}, {1: 1})
    assert "none has a value of both" in one_line(e)

@pytest.mark.parametrize("n", [1, 2, 5])
def test_a_handful_of_rows_proves_nothing(n):
    for up, down in ((.9, .1), (1, 0)):
        c = E.paired_compare({i: up for i in range(n)}, {i: down for i in range(n)})
        assert "chance alone" in c.sentence and "no interval" in c.sentence
    many = {**{i: .5 + i/100 for i in range(n)}, **{i: .5 for i in range(n, 300)}} # few rows of many differ
    assert "chance alone" in E.paired_compare(many, {i: .5 - i/900 if i < n else .5 for i in range(300)}).sentence

def test_signs_flipped():
    assert E.sign_flip([.1]*6) == 2/2**6 and E.sign_flip([.1]*20) < 0.001 and E.sign_flip([.1, -.1]*20) > 0.5
    assert "B is better" in E.paired_compare({i: .2 + i/100 for i in range(8)},
        {i: .5 + i/90 for i in range(8)}).sentence

def test_results_come_back(tmp_path):
    r = E.hhh(flat, E.load_benchmark(HHH), "likelihood", set_name="hhh rows", name="flat")
    E.save_results([r], tmp_path/"a.json")
    back, = E.load_results(tmp_path)
    assert back.scores == r.scores and back.rows == r.rows and back.config["versions"]["python"]
    assert E.compare(tmp_path, [r])[0].difference.value == 0
    for text in ("{", "[]", '{"a": 1}'):
        (tmp_path/"b.json").write_text(text)
        with pytest.raises(InputError) as e: E.load_results(tmp_path/"b.json")
        one_line(e)

def test_a_folder_of_several_models_cannot_be_compared(tmp_path):
    make = lambda name: E.hhh(flat, E.load_benchmark(HHH), "likelihood", set_name="hhh rows", name=name)
    for name in ("one", "two"): E.save_results(make(name), tmp_path/f"{name}.json")
    for a, b in ((tmp_path, tmp_path/"one.json"), (tmp_path/"one.json", tmp_path)):
        with pytest.raises(InputError) as e: E.compare(a, b)
        assert "is there of one and two; give the file of one model" in one_line(e)
    assert E.compare(tmp_path/"one.json", tmp_path/"two.json")[0].b == "two"

def test_evaluate_models_goes_on_where_it_was(tmp_path):
    calls = []
    engine = ScriptedEngine(lambda p, i, s: "I cannot help with that.", scores=lambda p, c: calls.append(1) or -len(c))
    run = lambda **kw: E.evaluate_models({"m/1": engine}, sets=("facts", "choices", "refusals", "questions"),
        out_dir=tmp_path, n=4, say=None, **kw)
    first = run(); n = len(calls); again = run()
    assert len(calls) == n and [r.scores for r in first] == [r.scores for r in again] and len(first) == 6
    run(seed=1); assert len(calls) > n
    assert {(r.set, r.format)
        for r in first} >= {("facts", "lm-eval"), ("facts", "paper"), ("choices", "paper"), ("choices", "likelihood")}

def test_an_engine_without_log_probabilities_is_left_out_aloud():
    said = []
    r = E.evaluate_models(dict(server=ScriptedEngine(lambda p, i, s: "Well.")), sets=("facts", "refusals"), n=4,
        say=said.append)
    assert [x.task for x in r] == ["refusals"] and sum("left out" in s for s in said) == 2
    with pytest.raises(InputError) as e: E.evaluate_models(dict(server=ScriptedEngine()), sets=("facts",), say=None)
    one_line(e)

# --- the judge

def played(n_a, n_b, n_tie):
    "A judge that prefers answers by their marks."
    qs = [f"Question {i}?" for i in range(n_a + n_b + n_tie)]
    better = ["good"]*n_a + ["bad"]*n_b + ["same"]*n_tie
    worse = ["bad"]*n_a + ["good"]*n_b + ["same"]*n_tie
    def judge(prompt, i, seed):
        a, b = (prompt.split(f"[Answer {x}]\n")[1].split("\n")[0] for x in "AB")
        return "Because.\nVerdict: " + ("tie" if a == b else "A" if a == "good" else "B")
    return judge, qs, better, worse

@pytest.mark.parametrize("repeats", [1, 3])
def test_judge_gives_the_known_rates(repeats):
    judge, qs, a, b = played(110, 50, 40)
    r = E.judge_pairwise(ScriptedEngine(judge), qs, a, b, repeats=repeats, say=None)
    assert (r.win, r.loss, r.tie) == (0.55, 0.25, 0.2) and r.net == pytest.approx(0.3)
    assert r.position_bias == 0 and r.unparsable == 0 and r.order_agreement == 1 and r.n == 400*repeats
    assert r.self_consistency == (None if repeats == 1 else 1.0)
    if repeats == 1: assert r.scores["win"] == E.wilson(110, 200)
    swapped = E.judge_pairwise(ScriptedEngine(judge), qs, b, a, repeats=repeats, say=None)
    assert (swapped.win, swapped.loss) == (r.loss, r.win)

def test_a_judge_that_always_says_a():
    _, qs, a, b = played(100, 60, 40)
    r = E.judge_pairwise(ScriptedEngine(lambda *x: "Verdict: A"), qs, a, b, say=None)
    assert r.position_bias == 1.0 and r.scores["position_bias"].n == 200
    assert (r.win, r.loss, r.net, r.tie, r.order_agreement) == (0, 0, 0, 1, 0)

def test_a_judge_that_answers_prose():
    judge, qs, a, b = played(100, 60, 40)
    talk = lambda p, i, s: "Both have their merits." if i % 8 == 0 else judge(p, i, s)
    r = E.judge_pairwise(ScriptedEngine(talk), qs, a, b, say=None)
    assert r.unparsable == 50/400 and len(r.skipped) == 50 and r.skipped[0]["raw"] == "Both have their merits."
    assert r.scores["win"].n == 150

def test_a_judge_that_fails_now_and_then():
    judge, qs, a, b = played(10, 0, 0)
    lame = lambda p, i, s: Completion("", 0, "error", 1, error="row: timed out") if i == 3 else judge(p, i, s)
    r = E.judge_pairwise(ScriptedEngine(lame), qs, a, b, say=None)
    assert r.win == 1.0 and r.scores["win"].n == 9 and r.skipped[0]["reason"] == "judge: row: timed out"
    assert r.unparsable == 0

FAILED = Completion("", 0, "error", 1, error="row 1: the server answers 500")

def test_an_answer_that_failed_is_skipped_not_judged():
    judge, qs, a, b = played(3, 0, 0)
    asked = []
    engine = ScriptedEngine(lambda p, i, s: asked.append(p) or judge(p, i, s))
    r = E.judge_pairwise(engine, qs, [a[0], FAILED, a[2]], [*b[:2], dict(answer="", error="lost")],
        names=("x", "y"), say=None)
    assert (r.win, r.scores["win"].n, len(asked), r.unparsable) == (1.0, 1, 2, 0)
    assert [s["reason"] for s in r.skipped] == ["x: row 1: the server answers 500", "y: lost"]
    assert not any("(no answer)" in p for p in asked) and E.table(r)[0]["skipped"] == 2
    with pytest.raises(InputError) as e: E.judge_pairwise(engine, qs, [FAILED]*3, b, say=None)
    assert "all 3 questions were skipped" in one_line(e)
    yes = ScriptedEngine(lambda p, i, s: asked.append(p) or "Verdict: yes")
    t = E.truth_info_judge(yes, ["q1", "q2"], ["fine", FAILED], references=[None, ["x"]], say=None)
    assert t.n == 1 and t.truthful_informative == 1
    assert t.skipped == [dict(id=t.skipped[0]["id"], reason="row 1: the server answers 500")]
    with pytest.raises(InputError) as e: E.truth_info_judge(yes, ["q"], [FAILED], say=None)
    one_line(e)
    rows = E.load_benchmark("refusals")[:3]
    lame = ScriptedEngine(lambda p, i, s: FAILED if i == 1 else "Here is how.")
    f = E.refusal_rates(lame, rows, judge_engine=ScriptedEngine(lambda p, i, s: "Verdict: no"), say=None)
    assert f.n == 2 and f.skipped[0]["reason"] == FAILED.error and f.refused_benign == 0

def test_a_judge_that_fails_is_not_called_unparsable():
    lame = ScriptedEngine(lambda p, i, s: Completion("", 0, "error", 1, error="timed out") if i == 1 else "Hm."
        if i == 2 else "Verdict: yes")
    t = E.truth_info_judge(lame, ["q1", "q2", "q3"], ["a", "b", "c"], say=None)
    assert [s["reason"] for s in t.skipped] == ["judge: timed out", "unparsable verdict"] and t.unparsable == 1/5
    f = E.refusal_rates(ScriptedEngine(lambda p, i, s: "So."), E.load_benchmark("refusals")[:4],
        judge_engine=lame, say=None)
    assert [s["reason"] for s in f.skipped] == ["judge: timed out", "unparsable verdict"]

def test_verdicts_carry_who_judged_and_how():
    judge, qs, a, b = played(2, 1, 0)
    said = []
    r = E.judge_pairwise(ScriptedEngine(judge), qs, a, b, names=("x", "y"), say=said.append, price_in=1.0,
        price_out=2.0)
    assert all({"judge", "revision", "prompt", "model_a", "model_b", "seed", "raw", "order"} <= set(v) for v in r.rows)
    assert len(said) == 1 and "6 calls" in said[0] and "prices" in said[0]
    assert E.judge_pairwise(ScriptedEngine(judge), qs, a, b, seed=1, say=None).rows[0]["seed"] != r.rows[0]["seed"]

def test_unequal_lists_and_empty_answers():
    with pytest.raises(InputError) as e: E.judge_pairwise(flat, ["q"], ["a", "b"], ["c"])
    one_line(e)
    seen = []
    r = E.judge_pairwise(ScriptedEngine(lambda p, i, s: seen.append(p) or "Verdict: tie"), ["q {a} %s", "r"],
        ["{b}", ""], ["{question}", "x"], say=None)
    assert "q {a} %s" in seen[0] and "{question}" in seen[0] and "{b}" in seen[0]
    assert len(seen) == 2 and [s["reason"] for s in r.skipped] == ["a: the reply is empty"]

@pytest.mark.parametrize("text,want", [("Verdict: A", "A"), ("verdict - b.", "B"), ("**Verdict:** tie", "tie"),
    ("B", "B"), ("Verdict: neither", None), ("A is better", None), ("Verdict: [A]", "A"), ("", None),
    ("Verdict: a tie", "tie"), ("Verdict: a slight edge to B", None), ("Verdict: A or B", None),
    ("Verdict: A\nThis verdict rests on the facts.", "A"), ("Verdict: A\nVerdict: A or B", None),
    ("Verdict: answer B.", "B"),
    ("Verdict:\nB", "B"), ("A is wrong. **Verdict: B**", "B"), ("The verdict is hard: a tie?", None),
    ("Verdict: A's", None), ("Verdict: B, though A is close", None)])
def test_parse_verdict(text, want): assert E.parse_verdict(text) == want

def test_ratings_are_those_of_evalica():
    import evalica
    rng = random.Random(0)
    strength = dict(a=0., b=.7, c=1.5, d=-.4)
    games = []
    for i in range(400):
        x, y = rng.sample([*strength], 2)
        won = rng.random() < 1/(1 + math.exp(strength[y] - strength[x]))
        games.append((x, y, "tie" if rng.random() < .2 else "a" if won else "b"))
    names, w = [*strength], np.zeros((4, 4))
    for x, y, v in games:
        i, j = names.index(x), names.index(y)
        w[i, j] += {"a": 1, "b": 0, "tie": .5}[v]
        w[j, i] += {"a": 0, "b": 1, "tie": .5}[v]
    winner = {"a": evalica.Winner.X, "b": evalica.Winner.Y, "tie": evalica.Winner.Draw}
    theirs = evalica.bradley_terry(*zip(*((x, y, winner[v]) for x, y, v in games)), tolerance=1e-10, limit=10_000)
    elo = 400*np.log10(theirs.scores[names].to_numpy())
    from selfalign.evals.judging import _elo
    assert _elo(w) == pytest.approx(elo - elo.mean() + 1000, abs=.1)

def test_bradley_terry_finds_the_order():
    rng, strength, rows = random.Random(0), dict(a=4., b=2., c=1.), []
    for x, y in ("ab", "bc", "ac"):
        for i in range(400):
            rows.append(dict(question_id=f"{x}{y}{i}", model_a=x, model_b=y,
                verdict="a" if rng.random() < strength[x]/(strength[x]+strength[y]) else "b"))
    r = E.bradley_terry(rows, n_boot=50)
    assert list(r) == ["a", "b", "c"] and abs(r["a"].value - r["b"].value - 400*math.log10(2)) < 40
    assert all(e.low <= e.value <= e.high for e in r.values())
    assert sum(e.value for e in r.values())/3 == pytest.approx(1000)
    alone = E.bradley_terry([dict(question_id=i, model_a="w", model_b="l", verdict="a") for i in range(9)])
    assert math.isfinite(alone["w"].value)

def test_truth_and_information():
    def judge(prompt, i, seed):
        if "informative when" in prompt:
            return "Verdict: no" if "know" in prompt.split("[Answer]")[1] else "Verdict: yes"
        return "Hm." if "odd" in prompt else "Verdict: no" if "false" in prompt.split("[Answer]")[1] else "Verdict: yes"
    r = E.truth_info_judge(ScriptedEngine(judge), ["q1", "q2", "q3", "q4"], ["I do not know.", "fine", "false", "odd"],
        references=[["x"], None, [], ["y", "z"]], say=None)
    assert (r.truthful, r.truthful_informative, r.unparsable) == (2/3, 1/3, 1/8) and r.informative == 3/4
    assert len(r.skipped) == 1

# --- answers

def test_text_stats():
    s = E.text_stats([Completion("one two three", 5, "stop", 1), Completion("w x y z a b c d " * 2, 20, "length", 1),
        dict(answer="a b", n_tokens=2, finish_reason="stop")])
    assert s == dict(n=3, words=7.0, tokens=9.0, stop_rate=0.6667, repetition_rate=0.3333)

def test_refusal_rates():
    rows = E.load_benchmark("refusals")
    wise = lambda p, i, s: "I can't help with that." if i >= 25 else "Here is how."
    r = E.refusal_rates(ScriptedEngine(wise), rows)
    assert (r.refused_benign, r.answered_harmful, r.as_wished) == (0, 0, 1) and r.scores["refused_benign"].n == 25
    assert r.scores["answered_harmful"].n == 15

def test_refusals_by_a_judge():
    rows = E.load_benchmark("refusals")
    # a refusal in unusual words
    odd = ScriptedEngine(lambda p, i, s: "My grandmother would be sad." if i >= 25 else "Here is how.")
    judge = ScriptedEngine(lambda p, i, s: "" if i == 0
        else "It talks.\nVerdict: " + ("yes" if "grandmother" in p else "no"))
    said = []
    r = E.refusal_rates(odd, rows, judge_engine=judge, say=said.append)
    assert E.refusal_rates(odd, rows).answered_harmful == 1.0 and (r.answered_harmful, r.refused_benign) == (0, 0)
    assert r.n == len(rows) - 1
    assert r.skipped == [dict(row=1, id=r.skipped[0]["id"], reason="unparsable verdict", raw="")]
    assert r.unparsable == 1/40
    # each verdict keeps its text and its judge
    assert all(x["raw"].startswith("It talks.") and x["judge"] == "scripted" and x["prompt"] for x in r.rows)
    assert r.format == "answer, judged" and r.config["prompt"] and r.config["judge"] == "scripted"
    assert "40 calls" in said[0]

# --- internalization

def engines(a, b, c, k=None):
    nats = lambda without, with_: ScriptedEngine(
        scores=lambda p, t: -(with_ if "RULES" in str(p) else without)*len(t.split()))
    return nats(a, b), nats(c, c), nats(k, k) if k else None
ROWS = [dict(id=i, q=f"q{i}", answer="word " * (5 + i % 7)) for i in range(30)]
without = lambda r: f"User: {r['q']}\n\nAster:"
with_ = lambda r: "RULES\n\n" + without(r)

def test_internalization_known_shares():
    base, eng, control = engines(2.0, 1.5, 1.6, 1.9)
    r = E.internalization(ROWS, base, eng, with_, without, control)
    assert r.gap_closed.value == pytest.approx(0.8) and r.control_gap_closed.value == pytest.approx(0.2)
    assert set(r.nll) == set(E.ARMS) and len(set(r.n_tokens.values())) == 1 and r.n == 30
    assert "80 %" in str(r) and "20 %" in str(r)

@pytest.mark.parametrize("b", [2.0, 2.3])
def test_internalization_undefined_where_principles_do_not_help(b):
    base, eng, _ = engines(2.0, b, 1.0)
    r = E.internalization(ROWS, base, eng, with_, without)
    assert r.gap_closed is None and "undefined" in r.sentence and r.nll["engraved_without"].value == pytest.approx(1.0)

def test_internalization_messages_and_functions_that_open_engines():
    base, eng, _ = engines(2.0, 1.5, 1.75)
    ask = lambda r: [dict(role="user", content=r["q"])]
    told = lambda r: [dict(role="system", content="RULES"), *ask(r)]
    assert E.internalization(ROWS, lambda: base, lambda: eng, told, ask).gap_closed.value == pytest.approx(0.5)

def test_internalization_skips_and_refuses():
    base, eng, _ = engines(2.0, 1.5, 1.6)
    assert E.internalization([*ROWS, dict(id="e", answer="")], base, eng, with_,
        without).skipped == [dict(id="e", reason="the answer is empty")]
    with pytest.raises(InputError) as e: E.internalization([dict(id=1, answer=" ")], base, eng, with_, without)
    one_line(e)

# --- the paper's numbers and the plots

def test_paper_results_are_those_of_the_text():
    get = lambda b, m, model: next(r["value"] for r in E.paper_results(b, m) if r["model"] == model)
    assert get("truthfulqa", "mc1", "Dromedary") == 0.69 and get("hhh", "overall", "Dromedary final") == 0.83
    assert get("hhh", "harmless", "ChatGPT") == 0.95
    assert len(E.paper_results("hhh")) == 27 and len(E.paper_results("truthfulqa")) == 17

def test_plots_are_drawn():
    import matplotlib; matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    mc, hh = E.truthfulqa_mc(flat, E.load_benchmark(MC), name="m"), E.hhh(flat, E.load_benchmark(HHH), name="m")
    fig, ax = E.plot_scores([hh])
    assert any("reported, 65B, not comparable" in t.get_text() for t in ax.get_legend().get_texts())
    E.plot_scores([mc]); E.plot_tax([mc], [mc]); E.plot_steps({0: mc, 10: mc})
    E.plot_internalization(E.internalization(ROWS, *engines(2., 1.5, 1.6)[:2], with_, without))
    plt.close("all")

def test_scores_of_checkpoints_whole_and_adapter(tmp_path):
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM
    from selfalign.engines.local import TorchEngine
    from selfalign.models import load_tokenizer
    torch.manual_seed(0)
    tok = load_tokenizer("embedded")
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tok), hidden_size=32, intermediate_size=64, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=2048))
    for d in ("base", "work/checkpoint-10"): model.save_pretrained(tmp_path/d); tok.save_pretrained(tmp_path/d)
    tuned = get_peft_model(model, LoraConfig(r=2, target_modules=["v_proj"], init_lora_weights=False))
    tuned.save_pretrained(tmp_path/"work/checkpoint-20")
    rows = E.load_benchmark(MC)[:3]
    got = E.checkpoint_scores(tmp_path/"work", str(tmp_path/"base"), rows)
    same = E.truthfulqa_mc(TorchEngine(str(tmp_path/"base"), dtype="float32"), rows)
    assert list(got) == [10, 20] and got[10].rows[0]["scores"] == pytest.approx(same.rows[0]["scores"], abs=1e-3)
    assert got[20].rows[0]["scores"] != pytest.approx(same.rows[0]["scores"], abs=1e-3)
    with pytest.raises(InputError) as e: E.checkpoint_scores(tmp_path, "embedded", rows)
    one_line(e)

def test_evaluate_several_models_and_compare_from_the_command_line(tmp_path, capsys):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM
    from selfalign.models import load_tokenizer
    from selfalign.app.compare import Compare
    from selfalign.app.evaluate import Evaluate
    tok = load_tokenizer("embedded")
    for name in ("one", "two"):
        torch.manual_seed(len(name) + ord(name[0]))
        LlamaForCausalLM(LlamaConfig(vocab_size=len(tok), hidden_size=32, intermediate_size=64, num_hidden_layers=1,
            num_attention_heads=2, max_position_embeddings=2048)).save_pretrained(tmp_path/name)
        tok.save_pretrained(tmp_path/name)
    said = []
    argv = [str(tmp_path/"one"), str(tmp_path/"two"), "--sets", "facts", str(HHH), "--n", "4", "--out",
        str(tmp_path/"both")]
    Evaluate.from_line("evaluate", argv)(said.append)
    shown = next(x for x in said if x.startswith("| model"))
    assert f"{tmp_path}/one" in shown and f"{tmp_path}/two" in shown and "lm-eval" in shown and "likelihood" in shown
    files = sorted((tmp_path/"both").glob("*.json"))
    assert len(files) == 8 and E.load_results(files[0])[0].model["dtype"] == "float32"
    assert E.load_results(files[0])[0].config["versions"]
    for name in ("one", "two"):
        Evaluate((str(tmp_path/name),), sets=("facts",), n=6, out=tmp_path/"out"/name)(said.append)
    told = []
    Compare(tmp_path/"out"/"one", tmp_path/"out"/"two")(told.append)
    assert len(told) == 4 and all("6 rows" in x and "difference" in x for x in told)

@pytest.mark.parametrize("text", ["I can't wait to tell you how!", "I can’t recommend this enough.",
    "I cannot recommend this book highly enough.", "I can't help but smile.", "We can't help loving it.",
    "I can't thank you enough.", "I won't lie, it is hard.", "I couldn't agree more."])
def test_emphasis_is_no_refusal(text): assert not E.is_refusal(text)

@pytest.mark.parametrize("text", ["I can't help with that.", "I can't recommend any such drug.",
    "I cannot wait with that answer: I won't give it.", "I can't do that. It is bad enough already.",
    "I can't tell you how to build it.", "I can not help you.", "Sorry. We cannot assist here."])
def test_refusals_are_still_found(text): assert E.is_refusal(text)

def test_open_answers_carry_intervals():
    r = E.evaluate_one(ScriptedEngine(lambda p, i, s: "word " * (1 + i)), E.load_benchmark("questions"), "answer",
        set_name="questions")
    assert set(r.scores) == {"words", "tokens", "stop_rate", "repetition_rate"}
    assert all(e.low is not None and e.low <= e.value <= e.high for e in r.scores.values())
    assert r.scores["stop_rate"] == E.wilson(20, 20) and r.words == 10.5

def test_over_seeds_keeps_models_apart():
    make = lambda name, k, seed: E.Result("refusals", "s", "answer", dict(name=name), dict(as_wished=E.wilson(k, 10)),
        [], config=dict(seed=seed))
    t = E.over_seeds([make("a", 4, 0), make("b", 9, 0), make("a", 6, 1), make("b", 9, 1)])
    assert [(r["model"], r["runs"], r["seeds"], round(r["mean"], 3))
        for r in t] == [("a", 2, "0, 1", .5), ("b", 2, "0, 1", .9)]
    assert t[1]["sd"] == 0

def test_another_template_is_another_evaluation(tmp_path, monkeypatch):
    calls, load = [], load_template
    engine = ScriptedEngine(scores=lambda p, c: calls.append(p) or -len(c))
    run = lambda: E.evaluate_models({"m": engine}, sets=("facts", "choices"), out_dir=tmp_path, n=4, say=None)
    first = run(); n = len(calls); run()
    assert len(calls) == n
    for room in ("evals.choices", "evals.harness"):
        monkeypatch.setattr(f"selfalign.{room}.load_template", lambda name, folder=None: "New. " + load(name, folder)
            if name == "eval_hhh_paper" else load(name, folder))
    again = run()
    assert len(calls) > n and all("New. " in p for p in calls[n:])
    assert [a.config["prompt"] == b.config["prompt"] for a, b in zip(first, again)] == [True, True, False, True]

def test_sets_and_models_of_the_same_name_keep_files_of_their_own(tmp_path):
    rows = [json.loads(l) for l in MC.read_text(encoding="utf-8").splitlines()]
    for d, some in (("x", rows[:3]), ("y", rows[3:7])):
        (tmp_path/d).mkdir(); (tmp_path/d/"set.jsonl").write_text("\n".join(map(json.dumps, some)))
    sets, calls = [str(tmp_path/d/"set.jsonl") for d in "xy"], []
    engines = {m: ScriptedEngine(scores=lambda p, c: calls.append(1) or -len(c)) for m in ("a/b", "a-b")}
    run = lambda: E.evaluate_models(engines, sets, tmp_path/"out", ("lm-eval",), say=None)
    first, n = run(), len(calls)
    assert len(list((tmp_path/"out").glob("*.json"))) == 4
    assert {(r.name, r.set, r.n) for r in E.load_results(tmp_path/"out")} == {(m, s, k) for m in engines
        for s, k in zip(sets, (3, 4))}
    assert [r.scores for r in run()] == [r.scores for r in first] and len(calls) == n

def test_an_installed_package_does_not_record_the_commit_around_it(tmp_path, monkeypatch):
    import subprocess, selfalign
    git = lambda *a: subprocess.run(["git", "-C", str(tmp_path), "-c", "user.name=x", "-c", "user.email=x@y", *a],
        check=True, capture_output=True)
    git("init"); (tmp_path/"mine.txt").write_text("x"); git("add", "."); git("commit", "-m", "mine")
    site = tmp_path/"venv"
    (site/"selfalign").mkdir(parents=True)
    monkeypatch.setattr(selfalign, "__file__", str(site/"selfalign"/"__init__.py"))
    assert E._config()["commit"] is None
    (site/"nbs").mkdir(); (site/"settings.ini").write_text("")
    assert E._config()["commit"] # a checkout

@pytest.mark.parametrize("format", list(E.HHH_FORMATS))
def test_hhh_rows_with_percent_braces_and_newlines_are_text(format):
    seen = []
    says, x, y = "100%s of {input} {a} %d\n\nHuman: {0}?", "{b} 5%\nA: {input}", "No %(a)s {}\n\n{answer}"
    nasty = dict(subset="other", input=says, targets=dict(choices=[x, y], labels=[1, 0]))
    r = E.hhh(ScriptedEngine(scores=lambda p, c: seen.append((p, c)) or -float(len(c))),
        [nasty, E.load_benchmark(HHH)[0]], format)
    mine = [(p, c) for p, c in seen if says in p]
    assert r.n == 2 and not r.skipped and all(math.isfinite(s) for row in r.rows for s in row["scores"])
    if format == "likelihood": assert {c for _, c in mine} == {f" {x}", f" {y}"}
    else:
        assert len(mine) == 4 and {c for _, c in mine} == {" A", " B"}
        assert all(any(f"A: {a}\n\nB: {b}" in p for p, _ in mine) for a, b in ((x, y), (y, x)))


def test_a_chat_template_that_refuses_a_system_text_is_no_obstacle(tmp_path):
    from test_sft import random_llama
    from selfalign.models import load_tokenizer
    from selfalign.tokens import takes_system
    tok = load_tokenizer("embedded")
    tok.chat_template = ("{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system') }}{% "
        "endif %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}")
    random_llama(tmp_path/"m", tok)
    with load_engine(f"torch:{tmp_path/'m'}", dtype="float32") as engine:
        assert takes_system(engine.prompts.tok)
        one, = E.evaluate_models({"m": engine}, ["facts"], formats=("paper",), n=2, system="Be brief.", say=None)
        assert one.format == "paper, chat" and one.n == 2 and not one.skipped
        assert "<|im_start|>user\nBe brief.\n\nWhy?" in tok.decode(
            engine.prompts.encode(E.dialog("Why?", "Be brief.", chat=True)))


# --- what a reviewer found

def test_rows_all_alike_give_no_interval():
    assert E.bootstrap([.5]*9) == E.Estimate(.5, None, None, 9) and E.bootstrap([.2]).low is None
    assert E.bootstrap([0, 1]).low is not None
    base, eng, _ = engines(2.0, 1.5, 1.75)
    one = E.internalization(ROWS[:1], base, eng, with_, without)
    assert one.gap_closed.low is None and all(e.low is None for e in one.nll.values())
    assert "one answer only" in one.sentence

@pytest.mark.parametrize("set_,key", [(MC, "mc1_targets"), (HHH, "targets")])
def test_one_text_cannot_be_right_and_wrong(bad_set, set_, key):
    assert "as right and as wrong" in bad_set(set_, put(key, choices=["same", "same"], labels=[1, 0]))
def test_a_choice_that_is_no_text(bad_set):
    assert "choice 2 is 5; write it as text" in bad_set(MC, put("mc1_targets", choices=["a", 5], labels=[1, 0]))
def test_mc2_may_hold_a_text_on_both_sides():
    assert E.check_rows(
        [dict(E.load_benchmark(MC)[0], mc2_targets=dict(choices=["Unknown.", "Unknown.", "No."], labels=[1, 0, 0]))])

def test_mc2_of_a_model_that_finds_nothing_true():
    r = E.truthfulqa_mc(ScriptedEngine(scores=lambda p, c: -2000. if c.endswith("true") else -1.),
        E.load_benchmark(MC)[:3], "paper")
    assert 0 < r.mc2 < 1

def test_a_row_that_stands_twice_counts_twice_in_comparisons():
    rows = [dict(kind=k, question=q) for q, k in [("same?", "benign")]*5 + [("same?", "harmful"), ("other?", "benign")]]
    made = [E.refusals_of(rows, [a]*7) for a in ("Here.", "I can't help with that.")]
    as_wished, benign, harmful = E.compare(*made)
    assert (as_wished.n, benign.n, harmful.n) == (7, 6, 1) and benign.what.endswith("refused_benign")
    assert benign.difference.value == -1 and harmful.difference.value == 1

def test_an_empty_reply_is_no_figure_of_safety():
    rows = [dict(kind="harmful", question="h?"), dict(kind="benign", question="b?"),
        dict(kind="harmful", question="i?")]
    r = E.refusals_of(rows, ["", " ", "No, I can't help with that."])
    assert (r.answered_harmful, r.scores["answered_harmful"].n, r.scores["refused_benign"].n) == (0, 1, 0)
    assert [s["reason"] for s in r.skipped] == ["the reply is empty"]*2
    with pytest.raises(InputError, match="all 3 questions were skipped: the reply is empty"):
        E.refusals_of(rows, ["", " ", "\n"])

def test_compare_says_what_was_not_made_alike_and_what_is_left_out():
    rows = E.load_benchmark("refusals")[:8]
    judge = lambda says, model: type("J", (ScriptedEngine,), {})(lambda *a: f"Verdict: {says}")
    made = []
    for says, model in (("yes", "strict"), ("no", "mild")):
        j = judge(says, model); j.info = dict(j.info, model=model)
        made.append(E.refusals_of(rows, ["So."]*8, j, say=None, set_name="refusals"))
    c = E.compare(*made)[0]
    assert "Not made alike: the judges 'strict' and 'mild'." in c.sentence
    mc, said = E.truthfulqa_mc(flat, E.load_benchmark(MC), set_name="facts"), []
    E.compare([mc, made[0]], [mc], say=said.append)
    assert said == ["left out, as only one side has them: refusals (answer, judged)"]
    assert "Not made alike" not in E.compare([mc], [mc])[0].sentence

def test_hhh_is_compared_subset_by_subset():
    rows = E.load_benchmark("choices")
    parts = list(dict.fromkeys(r["subset"] for r in rows))
    right = {r["targets"]["choices"][r["targets"]["labels"].index(1)] for r in rows}
    first = {c for r in rows if r["subset"] == parts[0] for c in r["targets"]["choices"]}
    knows = lambda p, c: -1. if c.strip() in right else -9.
    misses = lambda p, c: -1. if (c.strip() in right) != (c.strip() in first) else -9. # all of the first subset
    def of(scores, some, name):
        return E.hhh(ScriptedEngine(scores=scores), some, "likelihood", set_name="choices", name=name)
    whole = of(knows, rows, "whole")
    got = {c.what.rpartition(" of ")[2]: c for c in E.compare(whole, of(misses, rows, "misses"))[1:]}
    assert list(got) == parts and [c.n for c in got.values()] == [sum(r["subset"] == p for r in rows) for p in parts]
    assert got[parts[0]].difference.value == 1 and all(got[p].difference.value == 0 for p in parts[1:])
    fewer = of(knows, [r for r in rows if r["subset"] == parts[1]], "fewer")
    assert [c.what.rpartition(" of ")[2] for c in E.compare(whole, fewer)[1:]] == parts[1:2] # only what both have

def test_compare_names_the_real_reason():
    answers = E.evaluate_one(ScriptedEngine(lambda p, i, s: "word"), E.load_benchmark("questions"), "answer",
        set_name="questions")
    with pytest.raises(InputError) as e: E.compare(answers, answers)
    assert "share sets, but no score of single rows" in one_line(e)

def keeps(by): # nats for the answer that keeps a rule
    good = {p["keeping"] for half in ("principles", "principles_tuning") for p in E.load_benchmark(half)}
    return ScriptedEngine(scores=lambda p, c: by*(c.strip() in good) - 20)

def test_principles_are_a_set_like_the_others(tmp_path):
    a, b = (E.evaluate_models({n: keeps(by)}, ["principles"], tmp_path, say=None)[0]
        for n, by in (("steady", 2.5), ("unsure", -1.)))
    assert (a.n, a["preferred"], a["near_miss"], a["odds"], b["preferred"]) == (160, 1, 1, 2.5, 0)
    assert a.format == "plain"
    sentence = [str(c) for c in E.compare([a], [b])]
    assert "difference +3.5 nats" in sentence[1] and "difference +100.0 points" in sentence[0]
    assert "steady is better" in sentence[1]
    assert {E.question_text(r) for r in E.load_benchmark("principles_tuning")} <= set(E.eval_questions())
    assert not {r["id"] for r in E.load_benchmark("principles_tuning")} & {r["id"] for r in a.rows}

def test_pairs_of_shuffled_labels_say_nothing():
    "The measure can fail: half of the pairs changed round."
    rows = E.load_benchmark("principles")
    flip = lambda r, i: dict(r, keeping=r["breaking"], breaking=r["keeping"]) if i % 2 else r
    r = E.evaluate_one(keeps(1.), [flip(r, i) for i, r in enumerate(rows)], "plain")
    assert r["preferred"] == 0.5 and r.scores["odds"].low < 0 < r.scores["odds"].high

def test_a_loss_on_plain_text_is_told_where_chance_does_not_explain_it():
    rows = E.load_benchmark("passages")
    def told(by): # the other model is so many nats a token worse on every second passage
        worse = {r["text"].split(None, 1)[1] for r in rows[::2]}
        results = [E.plain_text(ScriptedEngine(scores=lambda p, c: -(2 + d*(c[1:] in worse))*len(c.split())), rows,
            name=n) for n, d in (("base", 0), ("final", by))]
        return E.tax(results)["final"]
    lost, same = told(0.5), told(0)
    assert lost["lost"][0] == pytest.approx(.25) and lost["p"] < .001
    assert "a significant loss" in E.tax_sentence("final", lost)
    assert same["p"] == 1 and "significant" not in E.tax_sentence("final", same) and not E.tax([])

def test_what_reading_nothing_scores_stands_beside_a_choice():
    r = E.evaluate_one(ScriptedEngine(scores=lambda p, c: -len(c)), E.load_benchmark("facts"), "lm-eval")
    row = next(x for x in E.table(r) if x["metric"] == "mc1")
    assert 0 < row["always the longest"] < 1 and row["always the first"] < .5

@pytest.mark.parametrize("change, words", [(dict(keeping="No."), "3 and"), (dict(kind="often"), "applies or near_miss"),
    (dict(rule=None), "rule's number"), (dict(breaking=" "), "breaking is ' '"), (dict(id=7), "id is 7")])
def test_pairs_that_cannot_be_compared(tmp_path, change, words):
    (tmp_path/"p.jsonl").write_text(json.dumps(dict(E.load_benchmark("principles")[0], **change)) + "\n")
    with pytest.raises(InputError, match=words) as e: E.load_benchmark(tmp_path/"p.jsonl")
    assert "p.jsonl:1:" in one_line(e)

def test_runs_of_several_models_are_compared_model_by_model(tmp_path):
    for d, slope in (("x", 7), ("y", -7)):
        for name in ("base", "final"):
            E.save_results(E.truthfulqa_mc(ScriptedEngine(scores=lambda p, c: len(c)/slope), E.load_benchmark(MC),
                set_name="facts", name=name), tmp_path/d/"eval/sets"/f"{name}.json")
    got = E.compare(tmp_path/"x/eval/sets", tmp_path/"y/eval/sets")
    assert [c.a for c in got] == [f"{n} in {tmp_path}/x" for n in ("base", "base", "final", "final")]
    assert got[0].difference.value != 0

@pytest.mark.parametrize("text", ['{"format": "selfalign results 1"}',
    '{"format": "selfalign results 1", "results": 5}', '{"format": "selfalign results 1", "results": [{}]}'])
def test_a_results_file_that_is_not_whole(tmp_path, text):
    (tmp_path/"a.json").write_text(text)
    with pytest.raises(InputError) as e: E.load_results(tmp_path)
    assert "a.json" in one_line(e)

def test_a_folder_of_results_may_hold_other_files_but_not_only(tmp_path):
    (tmp_path/"manifest.json").write_text("{}")
    with pytest.raises(InputError) as e: E.load_results(tmp_path)
    assert "no results file" in one_line(e)
    E.save_results(E.hhh(flat, E.load_benchmark(HHH), "likelihood"), tmp_path/"a.json")
    assert len(E.load_results(tmp_path)) == 1

def test_what_failed_is_asked_again_and_all_failures_are_told(tmp_path):
    run = lambda e, sets=("refusals", "questions"): E.evaluate_models({"m": e}, sets, tmp_path, n=4, say=None)
    down, shaky = ScriptedEngine(lambda *a: FAILED), ScriptedEngine(lambda p, i, s: FAILED if i == 1 else "Here.")
    for s in ("refusals", "questions"):
        with pytest.raises(InputError, match="all 4 questions were skipped"): run(down, (s,))
    assert [r.n for r in run(shaky)] == [3, 3]
    well = ScriptedEngine(lambda p, i, s: "Here."); well.info = shaky.info
    assert [r.n for r in run(well)] == [4, 4]
    n = len(well.calls); run(well); assert len(well.calls) == n

def test_other_seeds_and_sizes_have_files_of_their_own(tmp_path):
    for kw in (dict(), dict(n=3), dict(n=3, seed=1), dict(seed=1)):
        E.evaluate_models({"m": flat}, ("facts",), tmp_path, ("lm-eval",), say=None, **kw)
    assert sorted(f.name for f in tmp_path.glob("*.json")) == [f"m-facts-lm-eval{x}.json"
        for x in ("-n3-seed1", "-n3", "-seed1", "")]
    assert E.over_seeds([r for r in E.load_results(tmp_path) if r.n == 3])[0]["seeds"] in ("0, 1", "1, 0")

def test_a_long_name_and_a_foreign_file_do_no_harm(tmp_path):
    E.evaluate_models({"x"*300: flat}, ("facts",), tmp_path, ("lm-eval",), n=3, say=None)
    (tmp_path/"m-facts-lm-eval-n3.json").write_text("mine")
    E.evaluate_models({"m": flat}, ("facts",), tmp_path, ("lm-eval",), n=3, say=None)
    assert (tmp_path/"m-facts-lm-eval-n3.json").read_text() == "mine" and len(list(tmp_path.glob("*.json"))) == 3

def test_repeats_are_no_rows_of_their_own():
    qs, coin = [f"q{i}" for i in range(10)], lambda p, i, seed: "Verdict: " + ("A" if "q1" in p or seed % 2 else "B")
    r = E.judge_pairwise(ScriptedEngine(coin), qs, ["x"]*10, ["y"]*10, repeats=20, say=None)
    assert {m: e.n for m, e in r.scores.items()} == {m: 10 for m in r.scores}
    assert r.scores["self_consistency"].high - r.scores["self_consistency"].low > 0.05

def test_a_judge_that_likes_the_first_place():
    _, qs, a, b = played(100, 60, 40)
    for letter, want in (("A", 1.0), ("B", 0.0)):
        r = E.judge_pairwise(ScriptedEngine(lambda *x: f"Verdict: {letter}"), qs, a, b, say=None)
        assert (r.prefers_first, r.position_bias) == (want, 1.0)
    assert E.judge_pairwise(ScriptedEngine(played(100, 60, 40)[0]), qs, a, b, say=None).prefers_first == 0.5

def test_a_judge_that_never_answers_has_judged_nothing():
    dead = ScriptedEngine(lambda *a: FAILED)
    for run in (lambda: E.judge_pairwise(dead, ["q"], ["a"], ["b"], say=None), lambda: E.truth_info_judge(dead, ["q"],
            ["a"], say=None), lambda: E.refusals_of([dict(kind="benign", question="q")], ["a"], dead, say=None)):
        with pytest.raises(InputError) as e: run()
        assert "gave no verdict at all: row 1: the server answers 500" in one_line(e)
    with pytest.raises(InputError, match="both models are called m"):
        E.judge_pairwise(flat, ["q"], ["a"], ["b"], names=("m", "m"))

def test_a_rubric_must_hold_what_is_judged(tmp_path):
    (tmp_path/"templates").mkdir()
    for f in (tmp_path/"judge_pairwise.txt", tmp_path/"templates"/"judge_pairwise.txt"):
        f.write_text("Who is better, {A} or {B}? {question}")
    with pytest.raises(InputError) as e:
        E.judge_pairwise(ScriptedEngine(lambda *a: "Verdict: A"), ["q"], ["a"], ["b"], folder=tmp_path, say=None)
    assert "{a} does not stand in it" in one_line(e)

def test_prices():
    cost = lambda **kw: E.judge_cost(ScriptedEngine(), ["one two"], E.Sampling(max_new_tokens=10), **kw)["cost"]
    assert cost(price_in=1e6) == 12 and cost(price_in=1e6, price_out=0) == 2 and cost() is None
    with pytest.raises(InputError, match="without price_in"): cost(price_out=1)

def test_ratings_converge_where_one_model_wins_all():
    rows = [dict(question_id=i, model_a=f"m{k}", model_b=f"m{k+1}", verdict="a") for k in range(9) for i in range(100)]
    r = E.bradley_terry(rows, n_boot=2)
    assert r["m0"].value - r["m1"].value == pytest.approx(400*math.log10(100.5/.5))
    assert r["m0"].value == pytest.approx(5146, abs=1)

def test_ratings_leave_out_a_verdict_in_one_order_only():
    _, qs, a, b = played(6, 0, 0)
    half = lambda p, i, s: "Verdict: A" if i < 8 else "Verdict: A" if i % 2 else "Hm." # two pairs of six lack an order
    rows = E.judge_pairwise(ScriptedEngine(half), qs, a, b, say=None).rows
    r = E.bradley_terry(rows, n_boot=5)
    assert r["a"].n == r["b"].n == 8 and r["a"].value == pytest.approx(1000)
    with pytest.raises(InputError, match="nothing to rate"): E.bradley_terry([x for x in rows if x["order"] == "ba"])


def test_a_share_of_one_value_is_drawn_without_an_interval():
    "A run that held out one row has no interval: the report is made all the same."
    from selfalign.plots import plot_shares
    for rows in ({"engraved": (.4, None, None)}, {"engraved": (.4, .1, .6), "control arm": (.2, None, .3)},
            {"engraved": (.4, .4, .4)}):
        assert len(plot_shares(rows).get_yticklabels()) == len(rows)
