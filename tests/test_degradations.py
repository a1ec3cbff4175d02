"""What becomes worse is said: a loss against the stage before, a run that goes on under other conditions, a path that
would be passed on."""
import json
from itertools import combinations

import pytest

from selfalign.config import TrainConfig
from selfalign.generation import Sampling, ScriptedEngine
from selfalign.hub import _findings, chance_of_rise, model_card, needed_transformers, reply_losses
from selfalign.models import _without_paths, public_name, resolve_model
from selfalign.runs import Run


def shape(repeated, ended, n=20): return dict(n=n, repetition_rate=repeated, stop_rate=ended)


def test_the_chance_of_a_rise_is_counted_out():
    rows = [True]*4 + [False]*4
    ways = list(combinations(range(8), 4)) # where the 4 cases may lie; the last four rows are the second stage's
    for l in range(5):
        assert chance_of_rise(4-l, 4, l, 4) == pytest.approx(sum(sum(i >= 4 for i in w) >= l for w in ways)/len(ways))
    assert chance_of_rise(0, 0, 0, 5) == 1 and chance_of_rise(3, 100, 60, 100) < 1e-9 and len(rows) == 8


@pytest.mark.parametrize("replies, models", [(dict(engraved=shape(0, 1), final=shape(1, 1)), ["final"]),
    (dict(base=shape(0, 1), engraved=shape(1, 1), final=shape(1, 1)), ["engraved"]),
    (dict(engraved=shape(0, 1), final=shape(0, .2)), ["final"]), (dict(engraved=shape(1, 0), final=shape(0, 1)), []),
    (dict(engraved=shape(.1, 1), final=shape(.2, 1)), []), (dict(engraved=shape(0, 1, 2), final=shape(1, 1, 2)), []),
    ({}, []), (None, []), (dict(engraved=shape(None, None), final=shape(1, 0)), [])])
def test_only_a_significant_loss_against_the_stage_before_is_told(replies, models):
    assert list(reply_losses(replies)) == models


def test_a_loss_stands_in_the_table_and_in_the_card():
    from selfalign.report import _reply_rows
    known = dict(words=9, tokens=9)
    replies = dict(engraved=shape(0, 1) | known, final=shape(1, 0) | known)
    told = [v for k, v in _reply_rows(replies) if k == "worse than the stage before"]
    assert len(told) == 2 and "repetition rose from 0% (engraved) to 100% (final)" in told[0]
    assert "length limit" in told[1]
    assert [x.rstrip(".") for x in _findings(dict(replies=replies), "final")] == told
    assert not list(_findings(dict(replies=replies), "engraved"))


@pytest.mark.parametrize("second, marked",
    [(dict(dtype="bfloat16"), True), (dict(batch_size=2), True), (dict(), False), (dict(kind="vllm"), True)])
def test_a_resume_under_other_conditions_is_marked(tmp_path, second, marked):
    notes, jobs = [], [dict(id=str(i), prompt="x") for i in range(4)]
    def go(todo, info, batch):
        engine = ScriptedEngine(lambda *a: "y"); engine.info = dict(engine.info, dtype="float32") | info
        with Run(tmp_path / "r", config=dict(batch_size=batch), say=notes.append) as run:
            run.complete("responses", todo, engine, Sampling())
            return run.manifest["stages"]["responses"]["generation"]
    first = go(jobs[:2], {}, None)
    assert "changes" not in first and first["made_with"]["dtype"] == "float32"
    again = go(jobs, {k: v for k, v in second.items() if k != "batch_size"}, second.get("batch_size"))
    assert ("changes" in again) == marked == bool(notes) and (not marked or again["changes"][0]["after_rows"] == 2)
    assert "changes" not in first and len(go(jobs, {}, 7).get("changes", [])) == marked # nothing was left to do


@pytest.mark.parametrize("name, want",
    [("Qwen/Qwen3-4B", "Qwen/Qwen3-4B"), ("embedded", "embedded"), ("/secret/customer/model", "model"),
    ("../customer/model/", "model"), ("a/b/model", "model"), ("./model", "model"), ("~/customer/model", "model")])
def test_a_folder_is_called_by_its_own_name(name, want): assert public_name(name) == want


def test_no_path_of_this_machine_is_passed_on(tmp_path):
    base, adapter = tmp_path / "customer" / "model", tmp_path / "adapter"
    base.mkdir(parents=True); adapter.mkdir()
    (base / "config.json").write_text("{}"); (base / "model.safetensors").write_bytes(b"x")
    (adapter / "adapter_config.json").write_text(json.dumps(dict(base_model_name_or_path=str(base), r=8)))
    (adapter / "README.md").write_text(str(base))
    src = resolve_model(str(base))
    _without_paths(adapter, src)
    assert json.loads((adapter / "adapter_config.json").read_text()) == dict(base_model_name_or_path="model", r=8)
    card = model_card(src, TrainConfig(), [dict(loss=1.0)], {})
    assert "customer" not in card and "`model`" in card
    assert not [p for p in adapter.iterdir() if "customer" in p.read_text()]


# ---- rules of tokens under a schedule that runs ahead

@pytest.mark.parametrize("ahead", [0, 1, 2])
@pytest.mark.parametrize("ngram", [{"1": 1.0}, {"2": 1.0, "3": 2.0}])
def test_a_token_not_yet_known_is_no_ngram(ahead, ngram):
    "The last ids of a step stand as -1 and are known one step later: what is known then counts, -1 never does."
    import torch
    from selfalign.engines.choosing import RowRules
    rules = lambda: RowRules(dict(ban=[], early=[0, []], first=[], ngram=ngram))
    truth, running = [1, 2, 1, 2, 1, 3, 1, 2, 2], rules()
    for n in range(len(truth) + 1):
        seen = running(truth[:max(n-ahead, 0)] + [-1]*min(n, ahead), torch.zeros(5))
        assert seen[4] == 0 # token 4 was never written; -1 as an index would mean it
        if ahead and "1" not in ngram: assert not seen.any() # what follows an unknown token is unknown
    late, fresh = running(truth, torch.zeros(5)), rules()(truth, torch.zeros(5))
    assert torch.equal(late, fresh) and late.any()


def test_both_engines_weigh_ngrams_alike_after_a_gap():
    from selfalign.engines.choosing import NGrams
    late, whole = NGrams({2: 1.0}), NGrams({2: 1.0})
    for done in ([7, 8, -1, -1], [7, 8, 7, -1], [7, 8, 7, 9, 7]): seen = sorted(late.hits(done))
    assert seen == sorted(whole.hits([7, 8, 7, 9, 7])) == [(8, 1.0), (9, 1.0)]


# ---- which version loads what was saved

@pytest.mark.parametrize("kind, template, words", [
    ("TokenizersBackend", True, "5.0 or newer, as its tokenizer is a `TokenizersBackend`"),
    ("SentencePieceBackend", False, "5.0 or newer"), ("LlamaTokenizerFast", True, "pass over `chat_template.jinja`"),
    ("LlamaTokenizerFast", False, "saved by"), (None, False, "saved by")])
def test_a_card_says_which_transformers_loads_the_model(tmp_path, kind, template, words):
    if kind: (tmp_path / "tokenizer_config.json").write_text(json.dumps(dict(tokenizer_class=kind)))
    if template: (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    told = needed_transformers(tmp_path)
    assert words in told and ("5.0" in told) == bool(kind and "Backend" in kind) and ("jinja" in words or "jinja" not in told)
    card = model_card(resolve_model("o/n"), TrainConfig(), [dict(loss=1.0)], dict(transformers=told))
    assert f"| transformers | {told} |" in card
