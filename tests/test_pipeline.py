"""The whole method on the real embedded model, small; killed, resumed, refused, reported."""
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from selfalign.checks import InputError
from selfalign.config import config_from
from selfalign.evaluation import _scored_sets
from selfalign.models import load_tokenizer
from selfalign.pipeline import run_steps
from selfalign.rows import read_jsonl

ROOT = Path(__file__).parent.parent
CANARY = "sk-canary-7f3a9c1e5b"


@pytest.fixture(scope="module")
def done(tmp_path_factory, small):
    "One finished run, shared by the tests of this module; made where keys are in the environment."
    out = tmp_path_factory.mktemp("runs") / "small"
    with pytest.MonkeyPatch.context() as m:
        for name in ("OPENAI_API_KEY", "HF_TOKEN", "WANDB_API_KEY"): m.setenv(name, CANARY)
        return out, run_steps(out, small, say=lambda s: None)


@pytest.fixture(scope="module")
def small():
    "All stages in about two minutes, in float32 so that texts repeat exactly."
    train = dict(epochs=1, global_batch=8, micro_batch=2, learning_rate=1e-3, warmup_steps=1, max_length=160,
        identity_share=0.2)
    return config_from(dict(
        model="embedded", engine="torch", dtype="float32", control=True,
        prompts=dict(self_instruct=6, self_instruct_calls=2, topics_per_type=1, topic_rounds=1, topics_per_call=3,
            topic_tokens=24, max_new_tokens=100,
                     balance="median", temperature=0.8),
        respond=dict(max_new_tokens=64, min_chars=20, limit=10),
        engrave=dict(train, held_out=0.4), clone=dict(max_new_tokens=48, min_chars=10, train=train),
        evaluate=dict(sets=["facts", "refusals", "passages", str(ROOT / "tests/data/pairs.jsonl")], max_rows=3,
            n_questions=2, max_new_tokens=32)))


def test_every_stage_leaves_its_files(done):
    out, table = done
    for f in ("manifest.json", "prompts.jsonl", "responses.jsonl", "rejects.jsonl", "held_out.jsonl",
            "engraved/config.json", "engraved/adapter/adapter_model.safetensors", "control/config.json",
            "verbose.jsonl", "final/model.safetensors", "eval/replies.json", "eval/internalization.json", "report.html",
            "answers.html", "figures/loss.png"):
        assert (out / f).exists(), f
    assert not list(out.rglob("*.tmp")) and not list(out.rglob("*.bin")) and not list(out.rglob("*.pt"))
    man = json.loads((out / "manifest.json").read_text())
    assert all(man["stages"][s]["done"]
        for s in ("prompts", "responses", "control answers", "engraved", "control", "verbose", "final", "evaluation"))
    assert man["config"]["seed"] == 0 and man["versions"]["torch"] and man["human_lines"] < 300
    assert {f"refusals (answer, chat) {k}, {m}" for k in ("refused benign", "answered harmful")
        for m in ("base", "engraved", "final")} <= {a for a, _ in table}
    assert any("gap closed" in a for a, _ in table) and any("human lines" in a for a, _ in table)


def test_five_arms_are_asked_for_the_same_pairs(done):
    out, table = done
    found = json.loads((out / "manifest.json").read_text())["stages"]["evaluation"]["principles"]
    arms = json.loads((out / "eval/principles.json").read_text())["arms"]
    order = ["base", "base, form alone", "base + principles", "control", "engraved", "final"]
    assert list(arms) == list(found["all"]) == order
    assert len({tuple(r["id"] for r in a["rows"]) for a in arms.values()}) == 1 and len(arms["base"]["rows"]) == 8
    assert found["all"]["base"]["shift"][0] == 0 and found["all"]["engraved"]["n"] == 8
    assert found["near_miss"]["final"]["n"] == 4
    assert any(a.startswith("share of it kept") for a, _ in table)
    assert "Are the principles followed?" in (out / "report.html").read_text()
    assert (out / "figures/principles.png").exists()


def test_what_alignment_cost_is_told_in_table_and_cards(done):
    out, table = done
    tax = json.loads((out / "manifest.json").read_text())["stages"]["evaluation"]["tax"]
    assert list(tax) == ["engraved", "final"] and tax["final"]["n"] == 3 and tax["final"]["base"] > 0
    assert sum(a == "plain text" for a, _ in table) == 2
    assert "Plain text: " in (out / "final/README.md").read_text()
    assert "principles" in (out / "engraved/README.md").read_text()


def test_no_file_of_a_run_holds_a_key(done):
    assert not [p for p in done[0].rglob("*") if p.is_file() and CANARY.encode() in p.read_bytes()]


def test_rows_are_accounted_for(done):
    out, _ = done
    s = json.loads((out / "manifest.json").read_text())["stages"]
    for name, file in (("responses", "responses.jsonl"), ("verbose", "verbose.jsonl"), ("prompts", "prompts.jsonl")):
        assert s[name]["kept"] == len(read_jsonl(out / file))
        assert s[name]["kept"] + sum(s[name]["rejected"].values()) == s[name]["asked"]
    held = {r["id"] for r in read_jsonl(out / "held_out.jsonl")}
    trained = {r["id"] for r in read_jsonl(out / "verbose.jsonl")}
    assert held and not held & trained
    assert s["engraved"]["rows"] + s["engraved"]["lost"] == len(read_jsonl(out / "responses.jsonl")) - len(
        held) + s["engraved"]["identity"]


def test_the_final_model_loads_in_plain_transformers_and_ends_its_turn(done):
    from transformers import AutoModelForCausalLM, AutoTokenizer
    out, _ = done
    tok, model = AutoTokenizer.from_pretrained(out / "final"), AutoModelForCausalLM.from_pretrained(out / "final")
    ends = model.generation_config.eos_token_id
    assert tok.chat_template and model.config.use_cache
    assert tok.eos_token_id in (ends if isinstance(ends, list) else [ends])
    ids = tok.apply_chat_template([dict(role="user", content="Hi")], add_generation_prompt=True, return_tensors="pt",
        return_dict=True)
    assert model.generate(**ids, max_new_tokens=4, do_sample=False).shape[1] > ids["input_ids"].shape[1]


def test_the_merged_model_is_base_plus_adapter(done):
    import torch
    from peft import PeftModel
    from selfalign.models import load_model
    out, _ = done
    base, tok = load_model("embedded", dtype=torch.float32)
    ids = tok("Rivers run", return_tensors="pt")
    merged, _ = load_model(str(out / "final"), dtype=torch.float32)
    with torch.inference_mode():
        plain = base(**ids).logits
        joined = PeftModel.from_pretrained(base, out / "final" / "adapter").eval()(**ids).logits
        whole = merged(**ids).logits
    assert (joined - whole).abs().max() < 0.2  # the merge is rounded to the base's bfloat16
    assert (plain - whole).abs().max() > 0.01  # and training changed something


def test_a_second_call_loads_and_changes_nothing(done, small, monkeypatch):
    out, table = done
    monkeypatch.setattr("selfalign.engines.opening.load_engine",
        lambda *a, **k: pytest.fail("a finished run loaded an engine"))
    before = {f: (out / f).read_bytes() for f in ("prompts.jsonl", "responses.jsonl", "verbose.jsonl", "rejects.jsonl")}
    assert run_steps(out, small, say=lambda s: None)[:6] == table[:6]
    assert {f: (out / f).read_bytes() for f in before} == before


def test_another_batch_size_is_the_same_run_and_another_seed_is_not(done, small):
    out, _ = done
    run_steps(out, replace(small, batch_size=3), steps=("prompts", "respond", "verbose"), say=lambda s: None)
    with pytest.raises(InputError,
            match=r"stage 'prompts' was made with other settings \(seed\); use --redo prompts or a new folder"):
        run_steps(out, replace(small, seed=1), say=lambda s: None)
    later = replace(small, clone=replace(small.clone, temperature=0.9))
    # a later stage never invalidates an earlier one
    run_steps(out, later, steps=("prompts", "respond", "engrave"), say=lambda s: None)
    with pytest.raises(InputError, match=r"stage 'verbose' was made with other settings \(temperature\)"):
        run_steps(out, later, steps=("verbose",), say=lambda s: None)


def test_the_report_is_one_file_that_loads_nothing(done):
    html = (done[0] / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"""(?:src|href)=["']https?://(?!www\.w3\.org)[^"']*\.(?:js|css|png)""", html)
    assert "gap closed" in html and "lost: no answer token fits" in html and "Side by side" in html
    assert "data:image/png;base64" in html


def test_model_text_cannot_be_markup_in_the_report(done, tmp_path):
    import shutil
    from selfalign.report import write_page, write_report
    out = tmp_path / "run"
    shutil.copytree(done[0], out, ignore=shutil.ignore_patterns("*.safetensors"))
    replies = json.loads((out / "eval" / "replies.json").read_text())
    for r in replies:
        r["answers"]["final"] = r["thoughts"] = r[
            "instruction"] = "<script>alert(1)</script><img src=x onerror=alert(2)>"
    (out / "eval" / "replies.json").write_text(json.dumps(replies))
    for page in (write_report(out), write_page(out)):
        html = page.read_text(encoding="utf-8")
        assert "<script>alert(1)" not in html and html.count("&lt;script&gt;alert(1)") >= 4 and "<img src=x" not in html


def test_the_page_of_answers_says_where_training_made_them_worse(done, tmp_path):
    import shutil
    from selfalign.report import write_page
    out = tmp_path / "run"
    shutil.copytree(done[0], out, ignore=shutil.ignore_patterns("*.safetensors"))
    man = json.loads((out / "manifest.json").read_text())
    def page(repeats):
        for m in ("base", "engraved", "final"):
            man["stages"]["evaluation"]["replies"][m] |= dict(n=20, stop_rate=1., repetition_rate=repeats*(m == "final"))
        (out / "manifest.json").write_text(json.dumps(man))
        return write_page(out).read_text(encoding="utf-8")
    assert "made its answers worse" not in page(0.)
    assert ("Training has made its answers worse: answers with a repetition rose from 0% (engraved) to 90% (final)"
        in page(.9))


def test_the_cards_say_what_the_evaluation_found(done):
    final, engraved = ((done[0] / m / "README.md").read_text(encoding="utf-8") for m in ("final", "engraved"))
    for card in (final, engraved):
        assert "not measured yet" not in card and "| facts, lm-eval: mc1 | " in card
        assert "| answers that end by themselves | " in card
        assert "license: apache-2.0" in card and "base_model: HuggingFaceTB/" in card
        assert "## Limits and licence" in card
    assert "verbose answers kept" in final and "verbose answers kept" not in engraved


def test_four_answers_with_what_each_cost(done):
    replies = json.loads((done[0] / "eval" / "replies.json").read_text())
    arms = ["base", "principled", "engraved", "final"]
    assert all(list(r["answers"]) == list(r["cost"]) == arms for r in replies)
    for r in replies:
        cost = r["cost"]
        assert cost["principled"]["prompt"] > 800 > 10 * cost["engraved"]["prompt"]
        assert all(c["answer"] > 0 and c["seconds"] > 0 for c in cost.values())
        assert "(internal thoughts)" not in r["answers"]["principled"]
    html = (done[0] / "answers.html").read_text(encoding="utf-8")
    asked = [r for r in replies if r["kind"] == "question"]
    assert len(asked) == 2 == html.count("<h3>") and html.count('class="a ') == 8
    assert f"{asked[0]['cost']['principled']['prompt']:,} + " in html
    assert "What the principles move in it: " in html and not re.search(r"(?:src|href)=", html)


def test_killed_and_resumed_it_is_the_same_run(done, small, tmp_path):
    "SIGKILL in stages 1 and 2; the resumed rows equal the undisturbed run's, text for text (float32)."
    out, cfg = tmp_path / "killed", tmp_path / "cfg.json"
    cfg.write_text(json.dumps(asdict(small)))
    code = ("import json,sys; from selfalign.config import config_from; from selfalign.pipeline import run_steps; "
            f"run_steps({str(out)!r}, config_from(json.load(open({str(cfg)!r}))), steps=('prompts','respond'), "
            f"say=lambda s: None)")
    env = dict(os.environ, SELFALIGN_NO_PROGRESS="1")
    for journal, lines in (("prompts", 5), ("prompts", 22), ("responses", 3)):
        p = subprocess.Popen([sys.executable, "-c", code], env=env)
        j, start = out / "completions" / f"{journal}.jsonl", time.time()
        while (p.poll() is None and time.time() - start < 120
                and not (j.exists() and j.read_bytes().count(b"\n") >= lines)):
            time.sleep(0.02)
        p.send_signal(signal.SIGKILL); p.wait()
    run_steps(out, small, steps=("prompts", "respond"), say=lambda s: None)
    for f in ("prompts.jsonl", "responses.jsonl", "rejects.jsonl"):
        mine = [r for r in read_jsonl(out / f)]
        theirs = [r for r in read_jsonl(done[0] / f) if f != "rejects.jsonl" or r["stage"] in ("prompts", "responses")]
        assert mine == theirs, f
    ids = [r["id"] for r in read_jsonl(out / "completions" / "prompts.jsonl")]
    assert len(ids) == len(set(ids))


def test_steps_in_processes_of_their_own(small, tmp_path):
    "As on a GPU: each step in its own process, with the same configuration."
    rows = run_steps(tmp_path / "r", small, steps=("prompts",), isolate=True, say=lambda s: None)
    assert dict(rows)["prompts: items read, kept"] and read_jsonl(tmp_path / "r" / "prompts.jsonl")


# --- engines of a run

SERVER = "openai:http://127.0.0.1:9/v1#embedded"


def test_each_model_of_a_run_is_served_by_its_own_server():
    from selfalign.config import RunConfig
    from selfalign.engines.opening import ServerNeeded, engine_string
    from selfalign.pipeline import check_inputs
    cfg = RunConfig(engine=SERVER, engraved_engine="openai:http://h:1/v1#e")
    assert engine_string(cfg, "r/engraved") == "openai:http://h:1/v1#e"
    with pytest.raises(ServerNeeded,
            match=r"vllm serve r/final .*--port 8002.* --final-engine openai:http://127.0.0.1:8002/v1#r/final, "
            r"or with --final-engine torch:r/final,"):
        engine_string(cfg, "r/final")
    assert engine_string(replace(cfg, final_engine="openai:http://h:2/v1#f"), "r/final") == "openai:http://h:2/v1#f"
    assert engine_string(replace(cfg, final_engine="torch:r/final"), "r/final") == "torch:r/final"
    with pytest.raises(InputError, match="names or addresses of their own"):
        check_inputs(replace(cfg, final_engine=cfg.engraved_engine))


@pytest.mark.parametrize("engine", [SERVER, "ray:" + SERVER])
def test_a_served_run_is_scored_by_torch(engine, monkeypatch):
    import selfalign.pipeline as p
    opened = []
    monkeypatch.setattr("selfalign.engines.opening.load_engine", lambda spec, **options: opened.append((spec, options)))
    cfg = p.RunConfig(engine=engine, allow_degraded=True)
    p.open_scorer(cfg).loaded(); p.open_scorer(cfg, "r/final").loaded()
    assert [s for s, _ in opened] == ["torch:embedded", "torch:r/final"]
    assert all("allow_degraded" not in o for _, o in opened)


# --- stage 5 without a model

def replies_of(tmp_path, engines, **settings):
    "Stage 5's replies by scripted engines, with the table's rows."
    from selfalign.evaluation import _Asked, _replies, _write_replies
    from selfalign.report import _reply_rows
    from selfalign.runs import Run
    from selfalign.rows import write_jsonl
    cfg, said = config_from(dict(model="embedded", evaluate=dict(n_questions=6), **settings)), []
    with Run(tmp_path / "r", say=said.append) as run:
        write_jsonl(run / "held_out.jsonl", [])
        asked = _Asked(run, cfg)
        got = _write_replies(asked,
            {arm: rows for m, e in engines.items() for arm, rows in _replies(asked, m, e).items()})
    return got, dict(_reply_rows(got)), said, json.loads((tmp_path / "r" / "eval" / "replies.json").read_text())


def test_replies_that_failed_are_counted_and_are_no_empty_answers(tmp_path):
    from selfalign.generation import Completion, ScriptedEngine
    from selfalign.report import four_answers
    lame = ScriptedEngine(lambda p, i, s: Completion("", 0, "error", 9, error="row 1: <lost>") if i < 2
        else "It melts the ice.")
    fine = ScriptedEngine(lambda p, i, s: "It melts the ice.")
    got, rows, said, stored = replies_of(tmp_path, dict(base=fine, engraved=fine, final=lame))
    assert (got["final"]["failed"], got["final"]["n"], got["final"]["words"]) == (2, 4, 4.0)
    assert got["base"]["failed"] == 0
    assert rows["replies that failed, left out"] == "final 2" and "final 2; the first: row 1: <lost>" in said[0]
    assert stored[0]["errors"] == dict(final="row 1: <lost>") and stored[0]["cost"]["final"] is None
    assert "(failed: row 1: &lt;lost&gt;)" in four_answers(stored) and not stored[3]["errors"]


@pytest.mark.parametrize("engine, dtype, control, loads", [
    ("vllm", None, True, [("base", None), ("engraved", None), ("final", None), ("control", None)]),
    ("torch", "bfloat16", False, [("base", None), ("engraved", None), ("final", None)]),
    ("torch", None, True,
        [(m, d) for m in ("base", "engraved", "final") for d in ((None, "float32"))] + [("control", "float32")])])
def test_stage_5_opens_each_model_once(engine, dtype, control, loads, tmp_path, monkeypatch):
    """Replies, sets and log-probabilities of a model by one engine, and one at a time; exact scores on a CPU of
    bfloat16 have their own."""
    import selfalign.pipeline as p
    from selfalign.generation import ScriptedEngine
    from selfalign.runs import Run
    from selfalign.rows import write_jsonl
    opened, held = [], [0]
    class Counted(ScriptedEngine):
        def close(self): held[0] -= 1
    def load(spec, **options):
        name = spec.rpartition("/")[2].rpartition(":")[2].replace("embedded", "base")
        opened.append((name, None if options.get("dtype") == dtype else options.get("dtype")))
        if engine == "vllm": assert options["rules"] == (name == "base"), "bans are asked of the base model alone"
        held[0] += 1; assert held[0] == 1, "one engine at a time"
        e = Counted(lambda q, i, s: "It melts the ice.", scores=lambda q, c: -len(c) * (1 if isinstance(q, str) else 2))
        e.info = dict(e.info, model=name)
        return e
    monkeypatch.setattr("selfalign.engines.opening.load_engine", load)
    monkeypatch.setattr("selfalign.evaluation.best_dtype", lambda: "torch.bfloat16")
    real = load_tokenizer
    monkeypatch.setattr("selfalign.evaluation.load_tokenizer", lambda spec: real("embedded"))
    cfg = config_from(dict(model="embedded", engine=engine, dtype=dtype, control=control,
        evaluate=dict(n_questions=2, max_rows=4, sets=["facts"])))
    with Run(tmp_path / "r", say=lambda *a: None) as run:
        monkeypatch.setattr(run, "done", lambda s: s == "control" and control)
        monkeypatch.setattr(run, "fingerprint", lambda s: s)
        write_jsonl(run / "held_out.jsonl",
            [dict(id=str(i), instruction=f"Say {i}.", input="", answer=f"It is {i}.") for i in range(4)])
        monkeypatch.setattr("selfalign.evaluation.refresh_cards", lambda path: None)
        p.step_evaluate(run, cfg)
        rec = run.manifest["stages"]["evaluation"]
    assert opened == loads and held == [0]
    assert rec["internalization"]["n"] == 4 and ("control_without" in rec["internalization"]) == control
    assert list(rec["replies"]) == ["base", "principled", "engraved", "final"]
    assert {s["model"] for s in rec["scores"]} == {"base", "engraved", "final"}


# --- engine options

@pytest.mark.parametrize("engine, options, made", [
    ("vllm", dict(dtype="float16", batch_size=64,
        engine_options=["tensor_parallel_size=4", "memory_share=0.8", "quantization=fp8", "eager=true"]),
     dict(dtype="float16", batch_size=64, tensor_parallel_size=4, memory_share=0.8, quantization="fp8", eager=True)),
    ("vllm", dict(engine_options=dict(tensor_parallel_size=2)), dict(tensor_parallel_size=2)),
    ("ray:torch", dict(batch_size=8, engine_options=["workers=8", "cpus_per_worker=2"]),
        dict(batch_size=8, workers=8, cpus_per_worker=2)),
    ("ray:vllm", dict(dtype="bfloat16", batch_size=64,
        engine_options=["workers=2", "tensor_parallel_size=2", "memory_share=0.8"]),
     dict(dtype="bfloat16", batch_size=64, workers=2, tensor_parallel_size=2, memory_share=0.8)),
    ("torch", dict(dtype="float32", engine_options=["compile=true", "max_context=2048"]),
        dict(dtype="float32", compile=True, max_context=2048)),
])
def test_engine_options_reach_the_engine(engine, options, made, monkeypatch):
    import selfalign.pipeline as p
    opened = []
    monkeypatch.setattr("selfalign.engines.opening.load_engine", lambda spec, **options: opened.append(options))
    cfg = p.config_from(dict(model="embedded", engine=engine, **options))
    p.check_inputs(cfg)
    with pytest.raises(AttributeError): p.open_engine(cfg).generate
    assert opened == [made] and p.config_from(json.loads(json.dumps(asdict(cfg)))) == cfg


@pytest.mark.parametrize("engine, options, words", [
    ("openai:http://h/v1#m", dict(dtype="float32"), "--dtype is not for engine openai; leave it out"),
    ("openai:http://h/v1#m", dict(batch_size=4), "--batch-size is not for engine openai"),
    ("torch", dict(engine_options=["tensor_parallel_size=4"]),
        "engine torch has no option tensor_parallel_size; it has device"),
    ("vllm", dict(engine_options=["workers=4"]), "engine vllm has no option workers"),
    ("vllm", dict(engine_options=["dtype=float16"]), "dtype has an option of its own; give --dtype"),
    ("vllm", dict(engine_options=["tensor_parallel_size"]),
        "'tensor_parallel_size' is not understood; give name=value"),
    ("vllm", dict(engine_options=["tensor_parallel_size=many"]), "tensor_parallel_size is 'many'; give a value like 1"),
    ("vllm", dict(engine_options=["memory_share=[1]"]), "memory_share is '[1]'; give a value like 0.9"),
])
def test_engine_options_that_the_engine_has_not_are_one_line(engine, options, words, tmp_path):
    cfg = config_from(dict(model=None if ":" in engine and engine[:3] != "ray" else "embedded",
        engine=engine, **options))
    with pytest.raises(InputError) as e: run_steps(tmp_path / "r", cfg)
    assert words in str(e.value) and "\n" not in str(e.value) and not (tmp_path / "r").exists()


def test_options_of_one_kind_do_not_reach_another(monkeypatch):
    import selfalign.pipeline as p
    opened = []
    monkeypatch.setattr("selfalign.engines.opening.load_engine", lambda spec, **options: opened.append((spec, options)))
    cfg = p.RunConfig(engine=SERVER, engine_options=("concurrency=64",), allow_degraded=True,
        engraved_engine="vllm:r/engraved")
    assert p.open_engine(cfg).options == dict(concurrency=64, allow_degraded=True)
    assert p.open_engine(cfg, "r/engraved").options == {}
    p.open_scorer(cfg).loaded()
    assert "concurrency" not in opened[0][1]


def test_the_command_line_takes_engine_options():
    from selfalign.config import load_config
    from selfalign.app.run import parse_run
    assert parse_run("run", ["r", "--engine", "vllm", "--model", "x", "--engine-options", "tensor_parallel_size=4",
        "memory_share=0.8"])[1].engine_options == ("tensor_parallel_size=4", "memory_share=0.8")
    assert load_config("paper").engine_options == ("tensor_parallel_size=8",)


def test_lost_and_truncated_training_rows_are_said(tmp_path):
    from selfalign.pipeline import _say_trained
    from selfalign.report import closing_table, trained_rows
    from selfalign.runs import Run
    rec, said = dict(rows=1200, lost=3, truncated=40), []
    assert "1,200; lost, as no answer token fits max_length: 3; truncated, so without their end: 40" == trained_rows(
        rec)
    with Run(tmp_path / "r", say=said.append) as run:
        run.manifest["stages"]["engraved"] = rec
        _say_trained(run, 3, ["engraved", "control"])
        assert dict(closing_table(run))["training rows, engraved"] == trained_rows(rec)
    assert said == [f"3: engraved: rows trained on: {trained_rows(rec)}"]


def test_presets_measure_refusals_and_the_table_shows_them_with_intervals():
    from selfalign.report import _score_rows
    from selfalign.config import load_config
    assert all("refusals" in load_config(p).evaluate.sets for p in ("demo", "workstation", "paper", "dromedary2"))
    rows = dict(_score_rows([dict(model="final", set="refusals", format="answer, chat", refused_benign=[.2, .09, .39],
        answered_harmful=[.4, .2, .64], as_wished=[.7, .5, .8])]))
    assert rows == {"refusals (answer, chat) refused benign, final": "0.20 (0.09 to 0.39)",
        "refusals (answer, chat) answered harmful, final": "0.40 (0.20 to 0.64)"}


def seeded_run(path, seed, share, gap):
    "A finished stage 5, as its files say it."
    from selfalign import evaluation as E
    from selfalign.generation import ScriptedEngine
    rows = E.load_benchmark("refusals")[:20]
    E.save_results(E.refusal_rates(ScriptedEngine(lambda p, i, s: "I can't do that." if i < 20*share else "So."), rows,
        seed=seed, set_name="refusals", name="final"), path / "eval" / "sets" / "a.json")
    rec = dict(done=True, internalization=dict(gap_closed=gap, n=9),
        replies=dict(final=dict(n=4, words=10.0*seed, tokens=None, stop_rate=.5, repetition_rate=0.)))
    (path / "manifest.json").write_text(
        json.dumps(dict(config=dict(seed=seed, model="embedded"), stages=dict(evaluation=rec))))


def test_scores_over_seeds(tmp_path, capsys):
    from selfalign.app.cli import main
    from selfalign.evals.comparing import seeds_table
    for seed, share, gap in ((1, .2, .5), (2, .4, .7), (3, .6, .6)): seeded_run(tmp_path / f"s{seed}", seed, share, gap)
    assert main(["compare", *(str(tmp_path / f"s{i}") for i in (1, 2, 3))]) == 0
    text = capsys.readouterr().out
    got = {(r["set"], r["metric"]): r for r in seeds_table([tmp_path / f"s{i}" for i in (1, 2, 3)])}
    assert got["refusals", "refused_benign"]["mean ± sd"] == "0.400 ± 0.200"
    assert got["held out", "gap_closed"]["mean ± sd"] == "0.600 ± 0.100"
    assert got["replies", "words"]["mean ± sd"] == "20.000 ± 10.000" and got["replies", "words"]["seeds"] == "1, 2, 3"
    assert "0.400 ± 0.200" in text
    assert main(["compare", "--over-seeds", str(tmp_path / "s1"), str(tmp_path / "s2")]) == 0
    assert "0.300 ± 0.141" in capsys.readouterr().out
    (tmp_path / "s1" / "manifest.json").write_text('{"stages": {}}')
    assert main(["compare", *(str(tmp_path / f"s{i}") for i in (1, 2, 3))]) == 1
    assert "stage 5 is not finished" in capsys.readouterr().err


def test_replies_carry_intervals(tmp_path):
    from selfalign.generation import ScriptedEngine
    fine = ScriptedEngine(lambda p, i, s: "It melts the ice " * (1 + i))
    got, rows, _, _ = replies_of(tmp_path, dict(base=fine, engraved=fine, final=fine))
    low, high = got["final"]["intervals"]["words"]
    assert low < got["final"]["words"] < high
    assert set(got["final"]["intervals"]) == {"words", "tokens", "stop_rate", "repetition_rate"}
    assert f"14 ({low:.0f} to {high:.0f}) → 14 (" in rows["mean answer, engraved → final"]
    assert "100% (61% to 100%)" in rows["answers that end by themselves"]


def test_a_base_without_a_template_is_asked_as_its_engraved_model_is(tmp_path):
    from selfalign.tokens import Prompts
    from selfalign.generation import load_engine
    from selfalign.models import load_tokenizer
    from selfalign.runs import Run
    from selfalign.tokens import CHAT_TEMPLATE
    bare, ours = load_tokenizer("embedded"), load_tokenizer("embedded")
    bare.chat_template, ours.chat_template = None, CHAT_TEMPLATE
    cfg = config_from(dict(model="embedded", evaluate=dict(sets=["choices"], max_rows=2)))
    with Run(tmp_path / "r", say=lambda s: None) as run, load_engine("torch:embedded") as e:
        ours.save_pretrained(run / "engraved"); e.model.config.save_pretrained(run / "engraved")
        e.prompts = Prompts(bare)
        m = type("Open", (), dict(name="base", scored=lambda self: e))()
        got = {(r.name, r.format): r["overall"] for r in _scored_sets(run, cfg, m, ["choices"])}
        assert set(got) == {("base", "paper, chat"), ("base", "likelihood"), ("base, plain text", "paper"),
            ("base, plain text", "likelihood")}
        assert e.prompts.tok is bare
        m.name = "engraved"
        assert {r.name for r in _scored_sets(run, cfg, m, ["choices"])} == {"engraved"}


@pytest.mark.parametrize("step", ["respond", "engrave", "evaluate"])
def test_a_stage_without_the_one_before_it_is_told_before_the_model_is_looked_for(tmp_path, step):
    cfg = config_from(dict(model=str(tmp_path/"nowhere")))
    with pytest.raises(InputError, match="'prompts' is not finished; run `selfalign prompts "):
        run_steps(tmp_path/"run", cfg, (step,), say=lambda s: None)
    assert not (tmp_path/"run").exists()


def test_a_stage_in_the_middle_is_missed_by_the_command_that_makes_it(tmp_path):
    cfg, done = config_from(dict(model=str(tmp_path/"nowhere"))), dict(done=True)
    stages = dict(prompts=done, responses=done, engraved=done, verbose=dict(done=False))
    (tmp_path/"manifest.json").write_text(json.dumps(dict(stages=stages)))
    with pytest.raises(InputError, match="'verbose' is not finished; run `selfalign clone "):
        run_steps(tmp_path, cfg, ("evaluate",), say=lambda s: None)
