"""Kill a run again and again, at random moments of all stages; it must end as an undisturbed one. `make soak` kills 60 times."""
import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest

from selfalign.pipeline import config_from, run_steps
from selfalign.runs import read_jsonl

KILLS = int(os.environ.get("SELFALIGN_KILLS", 60))
TRAIN = dict(epochs=1, global_batch=4, micro_batch=2, learning_rate=1e-3, warmup_steps=1, max_length=128, identity_share=0.2, save_steps=1, lora_dropout=0.0)
CONFIG = dict(model="embedded", dtype="float32",
              prompts=dict(self_instruct=6, self_instruct_calls=2, topics_per_type=1, topic_rounds=1, topics_per_call=3, topic_tokens=24, max_new_tokens=100, balance="median", temperature=0.8),
              respond=dict(max_new_tokens=64, min_chars=20, limit=10), engrave=dict(TRAIN, held_out=0.4), clone=dict(max_new_tokens=48, min_chars=10, train=TRAIN),
              evaluate=dict(sets=[], n_questions=2, max_new_tokens=32))


@pytest.mark.soak
def test_killed_many_times(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    code = f"import json; from selfalign.pipeline import *; run_steps('killed', config_from(json.load(open('config.json'))), say=lambda s: None)"
    rng, kills, ended, seconds = random.Random(0), 0, False, 20
    while kills < KILLS and not ended:
        p = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try: ended = p.wait(timeout=rng.uniform(8, seconds)) == 0
        except subprocess.TimeoutExpired: p.send_signal(signal.SIGKILL); p.wait(); kills += 1; seconds += 0.5
        if ended and kills < KILLS:  # start over in a new folder, to keep on killing
            (tmp_path / "killed").rename(tmp_path / f"done{kills}"); ended = False
    cfg = config_from(CONFIG)
    run_steps(tmp_path / "killed", cfg, say=lambda s: None)
    run_steps(tmp_path / "whole", cfg, say=lambda s: None)
    for f in ("prompts.jsonl", "responses.jsonl", "verbose.jsonl"):
        assert [r["id"] for r in read_jsonl(tmp_path / "killed" / f)] == [r["id"] for r in read_jsonl(tmp_path / "whole" / f)], f
    for f in ("prompts.jsonl", "responses.jsonl"): assert read_jsonl(tmp_path / "killed" / f) == read_jsonl(tmp_path / "whole" / f), f
    loss = lambda r: [l["loss"] for l in json.loads((tmp_path / r / "engraved" / "training.json").read_text())["losses"]][-1]
    assert abs(loss("killed") - loss("whole")) < 1e-3
