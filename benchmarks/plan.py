"""What the larger presets would generate: the pilot of `selfalign plan` with the embedded model, scaled to each preset.

    python benchmarks/plan.py            # about four minutes on two cores; writes data/results/plan.json

The yields (prompts and answers kept per token) are those of the embedded 135M model under the workstation preset's settings; a larger base model's are its own.
The pilot's speed is stored, and not used for the presets that need a GPU: their pages divide the tokens by a speed that they state.
"""
import argparse, sys
from dataclasses import replace
from pathlib import Path

from selfalign.pipeline import load_config, pilot, plan_numbers
from selfalign.runs import git_commit, versions, write_json

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT/"benchmarks"))
from store_demo import hardware


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", type=Path, default=ROOT/"data"/"results"/"plan.json")
    a = p.parse_args()
    prompts, responses, used, types = pilot(replace(load_config("workstation"), model="embedded", engine="torch"))
    keep = lambda r: {k: r[k] for k in ("asked", "kept", "cost", "generation") if k in r}
    rows = {name: plan_numbers(load_config(name), prompts, responses, types) for name in ("workstation", "dromedary2", "paper")}
    write_json(a.out, dict(command="python benchmarks/plan.py", commit=git_commit(), hardware=hardware(), versions=versions(), model="embedded",
                           pilot=dict(prompts=keep(prompts), responses=keep(responses), bytes=used, types=types), presets=rows))
    for name, r in rows.items(): print(name, r)


if __name__ == "__main__": main()
