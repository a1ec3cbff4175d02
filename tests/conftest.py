"""Shared fixtures. Every test runs offline on a CPU; the seed tasks, the model and the rows are real."""
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["SELFALIGN_NO_PROGRESS"] = "1"
