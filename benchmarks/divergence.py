"""Did a training towards a target carry over to rows that it never saw? `data/results/divergence_NAME.json`

    python benchmarks/divergence.py qwen_own runs/qwen_own runs/qwen_own_long

For runs whose `engrave.distil_from` is own and whose answers are the same: the mean divergence from the target, in nats
an answer token, of the base model and of each engraved one, on the rows that `engrave.held_out` set aside and on as
many that were trained on. A loss that falls on the second and not on the first was learnt by heart.
"""
import argparse
import random
from pathlib import Path

import numpy as np

from selfalign.checks import InputError
from selfalign.config import config_from
from selfalign.distil import moved_targets, top_logprobs
from selfalign.encoding import encode_rows
from selfalign.engines.opening import base_model
from selfalign.evals.comparing import paired_compare
from selfalign.evals.stats import _triple
from selfalign.generation import load_engine
from selfalign.human import Human
from selfalign.principle_engraving import load_principle_set
from selfalign.principle_pairs import behind_principles, in_their_form
from selfalign.provenance import hardware, own_commit
from selfalign.rows import read_jsonl, write_json
from selfalign.runs import Run
from selfalign.sft import split_held_out, training_tokenizer

SETTINGS = ("epochs", "learning_rate", "lora_alpha", "lora_targets")
RESULTS = Path(__file__).parent.parent/"data"/"results"

def halves(run, cfg, seed=0):
    "The rows set aside, and as many of those trained on."
    seen, aside = split_held_out(read_jsonl(run/"responses.jsonl"), cfg.engrave.held_out)
    if not aside: raise InputError(f"{run}: engrave.held_out set no row aside; there is nothing to compare with")
    return dict(held_out=aside, trained=random.Random(seed).sample(seen, min(len(aside), len(seen))))

def encoded_rows(cfg, rows):
    "(rows that fit, the same encoded)"
    told, tok = [], training_tokenizer(base_model(cfg), cfg.engrave)[0]
    encoded, _ = encode_rows(rows, tok, cfg.engrave, Human.of(cfg), told)
    return told, encoded

def targets_of(engine, cfg, rows, encoded):
    "The targets of stage 3, in the precision that the training starts from."
    pset = load_principle_set(cfg.respond, cfg.annotations)
    asks = [[ask(r) for r in rows] for ask in (behind_principles(pset), in_their_form(pset))]
    return moved_targets(engine, *asks, [r["answer"] for r in rows], encoded, cfg.engrave.distil_top,
        cfg.engrave.distil_weight)

def divergences(engine, encoded, targets):
    "Divergence of each row from its targets, nats an answer token."
    rows = [(x["input_ids"], x["labels"].count(-100)) for x in encoded]
    told = top_logprobs(engine, rows, at=[t.ids for t in targets])
    return [float((np.exp(t.logprobs)*(t.logprobs - q.logprobs)).sum()/len(t.ids)) for t, q in zip(targets, told)]

def main(name, runs, command):
    cfgs = {}
    for path in runs:
        with Run(path) as run: cfgs[path] = config_from(run.manifest["config"])
    first, cfg = next(iter(cfgs.items()))
    read = lambda path: sorted(r["id"] for r in read_jsonl(path/"responses.jsonl"))
    for path, c in cfgs.items():
        if c.engrave.distil_from != "own": raise InputError(f"{path}: engrave.distil_from is prompt; this is for own")
        if c.engrave.distil_weight != cfg.engrave.distil_weight:
            raise InputError(f"{path}: its engrave.distil_weight is not that of {first}, so its target is another")
        if read(path) != read(first) or c.engrave.held_out != cfg.engrave.held_out:
            raise InputError(f"{path}: its answers, or those set aside, are not those of {first}")
    parts = halves(first, cfg)
    rows, encoded = encoded_rows(cfg, [r for rows in parts.values() for r in rows])
    with load_engine(f"torch:{base_model(cfg)}") as e:
        targets = targets_of(e, cfg, rows, encoded)
        found = {"base": divergences(e, encoded, targets)}
    for path in runs:
        with load_engine(f"torch:{path/'engraved'}") as e: found[path.name] = divergences(e, encoded, targets)
    part = {r["id"]: k for k, rows in parts.items() for r in rows}
    tokens = {k: {r["id"]: len(t.ids) for r, t in zip(rows, targets) if part[r["id"]] == k} for k in parts}
    def beside(m, k): # the mean over tokens, and of the rows' own means what the training took off
        mine, base = ({r["id"]: d for r, d in zip(rows, found[a]) if r["id"] in tokens[k]} for a in (m, "base"))
        x = dict(divergence=round(sum(d*tokens[k][i] for i, d in mine.items())/sum(tokens[k].values()), 4))
        if m == "base": return x
        c = paired_compare(mine, base)
        return x | dict(change=_triple(c.difference), p=c.flipped)
    told = {m: {k: beside(m, k) for k in parts} for m in found}
    for p, c in cfgs.items(): told[p.name]["settings"] = {k: getattr(c.engrave, k) for k in SETTINGS}
    for m, x in told.items(): print(m, x)
    out = RESULTS/f"divergence_{name}.json"
    write_json(out, dict(command=command, commit=own_commit(), hardware=hardware(), models=told,
        tokens={k: sum(n.values()) for k, n in tokens.items()}, rows={k: len(n) for k, n in tokens.items()}))
    print(out)

if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("name", help="of the result: qwen_own for divergence_qwen_own.json")
    p.add_argument("runs", type=Path, nargs="+", help="folders of runs whose stage 3 is finished")
    a = p.parse_args()
    main(a.name, a.runs, f"python benchmarks/divergence.py {a.name} {' '.join(map(str, a.runs))}")
