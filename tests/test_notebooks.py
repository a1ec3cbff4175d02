"""Every notebook runs from top to bottom, in a kernel of its own, without the ones before it."""
import ast
import json
import re
import shutil
import sys
from pathlib import Path

import pytest
from nbdev.test import test_nb as run_nb

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted(p.relative_to(ROOT / "nbs")
    for p in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in str(p))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=str)
def test_notebook(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SELFALIGN_NO_PROGRESS", "1")
    nb = tmp_path / path.name
    shutil.copy(ROOT / "nbs" / path, nb)
    ok, seconds = run_nb(nb, do_print=False, basepath=tmp_path)
    assert ok, f"{path} fails; run: nbdev-test nbs/{path}"


def provided():
    "Import names that a bare `pip install selfalign` brings: its requirements and theirs."
    from importlib import metadata
    from packaging.requirements import Requirement
    todo, have = ["selfalign"], set()
    while todo:
        name = todo.pop().lower().replace("_", "-")
        if name in have: continue
        have.add(name)
        try: needs = metadata.requires(name) or []
        except metadata.PackageNotFoundError: continue
        todo += [r.name for r in map(Requirement, needs) if not r.marker or r.marker.evaluate({"extra": ""})]
    return {m for m, dists in metadata.packages_distributions().items()
        if {d.lower().replace("_", "-") for d in dists} & have} | set(sys.stdlib_module_names)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=str)
def test_a_notebook_needs_nothing_but_the_package(path):
    "What a cell imports at its top level comes with selfalign, and no path leads out of the notebook's folder."
    here = provided()
    for c in json.loads((ROOT / "nbs" / path).read_text(encoding="utf-8"))["cells"]:
        source = "".join(c["source"])
        if c["cell_type"] != "code" or not source.strip(): continue
        assert not re.search(r"""(?:Path|open|read_\w+)\(["']\.\./""", source), source
        for node in ast.parse("\n".join(l for l in source.splitlines() if not l.startswith(("!", "%")))).body:
            names = ([a.name for a in node.names] if isinstance(node, ast.Import) else [node.module]
                if isinstance(node, ast.ImportFrom) else [])
            assert not [n for n in names if n.split(".")[0] not in here], f"{path}: {ast.unparse(node)}"
