"One rule and its opposite: two runs that differ in it alone, the same questions, paired figures."
import json
from dataclasses import asdict
import pytest

from selfalign.app import swap as room
from selfalign.app.cli import main
from selfalign.app.swap import load_swap, swap_runs, write_side
from selfalign.config import RunConfig
from selfalign.generation import ScriptedEngine
from selfalign.principle_engraving import load_principle_set
from selfalign.rows import read_jsonl, write_jsonl
from selfalign.runs import Run

SWAP = load_swap()
QUESTIONS = [dict(id=str(i), instruction=f"Why is road number {i} salted?", input="") for i in range(60)]

def fake_steps(calls, dies_at=None):
    "Stands for `run_steps`: makes the files of each stage, and remembers what it was asked for."
    def steps(out, cfg, steps, say=None):
        calls.append((out.name, tuple(steps), cfg))
        if len(calls) == dies_at: raise KeyboardInterrupt
        with Run(out, config=json.loads(json.dumps(asdict(cfg)))) as run:
            if "prompts" in steps:
                with run.stage("prompts", dict(a=1), files=["prompts.jsonl"]) as rec:
                    assert rec is None or out.name == "short" # the other side has its prompts already
                    if rec is not None: write_jsonl(run/"prompts.jsonl", QUESTIONS)
            else:
                answer = "One. Two." if out.name == "short" else "One. Two. Three.\n\nFour. Five."
                write_jsonl(run/"responses.jsonl", [dict(q, answer=answer) for q in QUESTIONS[out.name == "long":40]])
    return steps

class Two(ScriptedEngine):
    "Answers as long as the side and the arm say."
    def __enter__(self): return self
    def __exit__(self, *exc): pass

def opened(cfg, path):
    long = "/long/" in path and path.endswith("engraved")
    return Two(lambda p, i, s: "Yes. " * (5 + s % 3 if long else 1 + s % 2))

def test_both_sides_differ_in_the_rule_alone_and_stage_1_is_made_once(tmp_path, monkeypatch):
    calls, cfg = [], RunConfig(model="embedded")
    monkeypatch.setattr(room, "run_steps", fake_steps(calls, dies_at=4))
    with pytest.raises(KeyboardInterrupt): swap_runs(tmp_path/"s", cfg, SWAP, say=lambda s: None)
    monkeypatch.setattr(room, "run_steps", fake_steps(calls))
    swap_runs(tmp_path/"s", cfg, SWAP, say=lambda s: None)
    short, long = (next(asdict(c) for n, _, c in calls if n == side) for side in ("short", "long"))
    for side in (short, long):
        for k in ("principles", "exemplars"): side["respond"].pop(k)
    assert short == long and short["control"] and short["respond"]["min_chars"] == 20
    assert (tmp_path/"s"/"long"/"prompts.jsonl").read_bytes() == (tmp_path/"s"/"short"/"prompts.jsonl").read_bytes()
    assert not list((tmp_path/"s").glob(".*.part"))

def test_the_whole_command_and_that_it_asks_nothing_twice(tmp_path, monkeypatch, capsys):
    asked = []
    def engine(cfg, path):
        asked.append(path)
        return opened(cfg, path)
    monkeypatch.setattr(room, "run_steps", fake_steps([]))
    monkeypatch.setattr(room, "open_engine", engine)
    argv = ["swap", str(tmp_path/"s"), "--model", "embedded", "--answers", "30", "--engrave.held-out", "0.5"]
    assert main(argv) == 0
    found, said = json.loads((tmp_path/"s"/"swap.json").read_text()), capsys.readouterr().out
    arms = found["arms"]
    assert (arms["in view"]["short"], arms["in view"]["long"], arms["in view"]["n"]) == (2, 5, 39)
    assert arms["engraved"]["p"] < 0.01 and arms["control"]["difference"][0] == 0 and arms["engraved"]["n"] == 30
    assert found["engraved_minus_control"]["p"] < 0.01 and "engraved − control" in said
    rows = {p: p.read_bytes() for p in (tmp_path/"s").glob("*/completions/*.jsonl")}
    assert len(rows) == 4 and main(argv) == 0 and rows == {p: p.read_bytes() for p in rows}
    held = {r["id"] for p in rows for r in read_jsonl(p)}
    assert len(held) == 30 # the same prompts on both sides, in both arms

@pytest.mark.parametrize("argv, words", [
    (("--answers", "0"), "--answers is 0; give a whole number, 1 or more"),
    (("--rule-file", "colour"), "annotations/swap_colour.yaml: no such file"),
    (("--rule-file", "{tmp}/one.yaml"), "no two sides"), (("--rule-file", "{tmp}/bad.yaml"), "measure is 'colour'"),
    (("--redo", "engrave"), "--redo is not for swap")])
def test_a_mistake_is_one_line(tmp_path, capsys, argv, words):
    side = "{name: x, text: y, answers: [z]}"
    (tmp_path/"one.yaml").write_text(f"rule: 3\nsides: {{a: {side}}}\n")
    (tmp_path/"bad.yaml").write_text(f"rule: 3\nmeasure: colour\nsides: {{a: {side}, b: {side}}}\n")
    more = [a.replace("{tmp}", str(tmp_path)) for a in argv]
    assert main(["swap", str(tmp_path/"s"), "--model", "embedded", *more]) == 1
    err = capsys.readouterr().err
    assert words in err and len(err.strip().splitlines()) == 1

def test_a_rule_that_is_not_there_is_told_before_anything_is_made(tmp_path):
    other = SWAP.__class__(77, SWAP.measure, SWAP.sides)
    with pytest.raises(room.InputError, match="rule 77, which is to be swapped, is none"):
        write_side(other, "short", RunConfig(model="embedded"), tmp_path/"x")
    assert not (tmp_path/"x").exists()

def test_the_sides_are_read_as_principle_sets_of_a_run(tmp_path):
    cfg = write_side(SWAP, "long", RunConfig(model="embedded"), tmp_path/"long")
    pset = load_principle_set(cfg.respond)
    assert "two paragraphs at least" in pset.render("Why?") and "3 (thorough)" in pset.render("Why?")
    assert "helpful" not in pset.render("Why?")
