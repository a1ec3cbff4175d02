"Rows of a run in the forms of other trainers, read by the real libraries."
import json
import pytest

from selfalign.annotations import example_rows, query_text
from selfalign.checks import InputError
from selfalign.export import FORMS, export_rows
from selfalign.rows import write_json, write_jsonl

@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("run")
    write_json(out/"manifest.json", dict(stages=dict(responses=dict(asked=9, kept=3, rejected={}))))
    odd = dict(id="q", instruction="Say «это» in Greek – 日本語?", input="two\nlines, \"quoted\"",
        answer="Line one.\n\nLine two: 😀")
    write_jsonl(out/"responses.jsonl", [*example_rows("responses")[:2], odd])
    return out

@pytest.mark.parametrize("ending, reader", [(".jsonl", "json"), (".parquet", "parquet")])
@pytest.mark.parametrize("form", FORMS)
def test_datasets_loads_every_form(run, tmp_path, form, ending, reader):
    from datasets import load_dataset
    assert export_rows(run, tmp_path/f"x{ending}", form, system="You are Aster.") == 3
    data = load_dataset(reader, data_files=str(tmp_path/f"x{ending}"), split="train", cache_dir=str(tmp_path/"cache"))
    assert len(data) == 3 and "😀" in json.dumps(data[2], ensure_ascii=False) and "You are Aster." in json.dumps(data[0])
    assert (tmp_path/"x.md").read_text().startswith("---") and str(run) not in (tmp_path/"x.md").read_text()

@pytest.mark.parametrize("form", ["messages", "prompt-completion"])
def test_trl_takes_the_conversational_forms(run, tmp_path, form):
    from trl.data_utils import is_conversational, maybe_apply_chat_template
    from selfalign.models import load_tokenizer
    export_rows(run, tmp_path/"x.jsonl", form)
    row = json.loads((tmp_path/"x.jsonl").read_text().splitlines()[2])
    assert is_conversational(row)
    text = maybe_apply_chat_template(row, load_tokenizer("embedded"))
    whole = text["text"] if form == "messages" else text["prompt"] + text["completion"]
    assert "Line two: 😀" in whole and "日本語" in whole and ("Line two" not in text.get("prompt", ""))

@pytest.mark.parametrize("form, keys", [("sharegpt", ["system", "human", "gpt"]), ("alpaca", None)])
def test_the_forms_that_axolotl_and_llama_factory_document(run, tmp_path, form, keys):
    export_rows(run, tmp_path/"x.jsonl", form, system="Be brief.")
    for line in (tmp_path/"x.jsonl").read_text().splitlines():
        row = json.loads(line)
        if keys:
            assert [t["from"] for t in row["conversations"]] == keys and all(t["value"] for t in row["conversations"])
        else: assert set(row) == {"instruction", "input", "output", "system"} and row["instruction"] and row["output"]

@pytest.mark.parametrize("form", ["messages", "sharegpt", "prompt-completion"])
def test_a_round_trip_gives_the_same_prompts(run, tmp_path, form):
    from selfalign.sources import read_prompts
    from selfalign.rows import read_jsonl
    export_rows(run, tmp_path/"x.parquet", form)
    back = list(read_prompts(str(tmp_path/"x.parquet")))
    assert [p.instruction for p in back] == [query_text(r) for r in read_jsonl(run/"responses.jsonl")]
    assert not any(p.why for p in back)

@pytest.mark.parametrize("change, words",
    [(dict(form="dpo"), "--as dpo: no such form; give one of messages"), (dict(out="x.csv"), "ends in .csv"),
    (dict(out="x"), "ends in nothing"), (dict(source="verbose"), "verbose.jsonl: no such file")])
def test_what_cannot_be_exported(run, tmp_path, change, words):
    change = dict(change, out=tmp_path/change.get("out", "x.jsonl"))
    with pytest.raises(InputError, match=words): export_rows(run, **change)
    assert not list(tmp_path.iterdir())

def test_the_command_says_where_the_file_is(run, tmp_path, capsys):
    from selfalign.app.cli import main
    assert main(["export", "rows", str(run), str(tmp_path/"x.jsonl"), "--as", "alpaca"]) in (0, None)
    assert "3 rows: " in capsys.readouterr().out and (tmp_path/"x.jsonl").exists()
