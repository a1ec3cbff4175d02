"""The command line: one line for each mistake, exit codes, nothing overwritten."""
import json
import subprocess
import sys

import pytest

from selfalign.app.cli import COMMANDS, main
from selfalign.app.run import parse_run
from selfalign.app.doctor import _bf16, _compiler, _cuda, _hub
from selfalign.app.judge import Judge


def said(capsys, *argv):
    code = main(list(argv))
    out = capsys.readouterr()
    return code, out.out, out.err


@pytest.mark.parametrize("argv, words", [
    (("run", "{tmp}/r", "--preset", "huge"), "no such preset; choose one of demo"),
    (("run", "{tmp}/r", "--preset", "demo", "--engine", "warp"), "unknown engine 'warp'"),
    (("run", "{tmp}/r", "--preset", "demo", "--model", "/no/such/model"), "no such model"),
    (("run", "{tmp}/r"), "no model; give --model"),
    (("run", "{tmp}/r", "--preset", "demo", "--engine", "torch:embedded", "--model", "embedded"), "leave out --model"),
    (("run", "{tmp}/full", "--preset", "demo"), "not empty and not a run"),
    (("run", "{tmp}/r", "--preset", "demo", "--annotations", "/no/such/folder"), "no such folder"),
    (("run", "{tmp}/r", "--preset", "demo", "--redo", "everything"), "no such stage; choose one of"),
    (("run", "{tmp}/r", "--preset", "{tmp}/bad.yaml"), "bad.yaml:2: not valid YAML"),
    (("run", "{tmp}/r", "--preset", "{tmp}/odd.yaml"), "unknown setting 'self_instrct'"),
    (("run", "{tmp}/r", "--preset", "demo", "--prompts.novelty", "1.5"),
        "prompts.novelty is 1.5; give a number from 0 to 1"),
    (("run", "{tmp}/r", "--preset", "demo", "--evaluate.max-rows", "0"),
        "evaluate.max_rows is 0; give a whole number, 1 or more"),
    (("run", "{tmp}/r", "--preset", "demo", "--evaluate.n-questions", "-1"),
        "evaluate.n_questions is -1; give a whole number, 0 or more"),
    (("run", "{tmp}/r", "--preset", "demo", "--evaluate.max-new-tokens", "0"), "evaluate.max_new_tokens is 0"),
    (("run", "{tmp}/r", "--preset", "demo", "--evaluate.temperature", "-0.5"),
        "evaluate.temperature is -0.5; give a number, 0 or more"),
    (("run", "{tmp}/r", "--preset", "demo", "--evaluate.temperature", "nan"), "evaluate.temperature is nan"),
    (("run", "{tmp}/r", "--preset", "demo", "--evaluate.sets", "facts", "fax"),
        "evaluate.sets: fax: no such set or file"),
    (("run", "{tmp}/r", "--preset", "demo", "--evaluate.sets", "facts", "{tmp}/full/odd.jsonl"),
        "odd.jsonl:1: not the schema of a known set"),
    (("run", "{tmp}/r", "--preset", "demo", "--evaluate.sets", "facts", "facts"), "evaluate.sets names facts twice"),
    (("run", "{tmp}/r", "--preset", "demo", "--seed", "-1"), "seed is -1; give a whole number, 0 or more"),
    (("run", "{tmp}/r", "--preset", "demo", "--batch-size", "0"), "batch_size is 0; give a whole number, 1 or more"),
    (("run", "{tmp}/r", "--preset", "demo", "--dtype", "float8"),
        "dtype is 'float8'; give 'float32', 'bfloat16' or 'float16', or leave it out"),
    (("run", "{tmp}/r", "--preset", "demo", "--engine-options", "workers=2"), "engine torch has no option workers"),
    (("run", "{tmp}/r", "--preset", "demo", "--engraved-engine", "http://h/v1"),
        "engraved_engine is 'http://h/v1'; give a full engine string"),
    (("run", "{tmp}/r", "--preset", "demo", "--final-engine", "openai"),
        "final_engine is 'openai'; give a full engine string"),
    (("evaluate", "embedded", "--n", "0"), "n is 0; give a whole number, 1 or more"),
    (("evaluate", "embedded", "--dtype", "int8"), "dtype is 'int8'"),
    (("respond", "{tmp}/empty", "--preset", "demo"), "stage 'prompts' is not finished"),
    (("report", "{tmp}/empty", "--preset", "demo"), "nothing to report yet"),
    (("evaluate", "/no/such/model"), "no such model"),
    (("chat", "{tmp}/full"), "no final model"),
    (("judge", "x", "y", "--questions", "/no/such.jsonl", "--judge", "torch:embedded"), "no such set or file"),
    (("judge", "x", "y", "--questions", "questions", "--judge", "warp"),
        "--judge is 'warp'; give a full engine string"),
    (("judge", "x", "x", "--questions", "questions", "--judge", "torch:embedded"),
        "x stands there twice; give models that differ"),
    (("judge", "x", "y", "--questions", "questions", "--judge", "torch:embedded", "--repeats", "0"),
        "repeats is 0; give a whole number, 1 or more"),
    (("judge", "x", "y", "--questions", "{tmp}/full/odd.jsonl", "--judge", "torch:embedded"),
        "odd.jsonl:2: no question; each row needs"),
    (("evaluate", "embedded", "--out", "{tmp}/bad.yaml/scores"),
        "bad.yaml/scores: cannot be written (Not a directory); choose another folder"),
    (("run", "{tmp}/r", "--engine", "openai:bob:hunter2@localhost:8000/v1#m"), "holds a user, a password or a query"),
    (("run", "{tmp}/r", "--engine", "openai:http://localhost/v1?api_key=SECRET#m"),
        "holds a user, a password or a query"),
    (("run", "{tmp}/r", "--engine", "openai:http://localhost:8000v1#m"), "must begin with http:// or https://"),
    (("run", "{tmp}/r", "--engine", "openai:localhost:8000/v1#m"), "must begin with http:// or https://"),
    (("run", "{tmp}/r", "--engine", "openai:http://localhost:8000/v1"), "names no model; write it after a #"),
    (("run", "{tmp}/r", "--engine", "openai:http://localhost:8000/v1#mine"),
        "no hub id and no folder; training needs its weights"),
    (("evaluate", "openai:http://a:b@localhost:8000/v1#mine"), "holds a user, a password or a query"),
    (("judge", "openai:http://localhost/v1?key=SECRET#m", "--questions", "questions", "--judge", "torch:embedded"),
        "holds a user, a password or a query"),
    (("judge", "x", "--questions", "questions", "--judge", "openai:http://a:b@localhost/v1#m"),
        "holds a user, a password or a query"),
    (("engrave", "{tmp}/typo"), "typo: no run here"),
    (("report", "{tmp}/typo"), "typo: no run here"),
    (("run", "{tmp}/r", "--preset", "{tmp}/full/words.yaml"), "banned_first holds False; write texts, in quotes"),
    (("run", "{tmp}/full/odd", "--model", "embedded"), "odd/manifest.json: not the manifest of a run"),
    (("judge", "x", "torch:x", "--questions", "questions", "--judge", "torch:embedded"), "x stands there twice"),
    (("judge", "answrs.jsonl", "--questions", "questions", "--judge", "torch:embedded"), "answrs.jsonl: no such file"),
    (("judge", "{tmp}/full/ok.jsonl", "--questions", "{tmp}/full/turns.jsonl", "--judge", "torch:embedded"),
        "turns.jsonl:1: turns is 'abc'; give a list of texts"),
    (("judge", "{tmp}/full/ok.jsonl", "--questions", "{tmp}/full/kinds.jsonl", "--judge", "torch:embedded"),
        "kinds.jsonl:2: kind is None, but other rows are benign or harmful"),
    (("judge", "{tmp}/full/number.jsonl", "--questions", "questions", "--judge", "torch:embedded", "--out", "{tmp}/j"),
        "number.jsonl:1: question is 5; write it as text"),
    (("judge", "{tmp}/full/twice.jsonl", "--questions", "questions", "--judge", "torch:embedded", "--out", "{tmp}/j"),
        "twice.jsonl:2: a second answer to 'Why?'"),
    (("judge", "{tmp}/full/ok.jsonl", "y", "--questions", "questions", "--judge", "torch:embedded", "--out", "{tmp}/j"),
        "ok.jsonl: no answer to any of the 20 questions"),
    (("ablate", "{tmp}/none"), "no run here; write prompts first"),
    (("ablate", "{tmp}/run"), "stage 'prompts' is not finished"),
    (("ablate", "{tmp}/asked", "--drop", "4,99"), "--drop 99: no rule '99'; the rules are 1 (ethical)"),
    (("ablate", "{tmp}/asked", "--n", "-1"), "n is -1; give a whole number, 0 or more"),
    (("ablate", "{tmp}/asked", "--judge", "warp:9"), "--judge is 'warp:9'; give a full engine string"),
])
def test_a_mistake_is_one_line_and_exit_code_1(tmp_path, capsys, argv, words):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    (tmp_path / "full" / "odd.jsonl").write_text('{"question": "Why?"}\n{"q": 1}\n')
    (tmp_path / "full" / "ok.jsonl").write_text('{"question": "Why?", "answer": "So."}\n')
    for name, text in dict(turns='{"turns": "abc"}', kinds='{"question": "a", "kind": "benign"}\n{"question": "b"}',
            number='{"question": 5, "answer": "x"}',
            twice='{"question": "Why?", "answer": "x"}\n{"question": "Why?", "answer": "y"}').items():
        (tmp_path / "full" / f"{name}.jsonl").write_text(text)
    (tmp_path / "full" / "words.yaml").write_text("model: embedded\nrespond: {banned_first: [Sorry, No]}\n")
    (tmp_path / "full" / "odd").mkdir(); (tmp_path / "full" / "odd" / "manifest.json").write_text("[]")
    (tmp_path / "bad.yaml").write_text("model: embedded\nprompts: {a: 1]\n")
    for name, stages in (("run", {}), ("asked", dict(prompts=dict(done=True, fingerprint="x", settings={}, files=[])))):
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.json").write_text(json.dumps(dict(stages=stages, config=dict(model="embedded"))))
        (tmp_path / name / "prompts.jsonl").write_text('{"id": "1", "instruction": "Name a river.", "input": ""}\n')
    (tmp_path / "odd.yaml").write_text("prompts: {self_instrct: 3}\n")
    code, _, err = said(capsys, *(a.replace("{tmp}", str(tmp_path)) for a in argv))
    assert "SECRET" not in err and "hunter2" not in err
    assert code == 1 and words in err and err.startswith("error: ") and len(err.strip().splitlines()) == 1
    assert "Traceback" not in err
    assert (tmp_path / "full" / "thesis.txt").read_text() == "mine"
    man = tmp_path / "r" / "manifest.json"
    assert not man.exists() or not json.loads(man.read_text())["stages"] # a run that was refused has begun nothing


@pytest.mark.parametrize("file, text, words", [
    ("seed_tasks.jsonl", '{"instruction": "Name a lake."}\n{"instr\n', "seed_tasks.jsonl:2: not valid JSON"),
    ("principles.yaml", "- {number: 1, name: kind, text: Be kind.}\n", "exemplar 1 cites rule 9, which does not exist"),
    ("exemplars.yaml", "- turns: []\n", "entry 1 has no turns"),
])
def test_bad_annotations_are_named_by_file_and_line(tmp_path, capsys, file, text, words):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / file).write_text(text)
    code, _, err = said(capsys, "run", str(tmp_path / "r"), "--preset", "demo", "--annotations", str(tmp_path / "mine"))
    assert "SECRET" not in err and "hunter2" not in err
    assert code == 1 and words in err and len(err.strip().splitlines()) == 1
    assert not (tmp_path / "r" / "prompts.jsonl").exists()


@pytest.mark.parametrize("argv",
    [(), ("fly",), ("run",), ("compare", "a"), ("evaluate",), ("run", "r", "--no-such-option")])
def test_wrong_usage_is_exit_code_2(capsys, argv):
    try: code = main(list(argv))
    except SystemExit as e: code = e.code
    assert code == 2


@pytest.mark.parametrize("command", ["run", "demo", "prompts", "evaluate", "plan", "chat", "ablate", "judge"])
def test_help_states_options(capsys, command):
    with pytest.raises(SystemExit) as e: main([command, "--help"])
    text = capsys.readouterr().out
    assert e.value.code == 0 and "default" in text


def test_compare_help_names_its_files(capsys):
    with pytest.raises(SystemExit) as e: main(["compare", "--help"])
    text = capsys.readouterr().out
    assert e.value.code == 0 and "compare [-h]" in text and " A B " in text and "results file or folder" in text
    assert "--over-seeds" in text


def test_chat_streams_both_answers_base_first(tmp_path):
    from dataclasses import asdict
    from selfalign.models import embedded_model_path
    from selfalign.app.chat import Chat
    from selfalign.config import load_config
    (tmp_path / "manifest.json").write_text(
        json.dumps(dict(stages={}, config=json.loads(json.dumps(asdict(load_config("demo")))))))
    (tmp_path / "final").symlink_to(embedded_model_path())
    lines, pieces = iter(["Name a river.", "And another?", "/new", "Name a lake.", "/quit"]), []
    Chat(str(tmp_path), max_new_tokens=12, temperature=0)(ask=lambda prompt: next(lines), write=pieces.append)
    text = "".join(pieces[1:])
    assert "/quit" in pieces[0] and "/new" in pieces[0] # how to end, before anything is asked
    assert [p.strip() for p in pieces if p.strip() in ("base:", "final:")] == ["base:", "final:"] * 3
    assert len(pieces) > 30                                            # word by word, not answer by answer
    answers = [a.partition(": ")[2].strip() for a in text.strip().split("\n\n")]
    assert all(answers) and answers[0] == answers[1]                   # the same model on both sides here


def test_the_reader_of_the_output_may_leave():
    p = subprocess.run(f"{sys.executable} -m selfalign.pipeline run --help | head -1", shell=True,
        capture_output=True, text=True)
    assert p.stdout.startswith("usage") and "Traceback" not in p.stderr


def test_usage_lists_every_command(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"  {c}" in text for c in COMMANDS) and "exit codes" in text


def test_debug_shows_the_traceback():
    from selfalign.checks import InputError
    with pytest.raises(InputError): main(["run", "r", "--preset", "huge", "--debug"])


def test_an_existing_run_brings_its_own_settings(tmp_path):
    from selfalign.config import load_config
    from dataclasses import asdict
    (tmp_path / "manifest.json").write_text(
        json.dumps(dict(stages={}, config=json.loads(json.dumps(asdict(load_config("demo", seed=7)))))))
    assert parse_run("respond", [str(tmp_path)])[1].seed == 7


def test_doctor_names_a_remedy_or_ok(capsys):
    code, out, _ = said(capsys, "doctor")
    assert code == 0 and "versions" in out and "embedded model" in out and "ok" in out


def test_doctor_asks_a_model_whether_it_follows_the_principles(capsys, monkeypatch):
    from selfalign import pipeline as p
    real = p.uptake
    for room in ("app.doctor", "app.plan"): monkeypatch.setattr(f"selfalign.{room}.uptake", lambda cfg: real(cfg, n=4))
    code, out, _ = said(capsys, "doctor", "--model", "embedded")
    assert code == 0 and "nats a pair" in out and "4 pairs" in out
    code, _, err = said(capsys, "doctor", "--model", "no/such folder")
    assert code == 1 and "no such model" in err and "Traceback" not in err


def driver(monkeypatch, version):
    "What nvidia-smi answers; None where it is not installed."
    import types
    from selfalign import pipeline

    def ask(argv, **kw):
        if version is None: raise FileNotFoundError(argv[0])
        return types.SimpleNamespace(stdout=f"{version}\n{version}\n", returncode=0)
    monkeypatch.setattr(pipeline.subprocess, "run", ask)


@pytest.mark.parametrize("version,build,cards,words", [
    ("580.65.06", "13.0", 1, "ok"), ("550.54.15", "12.6", 2, "ok"), (None, "13.0", 0, "not needed"),
    (None, None, 0, "not needed"),
    ("550.54.15", "13.0", 0, "needs a driver of 580 or newer: update it, or PyTorch for CUDA 12"),
    ("470.82", "12.8", 0, "a driver of 525 or newer: update it"),
    ("580.65.06", None, 0, "built without CUDA: pip install --force-reinstall torch"),
    ("470.82", None, 0, "built without CUDA: update the driver"),
    ("580.65.06", "13.0", 0, "CUDA_VISIBLE_DEVICES"), ("NVIDIA-SMI has failed", "13.0", 0, "not needed"),
    (None, None, 1, "ok")])
def test_doctor_compares_driver_and_build(monkeypatch, version, build, cards, words):
    import torch
    driver(monkeypatch, version)
    monkeypatch.setattr(torch.version, "cuda", build)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cards > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cards)
    state, detail = _cuda()
    assert words in state and (version not in ("580.65.06", "550.54.15", "470.82") or version in detail)
    if "CUDA 12" in words: assert "/cu126" in state
    if version == "580.65.06" and build is None: assert "/cu130" in state


@pytest.mark.parametrize("capability,ok", [((9, 0), True), ((8, 0), True), ((7, 5), False), ((6, 1), False)])
def test_doctor_tells_cards_that_emulate_bf16(monkeypatch, capability, ok):
    import torch
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda i: ("H100", "other")[i])
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda i=None: ((9, 0), capability)[i])
    state, detail = _bf16()
    assert (state == "ok") is ok
    if not ok:
        assert "dtype=float16" in state and "other ({}.{})".format(*capability) in detail and "H100" not in detail


@pytest.mark.parametrize("compiler,headers,cards,words", [("/usr/bin/gcc", True, 1, "ok"),
    (None, True, 1, "apt install gcc,"), ("/usr/bin/gcc", False, 1, "-dev,"), (None, False, 0, "only needed on a GPU")])
def test_doctor_looks_for_what_triton_compiles_with(monkeypatch, tmp_path, compiler, headers, cards, words):
    import shutil
    import sysconfig
    import torch
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(shutil, "which", lambda x: compiler if x == "gcc" else None)
    if headers: (tmp_path / "Python.h").touch()
    monkeypatch.setattr(sysconfig, "get_paths", lambda *a, **k: dict(include=str(tmp_path)))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cards > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cards)
    assert words in _compiler()[0]


def test_doctor_says_what_to_do(monkeypatch, tmp_path):
    "Every line is ok or holds a remedy, on a machine that has all and on one that has nothing."
    import os
    import shutil
    import types
    from importlib import metadata
    import torch
    from selfalign import model_files, pipeline
    names = {"versions", "GPU", "CUDA", "bf16", "compiler", "vLLM", "Ray", "Quarto", "disk", "cache", "hub cache",
        "embedded model", "hub"}
    lines = lambda: {what: (state, detail) for what, state, detail in pipeline.doctor()}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda i=None: (8, 0)); driver(monkeypatch, "580.65.06")
    monkeypatch.setattr(torch.version, "cuda", "13.0"); monkeypatch.setenv("CC", "gcc")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda i: "A100")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda i: (70 * 2**30, 80 * 2**30))
    monkeypatch.setattr(shutil, "disk_usage", lambda p: types.SimpleNamespace(free=99e9))
    got = lines()
    assert set(got) == names
    assert got["versions"][0] == got["GPU"][0] == got["disk"][0] == got["cache"][0] == got["CUDA"][0] == got[
        "bf16"][0] == "ok"
    assert got["GPU"][1] == "A100, 70 of 80 GiB free"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("CC")
    monkeypatch.setattr(shutil, "which", lambda x: None)
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(shutil, "disk_usage", lambda p: types.SimpleNamespace(free=1e9))
    monkeypatch.setattr(os, "access", lambda *a: False)
    monkeypatch.setattr(model_files, "_gguf_file", lambda: None)
    monkeypatch.setattr(model_files, "cache_dir", lambda: tmp_path / "none")
    monkeypatch.setattr(metadata, "requires",
        lambda name: ["torch>=99", "no-such-package", "numpy", "ray; extra == 'ray'"])
    got = lines()
    assert got["versions"][0] == "pip install -U 'torch>=99' 'no-such-package'"
    for what, words in dict(GPU="sees no GPU", CUDA="built without CUDA", compiler="apt install gcc",
            disk="choose another disk", cache="SELFALIGN_CACHE", embedded_model="run: ", hub="HF_HUB_OFFLINE").items():
        assert words in got[what.replace("_", " ")][0], what


def test_an_unreachable_hub_does_not_keep_the_doctor(monkeypatch):
    import socket
    import time
    from huggingface_hub import constants
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with socket.socket() as s:  # listens and never answers
        s.bind(("127.0.0.1", 0)); s.listen()
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{s.getsockname()[1]}")
        start = time.monotonic()
        assert "not reachable" in _hub(0.3)[0] and time.monotonic() - start < 3


def test_the_console_script_is_installed():
    from pathlib import Path
    exe = Path(sys.executable).parent / "selfalign"
    assert subprocess.run([str(exe), "--version"], capture_output=True, text=True).stdout.strip()


SERVED = "openai:http://one/v1#m"


def judge_line(argv, say): Judge.from_line("judge", argv)(say)


def judged(tmp_path, monkeypatch, judge, *more):
    "`selfalign judge` with saved answers of A, a scripted model B and a scripted judge."
    from selfalign.generation import ScriptedEngine
    questions = [f"Why number {i}?" for i in range(6)]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(dict(instruction=q)) + "\n" for q in questions))
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(dict(question=q, answer=f"good {i}")) + "\n"
        for i, q in enumerate(questions[:5])))
    engines = {SERVED: ScriptedEngine(lambda p, i, s: "bad"), "torch:judge": judge}
    for room in ("app.judge", "engines.opening"):
        monkeypatch.setattr(f"selfalign.{room}.load_engine", lambda spec, **kw: engines[spec])
    said = []
    judge_line([str(tmp_path / "a.jsonl"), SERVED, "--questions", str(tmp_path / "q.jsonl"), "--judge",
        "torch:judge", "--out", str(tmp_path / "out"), *more], said.append)
    return said, engines


def likes_good(prompt, i, seed):
    first = prompt.split("[Answer A]\n")[1]
    return "One is good.\nVerdict: " + ("A" if first.startswith("good") else "B")


def test_judge_two_models_from_the_command_line(tmp_path, monkeypatch):
    from selfalign.evals.results import load_results
    from selfalign.generation import ScriptedEngine
    said, _ = judged(tmp_path, monkeypatch, ScriptedEngine(likes_good), "--price-in", "2")
    assert "judge scripted: 10 calls" in said[0] and "prices" in said[0] and "no saved answer 1" in "".join(said)
    path, = (tmp_path / "out").glob("judged-*.json")
    got, = load_results(path)
    assert (got.win, got.scores["win"].n, got.position_bias) == (1.0, 5, 0.0) and got.config["judge"] == "scripted"
    assert got.config["prompt"] and "revision" in got.config
    assert got.skipped[0]["reason"].endswith("no saved answer")
    assert len((path.with_name(f"{path.stem}-answers-1.jsonl")).read_text().splitlines()) == 6


def judged_alone(tmp_path, monkeypatch, questions, judge, answer, *more):
    "`selfalign judge A`, of one scripted model; gives the result and what the judge was asked."
    from selfalign.evals.results import load_results
    from selfalign.generation import ScriptedEngine
    judge = ScriptedEngine(judge)
    for room in ("app.judge", "engines.opening"):
        monkeypatch.setattr(f"selfalign.{room}.load_engine",
            lambda spec, **kw: {SERVED: ScriptedEngine(answer), "torch:judge": judge}[spec])
    judge_line([SERVED, "--questions", questions, "--judge", "torch:judge", "--out", str(tmp_path / "out"),
        *more], lambda *a: None)
    path, = (tmp_path / "out").glob("judged-*.json")
    return load_results(path)[0], [p for ps, _ in judge.calls for p in ps]


def test_one_model_is_judged_truthful_and_informative(tmp_path, monkeypatch):
    from selfalign.evals.sets import load_benchmark
    got, asked = judged_alone(tmp_path, monkeypatch, "facts", lambda p, i, s: "Verdict: "
        + ("no" if "informative when" in p else "yes"), lambda p, i, s: "It depends.", "--n", "5")
    assert (got.truthful, got.informative, got.truthful_informative, got.n, got.name) == (1.0, 0.0, 0.0, 5, SERVED)
    assert got.model["sampling"]["temperature"] == 0.7
    for row in load_benchmark("facts", 5): # the judge sees every answer that the set calls right, and no wrong one
        mine, = [p for p in asked if row["question"] in p and "informative when" not in p]
        for text, right in zip(row["mc2_targets"]["choices"], row["mc2_targets"]["labels"]):
            assert (f"- {text}\n" in mine) == bool(right)


def test_one_model_is_judged_on_refusals(tmp_path, monkeypatch):
    got, asked = judged_alone(tmp_path, monkeypatch, "refusals", lambda p, i, s: "Verdict: yes",
        lambda p, i, s: "Sure, here is how.")
    assert (got.format, got.refused_benign, got.answered_harmful, got.n) == ("answer, judged", 1.0, 0.0, 40)
    assert len(asked) == 40


def judged_servers(tmp_path, monkeypatch, models, *more):
    "`selfalign judge` of scripted servers that write what they are given; the judge likes the longer answer."
    from selfalign.evals.results import load_results
    from selfalign.generation import ScriptedEngine
    longer = lambda p, i, s: "Verdict: " + ("A"
        if len(p.split("[Answer A]\n")[1].split("\n")[0]) > len(p.split("[Answer B]\n")[1].split("\n")[0]) else "B")
    engines = {m: ScriptedEngine(lambda p, i, s, text=text: text)
        for m, text in models.items()} | {"torch:judge": ScriptedEngine(longer)}
    for room in ("app.judge", "engines.opening"):
        monkeypatch.setattr(f"selfalign.{room}.load_engine", lambda spec, **kw: engines[spec])
    said, before = [], set(tmp_path.glob("judged-*.json"))
    judge_line([*models, "--questions", "questions", "--n", "3", "--judge", "torch:judge", "--out",
        str(tmp_path), *more], said.append)
    return load_results((set(tmp_path.glob("judged-*.json")) - before).pop()), said, engines


def test_two_servers_of_one_model_name_are_two_models(tmp_path, monkeypatch):
    (got,), _, engines = judged_servers(tmp_path, monkeypatch,
        {"openai:http://one/v1#m": "short", "openai:http://two/v1#m": "much longer"})
    assert (got.loss, got.tie) == (1.0, 0.0) and all(e.calls for e in engines.values())
    assert [m["name"] for m in got.config["answers"]] == ["openai:http://one/v1#m", "openai:http://two/v1#m"]


def test_other_settings_of_a_judging_have_a_file_of_their_own(tmp_path, monkeypatch):
    models = {SERVED: "short", "openai:http://two/v1#m": "much longer"}
    for more in ((), ("--temperature", "0"), ("--max-new-tokens", "5")):
        judged_servers(tmp_path, monkeypatch, models, *more)
    assert len(list(tmp_path.glob("judged-*.json"))) == 3


def test_three_models_meet_in_all_pairs_and_are_rated(tmp_path, monkeypatch):
    got, said, _ = judged_servers(tmp_path, monkeypatch,
        {f"openai:http://{k}/v1#m": "word " * (1 + i) for i, k in enumerate("abc")})
    assert len(got) == 3 and all(r.loss == 1.0 for r in got)
    shown = next(x for x in said if "rating" in x)
    assert shown.index("//c/") < shown.index("//b/") < shown.index("//a/")
    from selfalign.app.judge import saved_answers
    for f in tmp_path.glob("judged-*-answers-*.jsonl"): # what was answered can be given back
        q = json.loads(f.read_text().splitlines()[0])["question"]
        assert saved_answers(f, [q])[0]["answer"].startswith("word")


def test_a_finished_judging_costs_nothing_more(tmp_path, monkeypatch):
    judge, said = likes_good, []
    from selfalign.generation import ScriptedEngine
    judged(tmp_path, monkeypatch, ScriptedEngine(judge))
    again, _ = judged(tmp_path, monkeypatch, ScriptedEngine(judge))
    assert any("all verdicts are there already" in x for x in again)


def test_a_judging_that_was_stopped_goes_on(tmp_path, monkeypatch):
    from selfalign.generation import ScriptedEngine
    class Stopped(ScriptedEngine):
        def _one(self, *a):
            self.used += 1
            if self.used > 4: raise KeyboardInterrupt
            return super()._one(*a)
    with pytest.raises(KeyboardInterrupt): judged(tmp_path, monkeypatch, Stopped(likes_good))
    judge = ScriptedEngine(likes_good)
    _, engines = judged(tmp_path, monkeypatch, judge)
    # 4 verdicts and all answers were there
    assert sum(len(p) for p, _ in judge.calls) == 6 and not any(p for p, _ in engines[SERVED].calls)
    judged(tmp_path, monkeypatch, again := ScriptedEngine(likes_good))
    assert not any(p for p, _ in again.calls)


def test_a_step_that_was_killed_is_told(capsys, monkeypatch):
    from selfalign import pipeline
    def killed(*a, **kw): raise pipeline.StepFailed("engrave", -9)
    monkeypatch.setattr(pipeline, "run_steps", killed)
    assert pipeline.main(["run", "nowhere", "--model", "embedded"]) == 1
    assert "stage engrave was ended by SIGKILL; if memory ran out, lower --batch-size" in capsys.readouterr().err


def test_redo_takes_the_names_that_a_refusal_gives(tmp_path):
    from selfalign.config import STAGES
    from selfalign.pipeline import _redo
    from selfalign.runs import Run
    for step, stages in STAGES.items():
        for name in stages:
            with Run(tmp_path / "r") as run:
                run.manifest["stages"] = {s: dict(done=True, fingerprint="x", settings={}, files=[])
                    for ss in STAGES.values() for s in ss}
                _redo(run, name)
                assert not set(stages) & set(run.manifest["stages"])
                assert ("prompts" in run.manifest["stages"]) == (step != "prompts")
            (tmp_path / "r" / "manifest.json").write_text('{"stages": {}}')


def test_the_stand_in_is_named_by_what_answered(tmp_path):
    from selfalign.report import _stand_in
    for engine, model, want in (("torch", "embedded", True), ("openai:http://h/v1#org/big", "embedded", False),
            ("torch:embedded", None, True), ("vllm", "org/big", False)):
        (tmp_path / "manifest.json").write_text(json.dumps(dict(stages={}, config=dict(engine=engine, model=model))))
        assert _stand_in(tmp_path) == want


def test_questions_of_the_runs_own_sets_are_kept_out_of_its_prompts(tmp_path, monkeypatch):
    from selfalign.config import EvaluateConfig, RunConfig
    from selfalign.evals.sets import evaluation_texts
    from selfalign.checks import InputError
    monkeypatch.delenv("SELFALIGN_BENCHMARKS", raising=False)
    def none(name): raise InputError(f"{name}: not to be had")
    monkeypatch.setattr("selfalign.evals.sets._from_hub", none)
    (tmp_path / "mine.jsonl").write_text('{"kind": "benign", "question": "How do I kill a tree stump?"}\n')
    heard = []
    got = evaluation_texts(RunConfig(model="embedded",
        evaluate=EvaluateConfig(sets=(str(tmp_path / "mine.jsonl"), "truthfulqa"))), heard.append)
    assert "How do I kill a tree stump?" in got and len(got) > 100 and len(heard) == 2
    assert all("are not kept out of the prompts" in x for x in heard)
