"Rows that a person reads: what is drawn, what the marks say, and the page itself in Chromium."
import time
from pathlib import Path

import pytest
from test_browser import BROWSER, DRIVER, browser

from selfalign.app.cli import main
from selfalign.checks import InputError
from selfalign.hub import data_card
from selfalign.review import drawn_rows, filter_scores, read_marks, write_sheet
from selfalign.rows import write_json, write_jsonl

MARKUP = "</script><b>bold</b> & \"quotes\"\n\n日本語 😀"

def row(kind, i): return dict(id=f"{kind}{i}", instruction=f"Ask {kind} {i}", input="", raw=f"{kind} {i}: {MARKUP}")

@pytest.fixture
def run(tmp_path):
    "Thirty kept rows, ten too short, two with an echo, and a reject of another stage."
    write_jsonl(tmp_path/"responses.jsonl", [dict(row("kept", i), answer=f"answer {i}") for i in range(30)])
    reject = lambda why, i: dict(row(why, i), stage="responses", reason=why)
    turned_down = [reject("short", i) for i in range(10)] + [reject("echo", i) for i in range(2)]
    write_jsonl(tmp_path/"rejects.jsonl", [*turned_down, dict(stage="prompts", reason="duplicate", raw="x")])
    stages = dict(responses=dict(kept=30, asked=42))
    write_json(tmp_path/"manifest.json", dict(config=dict(engine="torch:embedded"), stages=stages))
    return tmp_path

def kinds(rows): return [r["text"].split()[0] for r in rows]

def test_half_are_kept_and_rare_reasons_are_seen(run):
    drawn = kinds(drawn_rows(run, 20))
    assert {k: drawn.count(k) for k in ("kept", "short", "echo")} == dict(kept=10, short=8, echo=2)
    assert drawn != sorted(drawn) and kinds(drawn_rows(run, 20)) == drawn != kinds(drawn_rows(run, 20, seed=1))
    assert len(drawn_rows(run, 1000)) == 42 and len(drawn_rows(run, 1)) == 1

def test_the_page_does_not_tell_the_verdict(run):
    page = write_sheet(run, 20).read_text()
    assert "short" not in page.replace("Ask short", "").replace("short ", "") and '"reason"' not in page
    assert "</script><b>" not in page and "http" not in page

def test_precision_counts_what_was_read_and_recall_what_the_run_holds(run):
    rows = drawn_rows(run, 1000)
    bad = {"kept": {0, 1, 2}, "short": set(range(8)), "echo": {0}}
    mark = lambda t: "bad" if int(t.split()[1].rstrip(":")) in bad[t.split()[0]] else "good"
    found = filter_scores(run, {r["id"]: mark(r["text"]) for r in rows})
    short, echo = found["filters"]["short"], found["filters"]["echo"]
    assert short["precision"]["value"] == 0.8 and short["recall"]["value"] == pytest.approx(8/12)
    assert echo["precision"]["value"] == 0.5 and echo["recall"]["value"] == pytest.approx(1/12)
    assert found["kept"]["value"] == 0.9 and found["read"] == 42
    for x in (short, echo): assert x["recall"]["low"] < x["recall"]["value"] < x["recall"]["high"] <= 1

def test_a_part_counts_as_often_as_its_rows(run):
    "Half of the kept rows are read, and one of them is bad: two of the run are."
    kept = [r for r in drawn_rows(run, 1000) if r["text"].startswith("kept")][:15]
    short = [r for r in drawn_rows(run, 1000) if r["text"].startswith("short")]
    marks = {r["id"]: "good" for r in kept} | {r["id"]: "bad" for r in short} | {kept[0]["id"]: "bad"}
    assert filter_scores(run, marks)["filters"]["short"]["recall"]["value"] == pytest.approx(10/12)

def test_from_the_command_to_report_and_card(run, capsys):
    assert main(["review", str(run), "--n", "20"]) == 0 and str(run/"review.html") in capsys.readouterr().out
    assert "What a person found" not in data_card(run)
    marks = dict(format="selfalign review 1", sheet="x", marks={r["id"]: "bad" for r in drawn_rows(run, 20)})
    write_json(run/"marks.json", marks)
    assert main(["review", str(run), "--read", str(run/"marks.json")]) == 0
    said = capsys.readouterr().out
    assert "20 rows of stage responses were read by a person" in said
    assert "Filter 'echo': precision 100% (34% to 100%)" in said
    assert "Filter 'echo'" in data_card(run)

@pytest.mark.parametrize("text, words", [
    ("{", "not valid JSON"), ("{}", "no marks of a review"), ("[]", "no marks of a review"),
    ('{"format": "selfalign review 1", "marks": {}}', "no row is marked yet"),
    ('{"format": "selfalign review 1", "marks": {"a": "so-so"}}', "a mark is 'so-so'"),
    ('{"format": "selfalign review 1", "marks": {"a": "bad"}}', "1 of 1 marked rows are not in its stage")])
def test_marks_that_cannot_be_read_are_one_line(run, capsys, text, words):
    (run/"marks.json").write_text(text)
    assert main(["review", str(run), "--read", str(run/"marks.json")]) == 1
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1 and not (run/"review.json").exists()

def test_a_run_without_answers_is_one_line(tmp_path, capsys):
    assert main(["review", str(tmp_path)]) == 1 and "no manifest.json" in capsys.readouterr().err
    write_json(tmp_path/"manifest.json", {})
    assert main(["review", str(tmp_path)]) == 1 and "finish the stage" in capsys.readouterr().err
    with pytest.raises(InputError, match="cannot be read"): read_marks(tmp_path/"none.json")

@pytest.mark.browser
@pytest.mark.skipif(not (BROWSER and DRIVER), reason="Chromium and chromedriver are not installed")
def test_the_page_in_a_browser(browser, run):
    "Keys mark, go back and skip; a reload keeps the marks; the saved file is what --read takes."
    page, rows = write_sheet(run, 6), drawn_rows(run, 6)
    browser.call("POST", "/goog/cdp/execute", dict(cmd="Browser.setDownloadBehavior",
        params=dict(behavior="allow", downloadPath=str(run))))
    browser.log()
    browser.open(page.as_uri())
    text = lambda what: browser.js(f"return document.getElementById('{what}').textContent")
    assert text("answer") == rows[0]["text"] and text("prompt") == rows[0]["prompt"]
    assert browser.js("return document.querySelectorAll('b').length") == 0, "markup of an answer became markup"
    keys(browser, "b", "g", LEFT, "b", RIGHT, "g")
    browser.open(page.as_uri())
    assert text("where").startswith("Row 3 of 6, 3 marked") and text("answer") == rows[2]["text"]
    keys(browser, "g", "s")
    want = {rows[i]["id"]: m for i, m in enumerate(["bad", "bad", "good", "good"])}
    assert read_marks(arrived(run/"marks.json")) == want
    assert not [x for x in browser.log() if x["level"] == "SEVERE"]
    assert browser.js("return performance.getEntriesByType('resource').length") == 0

LEFT, RIGHT = "\ue012", "\ue014" # as WebDriver names the arrows

def keys(browser, *typed):
    down_up = [dict(type=t, value=k) for k in typed for t in ("keyDown", "keyUp")]
    browser.call("POST", "/actions", dict(actions=[dict(type="key", id="keyboard", actions=down_up)]))

def arrived(path):
    for _ in range(100):
        if Path(path).exists() and path.stat().st_size: return path
        time.sleep(0.1)
    pytest.fail("no file was saved")
