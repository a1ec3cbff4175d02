"""Any text at all goes into the readers: none may crash, and each input is kept or rejected. The readers and what must
hold are those of `make fuzz`, which gives them a million inputs; here hypothesis searches."""
import importlib.util
import os
from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

spec = importlib.util.spec_from_file_location("reliability",
    Path(__file__).parent.parent / "benchmarks" / "reliability.py")
reliability = importlib.util.module_from_spec(spec)
spec.loader.exec_module(reliability)

N = int(os.environ.get("SELFALIGN_FUZZ", 60))
TEXT = st.lists(st.one_of(st.sampled_from(reliability.PIECES), st.text(max_size=12)), max_size=25).map("".join)


@pytest.fixture(scope="module")
def readers(tmp_path_factory): return reliability.readers(tmp_path_factory.mktemp("fuzz"))


@pytest.mark.parametrize("name", reliability.READERS)
def test_reader(name, readers):
    _, read = readers[name]
    @settings(max_examples=N, deadline=5000, suppress_health_check=list(HealthCheck))
    @given(text=TEXT, seed=st.integers(0, 2**32))
    def holds(text, seed): assert read(text, Random(seed)) in (True, False)
    holds()


def test_the_shares_make_a_whole(readers):
    assert tuple(readers) == reliability.READERS and abs(sum(s for s, _ in readers.values()) - 1) < 1e-9
