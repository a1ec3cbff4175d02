"""Shared fixtures. Every test runs offline on a CPU; the seed tasks, the model and the rows are real."""
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["SELFALIGN_NO_PROGRESS"] = "1"

LONGEST = ["test_pipeline", "test_sft", "test_notebooks", "test_generation"]


def pytest_collection_modifyitems(items):
    "The longest files begin first, so that of several processes none is left with one of them at the end."
    order = {name: i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(LONGEST)))
