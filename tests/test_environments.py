"Which releases of other packages selfalign works with: what is written down, and what differs between them."
import re, shutil, subprocess, sys
from configparser import ConfigParser
from pathlib import Path
import pytest

ROOT = Path(__file__).parents[1]

@pytest.mark.parametrize("fields,name", [(("gradient_checkpointing",), "gradient_checkpointing"),
                                         (("gradient_checkpointing", "activation_checkpointing"), "activation_checkpointing")])
def test_checkpointing_takes_the_name_that_transformers_knows(fields, name):
    from selfalign.sft import _checkpointing
    assert _checkpointing(True, fields) == {name: True, f"{name}_kwargs": dict(use_reentrant=False)}

@pytest.mark.parametrize("on", [True, False])
def test_checkpointing_reaches_the_trainer(on, tmp_path):
    from selfalign.sft import TrainConfig, _sft_config
    args = _sft_config(TrainConfig(gradient_checkpointing=on, bf16=False), tmp_path, 0, False)
    assert args.gradient_checkpointing is on
    args.gradient_checkpointing_kwargs["use_reentrant"] = True # as TRL does for LoRA under ZeRO-3
    assert getattr(args, "activation_checkpointing_kwargs", args.gradient_checkpointing_kwargs)["use_reentrant"] is True

def settings():
    c = ConfigParser(delimiters="=", interpolation=None); c.read(ROOT/"settings.ini"); return c["DEFAULT"]

def pins(name="constraints.txt"):
    return {m[1].lower().replace("_", "-"): m[2] for m in re.finditer(r"(?m)^([\w.-]+)==(\S+)", (ROOT/name).read_text())}

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

@pytest.mark.parametrize("python", ["3.11.0", "3.12", "3.13"])
def test_one_environment_resolves_with_vllm(python, tmp_path):
    uv = shutil.which("uv", path=str(Path(sys.executable).parent)) or shutil.which("uv")
    if not uv: pytest.skip("uv is not installed")
    (tmp_path/"in.txt").write_text("\n".join((settings()["requirements"] + " " + settings()["vllm_requirements"]).split()))
    argv = [uv, "pip", "compile", "-q", "--no-header", "--no-annotate", "--python-platform", "x86_64-unknown-linux-gnu",
            "--python-version", python, "-c", str(ROOT/"constraints-vllm.txt"), str(tmp_path/"in.txt")]
    try: done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    except subprocess.TimeoutExpired: pytest.skip("the package index takes too long")
    if re.search(r"(?i)failed to fetch|error sending request|connect error|dns error", done.stderr): pytest.skip("the package index is not reachable")
    assert done.returncode == 0, done.stderr
    for n in ("torch", "transformers", "trl"): assert f"\n{n}=={pins()[n]}" in "\n" + done.stdout

def test_the_guide_counts_trls_tiles_of_the_loss():
    "The memory table of the workstation guide has the scores of one tile, in TRL's own sizes."
    from trl.kernels import chunked_logprob
    from trl.trainer import utils
    guide = (ROOT/"nbs/guides/workstation.ipynb").read_text()
    assert f"min(tokens, {chunked_logprob.TOKEN_CHUNK_SIZE:_})*min(vocab, {utils._CHUNKED_LOGPROB_CHUNK_SIZE:_})" in guide
