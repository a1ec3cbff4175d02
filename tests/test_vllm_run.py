"The whole method on vLLM in one environment, with the settings of the workstation preset made small (make test-vllm)."
import json, os, subprocess, sys
from pathlib import Path
import pytest

ROOT = Path(__file__).parents[1]
QUESTIONS = ["Why does bread dough rise when it is left in a warm place?",
    "Name three ways to keep cut flowers fresh for longer.", "What is the difference between weather and climate?",
    "How do I remove a coffee stain from a cotton shirt?", "Why do leaves change their colour in autumn?",
    "Explain what a budget is to somebody who never had one."]
SMALL = """--prompts.self-instruct 0 --prompts.topics-per-type 0 --respond.max-new-tokens 48 --respond.min-chars 10
--engrave.global-batch 4 --engrave.micro-batch 2 --engrave.held-out 0.4 --engrave.identity-share 0.1 --engrave.max-length 256
--clone.max-new-tokens 24 --clone.min-chars 10 --clone.train.global-batch 4 --clone.train.micro-batch 2
--clone.train.identity-share 0.1 --clone.train.max-length 256 --evaluate.sets facts --evaluate.max-rows 2
--evaluate.n-questions 1 --evaluate.max-new-tokens 12""".split()

@pytest.mark.vllm
@pytest.mark.timeout(2400)
def test_the_workstation_preset_runs_every_stage(tmp_path):
    "Generation, training and evaluation share an interpreter, so their requirements fit each other."
    pytest.importorskip("vllm", reason="vLLM is not installed here: make test-vllm")
    run, source = tmp_path/"run", tmp_path/"questions.jsonl"
    source.write_text("".join(json.dumps(dict(instruction=q)) + "\n" for q in QUESTIONS))
    # 2 GB of 24 hold 4,096 tokens many times over
    options = ["--engine-options", "memory_share=0.08", "max_context=4096", "eager=true"]
    argv = [sys.executable, "-m", "selfalign.pipeline", "run", str(run), "--preset", "workstation",
            "--model", "embedded",
            "--engine", "vllm", *options, "--prompts.source", str(source), *SMALL]
    # on a CPU vLLM compiles its samplers at the first request of each kind, for more than a minute each: not here
    env = dict(os.environ, PYTHONPATH=str(ROOT), TORCHDYNAMO_DISABLE="1")
    done = subprocess.run(argv, capture_output=True, text=True, cwd=ROOT, env=env)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    for name in ("prompts.jsonl", "responses.jsonl", "engraved", "control", "verbose.jsonl", "final", "eval",
            "report.html"):
        assert (run/name).exists(), name
    assert (run/"held_out.jsonl").stat().st_size, "nothing was held out"
    stages = json.loads((run/"manifest.json").read_text())["stages"]
    assert all(stages[s]["done"]
        for s in ("prompts", "responses", "control answers", "engraved", "control", "verbose", "final", "evaluation"))
