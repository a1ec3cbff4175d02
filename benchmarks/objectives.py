"""Label loss, distillation, and distillation that reads the seed texts too, on the rows of one finished stage 2.

    python benchmarks/objectives.py runs/gemma --arms labels distil distil+seeds

For each arm the base model is trained with the run's own settings of stage 3, but for the objective, and measured on
the tuning half of the principle pairs: how far the answer that keeps the rule has moved against the base model, beside
what the principles in the prompt do, and what plain text costs. An arm that is stored is not trained again.
"""
import argparse
import json
import shutil
import tempfile
from dataclasses import asdict, replace
from pathlib import Path

from selfalign.app.uptake import asked_plainly
from selfalign.checks import InputError
from selfalign.config import config_from
from selfalign.engines.opening import base_model
from selfalign.evals.plain_text import plain_text
from selfalign.evals.sets import load_benchmark
from selfalign.generation import load_engine
from selfalign.human import Human
from selfalign.models import resolve_model
from selfalign.principle_engraving import load_principle_set
from selfalign.principle_pairs import UPTAKE, PairScores, behind_principles, load_pairs, score_principles, summary
from selfalign.provenance import hardware
from selfalign.rows import read_jsonl, write_json
from selfalign.runs import Run
from selfalign.sft import split_held_out, teacher_engine, train_model

RESULTS = Path(__file__).parent.parent/"data"/"results"
ARMS = {"labels": dict(objective="labels", seed_texts=False), "distil": dict(objective="distil", seed_texts=False),
        "distil+seeds": dict(objective="distil", seed_texts=True)}


class Measured:
    "The pairs and passages, and how every model is asked: as the engraved model will be."
    def __init__(self, cfg):
        self.base, self.plain = base_model(cfg), asked_plainly(cfg)
        self.principled = behind_principles(load_principle_set(cfg.respond, cfg.annotations))
        self.pairs = [p for p in load_pairs() if not p["held_out"]]
        self.passages = load_benchmark("passages")

    def __call__(self, model, principled=False):
        "The scores of one model's pairs, behind the principles too where asked, and its nats per token of plain text."
        with load_engine(f"torch:{model}", dtype="float32") as e:
            arms = dict(plain=score_principles(e, self.pairs, self.plain))
            if principled: arms["principled"] = score_principles(e, self.pairs, self.principled)
            nll = next(iter(plain_text(e, self.passages).scores.values())).value
        return dict(arms={k: asdict(v) for k, v in arms.items()}, nats_per_token=nll)


def trained(run, cfg, measured, arm, work):
    "One arm: what training told, and what was measured."
    rows, _ = split_held_out(read_jsonl(run/"responses.jsonl"), cfg.engrave.held_out)
    settings = replace(cfg.engrave, **ARMS[arm])
    info = train_model(rows, measured.base, work/"model", work/"steps", settings, cfg.seed, Human.of(cfg),
                       teacher=(*teacher_engine(measured.base), measured.principled))
    got = measured(work/"model")
    shutil.rmtree(work/"model")
    kept = ("rows", "tokens", "answer_tokens", "steps", "first_loss", "last_loss")
    return got | dict(training={k: info[k] for k in kept})


def told(stored):
    "Figures of all arms against the base model."
    scores = lambda d: PairScores(**d)
    base = stored["base"]["arms"]
    out = {}
    for arm in (a for a in ARMS if a in stored):
        arms = {"base": scores(base["plain"]), UPTAKE: scores(base["principled"]),
                "engraved": scores(stored[arm]["arms"]["plain"])}
        cost = stored[arm]["nats_per_token"]/stored["base"]["nats_per_token"] - 1
        out[arm] = dict(principles=summary(arms), plain_text_rise=round(cost, 4), training=stored[arm]["training"])
    return out


def main(path, names, command):
    with Run(path) as run: cfg, commit = config_from(run.manifest["config"]), run.manifest["commit"]
    if not (path/"responses.jsonl").exists(): raise InputError(f"{path}: no responses.jsonl; finish stage 2 first")
    file, measured = path/"objectives.json", Measured(cfg)
    stored = json.loads(file.read_text()) if file.exists() else {}
    if "base" not in stored: write_json(file, stored := dict(base=measured(measured.base, True)))
    for name in names:
        if name in stored: continue
        with tempfile.TemporaryDirectory() as work: stored[name] = trained(path, cfg, measured, name, Path(work))
        write_json(file, stored)
    figures = told(stored)
    for arm, x in figures.items():
        shift = {a: v["shift"][0] for a, v in x["principles"]["all"].items()}
        cost = x["plain_text_rise"]
        print(f"{arm}: shift {shift['engraved']:+.2f} of {shift[UPTAKE]:+.2f} nats, plain text {cost:+.1%}")
    about = dict(command=command, commit=commit, hardware=hardware(), sha256=resolve_model(measured.base).sha256)
    write_json(RESULTS/"objectives.json", about | dict(engrave=asdict(cfg.engrave), arms=figures))


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("run", type=Path, help="folder of a run whose stage 2 is finished")
    p.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    a = p.parse_args()
    main(a.run, a.arms, f"python benchmarks/objectives.py {a.run} --arms {' '.join(a.arms)}")
