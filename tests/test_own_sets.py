"""The sets of this project: in the multiple-choice ones, length does not tell the right answer; the plain passages are
short and of eight kinds."""
import json
from collections import Counter
from math import sqrt
from pathlib import Path
import pytest

EVAL = Path(__file__).parent.parent/"data/eval"
KINDS = "narrative instructions dialogue news scientific letter code encyclopedic".split()
SETS = [("facts_mc", "mc1_targets"), ("facts_mc", "mc2_targets"), ("choices_hhh", "targets")]

def choices(name, key):
    "For each row: the lengths of the right and of the wrong answers."
    rows = [json.loads(l)[key] for l in (EVAL/f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]
    return [tuple([len(c) for c, l in zip(t["choices"], t["labels"]) if l == k] for k in (1, 0)) for t in rows]

def mean(xs): return sum(xs)/len(xs)

@pytest.mark.parametrize("name,key", SETS)
def test_right_and_wrong_answers_are_equally_long(name, key):
    rows = choices(name, key)
    right, wrong = (mean([n for r in rows for n in r[k]]) for k in (0, 1))
    assert abs(right-wrong) <= 0.1*min(right, wrong)
    assert abs(mean([mean(r)/mean(w) for r, w in rows])-1) <= 0.1

@pytest.mark.parametrize("name,key", [SETS[0], SETS[2]])
@pytest.mark.parametrize("pick", [max, min])
def test_the_longest_or_shortest_answer_is_right_as_often_as_by_chance(name, key, pick):
    rows = choices(name, key)
    hits = [0 if pick(r+w) not in r else 1/(r+w).count(pick(r+w)) for r, w in rows] # a tie is broken by chance
    chance = [1/len(r+w) for r, w in rows]
    assert abs(sum(hits)-sum(chance)) <= 1.5*sqrt(sum(p*(1-p) for p in chance))

def test_plain_passages():
    rows = [json.loads(l) for l in (EVAL/"plain_passages.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len({r["id"] for r in rows}) == len({r["text"] for r in rows}) == len(rows) >= 64
    assert all(list(r) == ["id", "kind", "text"] and r["text"].strip() == r["text"] for r in rows)
    assert Counter(r["kind"] for r in rows) == dict.fromkeys(KINDS, 8)
    assert all(60 <= len(r["text"].split()) <= 120 for r in rows)
