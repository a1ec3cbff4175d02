"""Keep what a finished demo run gave: `data/results/demo.json` and a few rows and a small adapter in `data/samples/`.

    python benchmarks/store_demo.py runs/demo

The notebooks read these where no run is on the machine; README and home page show the table.
"""
import argparse, json, shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from selfalign.provenance import hardware
from selfalign.report import closing_table
from selfalign.rows import read_jsonl, write_json, write_jsonl
from selfalign.runs import Run

ROOT = Path(__file__).parent.parent
ROWS = dict(prompts=60, responses=45, verbose=45)  # at most 200 rows in all


def store(run_path):
    samples = ROOT/"data"/"samples"
    with Run(run_path) as run: table, man = closing_table(run), run.manifest
    for name, n in ROWS.items():
        rows = read_jsonl(run_path/f"{name}.jsonl")
        step = max(len(rows)/n, 1)
        write_jsonl(samples/f"{name}.jsonl", [rows[int(i*step)] for i in range(min(n, len(rows)))])
    adapter = samples/"adapter"
    shutil.rmtree(adapter, ignore_errors=True); adapter.mkdir(parents=True)
    save_file({k: v.to(torch.bfloat16)
        for k, v in load_file(run_path/"final"/"adapter"/"adapter_model.safetensors").items()},
        adapter/"adapter_model.safetensors", metadata={"format": "pt"})
    cfg = json.loads((run_path/"final"/"adapter"/"adapter_config.json").read_text())
    cfg["base_model_name_or_path"] = "embedded"
    write_json(adapter/"adapter_config.json", cfg)
    replies = json.loads((run_path/"eval"/"replies.json").read_text())
    lengths = {m: [len(r["answers"][m].split()) for r in replies] for m in replies[0]["answers"]}
    replies = [r for r in replies if r["kind"] == "question"]
    # the peak of memory where a stage records it
    stages = {k: {a: v.get(a) for a in ("seconds", "asked", "kept", "rejected", "steps", "first_loss", "last_loss")
        if v.get(a) is not None} | {a: x for a, x in v.items() if a.startswith("peak")}
        for k, v in man["stages"].items()}
    write_json(ROOT/"data"/"results"/"demo.json", dict(command="make demo", commit=man["commit"], hardware=hardware(),
        versions=man["versions"], config=man["config"], table=table,
        stages=stages, evaluation={k: man["stages"]["evaluation"].get(k)
            for k in ("principles", "tax", "internalization", "replies", "scores", "done")},
        answers=[dict(question=r["instruction"], base=r["answers"]["base"], final=r["answers"]["final"])
            for r in replies], replies=replies, lengths=lengths))
    print(f"stored: {ROOT/'data'/'results'/'demo.json'}, {samples}")


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("run", type=Path, help="folder of a finished demo run")
    store(p.parse_args().run)
