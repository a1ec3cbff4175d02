"""How often a judge's reading of behaviour agrees with labels: `data/results/judge_agreement.json`.

    python benchmarks/judge_agreement.py MODEL     # a hub id, a folder or a GGUF file

The judge reads the 120 labelled answers of `data/labels/behaviour.jsonl`, which were labelled before any judge saw
them, with the rubric of `selfalign evaluate … --sets behaviour --judge`. Beside its agreement stand that of the word
rules, Cohen's kappa, and the agreement with labels that were shuffled within each trait, which a measure that tells
something must not reach. A verdict that cannot be read counts as a disagreement.
"""
import argparse
import json
import random
from pathlib import Path

from selfalign.annotations import data_path
from selfalign.evals.behaviour import behaviour_of, load_traits, shows_by_words
from selfalign.evals.stats import _triple, wilson
from selfalign.generation import load_engine
from selfalign.models import resolve_model
from selfalign.provenance import hardware, own_commit
from selfalign.rows import read_jsonl, write_json

RESULTS = Path(__file__).parent.parent/"data"/"results"

def kappa(said, labels):
    "Cohen's kappa of the verdicts that could be read: agreement beyond what both shares of yes give by chance."
    said, labels = zip(*[(x, y) for x, y in zip(said, labels) if x is not None] or [(False, True)])
    n = len(labels)
    agree, a, b = sum(x == y for x, y in zip(said, labels))/n, sum(map(bool, said))/n, sum(labels)/n
    chance = a*b + (1 - a)*(1 - b)
    return round((agree - chance)/(1 - chance), 3) if chance < 1 else None

def shuffled(rows, seed=0):
    "The labels, in another order within each trait."
    out, rng = [None]*len(rows), random.Random(seed)
    for trait in {r["trait"] for r in rows}:
        places = [i for i, r in enumerate(rows) if r["trait"] == trait]
        for i, j in zip(places, rng.sample(places, len(places))): out[i] = rows[j]["shows"]
    return out

def agreement(said, labels): return _triple(wilson(sum(x == y for x, y in zip(said, labels)), len(labels)))

def main(model, command):
    rows, traits = read_jsonl(data_path("labels/behaviour.jsonl")), load_traits()
    asked = [dict(id=r["id"], trait=r["trait"], kind="applies", instruction=r["instruction"]) for r in rows]
    with load_engine(f"torch:{model}") as judge: got = behaviour_of(asked, [r["answer"] for r in rows], judge)
    verdict = {r["id"]: bool(r["shows"]) for r in got.rows}
    labels, words = [r["shows"] for r in rows], [shows_by_words(traits[r["trait"]], r["answer"]) for r in rows]
    said = [verdict.get(r["id"]) for r in rows] # None: not readable
    of = lambda t, xs: [x for x, r in zip(xs, rows) if r["trait"] == t]
    by_trait = {t: dict(n=len(of(t, rows)), judge=sum(x == y for x, y in zip(of(t, said), of(t, labels))),
        words=sum(x == y for x, y in zip(of(t, words), of(t, labels)))) for t in dict.fromkeys(r["trait"] for r in rows)}
    figures = dict(n=len(rows), shows=sum(labels), said_yes=sum(map(bool, said)), unreadable=said.count(None),
        by_judge=agreement(said, labels), by_words=agreement(words, labels), kappa=kappa(said, labels),
        shuffled_labels=agreement(said, shuffled(rows)), by_trait=by_trait)
    out = RESULTS/"judge_agreement.json"
    write_json(out, dict(command=command, commit=own_commit(), hardware=hardware(), judge=Path(model).name,
        sha256=resolve_model(model).sha256, **figures))
    print(json.dumps(figures, indent=1))
    print(out)

if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("model", help="a hub id, a folder or a GGUF file")
    a = p.parse_args()
    main(a.model, f"python benchmarks/judge_agreement.py {Path(a.model).name}")
