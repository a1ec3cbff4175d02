"""The wheel, in a folder that is not the repository: modules import, the command runs, the data are there."""
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def venv(tmp_path_factory):
    "A new environment with our wheel; the other packages are seen through a path file."
    d = tmp_path_factory.mktemp("install")
    run = lambda *a, **k: subprocess.run(list(map(str, a)), check=True, capture_output=True, text=True, **k)
    import shutil
    copy = shutil.copytree(ROOT, d / "src", ignore=shutil.ignore_patterns(".git", ".venv", "runs", "_docs", "_proc", "build", "*.egg-info", "venvs"))
    run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", d / "wheels", copy)
    run(sys.executable, "-m", "venv", "--without-pip", d / "venv")
    py = d / "venv" / "bin" / "python"
    site = run(py, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])").stdout.strip()
    run(sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--prefix", d / "venv", next((d / "wheels").glob("*.whl")), "--ignore-installed", "--no-warn-script-location")
    Path(site, "others.pth").write_text(sysconfig.get_paths()["purelib"])
    return d


def test_the_wheel_works_outside_the_repository(venv, tmp_path):
    py = venv / "venv" / "bin" / "python"
    code = ("import selfalign, selfalign.annotations as a, selfalign.pipeline as p; print(selfalign.__file__); print(a.data_dir());"
            "print(a.budget_total(a.annotation_budget('paper'))); print(a.preset_names()); print((a.data_dir()/'report.ipynb').exists(), len(a.example_rows('responses')) > 5)")
    out = subprocess.run([py, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    lines = out.stdout.splitlines()
    assert str(venv) in lines[0] and str(venv) in lines[1] and int(lines[2]) < 300 and "demo" in lines[3] and lines[4] == "True True"


def test_the_command_works_outside_the_repository(venv, tmp_path):
    exe = venv / "venv" / "bin" / "selfalign"
    assert "demo" in subprocess.run([exe, "--help"], cwd=tmp_path, capture_output=True, text=True).stdout
    bad = subprocess.run([exe, "run", "r", "--preset", "huge"], cwd=tmp_path, capture_output=True, text=True)
    assert bad.returncode == 1 and bad.stderr.startswith("error: ")
