"""The site builds without a fault, has the pages it should, loads nothing from elsewhere; README, workflows and
metadata are as they say."""
import importlib, inspect, json, os, re, shutil, subprocess, sys
from pathlib import Path

import pytest, yaml

from selfalign import docs
from selfalign.checks import InputError
from selfalign.docs import build_site, demo_markdown, load_result, page_name, readme_text

ROOT = Path(__file__).resolve().parent.parent
LAST = "core/docs.ipynb" # of the sidebar
MODULES = sorted(".".join(p.relative_to(ROOT/"selfalign").with_suffix("").parts)
    for p in (ROOT/"selfalign").rglob("[a-z]*.py"))
NOTEBOOKS = [p.relative_to(ROOT/"nbs").as_posix()
    for p in (ROOT/"nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts]

@pytest.fixture(scope="module")
def site(tmp_path_factory):
    "Built on a copy. Strict: a dead link or an unknown option is an error."
    copy = tmp_path_factory.mktemp("docs")/"repo"
    shutil.copytree(ROOT, copy, symlinks=True, ignore=shutil.ignore_patterns(".git", ".venv*", "_docs", "runs", "build",
        "dist", "node_modules", "__pycache__", "*.egg-info", ".*cache", ".hypothesis"))
    return build_site(copy, quarto=False)

def test_a_page_for_each_notebook(site):
    pages = {p.relative_to(site).as_posix() for p in site.rglob("*.html")}
    assert pages >= {page_name(n).replace(".ipynb", ".html") for n in NOTEBOOKS} | {"guides/changelog.html"}
    assert not [p for p in pages if re.search(r"(^|/)\d+_", p)]

def test_every_page_is_in_the_sidebar_once():
    listed = re.findall(r"- ([\w/]+\.(?:ipynb|md))$", (ROOT/"_quarto.yml").read_text(), re.M)
    assert sorted(listed) == sorted([*NOTEBOOKS, "guides/changelog.md", "core/names.md"])

def test_nothing_from_elsewhere(site):
    "No script, style, picture or font of another site."
    for p in site.rglob("*.html"):
        found = re.findall(r'<(?:script|img|iframe|source)[^>]+src="(?:https?:)?//[^"]+"|<link[^>]+href="https?://(?!selfalign\.github\.io)[^"]+"', p.read_text())
        assert not found, (p.name, found[:3])

def test_pictures_have_texts(site):
    for p in site.rglob("*.html"):
        assert not [t for t in re.findall(r"<img[^>]*>", p.read_text()) if not re.search(r'alt="[^"]+"', t)], p.name

@pytest.mark.parametrize("module", MODULES)
def test_public_names_are_described(site, module):
    "Every public function and class has its heading on a page."
    mod = importlib.import_module(f"selfalign.{module}")
    ids = set(re.findall(r'<h3 id="([^"]+)"', "".join(p.read_text() for p in site.rglob("*.html"))))
    names = [n for n in mod.__all__ if inspect.isclass(getattr(mod, n)) or inspect.isfunction(getattr(mod, n))]
    assert names and not [n for n in names if not any(re.fullmatch(re.escape(n.lower()) + r"(-\d+)?", i) for i in ids)]

def test_every_public_name_leads_to_its_place(site):
    "The page of all names has each of them; the strict build has looked at its links."
    text = (site/"core"/"names.html").read_text()
    names = [n for m in MODULES for n in importlib.import_module(f"selfalign.{m}").__all__]
    assert not [n for n in names if f"<code>{n}</code></a>" not in text]
    assert 'href="config.html#promptsconfig"' in text

def test_settings_say_what_they_mean(site):
    "A class of settings has a table with the comments of its fields; no signature names the notebook's own namespace."
    text = (site/"core"/"config.html").read_text()
    table = text[text.index('id="promptsconfig"'):].partition("</table>")[0]
    assert "<code>novelty</code>" in table and "rejects" in table and "__main__" not in text
    text = (site/"topic_prompting.html").read_text() # where a function takes them
    assert "__main__" not in text and "PromptsConfig(…)" in re.sub(r"<[^>]+>", "", text)

def test_search_knows_internalization(site):
    hits = [e for e in json.loads((site/"search.json").read_text())
        if "internalization" in (e["title"] + e["section"] + e["text"]).lower()]
    assert {h["href"].partition("#")[0] for h in hits} >= {"guides/reading_the_evidence.html", "evaluation.html"}

def test_every_notebook_links_to_its_source_and_neighbours(site):
    for n in NOTEBOOKS:
        text = (site/page_name(n).replace(".ipynb", ".html")).read_text()
        assert f"https://github.com/selfalign/selfalign/blob/main/nbs/{n}" in text and (ROOT/"nbs"/n).exists(), n
        nav = text[text.index('<nav class="page-navigation">'):]
        assert ("pagination-link" in nav) and (n == "index.ipynb" or nav.count("pagination-link") == 2 or n in LAST), n

def test_the_home_page_has_the_figure(site):
    assert (site/"images"/"stages.svg").exists() and 'src="images/stages.svg"' in (site/"index.html").read_text()
    assert "(nbs/images/stages.svg)" in (ROOT/"README.md").read_text()

@pytest.mark.parametrize("n", [n for n in NOTEBOOKS if re.match(r"\d\d_", n)])
def test_a_stage_has_a_configuration_cell_and_something_to_see(n):
    cells = [c for c in json.loads((ROOT/"nbs"/n).read_text())["cells"] if c["cell_type"] == "code"]
    assert any(re.match(r'preset = "demo" ', "".join(c["source"])) for c in cells)
    shown = [d for c in cells for o in c["outputs"] for d in o.get("data", {})]
    assert {"image/png", "text/html"} & set(shown)

@pytest.mark.parametrize("n", NOTEBOOKS)
def test_a_notebook_shows_a_plot_or_a_table(n):
    cells = json.loads((ROOT/"nbs"/n).read_text())["cells"]
    shown = {d for c in cells for o in c.get("outputs", []) for d in o.get("data", {})}
    assert ({"image/png", "text/html", "text/markdown"} & shown
        or any("| --- |" in "".join(c["source"]) for c in cells if c["cell_type"] == "markdown"))

def fake_quarto(folder, code): # an executable that stands where quarto would and keeps what it was asked
    exe = folder/"quarto"
    exe.write_text(f"""#!{sys.executable}
import json, os, pathlib, sys
pathlib.Path({str(folder/'asked.json')!r}).write_text(json.dumps(dict(args=sys.argv[1:], files=sorted(str(p) for p in pathlib.Path('.').rglob('*') if p.is_file()), config=pathlib.Path('_quarto.yml').read_text())))
{code}
""")
    exe.chmod(0o755)
    return folder

QUARTO_WRITES = ("out = pathlib.Path(sys.argv[sys.argv.index('--output-dir') + 1]); out.mkdir(parents=True); "
    "(out/'index.html').write_text('<a href=\"%s\">x</a>')")

@pytest.fixture
def processed(monkeypatch, tmp_path):
    "A folder as nbdev leaves it, in place of the slow first step."
    proc = tmp_path/"_proc"; (proc/"guides").mkdir(parents=True)
    nb = dict(cells=[dict(cell_type="markdown", metadata={}, source="# A")], metadata={}, nbformat=4, nbformat_minor=5)
    for n in ("index.ipynb", "01_topic_prompting.ipynb"): (proc/n).write_text(json.dumps(nb))
    monkeypatch.setattr("selfalign.docs.process_notebooks", lambda root: proc)
    return tmp_path

def test_quarto_renders_where_it_is_on_the_path(processed, monkeypatch):
    monkeypatch.setenv("PATH", f"{fake_quarto(processed, QUARTO_WRITES % 'index.html')}:{os.environ['PATH']}")
    build_site(ROOT, processed/"site")
    asked = json.loads((processed/"asked.json").read_text())
    assert asked["args"][0] == "render" and "--output-dir" in asked["args"] and (processed/"site"/"index.html").exists()
    assert {"index.ipynb", "topic_prompting.ipynb", "_quarto.yml"} <= set(asked["files"])
    cfg = yaml.safe_load(asked["config"])
    assert cfg["format"]["html"]["grid"]["body-width"] == "900px"
    assert cfg["project"]["type"] == "website" and cfg["website"]["title"] == "selfalign"
    assert "metadata-files" not in cfg
    listed = re.findall(r"[\w/]+\.ipynb", asked["config"])
    assert "topic_prompting.ipynb" in listed and not [x for x in listed if re.search(r"(^|/)\d+_", x)]

@pytest.mark.parametrize("code, words", [(QUARTO_WRITES % "gone.html", "dead link in index.html: gone.html"),
    ("sys.exit('YAML is not to my taste')", "quarto: YAML is not to my taste")])
def test_what_quarto_gets_wrong_is_told(processed, monkeypatch, code, words):
    monkeypatch.setenv("PATH", f"{fake_quarto(processed, code)}:{os.environ['PATH']}")
    with pytest.raises(InputError, match=words): build_site(ROOT, processed/"site")
    assert not (processed/"site").exists()

def test_readme_is_current():
    nb = json.loads((ROOT/"nbs"/"index.ipynb").read_text())
    assert (ROOT/"README.md").read_text() == readme_text(nb), "run: python -m selfalign.docs readme"

def test_index_shows_the_stored_results():
    nb = json.loads((ROOT/"nbs"/"index.ipynb").read_text())
    shown = ["".join(o["data"].get("text/markdown", "")) for c in nb["cells"]
        for o in c.get("outputs", []) if "data" in o]
    assert demo_markdown(load_result("demo")) in shown, "data/results/demo.json is newer: run nbs/index.ipynb again"

def test_readme_says_what_was_run():
    text = (ROOT/"README.md").read_text()
    assert text.index("make demo") < text.index("make test") < text.index("## How it works")
    assert "largest model run end to end" in text

SCHEMAS = [*(("vendor.github-workflows", p) for p in sorted((ROOT/".github"/"workflows").glob("*.yml"))),
    ("vendor.citation-file-format", ROOT/"CITATION.cff")]

@pytest.mark.parametrize("schema, path", SCHEMAS, ids=lambda x: getattr(x, "name", x))
def test_file_keeps_its_schema(schema, path):
    "By the published schemas that check-jsonschema carries."
    r = subprocess.run([sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema, path],
        capture_output=True, text=True)
    assert r.returncode == 0, r.stdout

@pytest.mark.parametrize("path", sorted((ROOT/".github"/"workflows").glob("*.yml")), ids=lambda p: p.name)
def test_workflow_commands_are_sound(path):
    "The shell can read them, the jobs that one needs and the workflows that one calls exist."
    flow = yaml.safe_load(path.read_text())
    for job in flow["jobs"].values():
        needs = job.get("needs", [])
        assert set([needs] if isinstance(needs, str) else needs) <= set(flow["jobs"])
        if "uses" in job: assert (ROOT/job["uses"]).exists()
        for s in job.get("steps", []):
            if "run" in s:
                assert subprocess.run(["bash", "-n", "-c",
                    re.sub(r"\$\{\{[^}]*\}\}", "x", s["run"])]).returncode == 0, s["run"]

def test_workflows_run_the_ci_and_quarto():
    text = "".join(p.read_text() for p in (ROOT/".github"/"workflows").glob("*.yml"))
    assert ".ci/run" in text and "quarto" in text and "selfalign.docs site" in text

def test_citation_and_licence():
    cff = yaml.safe_load((ROOT/"CITATION.cff").read_text())
    assert cff["cff-version"] and cff["license"] == "Apache-2.0"
    assert cff["references"][0]["title"].startswith("Principle-Driven")
    assert "Apache License" in (ROOT/"LICENSE").read_text() and len((ROOT/"LICENSE").read_text()) > 10_000

@pytest.mark.skipif(not shutil.which("git"), reason="git is not installed")
def test_make_dev_installs_hooks(tmp_path):
    "What `make dev` calls makes git clean and merge notebooks in this clone, and look at widths before a commit."
    make, hook = (ROOT/"Makefile").read_text(), ROOT/".github"/"pre-commit"
    assert "nbdev-install-hooks" in make and f"install -m 755 {hook.relative_to(ROOT)} " in make
    assert "tests/test_width.py --over" in hook.read_text()
    for f in ("pyproject.toml", "settings.ini"): shutil.copy(ROOT/f, tmp_path)
    (tmp_path/"nbs").mkdir(); subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    env = dict(os.environ, HOME=str(tmp_path), JUPYTER_CONFIG_DIR=str(tmp_path/"jupyter"),
        GIT_CONFIG_GLOBAL=str(tmp_path/"global"))
    done = subprocess.run([Path(sys.executable).parent/"nbdev-install-hooks"], cwd=tmp_path, env=env,
        capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "nbdev" in (tmp_path/".git"/"hooks"/"post-merge").read_text()
    assert "*.ipynb merge=" in (tmp_path/".gitattributes").read_text() and (tmp_path/".gitconfig").exists()
    # what the hooks write is no change of the repository
    assert {".gitattributes", ".gitconfig"} <= set((ROOT/".gitignore").read_text().split())


def test_links_of_the_readme_lead_somewhere():
    "Also those in what a cell of the home page displays."
    links = re.findall(r"\]\((?!\w+:|#)([^)\s#]+)", (ROOT/"README.md").read_text(encoding="utf-8"))
    assert len(links) > 15 and not [l for l in links if not (ROOT/l).exists()]
    assert docs.output_markdown(dict(output_type="display_data",
        data={"text/markdown": "[x](guides/y.ipynb)"})) == "[x](nbs/guides/y.ipynb)"


def test_a_closing_table_is_folded():
    "Trainings take a row for all models, refusals stand with the scores."
    rows = [["training rows, engraved",
            "23; lost, as no answer token fits max_length: 0; truncated, so without their end: 0"],
            ["training rows, final",
            "34; lost, as no answer token fits max_length: 2; truncated, so without their end: 1"],
            ["training loss, engraved", "2 → 1"], ["refusals (answer, chat) refused benign, base", "0.1"],
            ["refusals (answer, chat) refused benign, final", "0.2"], ["time", "1"]]
    assert docs.compact_table(rows) == [["training rows: engraved, final", "23; 34 (2 lost, 1 truncated)"],
        ["training loss: engraved", "2 → 1"], ["time", "1"]]
    assert "| refusals (answer, chat) refused benign | 0.1 | 0.2 |" in docs.score_table(rows)
