"""What a model writes when it is free to write, before and after stage 3: `data/results/free_answers_NAME.json`

    python benchmarks/free_answers.py qwen_own runs/qwen_own_first runs/qwen_own_further

The questions of the principle pairs whose rules show in an answer, both halves, and the refusals: one answer each at
temperature 0.7, from the base model by its chat template, in the form of the principles' prompt and behind the
principles, and from each run's engraved model. Read by words (`selfalign.evals.behaviour`, `refusals`), compared question
by question; the refusals once more by the words of the rule `ethical`, which see a decline that begins with its reason.
Each arm is a file in RUN/free_answers (those of the base model in the first run's) and is not asked again. The runs are
of one model.
"""
import argparse
import json
from pathlib import Path

from pairs import FORM, UPTAKE, model_of, prompts_of
from selfalign.checks import InputError
from selfalign.config import config_from
from selfalign.engines.opening import base_model
from selfalign.evals.answers import text_stats
from selfalign.evals.behaviour import behaviour_of, load_traits, shows_by_words
from selfalign.evals.comparing import paired_compare
from selfalign.evals.refusals import refusals_of
from selfalign.evals.sets import _probes, load_benchmark
from selfalign.evals.stats import _triple
from selfalign.generation import Sampling, load_engine
from selfalign.models import resolve_model
from selfalign.principle_pairs import load_pairs
from selfalign.provenance import hardware, own_commit
from selfalign.rows import content_id, write_json
from selfalign.runs import Run

RESULTS = Path(__file__).parent.parent/"data"/"results"
STOP = ("\nUser:",)

def questions():
    probes = [dict(r, of="behaviour") for r in _probes(load_pairs())]
    return probes + [dict(r, of="refusals", instruction=r["question"], input="") for r in load_benchmark("refusals")]

def answered(run, cfg, arm, dtype):
    "One arm's answers to all questions."
    rows, ask = questions(), prompts_of(cfg, arm)
    sampling = Sampling(max_new_tokens=160, temperature=0.7, stop=STOP if arm in (FORM, UPTAKE) else (), seed=cfg.seed)
    seeds = [int(content_id(cfg.seed, r["instruction"])[:8], 16) for r in rows]
    with load_engine(f"torch:{model_of(run, cfg, arm)}", dtype=dtype) as e:
        outs = e.generate([ask(r) for r in rows], sampling, seeds=seeds)
    one = lambda r, c: dict(question=r["instruction"], text=c.text, finish_reason=c.finish_reason)
    return dict(answers=[one(r, c) for r, c in zip(rows, outs)], hardware=hardware(), dtype=dtype)

def read(arm):
    "(what its answers show, row by row; scores; how they are written)"
    rows = questions()
    of = {k: [(r, a["text"].strip()) for r, a in zip(rows, arm["answers"]) if r["of"] == k]
        for k in ("behaviour", "refusals")}
    shown, refused = (f(*map(list, zip(*of[k]))) for f, k in ((behaviour_of, "behaviour"), (refusals_of, "refusals")))
    by_kind = {k: {r["id"]: r["right"] for r in shown.rows if r["kind"] == k} for k in ("applies", "near_miss")}
    ethical = load_traits()["ethical"]
    declines = lambda r: int(shows_by_words(ethical, r["answer"]))
    for k in ("harmful", "benign"):
        by_kind[f"{k} declined, opening words"] = {r["id"]: r["refused"] for r in refused.rows if r["kind"] == k}
        by_kind[f"{k} declined, all words"] = {r["id"]: declines(r) for r in refused.rows if r["kind"] == k}
    stats = text_stats(arm["answers"])
    written = dict(words=stats["words"], ends=stats["stop_rate"], repeats=stats["repetition_rate"])
    scores = {k: _triple(v) for r in (shown, refused) for k, v in r.scores.items()}
    return by_kind, scores, {k: round(v, 3) for k, v in written.items()}

def main(name, runs, dtype, command):
    cfgs = {}
    for path in runs:
        with Run(path) as r: cfgs[path] = config_from(r.manifest["config"])
    models = {p: resolve_model(base_model(c)).sha256 for p, c in cfgs.items()}
    if len(set(models.values())) > 1: raise InputError(f"{runs[-1]}: its base model is not that of {runs[0]}")
    arms = {arm: (runs[0], arm) for arm in ("base", FORM, UPTAKE)} | {p.name: (p, "engraved") for p in runs}
    found = {}
    for label, (path, arm) in arms.items():
        file = path/"free_answers"/f"{arm}.json"
        if not file.exists(): write_json(file, answered(path, cfgs[path], arm, dtype))
        found[label] = json.loads(file.read_text())
    told = {k: read(x) for k, x in found.items()}
    out = {}
    for label, (kinds, scores, written) in told.items():
        against = {k: paired_compare(kinds[k], told["base"][0][k], names=(label, "base")) for k in kinds}
        out[label] = dict(scores=scores, **written, shares={k: [sum(v.values()), len(v)] for k, v in kinds.items()})
        if label != "base": out[label]["against_base"] = {k: dict(difference=_triple(c.difference), n=c.n, p=c.p)
            for k, c in against.items()}
        print(label, {k: round(v[0], 2) for k, v in scores.items()}, written)
        for k, c in against.items(): print("   ", k, c)
    rows = questions()
    picked = [next(i for i, r in enumerate(rows) if r.get("trait") == t and r["kind"] == k)
        for t in dict.fromkeys(r["trait"] for r in rows if "trait" in r) for k in ("applies", "near_miss")]
    picked += [i for i, r in enumerate(rows) if r["of"] == "refusals" and r["kind"] == "harmful"]
    shown = [dict(question=rows[i]["instruction"], trait=rows[i].get("trait", "refusals"), kind=rows[i]["kind"],
        answers={k: x["answers"][i]["text"] for k, x in found.items()}) for i in picked]
    first = cfgs[runs[0]]
    file = RESULTS/f"free_answers_{name}.json"
    write_json(file, dict(command=command, commit=own_commit(), dtype=found["base"]["dtype"],
        hardware={k: x["hardware"] for k, x in found.items()}, model=Path(str(first.model)).name,
        sha256=models[runs[0]], arms=out, answers=shown))
    print(file)

if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("name", help="of the result: qwen_own for free_answers_qwen_own.json")
    p.add_argument("runs", type=Path, nargs="+", help="folders of runs whose stage 3 is finished")
    p.add_argument("--dtype", default="bfloat16", help="of the engine that answers")
    a = p.parse_args()
    main(a.name, a.runs, a.dtype, f"python benchmarks/free_answers.py {a.name} {' '.join(map(str, a.runs))}")
