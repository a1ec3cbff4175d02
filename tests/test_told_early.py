"""Where each late import, loader and late-read setting is checked before the first token: a new one needs a line
here."""
import ast
import configparser
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent

# packages that selfalign imports late and does not depend on → where it is told that they are missing
OPTIONAL = dict(vllm="the engine itself, stage 1", ray="the engine itself, stage 1", nbdev="docs, no run",
    smalldocs="docs, no run", pyarrow="comes with datasets", jinja2="comes with transformers",
    tokenizers="comes with transformers", packaging="comes with transformers", jupyter="docs, no run",
    matplotlib="gate.check_packages", torch="a dependency", httpx="comes with openai",
    pydantic_core="comes with pydantic",
    markupsafe="comes with jinja2", lm_eval="evals.lm_eval_model, told by what asks for it",
    wandb="trackers.check_trackers", trackio="trackers.check_trackers",
    spacy="novelty, told by the function that is called")

# what is read or loaded in a later stage → the function of the gate that reads it before stage 1
CHECKED = dict(lora_targets="check_trainable", objective="check_trainable", report_to="check_processes", check_trackers="check_before",
    accelerate_config="check_processes", global_batch="check_processes", load_in_4bit="check_four_bits",
    sets="check_sets", load_benchmark="check_sets", load_tokenizer="outline", check_tensors="outline",
    check_kind="outline", check_rows="outline", check_template="check_trainable", check_context="check_principles",
    load_principle_set="check_principles", disk_usage="check_room", papermill="check_before", nbconvert="check_before")


def test_every_late_import_is_a_dependency_or_has_its_place():
    ini = configparser.ConfigParser(interpolation=None); ini.read(ROOT/"settings.ini")
    ours = {re.split(r"[<>=\[ ]", r)[0].replace("-", "_")
        for r in ini["DEFAULT"]["requirements"].split()} | {"yaml", "IPython"}
    unknown = set()
    for f in (ROOT/"selfalign").rglob("*.py"):
        for n in ast.walk(ast.parse(f.read_text(encoding="utf-8"))):
            names = ([a.name for a in n.names] if isinstance(n, ast.Import) else [n.module]
                if isinstance(n, ast.ImportFrom) and not n.level and n.module else [])
            unknown |= {x.partition(".")[0]
                for x in names} - set(sys.stdlib_module_names) - ours - set(OPTIONAL) - {"selfalign"}
    assert not unknown


def test_every_line_of_the_table_holds():
    tree = ast.parse((ROOT/"selfalign"/"gate.py").read_text(encoding="utf-8"))
    bodies = {n.name: ast.unparse(n) for n in tree.body if isinstance(n, ast.FunctionDef)}
    for what, where in CHECKED.items(): assert what in bodies[where], f"{what} is not read in gate.{where}"
    for where in set(CHECKED.values()) - {"check_before"}:
        assert f"{where}(" in bodies["check_before"], f"gate.{where} is not called"
