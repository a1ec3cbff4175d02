"""Generation over Ray: one local worker against two, one thread each, the embedded model.

    python benchmarks/ray_workers.py          # about three minutes; writes data/results/cluster.json

Each number of workers is measured in a process of its own, with one CPU slot more than workers, since Ray Data's readers need one.
A short and a long job are timed. Both begin with the start of the workers and their loading of the model, so their difference is work alone:
`rows_per_s` is the difference in rows over the difference in seconds; `start_s` is what is left of the short job.
"""
import argparse, json, os, subprocess, sys, time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SIZES, TOKENS, BATCH = (32, 128), 24, 16


def measure(workers):
    import ray
    from selfalign.generation import Sampling, load_engine
    os.environ["RAY_DATA_DISABLE_PROGRESS_BARS"] = "1"
    ray.init(num_cpus=workers + 1, include_dashboard=False, log_to_driver=False, runtime_env=dict(env_vars=dict(OMP_NUM_THREADS="1", PYTHONPATH=str(ROOT))))
    sampling, took = Sampling(max_new_tokens=TOKENS, temperature=0, ban_eos=True), {}
    with load_engine("ray:torch:embedded", workers=workers, batch=BATCH, dtype="float32") as engine:
        for n in SIZES:
            start = time.perf_counter()
            outs = engine.generate([f"Write one sentence about the number {i}." for i in range(n)], sampling)
            took[n] = time.perf_counter() - start
            assert [o.n_tokens for o in outs] == [TOKENS]*n
    ray.shutdown()
    (a, ta), (b, tb) = took.items()
    rate = (b - a)/(tb - ta)
    return dict(workers=workers, rows_per_s=round(rate, 2), start_s=round(ta - a/rate, 1), seconds={str(k): round(v, 1) for k, v in took.items()})


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    p.add_argument("--out", type=Path, default=ROOT/"data"/"results"/"cluster.json")
    p.add_argument("--one", type=int, help=argparse.SUPPRESS)
    a = p.parse_args()
    if a.one: print(json.dumps(measure(a.one))); return
    rows = [json.loads(subprocess.run([sys.executable, __file__, "--one", str(n)], check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1]) for n in a.workers]
    from selfalign.runs import git_commit, versions, write_json
    sys.path.insert(0, str(ROOT/"benchmarks"))
    from store_demo import hardware
    write_json(a.out, dict(command="python benchmarks/ray_workers.py", commit=git_commit(), hardware=hardware(), versions=dict(versions(), ray=__import__("ray").__version__),
                           model="embedded, float32, one thread a worker", tokens_per_row=TOKENS, batch=BATCH, sizes=list(SIZES), runs=rows))
    for r in rows: print(r)


if __name__ == "__main__": main()
