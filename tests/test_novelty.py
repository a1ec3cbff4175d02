"The novelty filter against Google's rouge-score, which is the definition."
import json, random, time

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from rouge_score import rouge_scorer, tokenize

from selfalign import novelty
from selfalign.checks import InputError
from selfalign.novelty import (Contamination, Novelty, NoveltyFilter, letters_kept, nearest_scores, rouge_l,
                               rouge_tokens, unicode_tokens)

_quick = settings(max_examples=100, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


def score(a, b, tokens=lambda t: tokenize.tokenize(t, None)):
    return rouge_scorer._score_lcs(tokens(a), tokens(b)).fmeasure


class Reference:
    "The definition: every text against every text kept before."
    def __init__(self, threshold, tokens=lambda t: tokenize.tokenize(t, None)):
        self.t, self.tokens, self.pool = threshold, tokens, []

    def add(self, text, seed=False):
        x = self.tokens(text)
        scores = [rouge_scorer._score_lcs(y, x).fmeasure for y in self.pool]
        best = max(scores, default=0.0)
        if seed or not best > self.t: self.pool.append(x)
        return not best > self.t, best, scores.index(best) if scores else None


def agree(texts, threshold=0.7, tokenizer="rouge", exact=False):
    ref = Reference(threshold) if tokenizer == "rouge" else Reference(threshold, unicode_tokens)
    f = NoveltyFilter(threshold, tokenizer, exact)
    for t in texts:
        kept, best, nearest = ref.add(t)
        want = Novelty(kept, best, nearest) if exact or not kept else Novelty(True, None, None)
        assert f.check(t) == want
        assert f.add(t) == want
    assert len(f) == len(ref.pool)
    return f


thresholds = st.sampled_from([0.7, 0.7, 0.7, 0.0, 1.0, 0.5, 2/3, 0.6, 0.8, 0.1, 0.9]) | st.floats(0, 1)
few_words = st.lists(st.sampled_from("a b c d e".split()), max_size=12).map(" ".join)
many_words = st.lists(st.integers(0, 60).map(lambda i: f"w{i}"), max_size=25).map(" ".join)
repeats = st.builds(lambda w, n, v, m: " ".join([w]*n + [v]*m), st.sampled_from("ab"), st.integers(0, 20),
    st.sampled_from("abc"), st.integers(0, 20))
messy = st.text(st.sampled_from("aAbB1 é.-_'\n\tİßK🙂"), max_size=25)


@_quick
@given(st.lists(few_words | repeats, max_size=25), thresholds, st.booleans())
def test_few_words_and_repeats(texts, threshold, exact): agree(texts, threshold, exact=exact)


@_quick
@given(st.lists(many_words | repeats, max_size=25), thresholds, st.booleans())
def test_many_words(texts, threshold, exact): agree(texts, threshold, exact=exact)


@_quick
@given(st.lists(messy.filter(lambda t: letters_kept(t) >= .5), max_size=25), thresholds)
def test_messy_text(texts, threshold): agree(texts, threshold)


@_quick
@given(st.lists(st.text(max_size=20) | st.text(st.sampled_from("天地人 日本かなกำไทй Й你好ab"), max_size=12), max_size=20),
    thresholds, st.booleans())
def test_other_scripts(texts, threshold, exact): agree(texts, threshold, "unicode", exact)


@_quick
@given(st.text())
def test_tokens(text):
    assert rouge_tokens(text) == tokenize.tokenize(text, None)
    assert " ".join(unicode_tokens(text)).split() == unicode_tokens(text)
    if text.isascii(): assert unicode_tokens(text) == rouge_tokens(text)


@_quick
@given(few_words | messy, few_words | messy)
def test_rouge_l(a, b):
    if min(letters_kept(a), letters_kept(b)) >= .5: assert rouge_l(a, b) == rouge_l(b, a) == score(a, b)


def edited(rng, words, source, share):
    "A copy with some words replaced, dropped, added or moved."
    out = list(source)
    for _ in range(rng.randint(0, max(1, int(share*len(out))))):
        i = rng.randrange(len(out)) if out else 0
        k = rng.random()
        if k < .5 and out: out[i] = rng.choice(words)
        elif k < .7 and len(out) > 1: del out[i]
        elif k < .85: out.insert(i, rng.choice(words))
        elif out: out.insert(rng.randrange(len(out)), out.pop(i))
    return out


def stream(n, seed, vocabulary=150, longest=30):
    rng = random.Random(seed)
    words, past = [f"w{int(rng.paretovariate(.7)) % vocabulary}" for _ in range(2000)], []
    for _ in range(n):
        new = (edited(rng, words, rng.choice(past), .5) if past and rng.random() < .6
            else rng.choices(words, k=rng.randint(1, longest)))
        past.append(new); yield " ".join(new)


@pytest.mark.parametrize("seed, threshold, exact",
    [(0, .7, False), (1, .7, True), (2, .5, False), (3, .3, False), (4, .9, True), (5, 2/3, False)])
def test_streams_of_near_duplicates(seed, threshold, exact): # long enough for several rankings of the elements
    f = agree(list(stream(300, seed)), threshold, exact=exact)
    assert len(f) < 300 and (threshold < .7 or f._pool.prefixes.ranked > 64)


def pair_with(n, m, lcs):
    "Two texts of n and m words whose longest common subsequence has `lcs` words."
    return (" ".join(f"c{i}" for i in range(lcs)) + "".join(f" x{i}" for i in range(n-lcs)),
        "".join(f"y{i} " for i in range(m-lcs)) + " ".join(f"c{i}" for i in range(lcs)))


@pytest.mark.parametrize("num, den", [(7, 10), (1, 2), (2, 3), (3, 5), (4, 5), (9, 10), (1, 3), (1, 10)])
def test_ties_at_exactly_the_threshold(num, den):
    t, sides = num/den, set()
    for total in range(2, 121):
        if (total*num) % (2*den): continue
        lcs = total*num//(2*den)
        for n in range(lcs, total-lcs+1):
            a, b = pair_with(n, total-n, lcs)
            f = NoveltyFilter(t); f.add(a)
            want = not score(a, b) > t
            assert f.add(b).kept == want, (n, total-n, lcs)
            sides.add(want)
    assert True in sides


def test_both_sides_of_a_tie_occur(): # on paper equal to 0.7, in floating point above it and not
    f1 = {(n, m, l): score(*pair_with(n, m, l)) for l in range(7, 64, 7) for n in range(l, 20*l//7-l+1)
        for m in [20*l//7-n]}
    assert any(f > .7 for f in f1.values()) and any(f <= .7 for f in f1.values())
    for (n, m, l), f in f1.items(): assert rouge_l(*pair_with(n, m, l)) == f


def test_earliest_of_equals_is_nearest():
    f = NoveltyFilter().seed(["a b c d x", "a b c d y", "a b c d x"], ids=["one", "two", "three"])
    assert f.check("a b c d z") == Novelty(False, score("a b c d x", "a b c d z"), "one")
    assert f.check("a b c d y").nearest == "two"
    assert NoveltyFilter(exact=True).seed(["p q", "r s"]).check("t") == Novelty(True, 0.0, 0)


def test_seeds_are_in_the_pool_whatever_they_resemble():
    f = NoveltyFilter().seed(["a b c"]*3)
    assert len(f) == 3 and not f.add("a b c").kept and len(f) == 3
    assert f.add("q r s").kept and f.check("q r s").nearest == 3


def test_batch_is_the_same_as_one_by_one():
    texts = list(stream(400, 7)); ids = [f"id{i}" for i in range(len(texts))]
    one, many = NoveltyFilter(), NoveltyFilter()
    assert [one.add(t, i) for t, i in zip(texts, ids)] == many.add_many(texts, ids)
    assert len(one) == len(many)
    halves = NoveltyFilter()
    assert halves.add_many(iter(texts[:150]), ids[:150]) + halves.add_many(texts[150:],
        ids[150:]) == NoveltyFilter().add_many(texts, ids)


@pytest.mark.parametrize("tokenizer, exact", [("rouge", False), ("unicode", True)])
def test_saved_and_loaded_midway(tmp_path, tokenizer, exact):
    texts = ["", "the the the", "🙂"] + list(stream(300, 8)); whole = NoveltyFilter(.65, tokenizer, exact)
    want, f, got = whole.add_many(texts), NoveltyFilter(.65, tokenizer, exact), []
    for start in range(0, len(texts), 101):
        got += f.add_many(texts[start:start+101])
        f.save(tmp_path/"pool.jsonl"); f = NoveltyFilter.load(tmp_path/"pool.jsonl")
    assert got == want and len(f) == len(whole)
    assert (f.threshold, f.tokenizer, f.exact) == (.65, tokenizer, exact)
    assert json.loads((tmp_path/"pool.jsonl").read_text().splitlines()[0])["texts"] == len(f) # plain JSON lines


def test_damaged_files(tmp_path):
    p = tmp_path/"pool.jsonl"
    NoveltyFilter().seed(["a b", "c d"], ids=["x", 2]).save(p); lines = p.read_text().splitlines(True)
    for content in ["", "{}\n", "".join(lines[:-1]), "".join(lines[1:]), "".join(lines)[:-5], "\x00",
            lines[0] + '{"id": 1, "words": 3}\n', lines[0].replace("0.7", "7")]:
        p.write_text(content)
        with pytest.raises(InputError): NoveltyFilter.load(p)
    with pytest.raises(InputError, match="cannot be read"): NoveltyFilter.load(tmp_path/"none.jsonl")


@pytest.mark.parametrize("threshold", [-.01, 1.01, float("nan"), float("inf"), "0.7", None, True, [0.7]])
def test_bad_threshold(threshold):
    with pytest.raises(InputError, match="from 0 to 1"): NoveltyFilter(threshold)


def test_bad_input_adds_nothing():
    f = NoveltyFilter()
    for bad in [["fine", None], ["fine", "中文文本没有字母"], ["fine", 3]]:
        with pytest.raises(InputError): f.add_many(bad)
        with pytest.raises(InputError): f.seed(bad)
    for call in [lambda: f.add("x", id=1.5), lambda: f.add("x", id=["a"]), lambda: f.add_many("text"),
            lambda: f.add_many(["a"], [1, 2]), lambda: NoveltyFilter(tokenizer="nltk"),
            lambda: NoveltyFilter(tokenizer=None)]:
        with pytest.raises(InputError): call()
    assert len(f) == 0
    assert "\n" not in str(pytest.raises(InputError, f.add, "多行\n文本\n没有字母"*20).value)


def test_other_scripts_are_refused_not_let_through():
    f = NoveltyFilter()
    for t in ["Почему небо синее?", "为什么天空是蓝色的？", "لماذا السماء زرقاء؟", "ok, но почему же"]:
        with pytest.raises(InputError, match='use tokenizer="unicode"'): f.add(t)
        assert NoveltyFilter(tokenizer="unicode").add_many([t, t])[1] == Novelty(False, 1.0, 0)
    assert f.add("Größe und Höhe der Zugspitze").kept and f.add("🙂🙂 42").kept and len(f) == 2


def test_unicode_words():
    assert unicode_tokens("हिन्दी में") == ["हिन्दी", "में"]             # vowel signs stay in the word
    assert unicode_tokens("天空,蓝 한국어 문장") == ["天", "空", "蓝", "한국어", "문장"]
    assert unicode_tokens("cafe\u0301 CAFÉ") == ["café", "café"]       # composed or not
    assert unicode_tokens("می\u200cخواهم soft\u00adhyphen") == ["میخواهم", "softhyphen"]


def test_huge_texts():
    rng = random.Random(0); words = [f"w{i}" for i in range(5000)]
    big = rng.choices(words, k=100_000)
    f, start = NoveltyFilter(), time.monotonic()
    assert f.add(" ".join(big)).kept
    assert f.add("the "*100_000).kept and f.add("a short text").kept
    cut = big[:60_000]
    got = f.add(" ".join(cut))
    p, r = 60_000/60_000, 60_000/100_000
    assert got == Novelty(False, 2*p*r/(p+r), 0)
    assert f.add(" ".join(big[:50_000])).kept # 2/3
    assert not f.add("the "*70_000).kept
    assert time.monotonic() - start < 15


def test_a_text_above_the_widths_in_a_posting(): # 4,095 words; room 2**19
    f, big = NoveltyFilter(.5), [f"w{i}" for i in range(50_000)]
    f.add(" ".join(big))
    for n in (16_667, 16_666, 16_668, 25_000, 40_000): # F1 of a part of n words is 2n/(n+50,000)
        p, r = n/n, n/50_000
        assert f.check(" ".join(big[-n:])).kept == (not 2*p*r/(p+r) > .5)


def test_words_beyond_the_last_character(monkeypatch): # word ids that are no code point become lists
    texts = list(stream(200, 9)); want = NoveltyFilter(exact=True).add_many(texts)
    monkeypatch.setattr(novelty, "_CODES", 40)
    assert NoveltyFilter(exact=True).add_many(texts) == want


def test_check_leaves_no_trace():
    f = NoveltyFilter().seed(["a b c"]); before = (len(f), dict(f._pool.prefixes.ids))
    for t in ("new words here", "a b c", "a z"): f.check(t)
    assert (len(f), f._pool.prefixes.ids) == before


def test_contamination():
    qs = ["What is the capital of Peru?",
        "one two three four five six seven eight nine ten eleven twelve thirteen fourteen", "Is water wet?"]
    c = Contamination(qs)
    assert c.find("what is the CAPITAL of Peru") == ("evaluation_exact", 0)
    assert c.find("What is the capital city of Peru?") == ("evaluation_rouge_l", 0)
    long = ("so he said " + "two three four five six seven eight nine ten eleven twelve thirteen fourteen"
        + " and much more " + "x y z "*20)
    assert c.find(long) == ("evaluation_13gram", 1) and c.match(long) == "evaluation_13gram"
    assert c.match(long.replace("seven", "7")) is None
    assert c.match("Почему небо синее?") is None and c.match("") is None and c.match("word") is None
    assert len(c) == 3 and Contamination([]).match("x") is None
    with pytest.raises(InputError): Contamination("x")
    with pytest.raises(InputError): Contamination(qs, threshold=7)


def test_nearest_scores_are_the_definition():
    texts = list(stream(400, 10)); toks = [t.split() for t in texts]
    picks = np.sort(np.random.default_rng(3).choice(400, 40, replace=False))
    want = [max(rouge_scorer._score_lcs(toks[j], toks[i]).fmeasure for j in range(400) if j != i) for i in picks]
    assert nearest_scores(texts, sample=40, seed=3).tolist() == want
    assert len(nearest_scores(texts[:50])) == 50


def test_thousands_in_seconds():
    texts = list(stream(5000, 11, vocabulary=1500)); start = time.monotonic()
    f = NoveltyFilter(); f.add_many(texts)
    assert time.monotonic() - start < 5 and 2000 < len(f) < 5000
