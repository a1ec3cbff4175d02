"""The novelty filter against rouge-score: same decisions, time per text, growth and memory.

    # all of it: about 11 minutes on one core, nearly all of it the reference; writes data/results/novelty.json
    python benchmarks/novelty.py
    python benchmarks/novelty.py --texts 50000 --check 1000 --out /tmp/novelty.json

Stream: words of our seed tasks, drawn by Zipf's law over their frequency ranks; lengths from 4 to 150 words, falling
as 1/length^2; 30 % of the texts are copies of an earlier text with up to 40 % of the words replaced, dropped, added
or moved. Few words (a seed set has some 1,500) make it harder than prompts of a language model, which bring names
and rare words that set texts apart.

Reference, in the authors' way: the pool is tokenised once and kept; each new text is scored by `_score_lcs` of
`rouge_score.rouge_scorer` against the whole pool, in one process. (Plain `RougeScorer.score` would tokenise the pool
again for each text and be slower.)
"""
import argparse, math, multiprocessing, random, resource, shlex, statistics, sys, time
from collections import Counter
from itertools import accumulate, islice
from pathlib import Path

from rouge_score import rouge_scorer, tokenize

from selfalign.novelty import NoveltyFilter, rouge_tokens
from selfalign.provenance import hardware
from selfalign.rows import iter_jsonl, write_json
from selfalign.runs import git_commit, versions

ROOT = Path(__file__).resolve().parent.parent
SEEDS = ROOT/"data"/"annotations"/"seed_tasks.jsonl"
FULL, SEED = 366_718, 20230504 # prompts in the paper; of the generator


def strings(x):
    if isinstance(x, str): yield x
    elif isinstance(x, (list, tuple)): yield from (s for y in x for s in strings(y))
    elif isinstance(x, dict): yield from (s for y in x.values() for s in strings(y))


def vocabulary():
    "Words of the seed tasks by falling frequency; made-up ones where the file is missing."
    if not SEEDS.exists(): return [f"word{i}" for i in range(1500)], "1,500 made-up words (no seed file)"
    counts = Counter(w for _, row in iter_jsonl(SEEDS) for s in strings(row) for w in rouge_tokens(s))
    return [w for w, _ in counts.most_common()], f"{len(counts):,} words of data/annotations/seed_tasks.jsonl"


def stream(words, seed=SEED, duplicates=0.3):
    "Texts without end."
    rng, past = random.Random(seed), []
    zipf, lengths = list(accumulate(1/(r+2.7) for r in range(len(words)))), range(4, 151)
    falling = list(accumulate(1/n**2 for n in lengths))
    def draw(k): return rng.choices(words, cum_weights=zipf, k=k)
    while True:
        if past and rng.random() < duplicates: text = edited(rng, rng.choice(past).split(), draw)
        else: text = draw(rng.choices(lengths, cum_weights=falling)[0])
        past.append(" ".join(text)); yield past[-1]


def edited(rng, text, draw):
    for _ in range(rng.randint(0, math.ceil(0.4*len(text)))):
        i, kind = rng.randrange(len(text)), rng.random()
        if kind < .5: text[i] = draw(1)[0]
        elif kind < .7 and len(text) > 4: del text[i]
        elif kind < .85: text.insert(i, draw(1)[0])
        else: text.insert(rng.randrange(len(text)), text.pop(i))
    return text


class Reference:
    "One process, the pool tokenised once."
    def __init__(self): self.pool = []
    def scores(self, tokens): return [rouge_scorer._score_lcs(tokens, x).fmeasure for x in self.pool]


def same_decisions(words, size):
    "Both filters on one stream until the pool holds `size` texts: decision, score and nearest must agree."
    ref, ours, differ, texts, rejects, ties = Reference(), NoveltyFilter(), [], 0, 0, 0
    for text in stream(words):
        if len(ours) >= size: break
        tokens = tokenize.tokenize(text, None)
        scores = ref.scores(tokens); best = max(scores, default=0.0)
        want = (not best > 0.7, best, scores.index(best) if scores else None)
        got = ours.add(text)
        if got.kept != want[0] or (not got.kept and (got.score, got.nearest) != want[1:]): differ.append(texts)
        if want[0]: ref.pool.append(tokens)
        texts += 1; rejects += not want[0]; ties += abs(best - 0.7) < 1e-12
    return dict(texts=texts, pool=len(ours), rejects=rejects, at_the_threshold=ties, differences=len(differ),
        first_differences=differ[:5])


def per_text(words, size, reference_texts=20, our_texts=2000):
    "Time per text at a pool of `size`; nothing is added while the clock runs."
    ours, texts = NoveltyFilter(), stream(words)
    while len(ours) < size: ours.add(next(texts))
    ref = Reference(); ref.pool = [[w for w in row.split()] for row in pool_words(ours)]
    new = list(islice(texts, our_texts))
    def timed(f, xs):
        out = []
        for x in xs:
            start = time.perf_counter(); f(x); out.append(time.perf_counter() - start)
        return statistics.mean(out)
    slow = timed(lambda t: max(ref.scores(tokenize.tokenize(t, None))), new[:reference_texts])
    fast = timed(ours.check, new)
    return dict(pool=size, reference_texts=reference_texts, our_texts=our_texts, reference_seconds_per_text=slow,
        our_seconds_per_text=fast, times_faster=slow/fast, seconds_per_pair=slow/size)


def pool_words(f):
    from selfalign.novelty import _saved
    rows = _saved(f); next(rows)
    return [r["words"] for r in rows]


def growth(args):
    "The whole stream through one filter; the clock counts the filter only."
    words, n = args
    points = [p for p in (10_000, 25_000, 50_000, 100_000, 200_000, FULL) if p < n] + [n]
    f, seconds, pairs, out = NoveltyFilter(), 0.0, 0, dict(texts=[], seconds=[], kept=[], reference_pairs=[])
    for i, text in enumerate(islice(stream(words), n), 1):
        pairs += len(f)
        start = time.perf_counter(); f.add(text); seconds += time.perf_counter() - start
        if i in points:
            for k, v in zip(out, (i, seconds, len(f), pairs)): out[k].append(v)
            print(f"{i:,} texts: {seconds:.1f} s, {len(f):,} kept", flush=True)
    return out | dict(peak_memory_gb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss*1024/1e9)


def exponent(xs, ys):
    "Slope of the least-squares line through the logarithms."
    x, y = [math.log(v) for v in xs], [math.log(v) for v in ys]
    mx, my = statistics.mean(x), statistics.mean(y)
    return sum((a-mx)*(b-my) for a, b in zip(x, y))/sum((a-mx)**2 for a in x)


def main():
    a = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    a.add_argument("--texts", type=int, default=FULL, help="length of the stream for growth and memory")
    a.add_argument("--check", type=int, default=5000, help="pool up to which decisions are compared")
    a.add_argument("--pool", type=int, default=20_000, help="pool at which the time per text is measured")
    a.add_argument("--out", default=ROOT/"data"/"results"/"novelty.json", type=Path)
    o = a.parse_args()
    words, source = vocabulary()
    # memory of this part alone
    with multiprocessing.get_context("spawn").Pool(1) as fresh: g = fresh.map(growth, [(words, o.texts)])[0]
    late = [i for i, n in enumerate(g["texts"]) if n >= 50_000]
    g["exponent"] = exponent([g["texts"][i] for i in late], [g["seconds"][i] for i in late]) if len(late) > 1 else None
    g["exponent_50k_to_end"] = (math.log(g["seconds"][-1]/g["seconds"][late[0]])/math.log(
        g["texts"][-1]/g["texts"][late[0]]) if len(late) > 1 else None)
    ref = per_text(words, o.pool)
    print(f"at a pool of {o.pool:,}: {ref['times_faster']:,.0f} times faster", flush=True)
    same = same_decisions(words, o.check)
    print(f"{same['texts']:,} decisions, {same['differences']} differences", flush=True)
    write_json(o.out, dict(
        claim="the decisions of rouge-score, at scale",
        command=shlex.join(["python", "benchmarks/novelty.py", *sys.argv[1:]]), commit=git_commit(ROOT),
        hardware=f"{hardware()}, 1 used",
        versions=versions(("selfalign", "rapidfuzz", "numpy", "rouge_score")),
        stream=dict(seed=SEED, vocabulary=source, near_duplicates=0.3, lengths="4 to 150 words, falling as 1/length^2"),
        reference_way="rouge_score.rouge_scorer._score_lcs against the pre-tokenised pool, one process",
        decisions=same, reference=ref, growth=g))


if __name__ == "__main__": main()
