"""The wheel, in a folder that is not the repository: modules import, the command runs, the data are there."""
import json
import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DEVELOPERS = ("nbdev", "smalldocs", "rouge_score", "lm_eval", "ray", "fastapi", "uvicorn", "hypothesis", "pytest")
# What another test process may write at the same time, and what is large.
UNTRACKED = (".git", ".venv", ".lowest", ".pins", ".peers", ".deepspeed", "runs", "_docs", "_proc", "build", "dist",
             "*.egg-info", "__pycache__", ".pytest_cache", ".hypothesis", ".ipynb_checkpoints")


@pytest.fixture(scope="module")
def venv(tmp_path_factory):
    "A new environment with our wheel and links to the other packages, without those that only developers have."
    d = tmp_path_factory.mktemp("install")
    run = lambda *a, **k: subprocess.run(list(map(str, a)), check=True, capture_output=True, text=True, **k)
    import shutil
    copy = shutil.copytree(ROOT, d / "src", ignore=shutil.ignore_patterns(*UNTRACKED, "venvs"))
    run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", d / "wheels", copy)
    run(sys.executable, "-m", "venv", "--without-pip", d / "venv")
    py = d / "venv" / "bin" / "python"
    site = run(py, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])").stdout.strip()
    run(sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--prefix", d / "venv",
        next((d / "wheels").glob("*.whl")), "--ignore-installed", "--no-warn-script-location")
    for p in Path(sysconfig.get_paths()["purelib"]).iterdir():
        if (not re.match(rf"(?:selfalign|__editable__|{'|'.join(DEVELOPERS)})(?:\W|$)", p.name)
                and p.suffix not in (".pth", ".egg-link") and not Path(site, p.name).exists()):
            Path(site, p.name).symlink_to(p)
    return d


def plain_env():
    # a checkout on the path would stand in for the wheel
    return {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}


def test_the_wheel_works_outside_the_repository(venv, tmp_path):
    py = venv / "venv" / "bin" / "python"
    code = ("import selfalign, selfalign.annotations as a, selfalign.pipeline as p; print(selfalign.__file__); "
            "print(a.data_dir());"
            "print(a.budget_total(a.annotation_budget('paper'))); print(a.preset_names()); "
            "print((a.data_dir()/'report.ipynb').exists(), len(a.example_rows('responses')) > 5)")
    out = subprocess.run([py, "-c", code], cwd=tmp_path, env=plain_env(), capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    lines = out.stdout.splitlines()
    assert str(venv) in lines[0] and str(venv) in lines[1] and int(lines[2]) < 300 and "demo" in lines[3]
    assert lines[4] == "True True"


def test_the_command_works_outside_the_repository(venv, tmp_path):
    # pip wrote its own interpreter into the script
    exe = [venv / "venv" / "bin" / "python", venv / "venv" / "bin" / "selfalign"]
    ask = lambda *words: subprocess.run([*exe, *words], cwd=tmp_path, env=plain_env(), capture_output=True, text=True)
    assert "demo" in ask("--help").stdout
    bad = ask("run", "r", "--preset", "huge")
    assert bad.returncode == 1 and bad.stderr.startswith("error: ")


def test_two_builds_of_one_commit_are_the_same_and_a_wheel_can_be_built_from_the_sdist(tmp_path):
    "Whatever the times of the files; the sdist carries what setup.py reads."
    import hashlib, shutil, tarfile, zipfile
    made = []
    for k in range(2):
        src = shutil.copytree(ROOT, tmp_path / str(k), ignore=shutil.ignore_patterns(*UNTRACKED, "labels", "samples"))
        for p in src.rglob("*.py"): os.utime(p, (1.6e9 + k, 1.6e9 + k))
        done = subprocess.run(["make", "-o", f"{sys.prefix}/.dev", "dist", f"VENV={sys.prefix}"], cwd=src,
            env=dict(os.environ, SOURCE_DATE_EPOCH="1790000000"), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:] + done.stdout[-2000:]
        made.append({p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in (src / "dist").iterdir()})
    assert made[0] == made[1] and len(made[0]) == 2
    names = zipfile.ZipFile(next((src / "dist").glob("*.whl"))).namelist()
    assert "selfalign/py.typed" in names and "selfalign/data/presets/demo.yaml" in names
    assert any(n.endswith("/settings.ini") for n in tarfile.open(next((src / "dist").glob("*.tar.gz"))).getnames())


NOTEBOOKS = sorted(p.relative_to(ROOT / "nbs").as_posix()
    for p in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)

@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS)
def test_a_notebook_runs_from_the_wheel(venv, tmp_path, path):
    "Alone in an empty folder, with none of the packages that only developers have."
    nb = json.loads((ROOT / "nbs" / path).read_text(encoding="utf-8"))
    nb["cells"] = [c for c in nb["cells"]
        if not re.match(r"#\|\s*(?:notest|gpu|slow|eval: false)", "".join(c["source"]))]
    (tmp_path / "nb.ipynb").write_text(json.dumps(nb))
    out = subprocess.run([venv / "venv" / "bin" / "python", "-m", "papermill", "--no-progress-bar", "-k",
        "python3", "nb.ipynb", "out.ipynb"], cwd=tmp_path, env=dict(os.environ, SELFALIGN_NO_PROGRESS="1"),
        capture_output=True, text=True)
    assert out.returncode == 0, out.stderr[-3000:]
