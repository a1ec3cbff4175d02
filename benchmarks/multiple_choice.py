"""Parity with lm-eval on every row of TruthfulQA and HHH, and speed on the same 100 seeded questions.

    python benchmarks/multiple_choice.py                                   # all rows: hours on a CPU, resumable
    python benchmarks/multiple_choice.py --rows 12 --questions 4 --sets facts choices   # minutes, on our own sets

Both sides run the same model object's weights in the same dtype, on the same machine, in the same process. Each
finished chunk of rows is stored in --work, so a killed run goes on where it was; --minutes ends it after the part at
hand, with what is done so far in the result. Speed: median of --repeats, the two sides taking turns on ten questions
of each set at a time; lm-eval at the batch size that takes the least processor time on a few of the questions.
lm-eval's time counts `loglikelihood` only (its task building and metrics are left out); ours counts everything. """
import argparse, contextlib, io, json, logging, os, statistics, sys, tempfile, time, warnings
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
# lm-eval asks the hub about local files, and waits long where there is none; set it to 0 to fetch a model or a set
os.environ.setdefault("HF_HUB_OFFLINE", "1")

MC = """task: ours_{name}
dataset_path: json
dataset_kwargs:
  data_files:
    validation: {file}
output_type: multiple_choice
validation_split: validation
num_fewshot: 0
doc_to_text: {text}
doc_to_choice: "{{{{{choices}}}}}"
doc_to_target: {target}
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
"""
NORM = "  - metric: acc_norm\n    aggregation: mean\n    higher_is_better: true\n"

def write_tasks(folder, truthfulqa, hhh):
    "lm-eval's tasks over local rows: its own prompt for TruthfulQA (read from its installed task), ours for HHH."
    import lm_eval, yaml
    folder = Path(folder)
    class Loader(yaml.SafeLoader): "Reads lm-eval's tags as text."
    Loader.add_multi_constructor("!", lambda loader, tag, node: tag)
    stock = yaml.load((Path(lm_eval.__file__).parent/"tasks/truthfulqa/truthfulqa_mc1.yaml").read_text(), Loader)
    for name, rows in (("truthfulqa", truthfulqa), ("hhh", hhh)):
        (folder/f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    task = lambda name, key, file, text, target, more="": (folder/f"{name}.yaml").write_text(
        MC.format(name=name, choices=f"{key}.choices", file=folder/file, text=json.dumps(text), target=target) + more)
    if truthfulqa:
        task("mc1", "mc1_targets", "truthfulqa.jsonl", stock["doc_to_text"], 0)
        task("mc2", "mc2_targets", "truthfulqa.jsonl", stock["doc_to_text"], 0)
    if hhh: task("hhh", "targets", "hhh.jsonl", "Human: {{input}}\n\nAssistant:", '"{{targets.labels.index(1)}}"', NORM)
    return [f"ours_{t}" for t, rows in (("mc1", truthfulqa), ("mc2", truthfulqa), ("hhh", hhh)) if rows]

def clocks():
    "Wall and processor seconds: on a machine that is shared, the second is the fairer."
    import numpy as np
    return np.array([time.perf_counter(), time.process_time()])

def harness(model, tok, truthfulqa, hhh, batch_size):
    """Run lm-eval: per row the choices' log-likelihoods, its scores, and the wall and processor seconds spent in
    `loglikelihood`."""
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager
    import lm_eval.evaluator as ev
    import numpy as np
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    spent = []
    class Timed(HFLM):
        def loglikelihood(self, *a, **kw):
            start = clocks()
            try: return super().loglikelihood(*a, **kw)
            finally: spent.append(clocks() - start)
    with tempfile.TemporaryDirectory() as d, contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(
            io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tasks = write_tasks(d, truthfulqa, hhh)
        lm = Timed(pretrained=model, tokenizer=tok, batch_size=batch_size)
        out = ev.simple_evaluate(lm, tasks=tasks, task_manager=TaskManager(include_path=d, include_defaults=False),
            bootstrap_iters=0)
    rows = {t[5:]: [[r[0] for r in s["filtered_resps"]] for s in sorted(out["samples"][t], key=lambda s: s["doc_id"])]
        for t in tasks}
    scores = {}
    if truthfulqa:
        from lm_eval.tasks.truthfulqa.utils import process_results_mc2
        scores["mc1"] = out["results"]["ours_mc1"]["acc,none"]
        scores["mc2"] = float(np.mean([process_results_mc2(r, [(x, False) for x in lls])["acc"]
            for r, lls in zip(truthfulqa, rows["mc2"])]))
    if hhh:
        scores.update(overall=out["results"]["ours_hhh"]["acc,none"],
            overall_norm=out["results"]["ours_hhh"]["acc_norm,none"])
    return rows, scores, sum(spent)

def ours(engine, truthfulqa, hhh):
    "The same by selfalign."
    from selfalign import evaluation as E
    start, rows, scores = clocks(), {}, {}
    if truthfulqa:
        r = E.truthfulqa_mc(engine, truthfulqa, "lm-eval")
        rows.update(mc1=[x["scores"] for x in r.rows], mc2=[x["mc2_scores"] for x in r.rows])
        scores.update(mc1=r.mc1, mc2=r.mc2)
        assert not r.skipped
    if hhh:
        r = E.hhh(engine, hhh, "likelihood")
        rows["hhh"] = [x["scores"] for x in r.rows]; scores.update(overall=r.overall, overall_norm=r.overall_norm)
        assert not r.skipped
    return rows, scores, clocks() - start

def agreement(a, b):
    "Per task: rows, rows with the same best choice, and the largest difference of a log-likelihood."
    best = lambda xs: max(range(len(xs)), key=xs.__getitem__)
    return {t: dict(rows=len(a[t]), same=sum(best(x) == best(y) for x, y in zip(a[t], b[t])),
        max_diff=max(abs(u-v) for x, y in zip(a[t], b[t]) for u, v in zip(x, y))) for t in a}

def parity(engine, model, tok, truthfulqa, hhh, journal, late, chunk=20, batch_size=4):
    "All rows in chunks, resumable; scores are means over chunks weighted by rows."
    jobs = [(s, rows[i:i+chunk]) for s, rows in (("truthfulqa", truthfulqa), ("hhh", hhh))
        for i in range(0, len(rows), chunk)]
    from selfalign.rows import content_id
    done = []
    for k, (s, rows) in enumerate(jobs, 1):
        key = content_id("multiple_choice", engine.info["sha256"], engine.info["dtype"], rows)
        if key not in journal:
            if late(): break
            args = (rows, []) if s == "truthfulqa" else ([], rows)
            theirs, mine = harness(model, tok, *args, batch_size), ours(engine, *args)
            journal.add(dict(id=key, n=len(rows), agreement=agreement(mine[0], theirs[0]), ours=mine[1],
                lm_eval=theirs[1]))
            print(f"parity: chunk {k} of {len(jobs)}", flush=True)
        done.append(journal[key])
    return _joined(done, len(truthfulqa) + len(hhh))

def _joined(chunks, n):
    out = dict(rows_done=sum(c["n"] for c in chunks), rows_in_all=n)
    for t in ("mc1", "mc2", "hhh"):
        xs = [c["agreement"][t] for c in chunks if t in c["agreement"]]
        if xs:
            out[t] = dict(rows=(n := sum(x["rows"] for x in xs)), same_choice=sum(x["same"] for x in xs)/n,
                max_diff_nats=max(x["max_diff"] for x in xs))
    for m in ("mc1", "mc2", "overall", "overall_norm"):
        xs = [c for c in chunks if m in c["ours"]]
        if xs:
            out.setdefault("scores", {})[m] = {k: sum(c[k][m]*c["n"] for c in xs)/sum(c["n"] for c in xs)
                for k in ("ours", "lm_eval")}
    return out

def speed(engine, model, tok, truthfulqa, hhh, repeats, sizes, journal, late):
    "Seconds of both sides on the same rows, taking turns."
    from selfalign.rows import content_id
    parts = [(truthfulqa[i:i+10], hhh[i:i+10]) for i in range(0, max(len(truthfulqa), len(hhh)), 10)]
    def once(*what, rows, run):
        key = content_id("speed", engine.info["sha256"], engine.info["dtype"], rows, what)
        if key not in journal:
            if late(): return None
            journal.add(dict(id=key, got=run()))
        return journal[key]["got"]
    few = truthfulqa[:2], hhh[:2]
    tune = {b: once("tune", b, rows=few, run=lambda b=b: harness(model, tok, *few, b)[2].tolist()) for b in sizes}
    if None in tune.values(): return None
    best, repeats_done = min(tune, key=lambda b: tune[b][1]), []
    def turn(rows):
        engine.score(["warm"], [" up"])
        mine, theirs = ours(engine, *rows), harness(model, tok, *rows, best)
        return dict(ours=mine[2].tolist(), lm_eval=theirs[2].tolist(), agreement=agreement(mine[0], theirs[0]))
    for k in range(repeats):
        got = [g for rows in parts if (g := once("turn", k, best, rows=rows, run=lambda: turn(rows)))]
        if got:
            repeats_done.append(dict(parts=len(got), **{side: [sum(g[side][c] for g in got) for c in (0, 1)]
                for side in ("ours", "lm_eval")}, same_choice={t: [sum(g["agreement"][t][w]
                for g in got if t in g["agreement"]) for w in ("same", "rows")] for t in ("mc1", "mc2", "hhh")}))
        if got: print(f"speed {k+1}: {repeats_done[-1]}", flush=True)
    whole = [r for r in repeats_done if r["parts"] == len(parts)] or repeats_done
    ratio = lambda c: statistics.median(r["lm_eval"][c] for r in whole)/statistics.median(r["ours"][c]
        for r in whole) if whole else None
    return dict(questions=dict(truthfulqa=len(truthfulqa), hhh=len(hhh)), parts=len(parts),
        repeats_wall_cpu_s=repeats_done, lm_eval_batch=best, batches_tried_wall_cpu_s=tune,
        repeats_whole=sum(r["parts"] == len(parts) for r in repeats_done), ratio_wall=ratio(0), ratio_cpu=ratio(1))

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", default="embedded"); p.add_argument("--dtype", default="float32")
    p.add_argument("--sets", nargs=2, default=["truthfulqa", "hhh"],
        help="a set in TruthfulQA's schema and one in HHH's")
    p.add_argument("--rows", type=int, help="rows per set for parity; all by default")
    p.add_argument("--questions", type=int, default=100, help="seeded questions per set for speed; 0 = no speed part")
    p.add_argument("--repeats", type=int, default=3); p.add_argument("--seed", type=int, default=0)
    p.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 4, 16]); p.add_argument("--threads", type=int)
    p.add_argument("--no-parity", action="store_true")
    p.add_argument("--minutes", type=float, default=1e9, help="begin no further part after so many; run again to go on")
    p.add_argument("--work", default=".bench/multiple_choice.jsonl")
    p.add_argument("--out", default="data/results/multiple_choice.json")
    o = p.parse_args()
    import torch
    from selfalign.evals.sets import load_benchmark
    from selfalign.generation import load_engine
    from selfalign.models import load_model
    from selfalign.runs import Journal, git_commit, versions
    from selfalign.provenance import hardware
    from selfalign.rows import write_json
    if o.threads: torch.set_num_threads(o.threads)
    engine = load_engine(f"torch:{o.model}", dtype=o.dtype)
    model, tok = load_model(o.model, dtype=getattr(torch, o.dtype), device=engine.info["device"])
    result = dict(command="python " + " ".join(sys.argv), settings=vars(o), engine=engine.info,
        machine=f"{hardware()}, {torch.get_num_threads()} threads",
        versions=versions(("selfalign", "torch", "transformers", "lm_eval")), commit=git_commit())
    start = time.monotonic()
    late = lambda: time.monotonic() - start > 60*o.minutes
    with Journal(o.work) as j:
        if o.questions:
            result["speed"] = speed(engine, model, tok, *(load_benchmark(s, o.questions, o.seed) for s in o.sets),
                o.repeats, o.batch_sizes, j, late)
        if not o.no_parity:
            result["parity"] = parity(engine, model, tok, *(load_benchmark(s, o.rows, o.seed) for s in o.sets), j, late)
    write_json(o.out, result)
    print(json.dumps({k: result.get(k) for k in ("speed", "parity")}, indent=1), f"\nwritten to {o.out}")

if __name__ == "__main__": main()
