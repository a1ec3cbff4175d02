"Which releases of other packages selfalign works with: what is written down, and what differs between them."
import os, re, shutil, subprocess, sys
from configparser import ConfigParser
from pathlib import Path
import pytest

ROOT = Path(__file__).parents[1]

@pytest.mark.parametrize("fields,name", [(("gradient_checkpointing",), "gradient_checkpointing"),
    (("gradient_checkpointing", "activation_checkpointing"), "activation_checkpointing")])
def test_checkpointing_takes_the_name_that_transformers_knows(fields, name):
    from selfalign.trainers import _checkpointing
    assert _checkpointing(True, fields) == {name: True, f"{name}_kwargs": dict(use_reentrant=False)}

@pytest.mark.parametrize("on", [True, False])
def test_checkpointing_reaches_the_trainer(on, tmp_path):
    from selfalign.config import TrainConfig
    from selfalign.trainers import _sft_config
    args = _sft_config(TrainConfig(gradient_checkpointing=on, bf16=False), tmp_path, 0, False)
    assert args.gradient_checkpointing is on
    args.gradient_checkpointing_kwargs["use_reentrant"] = True # as TRL does for LoRA under ZeRO-3
    assert getattr(args, "activation_checkpointing_kwargs", args.gradient_checkpointing_kwargs)["use_reentrant"] is True

def settings():
    c = ConfigParser(delimiters="=", interpolation=None); c.read(ROOT/"settings.ini"); return c["DEFAULT"]

def pins(name="constraints.txt"):
    return {m[1].lower().replace("_", "-"): m[2]
        for m in re.finditer(r"(?m)^([\w.-]+)==(\S+)", (ROOT/name).read_text())}

def test_lower_bounds_are_not_above_the_pins():
    from packaging.requirements import Requirement
    mine = {**pins(), "vllm": pins("constraints-vllm.txt")["vllm"]}
    for key in ("requirements", "dev_requirements", "vllm_requirements", "ray_requirements"):
        for r in map(Requirement, settings()[key].split()):
            name = r.name.lower().replace("_", "-")
            if name in mine: assert r.specifier.contains(mine[name]), f"{r} does not take {mine[name]}"

def test_the_vllm_constraints_are_the_tested_set_but_for_three_pins():
    tested, vllm = pins(), pins("constraints-vllm.txt")
    other = {n for n in tested if vllm.get(n) != tested[n]}
    assert other == {"lark", "fastapi", "numpy"} and set(vllm) - set(tested) == {"vllm"}

def test_the_workstation_guide_names_the_constraints():
    assert "pip install -c constraints-vllm.txt -e '.[vllm]'" in (ROOT/"nbs/guides/workstation.ipynb").read_text()

UNREACHABLE = r"(?i)failed to fetch|error sending request|connect error|dns error"

def uv():
    return (shutil.which("uv", path=str(Path(sys.executable).parent)) or shutil.which("uv")
        or pytest.skip("uv is not installed"))

def from_index(argv, seconds=60):
    "Run uv; skip where no package index answers."
    try: done = subprocess.run(argv, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired: pytest.skip("the package index takes too long")
    if re.search(UNREACHABLE, done.stderr): pytest.skip("the package index is not reachable")
    assert done.returncode == 0, done.stderr
    return done.stdout

def lowest(package):
    return re.search(rf"(?:^| ){package}>=([0-9.]+)", settings()["requirements"])[1]

def resolved_with_vllm(python, tmp_path, *more):
    (tmp_path/"in.txt").write_text(
        "\n".join((settings()["requirements"] + " " + settings()["vllm_requirements"]).split()))
    return from_index([uv(), "pip", "compile", "-q", "--no-header", "--no-annotate", "--python-platform",
        "x86_64-unknown-linux-gnu", "--python-version", python, *more, str(tmp_path/"in.txt")])

def test_every_requirement_has_a_lower_bound():
    assert [r for r in settings()["requirements"].split() if not re.fullmatch(r"[\w-]+>=[0-9.]+", r)] == []

def test_the_newest_vllm_takes_our_lowest_transformers(tmp_path):
    "What make test-pins tests is what a plain `pip install selfalign[vllm]` brings."
    found = resolved_with_vllm("3.12", tmp_path)
    pinned = re.search(r"(?m)^transformers==(\S+)", found)[1]
    assert pinned.split(".")[:2] == lowest("transformers").split(".")[:2], f"vLLM takes transformers {pinned}"

SHORT = ["tests/test_sft.py::test_scoring_answers_alone_gives_trls_loss",
         "tests/test_generation.py::test_families_are_exact[llama]",
         "tests/test_generation.py::test_families_are_exact[qwen3]",
         "tests/test_generation.py::test_rows_are_independent"]

def test_the_short_form_of_test_pins(tmp_path):
    "A training, and generation of two families, with the transformers that the newest vLLM takes."
    version = lowest("transformers")
    from_index([uv(), "pip", "install", "-q", "--no-deps", "--target", str(tmp_path/"pins"),
        f"transformers=={version}"])
    env = dict(os.environ, PYTHONPATH=os.pathsep.join([str(tmp_path/"pins"), str(ROOT)]))
    which = subprocess.run([sys.executable, "-c", "import transformers; print(transformers.__version__)"], env=env,
        capture_output=True, text=True)
    assert which.stdout.startswith(version), which.stdout + which.stderr
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *SHORT], cwd=ROOT, env=env,
        capture_output=True, text=True)
    assert done.returncode == 0 and "5 passed" in done.stdout, done.stdout[-3000:] + done.stderr[-1000:]

@pytest.mark.parametrize("python", ["3.11.0", "3.12", "3.13"])
def test_one_environment_resolves_with_vllm(python, tmp_path):
    found = resolved_with_vllm(python, tmp_path, "-c", str(ROOT/"constraints-vllm.txt"))
    for n in ("torch", "transformers", "trl"): assert f"\n{n}=={pins()[n]}" in "\n" + found

def test_the_guide_counts_trls_tiles_of_the_loss():
    "The memory table of the workstation guide has the scores of one tile, in TRL's own sizes."
    from trl.kernels import chunked_logprob
    from trl.trainer import utils
    guide = (ROOT/"nbs/guides/workstation.ipynb").read_text()
    assert (
        f"min(tokens, {chunked_logprob.TOKEN_CHUNK_SIZE:_})*min(vocab, {utils._CHUNKED_LOGPROB_CHUNK_SIZE:_})" in guide)
