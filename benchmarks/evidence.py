"""Keep what finished runs of one model showed: `data/results/evidence_NAME.json`, read by the page *What alignment
changed*.

    python benchmarks/evidence.py gemma runs/gemma-0 runs/gemma-1 runs/gemma-2 --command "selfalign run …"

Every run needs a finished stage 5 with `principles` among its sets. Runs of one name share model and settings and
differ by their seed, or by what `--label` says of each. """
import argparse
import json
from pathlib import Path

from selfalign.checks import InputError
from selfalign.models import resolve_model
from selfalign.provenance import hardware
from selfalign.report import closing_table
from selfalign.rows import write_json
from selfalign.runs import Run

RESULTS = Path(__file__).parent.parent/"data"/"results"
STAGES = ("prompts", "responses", "control answers", "engraved", "control", "verbose", "final", "evaluation")
KEPT = ("seconds", "asked", "kept", "rejected", "rows", "steps", "first_loss", "last_loss", "objective", "held_out")


def by_pair(run_path):
    "Log-odds (nats) of each pair in each arm."
    arms = json.loads((run_path/"eval"/"principles.json").read_text())["arms"]
    rows = {}
    for arm, got in arms.items():
        for r in got["rows"]:
            row = rows.setdefault(r["id"], {k: r[k] for k in ("id", "rule", "kind")} | dict(odds={}))
            row["odds"][arm] = round(r["keeping"] - r["breaking"], 3)
    return list(rows.values())


def answers(run_path, n=6):
    "A few open questions with every model's answer."
    replies = json.loads((run_path/"eval"/"replies.json").read_text())
    return [dict(question=r["instruction"], answers=r["answers"]) for r in replies if r["kind"] == "question"][:n]


def one(run_path, label):
    with Run(run_path) as run:
        table, man = closing_table(run), run.manifest
    found = man["stages"].get("evaluation", {})
    if not found.get("principles"):
        raise InputError(f"{run_path}: no finished stage 5 with pairs of principles; "
            f"add principles to evaluate.sets and run `selfalign evaluate {run_path}`")
    stages = {s: {k: v for k in KEPT if (v := man["stages"][s].get(k)) is not None}
        for s in STAGES if s in man["stages"]}
    evaluation = {k: found.get(k) for k in ("principles", "tax", "internalization", "replies", "scores")}
    return dict(label=label, seed=man["config"].get("seed"), commit=man["commit"], versions=man["versions"],
        config=man["config"], table=table, stages=stages, evaluation=evaluation, pairs=by_pair(run_path),
        answers=answers(run_path))


def store(name, runs, labels, command):
    if labels and len(labels) != len(runs):
        raise InputError(f"{len(labels)} labels for {len(runs)} runs; give one each")
    got = [one(r, l) for r, l in zip(runs, labels or [f"seed {k}" for k in range(len(runs))])]
    model = got[0]["config"].get("model")
    sha = resolve_model(model).sha256 if model else None
    for r in got: r["config"]["model"] = Path(str(model)).name # no path of this machine
    out = RESULTS/f"evidence_{name}.json"
    write_json(out, dict(command=command, commit=got[0]["commit"], hardware=hardware(), model=Path(str(model)).name,
        sha256=sha, runs=got))
    print(f"stored: {out}")


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("name", help="of the result: gemma for evidence_gemma.json")
    p.add_argument("runs", type=Path, nargs="+", help="folders of finished runs")
    p.add_argument("--label", nargs="*", help="what to call each run")
    p.add_argument("--command", required=True, help="the command that made the runs")
    a = p.parse_args()
    store(a.name, a.runs, a.label, a.command)
