"`make gpu-check`: its short form passes on a CPU, and a failed check is told by the exit code."
import importlib.util, json, os, subprocess, sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SPEC = importlib.util.spec_from_file_location("gpu_check", ROOT/"benchmarks"/"gpu.py")
gpu = importlib.util.module_from_spec(SPEC); SPEC.loader.exec_module(gpu)

def test_short_form(tmp_path):
    out = tmp_path/"gpu.json"
    done = subprocess.run([sys.executable, ROOT/"benchmarks"/"gpu.py", "--small", "--out", out], capture_output=True,
        text=True, cwd=ROOT, env=dict(os.environ, CUDA_VISIBLE_DEVICES=""))
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(out.read_text())
    assert set(found) == set(gpu.PARTS) and all(c["ok"] for p in found.values() for c in p["checks"].values())
    assert len(found["engine"]["checks"]) >= 10 and len(found["train"]["checks"]) >= 6
    assert any("kills" in x for x in found["method"]["left_out"]) # nothing is left out in silence

def test_a_failed_check_and_an_error_give_exit_code_1(tmp_path, monkeypatch):
    def bad(part): part.check("one", False, 1, 2); part.tries("two", lambda part: 1/0)
    monkeypatch.setitem(gpu.PARTS, "engine", bad); out = tmp_path/"g.json"
    out.write_text('{"train": {"checks": {}}}')
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--small", "--parts", "engine", "--out", str(out)])
    assert gpu.main() == 1
    found = json.loads(out.read_text())
    # other parts are kept
    assert "train" in found and [c["ok"] for c in found["engine"]["checks"].values()] == [False, False]

def test_spent_time_leaves_out_and_says_so():
    part = gpu.Part("engine", True, 0); part.tries("late", lambda part: part.check("never", True, 0, 0))
    assert not part.checks and part.left_out == ["late: no time left"]
