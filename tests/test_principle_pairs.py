"The pairs of answers that show whether a rule is followed: form, balance of lengths, nothing shared with the prompts."
import json, re
from collections import Counter, defaultdict
from pathlib import Path
import pytest

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
