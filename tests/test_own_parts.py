"""An engine, a filter and an evaluation of one's own, from a file outside the package: through the command line and
in a run's report."""

import pytest

from selfalign.app.cli import main
from selfalign.app.run import parse_run
from selfalign.checks import InputError
from selfalign.engines.opening import engine_string, is_full
from selfalign.evals.comparing import compare
from selfalign.evals.harness import evaluate_models
from selfalign.evals.results import load_results
from selfalign.evals.sets import load_benchmark
from selfalign.generation import ScriptedEngine
from selfalign.principle_engraving import respond
from selfalign.report import closing_table
from selfalign.rows import read_jsonl, write_jsonl
from selfalign.runs import Run

MINE = '''
from selfalign.checks import InputError
from selfalign.evals.kinds import Evaluation
from selfalign.evals.results import Result
from selfalign.evals.stats import wilson
from selfalign.generation import Completion, Engine, Sampling


class EchoEngine(Engine):
    "Says what it was told."
    def __init__(self, model): self.info = dict(kind="echo", model=model, revision=None, sha256=None)
    def generate_iter(self, prompts, sampling, seeds=None):
        for i, p in enumerate(prompts): yield i, Completion(p, len(p.split()), "stop", len(p.split()), "<eos>")


def shout(r, row, ctx):
    "The answer shouts."
    if r.answer.isupper(): return f"all capitals: {r.answer[:10]}"


def short_answers(engine, rows, format, set_name, name, **more):
    "Share of answers of at most five words."
    outs = engine.generate([r["question"] for r in rows], Sampling(max_new_tokens=20, temperature=0))
    records = [dict(id=r["question"], short=int(len(o.text.split()) <= 5)) for r, o in zip(rows, outs)]
    score = wilson(sum(r["short"] for r in records), len(records))
    return Result("brevity", set_name, "answer", dict(engine.info, name=name), dict(short=score), records)


def check(row, where):
    if "question" not in row: raise InputError(f"{where}: no question")


def load(): return [dict(question="Why is the sky blue?"), dict(question="word " * 40)]


BREVITY = Evaluation(short_answers, headline=("short",), paired=("short",), check=check, load=load)
EMPTY = Evaluation(short_answers, load=list)
BROKEN = Evaluation(short_answers, check=check, load=lambda: [dict(answer="no")])
'''


@pytest.fixture
def mine(tmp_path):
    (tmp_path / "mine.py").write_text(MINE)
    return f"{tmp_path}/mine.py"


def test_an_own_engine_on_an_own_evaluation_from_the_command_line(mine, tmp_path, capsys):
    out = tmp_path / "scores"
    assert main(["evaluate", f"{mine}:EchoEngine:any", "--sets", f"{mine}:BREVITY", "refusals", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "short" in said and "refused_benign" in said
    got = {r.task: r for r in load_results(out)}
    assert (got["brevity"]["short"], got["brevity"].n) == (0.5, 2)
    assert any("BREVITY" in p.name for p in out.glob("*.json"))
    assert main(["evaluate", f"{mine}:EchoEngine:any", "--sets", f"{mine}:BREVITY", "--out", str(out)]) == 0
    assert "read back" in capsys.readouterr().out


def test_two_models_are_compared_by_the_numbers_that_the_evaluation_names(mine):
    models = dict(brief=ScriptedEngine(lambda p, i, s: "Yes."), wordy=ScriptedEngine(lambda p, i, s: "yes " * 9))
    a, b = evaluate_models(models, sets=[f"{mine}:BREVITY"], say=None)
    (found,) = compare(a, b)
    assert found.what.endswith(", short") and found.difference.value == 1


@pytest.mark.parametrize("name,said", [("GONE", "has no GONE"), ("shout", "is a function; give an Evaluation"),
    ("EMPTY", "no rows; give at least one"), ("BROKEN", "BROKEN row 1: no question")])
def test_an_evaluation_that_cannot_be_is_told_in_one_line(mine, name, said):
    with pytest.raises(InputError, match=said): load_benchmark(f"{mine}:{name}")


def test_an_own_filter_in_a_run_and_in_its_report(mine, tmp_path):
    argv = [str(tmp_path / "r"), "--model", "embedded", "--respond.filters", "missing_answer", f"{mine}:shout"]
    _, cfg, _ = parse_run("run", argv)
    assert cfg.respond.filters == ("missing_answer", f"{mine}:shout")
    said = {"Why?": "BECAUSE IT IS SO.", "How?": "By boat, as ever."}
    answer = lambda p, i, s: f" Role: Aster. Rules: 2.\n\nAster: {next(a for q, a in said.items() if f'User: {q}' in p)}"
    with Run(tmp_path / "r", say=lambda s: None) as run:
        with run.stage("prompts", {}, files=["prompts.jsonl"]) as rec:
            write_jsonl(run / "prompts.jsonl", [dict(id=q, instruction=q, input="") for q in said])
            rec.update(kept=2, asked=2)
        respond(run, ScriptedEngine(answer), cfg.respond)
        reject = [r for r in read_jsonl(run / "rejects.jsonl") if r["stage"] == "responses"]
        assert [(r["reason"], r["phrase"]) for r in reject] == [("all capitals", "BECAUSE IT")]
        assert dict(closing_table(run))["answers rejected"] == "all capitals 1"


@pytest.mark.parametrize("stage", ["respond", "clone"])
def test_an_own_filter_that_cannot_be_is_told_before_the_first_token(mine, tmp_path, stage, capsys):
    argv = ["run", str(tmp_path / "r"), "--model", "embedded", f"--{stage}.filters", f"{mine}:GONE"]
    assert main(argv) == 1
    assert "has no GONE" in capsys.readouterr().err and not (tmp_path / "r" / "completions").exists()


def test_an_edited_own_filter_is_not_taken_for_the_same_run(mine, tmp_path):
    _, cfg, _ = parse_run("run", [str(tmp_path / "r"), "--model", "embedded", "--respond.filters", f"{mine}:shout"])
    engine = ScriptedEngine(lambda p, i, s: " Role: Aster. Rules: 2.\n\nAster: By boat, as ever.")
    with Run(tmp_path / "r", say=lambda s: None) as run:
        with run.stage("prompts", {}, files=["prompts.jsonl"]):
            write_jsonl(run / "prompts.jsonl", [dict(id="a", instruction="How?", input="")])
        made = respond(run, engine, cfg.respond)
        assert list(made["settings"]["own_filters"]) == [f"{mine}:shout"]
        assert respond(run, engine, cfg.respond) == made
        (tmp_path / "mine.py").write_text(MINE.replace("isupper", "islower"))
        with pytest.raises(InputError, match=r"other settings \(own_filters: .*mine.py:shout\); use --redo responses"):
            respond(run, engine, cfg.respond)
        (tmp_path / "mine.py").write_text(MINE)
        assert respond(run, engine, cfg.respond) == made


def test_an_own_evaluation_in_the_report(mine, tmp_path):
    scores = [dict(model="final", set=f"{mine}:BREVITY", format="answer", short=[0.5, 0.1, 0.9], other=[0, 0, 0])]
    with Run(tmp_path / "r", say=lambda s: None) as run:
        with run.stage("evaluation", {}) as rec: rec.update(scores=scores)
        told = [v for k, v in closing_table(run) if "short" in k]
        assert told == ["0.50 (0.10 to 0.90)"] and not [k for k, _ in closing_table(run) if "other" in k]


def test_an_own_engine_takes_its_model_as_any_other(mine, tmp_path):
    _, cfg, _ = parse_run("run", [str(tmp_path / "r"), "--model", "embedded", "--engine", f"{mine}:EchoEngine"])
    assert engine_string(cfg) == f"{mine}:EchoEngine:embedded" and is_full(engine_string(cfg))
    assert not is_full(cfg.engine)
