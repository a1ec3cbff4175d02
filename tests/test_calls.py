"Called from Python with what people pass: it works, or one line names the argument."
import json
from pathlib import Path

import numpy as np, pytest, torch

from selfalign import evaluation as E
from selfalign.annotations import load_principles
from selfalign.checks import InputError
from selfalign.config import PromptsConfig
from selfalign.generation import Sampling, Score, ScriptedEngine, as_prompts, load_engine
from selfalign.novelty import rouge_l
from selfalign.principle_engraving import PrincipleSet
from selfalign.rows import content_id, read_jsonl, write_jsonl
from selfalign.sft import split_held_out

echo = ScriptedEngine(lambda p, i, s: f"<{p}>", scores=lambda p, c: -len(c))

@pytest.mark.parametrize("prompts, told", [("text", "prompts is one text; give a list"), (b"text", "prompts is bytes"),
    (None, "prompts is NoneType"), (3, "prompts is int"), (dict(role="user", content="a"), "prompts is dict"),
    ([dict(role="user", content="a")], "one conversation"), ([5, 6, 7], "one list of token ids"),
    (np.array([5, 6, 7]), "one list of token ids")])
def test_one_prompt_is_no_list_of_its_letters(prompts, told):
    for call in (lambda: echo.generate(prompts), lambda: echo.score(prompts, ["a"])):
        with pytest.raises(InputError, match=told) as e: call()
        assert "\n" not in str(e.value)
    if isinstance(prompts, str):
        with pytest.raises(InputError): list(echo.generate_iter(prompts, Sampling()))

@pytest.mark.parametrize("prompts",
    [["a", "b"], ("a", "b"), (x for x in "ab"), dict(a=1, b=2).keys(), np.array(["a", "b"])])
def test_many_kinds_of_lists_of_prompts_serve(prompts):
    assert [c.text for c in echo.generate(prompts)] == ["<a>", "<b>"]

def test_token_ids_of_numpy_and_torch_serve():
    assert as_prompts([np.array([5, 6]), torch.tensor([7]), [8]]) == [[5, 6], [7], [8]]
    assert as_prompts(np.array([[5, 6], [7, 8]])) == [[5, 6], [7, 8]]

@pytest.mark.parametrize("prompts, continuations, told",
    [("a", "b", "prompts is one text"), (["a"], "b", "continuations is one text"),
    (["a", "b"], ["c"], "2 prompts but 1 continuations"), (["a"], [None], "continuations holds None")])
def test_scores_name_the_argument(prompts, continuations, told):
    with pytest.raises(InputError, match=told): echo.score(prompts, continuations)

def test_scores_of_generators():
    assert echo.score((x for x in "ab"), (x for x in ("cd", "e"))) == [Score(-2., 1), Score(-1., 1)]

def test_sampling_takes_numpy_and_none():
    s = Sampling(max_new_tokens=np.int64(5), temperature=np.float32(.5), stop=None, banned_first=None)
    assert (s.max_new_tokens, s.stop, s.banned_first) == (5, (), ()) and json.dumps(s.max_new_tokens) == "5"
    assert type(s.temperature) is float

def test_an_engine_may_be_a_path_and_is_named_where_it_is_not(tmp_path):
    with pytest.raises(InputError, match="config.json"): load_engine(tmp_path)
    with pytest.raises(InputError, match="not by NoneType"): load_engine(None)

@pytest.mark.parametrize("call, told", [
    (lambda: E.answer_questions(echo, "What?"), "questions is one text"),
    (lambda: E.refusals_of([dict(kind="benign", question="q")], "So."), "answers is one text"),
    (lambda: E.refusals_of(dict(kind="benign", question="q"), ["So."]), "rows is dict"),
    (lambda: E.judge_pairwise(echo, "q", ["a"], ["b"]), "questions is one text"),
    (lambda: E.judge_pairwise(echo, ["q"], "a", ["b"]), "answers_a is one text"),
    (lambda: E.truth_info_judge(echo, ["q"], "a"), "answers is one text"),
    (lambda: E.hhh(echo, dict(input="x")), "rows is dict"), (lambda: E.truthfulqa_mc(echo, ["x"]), "is no row|schema"),
    (lambda: E.text_scores(["a b"]), "rows holds 'a b'"), (lambda: E.text_stats("a b"), "completions is one text"),
    (lambda: rouge_l(None, "a"), "a is NoneType"), (lambda: rouge_l("a", 3), "b is int"), (lambda: split_held_out(
        [dict(instruction="a")], .5), "row 1 has no id"), (lambda: split_held_out(["a"], .5), "row 1 has no id"),
    (lambda: PrincipleSet(["Be kind."], ["Hi"]), "principles is .*give a list of Principle"),
    (lambda: PrincipleSet(tuple(load_principles()), ["Hi"]), "exemplars is .*Exemplar")])
def test_the_argument_is_named(call, told):
    with pytest.raises(InputError, match=told) as e: call()
    assert "\n" not in str(e.value)

def test_a_verdict_may_be_none(): assert E.parse_verdict(None) is None

def test_models_and_sets_may_be_lists_or_one_name():
    flat = ScriptedEngine(scores=lambda p, c: -len(c))
    assert len(E.evaluate_models({"m": flat}, "facts", n=2, say=None)) == 2
    with pytest.raises(InputError, match="models is int"): E.evaluate_models(3, "facts")
    with pytest.raises(InputError, match="nosuch"): E.evaluate_models(["torch:./nosuch"], "facts", n=2, say=None)

def test_rows_hold_numpy_and_paths(tmp_path):
    write_jsonl(tmp_path/"a.jsonl", [dict(a=np.float32(1.5), b=np.arange(2), c=Path("x"), d={2, 1}, e=torch.tensor(3))])
    assert read_jsonl(tmp_path/"a.jsonl") == [dict(a=1.5, b=[0, 1], c="x", d=[1, 2], e=3)]
    with pytest.raises(InputError, match="JSON cannot hold"): write_jsonl(tmp_path/"b.jsonl", [dict(a=object())])
    assert not (tmp_path/"b.jsonl").exists() and content_id(np.int64(3), Path("a")) == content_id(3, "a")
    assert PromptsConfig(source=tmp_path/"a.jsonl").source == str(tmp_path/"a.jsonl")


@pytest.mark.parametrize("module, names", [
    ("generation", "Sampling load_engine TorchEngine OpenAIEngine ScriptedEngine Prompts"),
    ("evaluation", "evaluate_models truthfulqa_mc hhh refusal_rates judge_pairwise parse_verdict wilson bootstrap"),
    ("principle_engraving", "PrincipleSet RespondConfig load_principle_set judge"), ("runs", "Run read_jsonl write_jsonl"),
    ("novelty", "NoveltyFilter Contamination rouge_l"), ("sft", "EngraveConfig encode_row train_model model_card")])
def test_an_import_of_everything_gives_what_has_moved_too(module, names):
    exec(f"from selfalign.{module} import *", found := {})
    assert {*names.split()} <= {*found}
