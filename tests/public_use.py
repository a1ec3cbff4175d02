"""How a user's own code uses the public names; `make types` checks that pyright (basic mode) has nothing to say of it.

It is read by the type checker and never run."""
from pathlib import Path

from selfalign.annotations import annotation_budget, load_exemplars, load_principles, load_seed_questions, load_seed_tasks
from selfalign.bars import doing, progress
from selfalign.config import EngraveConfig, RespondConfig, RunConfig, TrainConfig, config_from, load_config
from selfalign.checks import InputError
from selfalign.evals.results import Result, load_results, save_results, table
from selfalign.evals.stats import Estimate, bootstrap, wilson
from selfalign.evaluation import compare, hhh, internalization, judge_pairwise, truthfulqa_mc
from selfalign.export import export_rows
from selfalign.generation import Completion, Engine, Sampling, Score, ScriptedEngine, load_engine
from selfalign.models import load_model, load_tokenizer, resolve_model
from selfalign.novelty import NoveltyFilter
from selfalign.pipeline import check_inputs, run_steps
from selfalign.plots import plot_funnel, plot_lengths, plot_losses, plot_scores, plot_shares
from selfalign.principle_engraving import PrincipleSet, parse_response, respond
from selfalign.principle_pairs import load_pairs, score_principles
from selfalign.report import write_report
from selfalign.rows import content_id, iter_jsonl, read_jsonl, write_json, write_jsonl
from selfalign.runs import Run
from selfalign.sft import engrave, split_held_out
from selfalign.topic_prompting import write_prompts
from selfalign.training import fit, save_model
from selfalign.verbose_cloning import clone, write_verbose

def generating(folder: Path) -> list[str]:
    with load_engine("torch:embedded", dtype="float32") as engine:
        how = Sampling(max_new_tokens=64, temperature=0.5, top_p=0.9, stop=("\n\nUser:",), seed=0)
        outs = engine.generate(["One", "Two"], how, progress=True)
        for place, done in engine.generate_iter(["Three"], how): print(place, done.text, done.n_tokens + 1)
        scores = engine.score(["The sky is"], [" blue"])
        print(outs[0].text.upper(), outs[0].finish_reason, scores[0].logprob + 1.0, engine.info["model"])
    replayed = ScriptedEngine(["Hello."]).generate(["Hi"])
    return [c.text for c in (*outs, *replayed)]

class Echo(Engine):
    kind = "echo"
    def generate_iter(self, prompts, sampling, seeds=None):
        for i, p in enumerate(prompts): yield i, Completion(str(p), 1, "stop", 1)

def whole_run(out: str) -> None:
    cfg = RunConfig(model="embedded", seed=1, respond=RespondConfig(temperature=0.3), engrave=EngraveConfig(epochs=2.0))
    check_inputs(cfg)
    for what, value in run_steps(out, load_config("demo", seed=2), say=print): print(what, value)
    print(config_from(dict(model="embedded")).engrave.learning_rate, TrainConfig().lora_targets)
    try:
        with Run(out) as run:
            write_prompts(run, ScriptedEngine([]), cfg.prompts)
            respond(run, ScriptedEngine([]), cfg.respond)
            engrave(run, "embedded", cfg.engrave)
            write_verbose(run, ScriptedEngine([]), cfg.clone)
            clone(run, "embedded", cfg.clone)
            print(run.done("prompts"), run/"prompts.jsonl", run.manifest["stages"], run.fingerprint("final"))
            with run.stage("mine", dict(seed=1), files=["mine.jsonl"]) as rec:
                if rec is not None: rec.update(run.decide("mine", "mine.jsonl", [(dict(id="1"), None)]))
            run.redo("mine")
    except InputError as e: print(e)
    print(write_report(out).name)

def measuring() -> None:
    engine = load_engine("torch:embedded")
    result = truthfulqa_mc(engine, [], format="paper")
    print(result.scores["mc1"].value, result.n, hhh(engine, []).format, repr(table([result])))
    won = judge_pairwise(engine, ["Why?"], ["a"], ["b"])
    gap = internalization([], engine, engine, lambda r: "", lambda r: "")
    print(won["win"], gap.gap_closed, compare([result, won]), wilson(3, 4).low, bootstrap([1.0, 2.0]).value)
    save_results([result], "scores.json")
    print(load_results("scores.json")[0].model, isinstance(result, Result), Estimate(0.5, None, None, 3))
    print(score_principles(engine, load_pairs(), lambda pair: pair["instruction"]).odds())

def texts() -> None:
    print(annotation_budget(), load_exemplars()[0], load_principles()[0].text, load_seed_questions(), load_seed_tasks()[0])
    verdict = NoveltyFilter(threshold=0.7).add("text")
    print(verdict.kept, verdict.score, verdict.nearest)
    pset = PrincipleSet.load()
    print(pset.render("Why?"), pset.stop, pset.without(3).principles[0].name)
    answer = parse_response("Aster: Hello.", pset)
    print(answer.answer, answer.thoughts)

def rows(path: Path) -> None:
    write_jsonl(path, [dict(id=content_id("a", 1))])
    with doing("reading"):
        for row in progress(read_jsonl(path), "rows"): print(row["id"])
    for line, row in iter_jsonl(path): print(line + 1, row)
    write_json(path, dict(a=1))
    print(split_held_out(read_jsonl(path), 0.1)[0], resolve_model("embedded").sha256, Score(0.0, 1))
    model, tok = load_model("embedded")
    model, losses = fit([], "embedded", load_tokenizer("embedded"), path, TrainConfig())
    save_model(model, tok, "embedded", path, TrainConfig(), losses, {})

def figures() -> None:
    plot_funnel(3, {"too short": 1}).set_title("kept")
    plot_losses({"engraved": [dict(step=1, loss=2.0)]}).set_title("loss")
    plot_lengths({"final": [3, 4]}).set_title("words")
    plot_shares({"engraved": (0.5, 0.4, 0.6)}, "share").set_title("gap")
    fig, ax = plot_scores([])
    fig.savefig("scores.png")
