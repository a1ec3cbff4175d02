"The worked cases of `data/cases`, which the pages show: every filter and reader decides as they say."
import copy

import pytest

from selfalign.annotations import data_path, read_yaml
from selfalign.filters import context
from selfalign.filters.chain import FILTERS
from selfalign.filters.context import Context, worked_cases
from selfalign.filters.leakage import common_words
from selfalign.principle_engraving import PrincipleSet
from selfalign.task_lists import parse_questions, parse_tasks, parse_topics

BY_FILTER = read_yaml(data_path("cases/filters.yaml"))
LISTS = read_yaml(data_path("cases/task_lists.yaml"))
HINTS = [("Art", "Murals"), ("Art history", "Fresco cycles")]
READERS = dict(tasks=lambda text, cut: [(i[0], i[1], i[3]) for i in parse_tasks(text, cut)],
    topics=lambda text, cut: [(i[0], i[2]) for i in parse_topics(text, cut)],
    questions=lambda text, cut: [(i[2], i[4]) for i in parse_questions(text, HINTS, cut)])


@pytest.fixture(scope="module")
def ctx(): return Context(PrincipleSet.load(), common=common_words())


@pytest.mark.parametrize("name", BY_FILTER)
def test_a_filter_decides_its_cases_as_they_say(name, ctx):
    assert len(worked_cases(FILTERS[name], ctx)) == len(BY_FILTER[name]) > 1
    acts = lambda c: c["reason"] is not None or c.get("becomes", c["answer"]) != c["answer"]
    assert {acts(c) for c in BY_FILTER[name]} == {True, False}, "cases that it leaves alone and cases that it does not"


@pytest.mark.parametrize("change", [dict(reason=None), dict(reason="another"), dict(becomes="Else.")])
def test_a_case_that_is_decided_otherwise_fails(change, ctx, monkeypatch):
    cases = copy.deepcopy(BY_FILTER)
    cases["apology"][0].update(change)
    monkeypatch.setattr(context, "read_yaml", lambda path: cases)
    with pytest.raises(AssertionError): worked_cases(FILTERS["apology"], ctx)


@pytest.mark.parametrize("kind, case", [(k, c) for k, cases in LISTS.items() for c in cases],
    ids=lambda x: x if isinstance(x, str) else x["why"])
def test_a_list_is_read_as_its_case_says(kind, case):
    items = READERS[kind](case["text"], case.get("cut", False))
    assert [why or " / ".join(filter(None, texts)) for *texts, why in items] == case["read"]
