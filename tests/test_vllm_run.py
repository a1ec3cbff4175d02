"The whole method on vLLM in one environment, with the settings of the workstation preset made small (make test-vllm)."
import os, subprocess, sys
from pathlib import Path
import pytest

ROOT = Path(__file__).parents[1]
SMALL = """--prompts.self-instruct 8 --prompts.self-instruct-calls 4 --prompts.per-call 8 --prompts.topics-per-type 1
--prompts.topic-rounds 1 --prompts.hints-per-call 4 --prompts.temperature 0.8 --prompts.top-p 0.95
--prompts.max-new-tokens 160 --respond.max-new-tokens 60 --respond.min-chars 20 --respond.on-limit keep
--engrave.global-batch 4 --engrave.micro-batch 2 --engrave.held-out 0.2 --engrave.identity-share 0.1
--clone.max-new-tokens 40 --clone.min-chars 20 --clone.train.global-batch 4 --clone.train.micro-batch 2
--clone.train.identity-share 0.1 --evaluate.sets facts --evaluate.max-rows 6 --evaluate.n-questions 2
--evaluate.max-new-tokens 24""".split()

@pytest.mark.vllm
@pytest.mark.timeout(1800)
def test_the_workstation_preset_runs_every_stage(tmp_path):
    "Generation, training and evaluation share an interpreter, so their requirements fit each other."
    pytest.importorskip("vllm", reason="vLLM is not installed here: make test-vllm")
    run = tmp_path/"run"
    options = ["--engine-options", "memory_share=0.3", "max_context=4096", "eager=true"]
    argv = [sys.executable, "-m", "selfalign.pipeline", "run", str(run), "--preset", "workstation", "--model", "embedded",
            "--engine", "vllm", *options, *SMALL]
    done = subprocess.run(argv, capture_output=True, text=True, cwd=ROOT, env=dict(os.environ, PYTHONPATH=str(ROOT)))
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    for name in ("prompts.jsonl", "responses.jsonl", "engraved", "control", "verbose.jsonl", "final", "eval", "report.html"):
        assert (run/name).exists(), name
