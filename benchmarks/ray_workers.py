"""Generation over Ray: one local worker against two, one thread each, the embedded model.

    python benchmarks/ray_workers.py          # about three minutes; writes data/results/cluster.json

Each number of workers is measured in a process of its own, with one CPU slot more than workers, since Ray Data's
readers need one. `rows_per_s` counts from the moment a quarter of the rows are back, when every worker has loaded its
model, to the last row; `first_row_s` is the time from the call to the first batch: start of the workers, loading, and
the work on that batch. """
import argparse, json, os, subprocess, sys, time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ROWS, TOKENS, BATCH = 640, 24, 16


def measure(workers):
    import ray
    from selfalign.generation import Sampling, load_engine
    os.environ["RAY_DATA_DISABLE_PROGRESS_BARS"] = "1"
    ray.init(num_cpus=workers + 1, include_dashboard=False, log_to_driver=False,
        runtime_env=dict(env_vars=dict(OMP_NUM_THREADS="1", PYTHONPATH=str(ROOT))))
    sampling, ends = Sampling(max_new_tokens=TOKENS, temperature=0, ban_eos=True), []
    with load_engine("ray:torch:embedded", workers=workers, batch=BATCH, dtype="float32") as engine:
        start = time.perf_counter()
        for i, out in engine.generate_iter([f"Write one sentence about the number {i}."
                for i in range(ROWS)], sampling):
            assert out.n_tokens == TOKENS, out
            ends.append(time.perf_counter() - start)
    ray.shutdown()
    return dict(workers=workers, rows_per_s=round((ROWS - ROWS//4)/(ends[-1] - ends[ROWS//4 - 1]), 2),
        first_row_s=round(ends[0], 1), seconds=round(ends[-1], 1))


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    p.add_argument("--out", type=Path, default=ROOT/"data"/"results"/"cluster.json")
    p.add_argument("--one", type=int, help=argparse.SUPPRESS)
    a = p.parse_args()
    if a.one: print(json.dumps(measure(a.one))); return
    rows = [json.loads(subprocess.run([sys.executable, __file__, "--one", str(n)], check=True, stdout=subprocess.PIPE,
        text=True).stdout.splitlines()[-1]) for n in a.workers]
    from selfalign.runs import git_commit, versions
    from selfalign.rows import write_json
    sys.path.insert(0, str(ROOT/"benchmarks"))
    from selfalign.provenance import hardware
    write_json(a.out, dict(command="python benchmarks/ray_workers.py", commit=git_commit(), hardware=hardware(),
        versions=dict(versions(), ray=__import__("ray").__version__), model="embedded, float32, one thread a worker",
        tokens_per_row=TOKENS, batch=BATCH, rows=ROWS, runs=rows))
    for r in rows: print(r)


if __name__ == "__main__": main()
