"""lm-eval's tasks through our engine, against lm-eval's own class for transformers' models: time and choices.

    python benchmarks/lm_eval_tasks.py                                  # 200 questions, 4 choices, 5 examples
    python benchmarks/lm_eval_tasks.py --questions 20 --set facts       # minutes, on our own questions

Both sides answer the same task of lm-eval, with the same weights, dtype and threads, in the same process, and take
turns on twenty questions at a time. Timed is `loglikelihood`, all that a model does for such a task. lm-eval's class
runs at the batch size that takes the least processor time on a few questions. Every finished part is kept in --work,
so a run that was stopped goes on; --minutes begins no further part after so many.
"""
import argparse, contextlib, io, json, os, statistics, sys, tempfile, time
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1") # lm-eval asks the hub about local files; set it to 0 to fetch a set
from multiple_choice import clocks

TASK = """task: five_shots
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/rows.jsonl, validation: {folder}/shots.jsonl}}}}
test_split: test
fewshot_split: validation
num_fewshot: 5
fewshot_config: {{sampler: first_n}}
output_type: multiple_choice
doc_to_text: "Question: {{{{question}}}}\\nAnswer:"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
"""

def questions(name, n, seed):
    "Five examples and `n` questions of a set in TruthfulQA's schema, each with one right and three wrong answers."
    from selfalign.evals.choices import shuffled
    from selfalign.evals.sets import load_benchmark, sample_rows
    rows = []
    for r in load_benchmark(name):
        right, wrong = ([c for c, k in zip(r[t]["choices"], r[t]["labels"]) if k == want]
                        for t, want in (("mc1_targets", 1), ("mc2_targets", 0)))
        if len(wrong) < 3: continue
        texts = [right[0], *wrong[:3]]
        order = shuffled(4, seed, r["question"])
        rows.append(dict(question=r["question"], choices=[texts[i] for i in order], answer=order.index(0)))
    drawn = sample_rows(rows, n + 5, seed)
    return drawn[:5], drawn[5:]

def write_task(folder, shots, rows):
    "The task as lm-eval reads it."
    for name, part in (("shots", shots), ("rows", rows)):
        Path(folder, f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in part))
    Path(folder, "task.yaml").write_text(TASK.format(folder=folder))

def timed(lm, spent):
    "The same model, whose scoring notes its wall and processor seconds."
    scored = lm.loglikelihood
    def loglikelihood(requests, **kw):
        start = clocks()
        try: return scored(requests, **kw)
        finally: spent.append((clocks() - start).tolist())
    lm.loglikelihood = loglikelihood
    return lm

def answer(lm, tasks, rows):
    "Log-likelihoods of the choices of these rows, and the seconds that they took."
    from lm_eval.evaluator import simple_evaluate
    spent = []
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        out = simple_evaluate(timed(lm, spent), tasks=["five_shots"], task_manager=tasks.manager,
                              samples=dict(five_shots=rows), bootstrap_iters=0)
    del lm.loglikelihood # its own again
    found = sorted(out["samples"]["five_shots"], key=lambda s: s["doc_id"])
    return dict(scores=[[x for x, _ in s["filtered_resps"]] for s in found], wall_cpu_s=spent[0])

def choice(scores): return max(range(len(scores)), key=scores.__getitem__)

def joined(parts, repeats, n_parts):
    "Medians over the repeats that are whole, and how often both chose alike."
    whole = [ps for k in range(repeats) if len(ps := [p for p in parts if p["repeat"] == k]) == n_parts]
    rounds = whole or [parts]
    total = lambda ps, side, c: sum(p[side]["wall_cpu_s"][c] for p in ps)
    middle = lambda side, c: statistics.median(total(ps, side, c) for ps in rounds)
    pairs = [(a, b) for p in parts if p["repeat"] == 0 for a, b in zip(p["ours"]["scores"], p["lm_eval"]["scores"])]
    far = max(abs(x - y) for a, b in pairs for x, y in zip(a, b))
    ratio = {w: middle("lm_eval", c)/middle("ours", c) for c, w in enumerate(("wall", "cpu"))}
    seconds = {side: [middle(side, 0), middle(side, 1)] for side in ("ours", "lm_eval")}
    return dict(repeats_whole=len(whole), questions_done=len(pairs), median_wall_cpu_s=seconds, ratio=ratio,
                same_choice=sum(choice(a) == choice(b) for a, b in pairs)/len(pairs), max_diff_nats=far)

def best_batch(hf, tasks, sizes, once):
    "The batch size with the least processor time on three questions."
    cost = {b: once(("tune", b), lambda b=b: answer(hf(b), tasks, [0, 1, 2]))["wall_cpu_s"] for b in sizes}
    return min(cost, key=lambda b: cost[b][1]), cost

def measure(o, tasks, engine, hf, journal, n):
    "All parts, from the journal where they are there."
    from selfalign.evals.lm_eval_model import EngineLM
    from selfalign.rows import content_id
    start = time.monotonic()
    def once(key, work):
        key = content_id("lm_eval_tasks", engine.info["sha256"], o.dtype, o.set, n, o.seed, key)
        if key not in journal:
            if time.monotonic() - start > 60*o.minutes: return None
            journal.add(dict(id=key, got=work()))
        return journal[key]["got"]
    best, cost = best_batch(hf, tasks, o.batch_sizes, once)
    parts, starts = [], range(0, n, o.part)
    for k in range(o.repeats):
        for i in starts:
            rows = list(range(i, min(i + o.part, n)))
            both = lambda: dict(ours=answer(EngineLM(engine), tasks, rows), lm_eval=answer(hf(best), tasks, rows))
            if got := once(("part", k, rows, best), both): parts.append(dict(got, repeat=k))
            print(f"repeat {k + 1}, {len(parts)} parts of {o.repeats*len(starts)}", flush=True)
    return dict(joined(parts, o.repeats, len(starts)), lm_eval_batch=best, batches_tried_wall_cpu_s=cost)

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", default="embedded")
    p.add_argument("--dtype", default="float32")
    p.add_argument("--set", default="truthfulqa", help="in TruthfulQA's schema")
    p.add_argument("--questions", type=int, default=200)
    p.add_argument("--part", type=int, default=20, help="questions between two turns")
    p.add_argument("--repeats", type=int, default=3)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 4, 16])
    p.add_argument("--minutes", type=float, default=1e9)
    p.add_argument("--work", default=".bench/lm_eval_tasks.jsonl")
    p.add_argument("--out", default="data/results/lm_eval_tasks.json")
    o = p.parse_args()
    import torch
    from lm_eval.models.huggingface import HFLM
    from selfalign.evals.lm_eval_model import find_tasks
    from selfalign.generation import load_engine
    from selfalign.models import load_model
    from selfalign.provenance import hardware
    from selfalign.rows import write_json
    from selfalign.runs import Journal, git_commit, versions
    engine = load_engine(f"torch:{o.model}", dtype=o.dtype)
    model, tok = load_model(o.model, dtype=getattr(torch, o.dtype), device=engine.info["device"])
    hf = lambda batch: HFLM(pretrained=model, tokenizer=tok, batch_size=batch)
    shots, rows = questions(o.set, o.questions, o.seed)
    machine = f"{hardware()}, {torch.get_num_threads()} threads"
    result = dict(command="python " + " ".join(sys.argv), engine=engine.info, machine=machine, commit=git_commit(),
                  versions=versions(("selfalign", "torch", "transformers", "lm_eval")), questions=len(rows))
    with tempfile.TemporaryDirectory() as folder, Journal(o.work) as journal:
        write_task(folder, shots, rows)
        result.update(measure(o, find_tasks([f"{folder}/task.yaml"]), engine, hf, journal, len(rows)))
    write_json(o.out, result)
    print(json.dumps({k: result[k] for k in ("ratio", "same_choice", "max_diff_nats", "repeats_whole")}, indent=1))

if __name__ == "__main__": main()
