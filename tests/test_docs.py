"The site builds without a fault, has the pages it should, loads nothing from elsewhere; README, workflows and metadata are as they say."
import json, re, shutil, subprocess
from pathlib import Path

import pytest, yaml

from selfalign.docs import build_site, demo_markdown, load_result, page_name, readme_text

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = [p.relative_to(ROOT/"nbs").as_posix() for p in (ROOT/"nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts]

@pytest.fixture(scope="module")
def site(tmp_path_factory):
    "Built on a copy. Strict: a dead link or an unknown option is an error."
    copy = tmp_path_factory.mktemp("docs")/"repo"
    shutil.copytree(ROOT, copy, symlinks=True, ignore=shutil.ignore_patterns(".git", ".venv*", "_docs", "runs", "build", "dist", "node_modules", "__pycache__", "*.egg-info", ".*cache", ".hypothesis"))
    return build_site(copy, quarto=False)

def test_a_page_for_each_notebook(site):
    pages = {p.relative_to(site).as_posix() for p in site.rglob("*.html")}
    assert pages >= {page_name(n).replace(".ipynb", ".html") for n in NOTEBOOKS} | {"guides/changelog.html"}
    assert not [p for p in pages if re.search(r"(^|/)\d+_", p)]

def test_every_page_is_in_the_sidebar_once():
    listed = re.findall(r"- ([\w/]+\.(?:ipynb|md))$", (ROOT/"_quarto.yml").read_text(), re.M)
    assert sorted(listed) == sorted([*NOTEBOOKS, "guides/changelog.md"])

def test_nothing_from_elsewhere(site):
    "No script, style, picture or font of another site."
    for p in site.rglob("*.html"):
        found = re.findall(r'<(?:script|img|iframe|source)[^>]+src="(?:https?:)?//[^"]+"|<link[^>]+href="https?://(?!selfalign\.github\.io)[^"]+"', p.read_text())
        assert not found, (p.name, found[:3])

def test_pictures_have_texts(site):
    for p in site.rglob("*.html"):
        assert not [t for t in re.findall(r"<img[^>]*>", p.read_text()) if not re.search(r'alt="[^"]+"', t)], p.name

def test_public_names_are_described(site):
    "Every public function and class with a cell of its own has its heading on a page."
    text = "".join(p.read_text() for p in site.rglob("*.html"))
    for name in ("load_principles", "annotation_budget", "load_engine", "Sampling", "NoveltyFilter", "Run", "truthfulqa_mc", "hhh", "judge_pairwise", "internalization", "write_prompts", "respond", "engrave", "clone"):
        assert re.search(rf'<h3 id="{name.lower()}(-1)?"', text), name

def test_search_knows_internalization(site):
    hits = [e for e in json.loads((site/"search.json").read_text()) if "internalization" in (e["title"] + e["section"] + e["text"]).lower()]
    assert {h["href"].partition("#")[0] for h in hits} >= {"guides/reading_the_evidence.html", "evaluation.html"}

def test_readme_is_current():
    nb = json.loads((ROOT/"nbs"/"index.ipynb").read_text())
    assert (ROOT/"README.md").read_text() == readme_text(nb), "run: python -m selfalign.docs readme"

def test_index_shows_the_stored_results():
    nb = json.loads((ROOT/"nbs"/"index.ipynb").read_text())
    shown = ["".join(o["data"].get("text/markdown", "")) for c in nb["cells"] for o in c.get("outputs", []) if "data" in o]
    assert demo_markdown(load_result("demo")) in shown, "data/results/demo.json is newer: run nbs/index.ipynb again"

def test_readme_says_what_was_run():
    text = (ROOT/"README.md").read_text()
    assert text.index("make demo") < text.index("make test") < text.index("## How it works")
    assert "largest model run end to end" in text

@pytest.mark.parametrize("path", sorted((ROOT/".github"/"workflows").glob("*.yml")), ids=lambda p: p.name)
def test_workflow_is_sound(path):
    "Parses; each job has a machine and steps; each step runs or uses something."
    flow = yaml.safe_load(path.read_text())
    assert flow["name"] and flow.get("on", flow.get(True)) # YAML 1.1 reads the key on as true
    for job in flow["jobs"].values():
        assert job["runs-on"] and all(("run" in s) != ("uses" in s) for s in job["steps"])
        for s in job["steps"]:
            if "run" in s: assert subprocess.run(["bash", "-n", "-c", re.sub(r"\$\{\{[^}]*\}\}", "x", s["run"])]).returncode == 0, s["run"]

def test_workflows_run_the_ci_and_quarto():
    text = "".join(p.read_text() for p in (ROOT/".github"/"workflows").glob("*.yml"))
    assert ".ci/run" in text and "quarto" in text and "selfalign.docs site" in text

def test_citation_and_licence():
    cff = yaml.safe_load((ROOT/"CITATION.cff").read_text())
    assert cff["cff-version"] and cff["license"] == "Apache-2.0" and cff["references"][0]["title"].startswith("Principle-Driven")
    assert "Apache License" in (ROOT/"LICENSE").read_text() and len((ROOT/"LICENSE").read_text()) > 10_000
