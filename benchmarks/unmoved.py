"""The training of a run whose `engrave.distil_from` is own, with nothing moved: same rows, steps and seed.

    python benchmarks/unmoved.py runs/qwen_own     # makes runs/qwen_own/unmoved; benchmarks/pairs.py then scores it

The target of each answer token is the base model's own distribution as it stands. So what this model differs in from
its base is all that the training does beside the principles: the pairs on who the assistant is, dropout, and an
optimizer that takes full steps on small gradients. What the engraved model has beyond it is the principles' part.
"""
import argparse
from pathlib import Path

from selfalign import sft
from selfalign.checks import InputError
from selfalign.config import config_from
from selfalign.distil import own_targets
from selfalign.engines.opening import base_model
from selfalign.human import Human
from selfalign.rows import read_jsonl
from selfalign.runs import Run


def main(path):
    with Run(path) as run: cfg = config_from(run.manifest["config"])
    if cfg.engrave.distil_from != "own": raise InputError(f"{path}: engrave.distil_from is prompt, which moves nothing")
    rows, _ = sft.split_held_out(read_jsonl(path/"responses.jsonl"), cfg.engrave.held_out)
    sft.answer_targets = lambda e, asked, answers, *rest, **kw: own_targets(e, *rest, **kw)
    teacher = (f"torch:{base_model(cfg)}", {}, lambda row: "") # in the precision that the training starts from
    info = sft.train_model(rows, base_model(cfg), path/"unmoved", path/"work"/"unmoved", cfg.engrave, cfg.seed,
        Human.of(cfg), "Nothing moved", teacher=teacher)
    print({k: info[k] for k in ("rows", "steps", "first_loss", "last_loss")})


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("run", type=Path, help="folder of a run whose stage 2 is finished")
    main(p.parse_args().run)
