"""The filters of stages 2 and 4 against labelled outputs, and their speed.

    python benchmarks/filters.py score             # precision, recall and speed → data/results/filters.json
    # the rows of the tuning half that a filter gets wrong; nothing is written
    python benchmarks/filters.py score --misses
    python benchmarks/filters.py outputs  # answers of the embedded model, several samplings → data/labels/outputs.jsonl

What the labels mean, and who gave them, is told in data/labels/README.md. They were given by reading these very
outputs: make new ones only to label them anew. """
import argparse, json, random, shlex, sys, time
from collections import Counter
from dataclasses import asdict
from pathlib import Path

from selfalign import principle_engraving as pe, verbose_cloning as vc
from selfalign.annotations import fill, load_seed_questions, load_seed_tasks, load_template, query_text
from selfalign.evals.stats import wilson
from selfalign.filters.chain import CLONE_FILTERS, RESPOND_FILTERS
from selfalign.filters.context import Context, Response, VerboseContext
from selfalign.filters.leakage import common_words
from selfalign.principle_engraving import PrincipleSet, parse_response
from selfalign.provenance import hardware
from selfalign.rows import content_id, read_jsonl, write_json, write_jsonl
from selfalign.runs import git_commit, versions
from selfalign.verbose_cloning import verbose_messages

ROOT = Path(__file__).parent.parent
LABELS = ROOT/"data"/"labels"
PENALTY = {3: 1.0, 4: 2.0}
STAGE2 = [dict(temperature=0.3, top_p=0.9, max_new_tokens=128), dict(temperature=0.5, top_p=0.9, max_new_tokens=256),
    dict(temperature=0.5, top_p=0.9, max_new_tokens=256, ngram_penalty=PENALTY, word_start_only=True),
    dict(temperature=0.8, top_p=1.0, max_new_tokens=128, banned_first=()),
    dict(temperature=0.8, top_p=0.9, max_new_tokens=256), dict(temperature=1.0, top_p=1.0, max_new_tokens=256),
    dict(temperature=1.0, top_p=0.9, max_new_tokens=128, banned_first=()),
    dict(temperature=0.5, top_p=0.9, max_new_tokens=128, stop=()), dict(temperature=0.3, top_p=1.0, max_new_tokens=256)]
STAGE4 = [dict(temperature=0.3, top_p=0.7, max_new_tokens=256, ngram_penalty=PENALTY, word_start_only=True),
    dict(temperature=0.3, top_p=0.7, max_new_tokens=256), dict(temperature=0.7, top_p=0.9,
    max_new_tokens=256, ngram_penalty={3: 2.0, 4: 4.0}, word_start_only=True, min_new_tokens=64),
    dict(temperature=1.0, top_p=1.0, max_new_tokens=128)]


def pool(seed=0):
    "The project's own prompts, shuffled."
    rows = [dict(instruction=r["instruction"], input=r.get("input", ""))
        for r in read_jsonl(ROOT/"data"/"samples"/"prompts.jsonl")]
    rows += [dict(instruction=t.instruction, input=t.input)
        for t in load_seed_tasks() if len(query_text(dict(instruction=t.instruction, input=t.input))) < 600]
    rows += [dict(instruction=q.question, input="") for q in load_seed_questions()]
    rows += [dict(instruction=r["turns"][0], input="") for r in read_jsonl(ROOT/"data"/"eval"/"questions.jsonl")]
    random.Random(seed).shuffle(rows)
    return rows


def answers(engine, stage, groups, rows, render, defaults, per_group, seed=0):
    "Each group takes the next rows of the pool; yields rows to be labelled."
    from selfalign.generation import Sampling
    for g, over in enumerate(groups):
        sampling = defaults | over
        mine = [rows[(g*per_group + i) % len(rows)] for i in range(per_group)]
        for row, o in zip(mine, engine.generate([render(r) for r in mine], Sampling(seed=seed+g, **sampling))):
            yield dict(id=content_id(stage, g, query_text(row)), stage=stage, **row, raw=o.text,
                finish_reason=o.finish_reason, n_tokens=o.n_tokens, n_prompt=o.n_prompt,
                sampling={k: list(v) if isinstance(v, tuple) else v for k, v in sampling.items() if k != "stop"}
                | dict(stop=bool(sampling["stop"])))
        print(stage, g, "done", flush=True)


def outputs(args):
    from selfalign.engines.local import TorchEngine
    from selfalign.generation import load_engine
    from selfalign.models import load_model
    rows, pset, system = pool(), PrincipleSet.load(), fill(load_template("verbose_system"), name="Aster")
    with load_engine("torch:embedded") as engine:
        out = list(answers(engine, "principled", STAGE2, rows, lambda r: pset.render(query_text(r)),
            dict(stop=pset.stop, banned_first=(" Sorry",)), 30))
    write_jsonl(LABELS/"outputs.jsonl", out)
    from peft import PeftModel
    model, tok = load_model("embedded")
    with TorchEngine((PeftModel.from_pretrained(model, ROOT/"data"/"samples"/"adapter").merge_and_unload(),
            tok)) as engine:
        out += answers(engine, "verbose", STAGE4, rows[::-1], lambda r: verbose_messages(r, system),
            dict(stop=("\nUser:",)), 26, seed=100)
    print(write_jsonl(LABELS/"outputs.jsonl", out), "outputs")


# label → filter, by stage; the next turn is cut before the others look, as in the chain
FAULTS = dict(
    principled={"missing role": pe.missing_role, "missing answer": pe.missing_answer, "next turn": pe.next_turn,
        "thoughts in answer": pe.thoughts_in_answer, "repetition": pe.repetition,
                "exemplar leakage": pe.exemplar_leakage, "apology": pe.apology, "cliché": pe.cliche,
                "foreign name": pe.foreign_name, "wrong language": pe.wrong_language,
                "token limit": pe.token_limit, "echo": pe.echo, "too short": pe.too_short},
    verbose={"next turn": vc.another_turn, "repetition": vc.loop, "goes in circles": vc.in_circles,
        "long list": vc.long_list, "system text": vc.system_leak, "web furniture": vc.furniture,
             "echo": vc.echo, "token limit": vc.token_limit, "too short": vc.short_and_cut})


SPLITS = ("tune", "held_out") # filters are tuned on the first alone; see data/labels/README.md


def labelled():
    "Outputs joined with their labels, and the constructed rows."
    labels = {r["id"]: r for r in read_jsonl(LABELS/"labels.jsonl")}
    return [r | labels[r["id"]] | dict(constructed=False)
        for r in read_jsonl(LABELS/"outputs.jsonl")] + read_jsonl(LABELS/"constructed.jsonl")


def contexts():
    return dict(principled=Context(PrincipleSet.load(), common=common_words()),
        verbose=VerboseContext(fill(load_template("verbose_system"), name="Aster")))


def parsed(row, ctx):
    ended = row["finish_reason"] == "stop"
    return (parse_response(row["raw"], ctx.pset, ended) if row["stage"] == "principled"
        else Response("", row["raw"].strip(), True, [], ended=ended))


def flags(row, ctx): # labels
    "Every filter alone on the parsed row: does it reject, or cut?"
    faults, out = FAULTS[row["stage"]], set()
    for label, f in faults.items():
        r = parsed(row, ctx)
        if label in ("missing role", "missing answer"): out |= {label} if f(r, row, ctx) else set()
        elif r.answer and (label == "next turn" or not faults["next turn"](r, row, ctx)):
            n = len(r.edits)
            if f(r, row, ctx) or len(r.edits) > n: out.add(label)
    return out


def rates(pairs): # of (labelled, flagged)
    "Precision and recall with Wilson's 95 % intervals."
    tp, pos, flagged = sum(a and b for a, b in pairs), sum(a for a, _ in pairs), sum(b for _, b in pairs)
    return dict(rows=len(pairs), positives=pos, flagged=flagged, **{k: {x: v
        for x, v in asdict(wilson(tp, n)).items() if x != "n"} for k, n in (("precision", flagged), ("recall", pos))})


def table(rows, found):
    "Stage → label → part → rates; rows on which the reader was unsure do not count."
    out = {}
    for stage, faults in FAULTS.items():
        for label in faults:
            mine = [(r, (label in r["labels"], label in f))
                for r, f in zip(rows, found) if r["stage"] == stage and label not in r["unsure"]]
            part = lambda split, kinds: rates([p for r, p in mine if r["split"] in split and r["constructed"] in kinds])
            out.setdefault(stage,
                {})[label] = dict(unsure=sum(label in r["unsure"] for r in rows if r["stage"] == stage),
                **{f"{split}_{kind}": part((split,), k) for split in SPLITS
                    for kind, k in (("real", (False,)), ("constructed", (True,)), ("both", (False, True)))},
                all=part(SPLITS, (False, True)))
    return out


def speed(rows, ctxs, seconds=3.0): # rows/s
    "The whole chain, parsing included, language check left out, by the CPU seconds of one core."
    rows = [r for r in rows if not r["constructed"]]
    chain = dict(principled=tuple(f for f in RESPOND_FILTERS if f != "wrong_language"), verbose=CLONE_FILTERS)
    out = {}
    for stage in FAULTS:
        mine, n, start = [r for r in rows if r["stage"] == stage], 0, time.process_time()
        while time.process_time() - start < seconds:
            for r in mine: pe.apply_filters(parsed(r, ctxs[stage]), r, ctxs[stage], chain[stage])
            n += len(mine)
        out[stage] = round(n/(time.process_time() - start))
    return out


def score(args):
    rows, ctxs = labelled(), contexts()
    found = [flags(r, ctxs[r["stage"]]) for r in rows]
    if args.misses:
        for r, f in zip(rows, found):
            for label in sorted(({*r["labels"]} ^ f) - {*r["unsure"]}):
                if r["split"] == "tune" and label in FAULTS[r["stage"]] and args.misses in ("all", label):
                    print(f"\n{'MISSED' if label in r['labels'] else 'FALSE'} {label} "
                        f"({r['stage']}{', constructed' if r['constructed'] else ''}) Q: "
                        f"{query_text(r)[:120]!r}\n{r['raw'][-900:]}")
        return
    t = table(rows, found)
    for stage, labels in t.items():
        for label, parts in labels.items():
            for name in ("tune_both",) if args.tune else ("tune_both", "held_out_both", "all"):
                p = parts[name]
                print(f"{stage:10} {label:20} {name:14} {p['positives']:4} of {p['rows']:4}  precision "
                    f"{p['precision']['value'] or 0:.3f}  recall {p['recall']['value'] or 0:.3f}")
    if args.tune: return
    write_json(args.out, dict(command=shlex.join(["python", "benchmarks/filters.py", *sys.argv[1:]]),
        commit=git_commit(ROOT), hardware=f"{hardware()}, 1 used", versions=versions(("selfalign", "py3langid")),
        rows=dict(Counter(f"{r['stage']}, {'constructed' if r['constructed'] else 'real'}, {r['split']}"
            for r in rows)), filters=t, rows_per_second=speed(rows, ctxs)))
    print(json.loads(Path(args.out).read_text())["rows_per_second"], "rows/s;", args.out)


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sub = p.add_subparsers(required=True)
    sub.add_parser("outputs", help="make the outputs that are labelled").set_defaults(run=outputs)
    s = sub.add_parser("score", help="measure the filters against the labels")
    s.add_argument("--tune", action="store_true", help="show the figures of the tuning half and write nothing")
    s.add_argument("--misses", nargs="?", const="all",
        help="show the rows of the tuning half that are wrong, of one label or of all")
    s.add_argument("--out", type=Path, default=ROOT/"data"/"results"/"filters.json")
    s.set_defaults(run=score)
    args = p.parse_args()
    args.run(args)
