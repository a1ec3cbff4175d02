"""The gate: cleaning, exporting and writing the README change nothing; notebooks are executed, clean and free of this
machine. Checked on a copy, so that a developer's tree is left alone."""
import json, os, re, shutil, subprocess, sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted(p.relative_to(ROOT).as_posix()
    for p in (ROOT/"nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)
SKIP = shutil.ignore_patterns(".git", ".venv*", "_docs", "_proc", "runs", "build", "dist", "node_modules",
    "__pycache__", "*.egg-info", ".*cache", ".hypothesis", ".ipynb_checkpoints", "nbdev.yml", "sidebar.yml")
STEPS = """import os
from pathlib import Path
from nbdev.clean import nbdev_clean
from nbdev.doclinks import nbdev_export
nbdev_clean.__wrapped__(); nbdev_export.__wrapped__()
from selfalign.docs import write_readme
write_readme()"""

def files(root):
    return {p.relative_to(root).as_posix(): p.read_bytes() for part in ("nbs", "selfalign", "README.md")
        for p in ([root/part] if (root/part).is_file() else (root/part).rglob("*"))
        if p.is_file() and "__pycache__" not in p.parts and p.name not in ("nbdev.yml", "sidebar.yml")
        and ".ipynb_checkpoints" not in p.parts}

def test_clean_exported_and_readme_written(tmp_path):
    "nbdev-clean, nbdev-export and the README writer leave every file as it is."
    copy = tmp_path/"repo"
    shutil.copytree(ROOT, copy, symlinks=True, ignore=SKIP)
    before = files(ROOT)
    done = subprocess.run([sys.executable, "-c", STEPS], cwd=copy, env=dict(os.environ, PYTHONPATH=str(copy)),
        capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    after = files(copy)
    changed = sorted(f for f in before.keys() | after.keys() if before.get(f) != after.get(f))
    assert not changed, f"run nbdev-clean, nbdev-export and python -m selfalign.docs readme, then commit: {changed}"

def text_of(out):
    return "".join(out.get("text", [])) + "".join("".join(v)
        for k, v in out.get("data", {}).items() if k.startswith("text/") and isinstance(v, (str, list)))

@pytest.mark.parametrize("path", NOTEBOOKS)
def test_notebook_is_clean(path):
    "No execution counts, machine paths, progress bars or warnings; the outputs are there."
    nb = json.loads((ROOT/path).read_text(encoding="utf-8"))
    code = [c for c in nb["cells"] if c["cell_type"] == "code" and "".join(c["source"]).strip()]
    assert not [c for c in code if c["execution_count"] is not None
        or any(o.get("execution_count") for o in c["outputs"])], "execution counts: run nbdev-clean"
    for c in code:
        source = "".join(c["source"])
        assert not re.search(r"/work/|/root/", source), f"a path of this machine in: {source[:200]}"
        for o in c["outputs"]:
            text = text_of(o)
            assert o["output_type"] != "error" and o.get(
                "name") != "stderr", f"error or warning stored below: {source[:200]}\n{text[:300]}"
            assert not re.search(r"/work/|/root/|/home/|/tmp/",
                text), f"a path of this machine below: {source[:200]}\n{text[:300]}"
            assert not re.search(r"\d+%\||\bit/s\b|\brow/s\b|\r|Warning:",
                text), f"a progress bar or warning below: {source[:200]}\n{text[:300]}"
    shown = [c for c in code if not re.match(r"#\|\s*(hide|export|default_exp)", "".join(c["source"]))]
    assert not shown or any(c["outputs"] for c in code), "not executed: run nbdev-test --save"

@pytest.mark.parametrize("path", NOTEBOOKS)
def test_notebook_opens_well(path):
    "Title and one sentence first; what goes in and what comes out soon after, except on the home page."
    nb = json.loads((ROOT/path).read_text(encoding="utf-8"))
    first = "".join(nb["cells"][0]["source"])
    assert re.match(r"# \S.*\n+> \S", first), "the first cell is a title and a one-sentence quote"
    if path != "nbs/index.ipynb":
        opening = first + "".join("".join(c["source"]) for c in nb["cells"][1:4] if c["cell_type"] == "markdown")
        assert re.search(r"\bIn\b.*\bOut\b", opening, re.S | re.I), "say what goes in and what comes out"
