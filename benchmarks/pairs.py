"""The principle pairs of a run whose stage 3 is finished, in one table: `data/results/pairs_NAME.json`.

    python benchmarks/pairs.py qwen runs/qwen
    python benchmarks/pairs.py qwen runs/qwen --arms control   # one arm; the others as they are stored

The base model is asked three ways: by its chat template, as the engraved model will be; in the form of the
principles' prompt with neither rules nor exemplars in it; and behind the principles. So what the form moves stands
beside what the rules move. A run without a control arm has none here; what `benchmarks/unmoved.py` made is an arm too.
Each arm is a file in RUN/pairs with the machine that made it, and is not scored again.
"""
import argparse
import json
from dataclasses import asdict
from pathlib import Path

from selfalign.app.uptake import asked_plainly
from selfalign.checks import InputError
from selfalign.config import config_from
from selfalign.engines.opening import base_model
from selfalign.evals.plain_text import plain_text
from selfalign.evals.sets import load_benchmark
from selfalign.generation import load_engine
from selfalign.models import best_device, resolve_model
from selfalign.principle_engraving import load_principle_set
from selfalign.principle_pairs import (FORM, UPTAKE, PairScores, behind_principles, by_rule, in_their_form, load_pairs,
                                       score_principles, summary)
from selfalign.provenance import hardware
from selfalign.rows import write_json
from selfalign.runs import Run

RESULTS = Path(__file__).parent.parent/"data"/"results"
UNMOVED = "unmoved" # see benchmarks/unmoved.py
ARMS = ("base", FORM, UPTAKE, "control", UNMOVED, "engraved")
TRAINED = ("control", UNMOVED, "engraved")

def model_of(run, cfg, arm): # the merged model, or the adapter where only that came along
    if arm not in TRAINED: return base_model(cfg)
    merged = run/arm
    return merged if (merged/"config.json").exists() else merged/"adapter"

def prompts_of(cfg, arm):
    if arm in ("base", *TRAINED): return asked_plainly(cfg)
    return (in_their_form if arm == FORM else behind_principles)(load_principle_set(cfg.respond, cfg.annotations))

def scored(run, cfg, arm):
    "One arm's pairs, and what plain text costs it where its weights differ."
    with load_engine(f"torch:{model_of(run, cfg, arm)}") as e:
        got = asdict(score_principles(e, load_pairs(), prompts_of(cfg, arm)))
        if arm in ("base", *TRAINED):
            got["nats_per_token"] = next(iter(plain_text(e, load_benchmark("passages")).scores.values())).value
    return got | dict(hardware=hardware(), device=best_device())

def figures(arms):
    rules = {n: {kind: {s.arm: round(s.shift.value, 2) for s in shifts} for kind, shifts in kinds.items()}
        for n, kinds in by_rule(arms).items()}
    return dict(principles=summary(arms), by_rule=rules)

def main(name, run, again, command):
    with Run(run) as r: cfg, man = config_from(r.manifest["config"]), r.manifest
    if not man["stages"].get("engraved", {}).get("done"): raise InputError(f"{run}: stage 3 is not finished")
    there = dict(control=man["stages"].get("control", {}).get("done"), unmoved=(run/UNMOVED).exists())
    if lacks := [a for a in again if not there.get(a, True)]:
        raise InputError(f"{run}: it has no arm {lacks[0]}; train it, or leave --arms {lacks[0]} out")
    found = {}
    for arm in [a for a in ARMS if there.get(a, True)]:
        file = run/"pairs"/f"{arm}.json"
        if not file.exists() or arm in again: write_json(file, scored(run, cfg, arm))
        found[arm] = json.loads(file.read_text())
    half = lambda held: {a: PairScores([r for r in x["rows"] if r["held_out"] == held], x["skipped"])
        for a, x in found.items()}
    halves = dict(held_out=figures(half(True)), tuning=figures(half(False)))
    for h, held in (("held_out", True), ("tuning", False)):
        if UNMOVED in found: halves[h]["beyond_unmoved"] = summary({k: half(held)[k] for k in (UNMOVED, "engraved")})
    plain = {a: round(x["nats_per_token"]/found["base"]["nats_per_token"] - 1, 4)
        for a, x in found.items() if a in TRAINED}
    stages = {s: {k: v[k] for k in ("seconds", "asked", "kept", "rejected", "rows", "steps") if v.get(k) is not None}
        for s, v in man["stages"].items()}
    out = RESULTS/f"pairs_{name}.json"
    write_json(out, dict(command=command, commit=man["commit"], versions=man["versions"],
        hardware={a: x["hardware"] for a, x in found.items()}, model=Path(str(cfg.model)).name,
        sha256=resolve_model(base_model(cfg)).sha256, config=man["config"] | dict(model=Path(str(cfg.model)).name),
        stages=stages, plain_text_rise=plain,
        **halves))
    for name, x in halves.items():
        for kind, arms in x["principles"]["alike"].items():
            for arm, y in arms.items():
                print(f"{name:9} {kind:9} {arm} against {y['against']}: {y['shift'][0]:+.2f} (p = {y['p_shift']:.2g})")
            y = x["principles"][kind]["engraved"]
            print(f"{name:9} {kind:9} engraved against base: {y['shift'][0]:+.2f} (p = {y['p_shift']:.2g})")
    print(out)

if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("name", help="of the result: qwen for pairs_qwen.json")
    p.add_argument("run", type=Path, help="folder of a run whose stage 3 is finished")
    p.add_argument("--arms", nargs="*", choices=ARMS, default=[], help="score these again")
    a = p.parse_args()
    main(a.name, a.run, a.arms, f"python benchmarks/pairs.py {a.name} {a.run}")
