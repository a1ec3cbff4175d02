"""The filters of stages 2 and 4 against labelled outputs, and their speed.

    python benchmarks/filters.py outputs   # answers of the embedded model, several samplings → data/labels/outputs.jsonl

The labels were given by reading these very outputs: make new ones only to label them anew.
"""
import argparse, random
from pathlib import Path

from selfalign.annotations import fill, load_seed_questions, load_seed_tasks, load_template, query_text
from selfalign.generation import Sampling, TorchEngine, load_engine
from selfalign.models import load_model
from selfalign.principle_engraving import PrincipleSet
from selfalign.runs import content_id, read_jsonl, write_jsonl
from selfalign.verbose_cloning import verbose_messages

ROOT = Path(__file__).parent.parent
LABELS = ROOT/"data"/"labels"
PENALTY = {3: 1.0, 4: 2.0}
STAGE2 = [dict(temperature=0.3, top_p=0.9, max_new_tokens=128), dict(temperature=0.5, top_p=0.9, max_new_tokens=256),
          dict(temperature=0.5, top_p=0.9, max_new_tokens=256, ngram_penalty=PENALTY, word_start_only=True), dict(temperature=0.8, top_p=1.0, max_new_tokens=128, banned_first=()),
          dict(temperature=0.8, top_p=0.9, max_new_tokens=256), dict(temperature=1.0, top_p=1.0, max_new_tokens=256), dict(temperature=1.0, top_p=0.9, max_new_tokens=128, banned_first=()),
          dict(temperature=0.5, top_p=0.9, max_new_tokens=128, stop=()), dict(temperature=0.3, top_p=1.0, max_new_tokens=256)]
STAGE4 = [dict(temperature=0.3, top_p=0.7, max_new_tokens=256, ngram_penalty=PENALTY, word_start_only=True), dict(temperature=0.3, top_p=0.7, max_new_tokens=256),
          dict(temperature=0.7, top_p=0.9, max_new_tokens=256, ngram_penalty={3: 2.0, 4: 4.0}, word_start_only=True, min_new_tokens=64), dict(temperature=1.0, top_p=1.0, max_new_tokens=128)]


def pool(seed=0):
    "The project's own prompts, shuffled."
    rows = [dict(instruction=r["instruction"], input=r.get("input", "")) for r in read_jsonl(ROOT/"data"/"samples"/"prompts.jsonl")]
    rows += [dict(instruction=t.instruction, input=t.input) for t in load_seed_tasks() if len(query_text(dict(instruction=t.instruction, input=t.input))) < 600]
    rows += [dict(instruction=q.question, input="") for q in load_seed_questions()]
    rows += [dict(instruction=r["turns"][0], input="") for r in read_jsonl(ROOT/"data"/"eval"/"questions.jsonl")]
    random.Random(seed).shuffle(rows)
    return rows


def answers(engine, stage, groups, rows, render, defaults, per_group, seed=0):
    "Each group takes the next rows of the pool; yields rows to be labelled."
    for g, over in enumerate(groups):
        sampling = defaults | over
        mine = [rows[(g*per_group + i) % len(rows)] for i in range(per_group)]
        for row, o in zip(mine, engine.generate([render(r) for r in mine], Sampling(seed=seed+g, **sampling))):
            yield dict(id=content_id(stage, g, query_text(row)), stage=stage, **row, raw=o.text, finish_reason=o.finish_reason, n_tokens=o.n_tokens, n_prompt=o.n_prompt,
                       sampling={k: list(v) if isinstance(v, tuple) else v for k, v in sampling.items() if k != "stop"} | dict(stop=bool(sampling["stop"])))
        print(stage, g, "done", flush=True)


def outputs(args):
    rows, pset, system = pool(), PrincipleSet.load(), fill(load_template("verbose_system"), name="Aster")
    with load_engine("torch:embedded") as engine:
        out = list(answers(engine, "principled", STAGE2, rows, lambda r: pset.render(query_text(r)), dict(stop=pset.stop, banned_first=(" Sorry",)), 30))
    write_jsonl(LABELS/"outputs.jsonl", out)
    from peft import PeftModel
    model, tok = load_model("embedded")
    with TorchEngine((PeftModel.from_pretrained(model, ROOT/"data"/"samples"/"adapter").merge_and_unload(), tok)) as engine:
        out += answers(engine, "verbose", STAGE4, rows[::-1], lambda r: verbose_messages(r, system), dict(stop=("\nUser:",)), 26, seed=100)
    print(write_jsonl(LABELS/"outputs.jsonl", out), "outputs")


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sub = p.add_subparsers(required=True)
    sub.add_parser("outputs", help="make the outputs that are labelled").set_defaults(run=outputs)
    args = p.parse_args()
    args.run(args)
