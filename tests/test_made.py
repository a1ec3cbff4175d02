"A file of a run that was changed by hand is told in one line wherever it is read, and is used as it is."
import json, os, shutil

import pytest

from selfalign.app.export import Export
from selfalign.generation import Sampling, ScriptedEngine
from selfalign.hub import data_card
from selfalign.report import closing_table
from selfalign.rows import read_jsonl, write_json, write_jsonl
from selfalign.runs import Run

FILES = dict(prompts="prompts.jsonl", responses="responses.jsonl", engraved="engraved", evaluation="eval")
ROWS = [dict(id=str(i), instruction=f"Why {i}?", input="", answer=f"So {i}.") for i in range(3)]


def run_of(path):
    "A finished run in small: rows, a model's folder, an evaluation."
    with Run(path, say=lambda *a: None) as run:
        for stage, name in FILES.items():
            with run.stage(stage, dict(a=stage), files=[name]) as rec: fill(run / name, rec)
    return path


def fill(p, rec):
    if p.suffix: rec.update(kept=write_jsonl(p, ROWS), asked=3, rejected={})
    elif p.name == "engraved":
        p.mkdir()
        (p / "model.safetensors").write_bytes(b"weights")
    else:
        write_json(p / "sets" / "facts.json", [1])
        write_json(p / "replies.json", [])


def opened(path):
    "What is said when every stage is gone through again, as all commands do."
    said = []
    with Run(path, say=said.append) as run:
        for stage in list(run.manifest["stages"]):
            with run.stage(stage, dict(a=stage)) as rec: assert rec is None
            run.fingerprint(stage)
        return said, {k: v["edited"] for k, v in run.manifest["stages"].items() if v.get("edited")}


EDITS = {
    "a row mended": ("prompts", "prompts.jsonl", lambda p: write_jsonl(p, ROWS[1:])),
    "an answer mended": ("responses", "responses.jsonl", lambda p: p.write_text(p.read_text().replace("So", "No"))),
    "other weights": ("engraved", "engraved", lambda p: (p / "model.safetensors").write_bytes(b"others")),
    "a score mended": ("evaluation", "eval/sets/facts.json", lambda p: p.write_text("[2]")),
    "replies gone": ("evaluation", "eval/replies.json", lambda p: p.unlink()),
}


@pytest.mark.parametrize("edit", EDITS)
def test_an_edit_is_told_once_each_time_and_noted(tmp_path, edit):
    stage, name, change = EDITS[edit]
    out = run_of(tmp_path / "r")
    kept = shutil.copytree(out / stage, tmp_path / "kept") if (out / stage).is_dir() else None
    assert opened(out) == ([], {})
    change(out / name)
    for _ in range(2):
        (line,), noted = opened(out)
        assert line.startswith(f"{out/name}: changed since stage '{stage}' made it, and taken as it is")
        assert f"--redo {stage}" in line and "\n" not in line
        assert noted == {stage: [name]}
    if not kept: return
    shutil.rmtree(out / stage)
    shutil.copytree(kept, out / stage) # put back
    assert opened(out) == ([], {})


HARMLESS = ["touched", "moved", "an ablation beside it", "made by an older version", "a card written anew"]


@pytest.mark.parametrize("harmless", HARMLESS)
def test_what_is_no_edit_is_not_told(tmp_path, harmless):
    out = run_of(tmp_path / "r")
    if harmless == "touched":
        for f in ("prompts.jsonl", "engraved/model.safetensors"): os.utime(out / f, (1, 1))
    if harmless == "moved": out = out.rename(tmp_path / "elsewhere")
    if harmless.startswith("an abl"): write_json(out / "eval/ablation.json", {})
    if harmless.startswith("a card"): (out / "engraved/README.md").write_text("new")
    if harmless.startswith("made"):
        man = json.loads((out / "manifest.json").read_text())
        for rec in man["stages"].values(): del rec["made"]
        write_json(out / "manifest.json", man)
        write_jsonl(out / "prompts.jsonl", ROWS[:1])
    assert opened(out) == ([], {})


def test_a_later_stage_uses_the_edited_rows_and_says_so(tmp_path):
    said = []
    with Run(tmp_path / "r", say=said.append) as run:
        with run.stage("prompts", dict(a=1), files=["prompts.jsonl"]): write_jsonl(run / "prompts.jsonl", ROWS)
    write_jsonl(tmp_path / "r/prompts.jsonl", [dict(ROWS[0], id="mine", instruction="Mine?")])
    with Run(tmp_path / "r", say=said.append) as run:
        with run.stage("responses", dict(after=run.fingerprint("prompts")), files=["responses.jsonl"]):
            jobs = [dict(id=r["id"], prompt=r["instruction"]) for r in read_jsonl(run / "prompts.jsonl")]
            outs = run.complete("responses", jobs, ScriptedEngine(lambda p, i, s: p), Sampling())
            write_jsonl(run / "responses.jsonl", outs)
    assert [o["text"] for o in outs] == ["Mine?"] and len(said) == 1 and "prompts.jsonl: changed since" in said[0]
    stages = json.loads((tmp_path / "r/manifest.json").read_text())["stages"]
    assert stages["prompts"]["edited"] == ["prompts.jsonl"]


def test_report_card_and_export_tell_it(tmp_path):
    out, said = run_of(tmp_path / "r"), []
    def told():
        with Run(out, say=said.append) as run: rows = dict(closing_table(run))
        return rows.get("changed since their stage made them")
    export = Export("rows", out, tmp_path / "x.jsonl", "alpaca")
    assert told() is None and "Changed by hand" not in data_card(out)
    export(said.append)
    assert len(said) == 1
    for f in ("responses.jsonl", "prompts.jsonl"): write_jsonl(out / f, ROWS[:2])
    assert told() == "prompts.jsonl (prompts), responses.jsonl (responses)"
    assert "Changed by hand since the run made them: `prompts.jsonl`, `responses.jsonl`." in data_card(out)
    export(said.append)
    assert said[1].startswith(f"{out}/responses.jsonl: changed since") and said[2].startswith("2 rows")
    assert "Changed by hand" in (tmp_path / "x.md").read_text()
