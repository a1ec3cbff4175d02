"""Shared fixtures. Every test runs offline on a CPU; the seed tasks, the model and the rows are real."""
import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["SELFALIGN_NO_PROGRESS"] = "1"

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture
def small_config():
    "A run of all stages in about a minute on the embedded model, in float32 so that it repeats exactly."
    from selfalign.pipeline import config_from
    train = dict(epochs=1, global_batch=8, micro_batch=8, learning_rate=1e-3, warmup_steps=1, max_length=192, identity_share=0.1)
    return config_from(dict(
        model="embedded", engine="torch", dtype="float32",
        prompts=dict(self_instruct=5, self_instruct_calls=2, topics_per_type=1, topic_rounds=1, topics_per_call=3, topic_tokens=32, hints_per_call=5,
                     max_new_tokens=120, balance="median", temperature=0.8),
        respond=dict(max_new_tokens=80, min_chars=20, limit=8),
        engrave=dict(train, held_out=0.3), clone=dict(max_new_tokens=60, min_chars=10, train=train),
        evaluate=dict(sets=["facts"], max_rows=4, n_questions=2, max_new_tokens=40)))
