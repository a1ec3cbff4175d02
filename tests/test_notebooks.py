"""Every notebook runs from top to bottom, in a kernel of its own, without the ones before it."""
import shutil
from pathlib import Path

import pytest
from nbdev.test import test_nb as run_nb

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted(p.relative_to(ROOT / "nbs") for p in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in str(p))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=str)
def test_notebook(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SELFALIGN_NO_PROGRESS", "1")
    nb = tmp_path / path.name
    shutil.copy(ROOT / "nbs" / path, nb)
    ok, seconds = run_nb(nb, do_print=False, basepath=tmp_path)
    assert ok, f"{path} fails; run: nbdev-test nbs/{path}"
