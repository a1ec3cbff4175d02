"The pairs of answers that show whether a rule is followed: form, balance of lengths, nothing shared with the prompts."
import json, re
from collections import Counter, defaultdict
from pathlib import Path
import pytest

from selfalign.principle_pairs import CONTROL, FORM, UPTAKE, PairScores, principle_rows, summary, uptake_sentence

DATA = Path(__file__).parent.parent/"data"
RULES = range(1, 17)
KEYS = ["id", "rule", "kind", "held_out", "instruction", "input", "keeping", "breaking"]

def rows_of(path): return [json.loads(l) for l in path.read_text(encoding="utf-8").splitlines()]

PAIRS = rows_of(DATA/"eval/principle_pairs.jsonl")
BY_RULE = defaultdict(list)
for pair in PAIRS: BY_RULE[pair["rule"]].append(pair)

def grams(text, n=8):
    "The n-grams of words in a text."
    words = re.findall(r"[\w']+", text.lower())
    return {tuple(words[i:i+n]) for i in range(len(words)-n+1)}

def strings(x):
    "Every text in a nested value."
    if isinstance(x, str): yield x
    elif isinstance(x, (dict, list)):
        for v in (x.values() if isinstance(x, dict) else x): yield from strings(v)

def test_form():
    assert all(list(p) == KEYS and all(isinstance(p[k], str) for k in KEYS[4:]) for p in PAIRS)
    assert all(p[k].strip() == p[k] and p[k] for p in PAIRS for k in ("instruction", "keeping", "breaking"))
    assert {p["kind"] for p in PAIRS} == {"applies", "near_miss"} and {p["held_out"] for p in PAIRS} == {True, False}
    assert sorted(BY_RULE) == list(RULES)
    assert len({p["id"] for p in PAIRS}) == len(PAIRS)
    assert all(re.fullmatch(rf"pp-{p['rule']}-\d\d", p["id"]) for p in PAIRS)

@pytest.mark.parametrize("rule", RULES)
def test_twenty_pairs_a_rule_half_of_each_kind_held_out(rule):
    assert Counter((p["kind"], p["held_out"]) for p in BY_RULE[rule]) == {
        ("applies", True): 6, ("applies", False): 6, ("near_miss", True): 4, ("near_miss", False): 4}

@pytest.mark.parametrize("rule", RULES)
def test_length_tells_nothing(rule):
    lengths = [(len(p["keeping"]), len(p["breaking"])) for p in BY_RULE[rule]]
    assert all(a != b and abs(a-b) <= 0.1*min(a, b) for a, b in lengths), lengths
    assert 9 <= sum(a > b for a, b in lengths) <= 11
    assert all(70 <= n <= 400 for ab in lengths for n in ab)

def test_each_instruction_and_answer_once():
    for key in ("instruction", "keeping", "breaking"):
        assert not [t for t, n in Counter(p[key].casefold() for p in PAIRS).items() if n > 1]

def test_nothing_shared_with_the_prompts_or_the_other_sets():
    known = {}
    for path in [*(DATA/"annotations").iterdir(), *(DATA/"prompts").iterdir(), *(DATA/"eval").glob("*.jsonl")]:
        if path.name == "principle_pairs.jsonl": continue
        texts = strings(rows_of(path)) if path.suffix == ".jsonl" else [path.read_text(encoding="utf-8")]
        known |= {g: path.name for t in texts for g in grams(t)}
    assert known
    shared = [(p["id"], known[g], " ".join(g)) for p in PAIRS for k in KEYS[4:] for g in grams(p[k]) if g in known]
    assert not shared

def test_no_single_word_gives_the_answer_away():
    for kind in ("applies", "near_miss"):
        pairs, kept, broken = [p for p in PAIRS if p["kind"] == kind], Counter(), Counter()
        for p in pairs:
            a, b = ({w for w in re.findall(r"[\w']+", p[k].lower())} for k in ("keeping", "breaking"))
            kept.update(a-b); broken.update(b-a)
        assert max(abs(kept[w]-broken[w]) for w in kept | broken) <= 0.25*len(pairs)


def arm(by, kind=lambda i: "applies"):
    return PairScores([dict(id=str(i), rule=1 + i % 4, kind=kind(i), keeping=by(i), breaking=0.) for i in range(40)], [])


def test_what_the_form_and_any_training_move_is_not_counted_as_the_principles():
    "Form costs two nats and training three, the principles bring one in both: all of it is kept, though all shifts fall."
    wave = lambda i: (i % 5 - 2)/10
    arms = {"base": arm(lambda i: wave(i)), FORM: arm(lambda i: wave(i) - 2), UPTAKE: arm(lambda i: -wave(i) - 1),
            CONTROL: arm(lambda i: wave(i) - 3), "engraved": arm(lambda i: -wave(i) - 2)}
    found = summary(arms)
    assert found["all"]["engraved"]["shift"][0] < 0 and found["all"][UPTAKE]["shift"][0] < 0
    assert found["all"]["engraved"]["kept"][0] == pytest.approx(1)
    assert found["alike"]["all"][UPTAKE]["against"] == FORM and found["alike"]["all"]["engraved"]["against"] == CONTROL
    assert "does not follow" not in uptake_sentence(found)


def test_an_arm_that_moves_as_the_control_arm_keeps_nothing():
    arms = {"base": arm(lambda i: 0.), FORM: arm(lambda i: 0.1*(i % 2)), UPTAKE: arm(lambda i: 2 + 0.1*(i % 3)),
            CONTROL: arm(lambda i: 5 + 0.1*(i % 2)), "engraved": arm(lambda i: 5 + 0.1*(i % 2))}
    found = summary(arms)
    assert found["alike"]["all"]["engraved"]["shift"][0] == 0 and found["all"]["engraved"]["kept"] is None
    assert dict(principle_rows(found))["engraved against control"].startswith("+0.00 nats")


def test_without_the_arm_of_the_form_all_is_measured_against_the_first_arm():
    arms = {"base": arm(lambda i: 0.), UPTAKE: arm(lambda i: 2 + 0.1*(i % 3)), CONTROL: arm(lambda i: 1. + 0.1*(i % 2)),
            "engraved": arm(lambda i: 1 + 0.05*(i % 3))}
    found = summary(arms)
    assert "alike" not in found and found["all"]["engraved"]["kept"][0] == pytest.approx(0.5)
    assert found["all"][CONTROL]["kept"][0] == pytest.approx(0.5, abs=0.02)
