"""Phrases as data, the chain of filters, and filters of one's own."""
import subprocess
import sys
from dataclasses import replace

import pytest

from selfalign.annotations import Principle, data_dir
from selfalign.checks import InputError
from selfalign.citations import cited_rules
from selfalign.config import load_config
from selfalign.filters.chain import CLONE_FILTERS, FILTERS, apply_filters, told_reason
from selfalign.filters.context import Context, Response, VerboseContext
from selfalign.filters.lists import patterns, phrases, read_phrases
from selfalign.filters.phrases import apology, cliche, foreign_name, furniture
from selfalign.principle_engraving import PrincipleSet, judge, turned_down

ROW = dict(id="1", instruction="Rivers?", input="")
CTX = Context(PrincipleSet.load(), 5)
LISTS = sorted({f.stem.partition(".")[0] for f in (data_dir()/"filters").glob("*.txt")} - {"shared"})
SLOTS = dict(name="Aster", user="User", label="label", example="Example", own="", role="Role", rules="candor", n="1",
             word="rules?")


@pytest.mark.parametrize("name", LISTS)
def test_a_list_is_read_and_its_short_form_looks_for_no_more(name):
    short, long = (phrases(name, which, **SLOTS) for which in ("paper", "extended"))
    assert long.groups and {w for w, _ in short.groups} <= {w for w, _ in long.groups}
    assert not [w for words, _ in long.groups for w in words if w != w.lower()]  # they are looked for in lower case


@pytest.mark.parametrize("name", LISTS)
def test_every_word_in_braces_is_defined(name):
    made = [pattern.pattern for _, pattern in phrases(name, **SLOTS).groups]
    assert not [p for p in made
        if "{" in p and any(f"{{{w}}}" in p for w in ("models", "made", "open", "line", "starts"))]


@pytest.mark.parametrize("name", sorted(f.stem for f in (data_dir()/"phrases").glob("*.txt")))
def test_a_file_of_named_patterns_is_read_whole(name):
    found = vars(patterns(name, name="candor", words="rules?"))
    assert found and all(p.pattern for p in found.values())


def test_a_rule_whose_name_has_braces_is_cited_by_it():
    rules = [Principle(1, "no {words}", "x"), Principle(2, "{name}", "y")]
    assert cited_rules("Rules: no {words}, {name}.", rules) == [(1, "no {words}"), (2, "{name}")]


@pytest.mark.parametrize("f,answer,told", [
    (apology, "I'm sorry, but no.", "apology: I'm sorry"),
    (cliche, "Rivers run. I hope this helps!", "cliché: I hope this help"),
    (foreign_name, "I am ChatGPT.", "foreign name: I am ChatGPT"),
    (furniture, "Rivers run. [citation needed]", "web page furniture: [citation needed]")])
def test_a_reason_names_the_phrase(f, answer, told):
    assert f(Response("", answer, True, []), ROW, CTX) == told


def test_a_reject_keeps_its_phrase_beside_the_reason_that_is_counted():
    out = dict(text=" Role: Aster. Rules: 2.\n\nAster: I'm sorry, but no.", n_tokens=9, n_prompt=9,
               finish_reason="stop")
    row, why = judge(ROW, out, CTX)
    assert (why, row["reason"], row["phrase"]) == ("apology", "apology", "I'm sorry")
    grouped = turned_down([dict(reason="apology: x", raw="a"), dict(reason="apology", raw="b")])
    assert grouped[0][:2] == ("apology", 2)


def test_short_lists_know_the_wiki_and_no_other_page():
    def found(text, which): return furniture(Response("", text, True, []), ROW, VerboseContext("x", phrases=which))
    assert found("Rivers run.\n\nExternal links", "paper")
    assert not found("Follow us on Instagram!", "paper") and found("Follow us on Instagram!", "extended")


@pytest.mark.parametrize("text", ["[]\n(a", "[]\nb\n*"])
def test_a_line_that_is_no_pattern_is_named(text):
    with pytest.raises(InputError, match=r"mine.txt:\d: .* is no pattern"): read_phrases(text, "mine.txt")


# --- the chain

SHOUT = """def shout(r, row, ctx):
    "The answer shouts."
    if r.answer.isupper(): return f"all capitals: {r.answer[:9]}"
"""


def preset(folder, text):
    (folder/"mine.yaml").write_text(text)
    return load_config(str(folder/"mine.yaml"))


def test_a_filter_of_ones_own_is_named_by_its_place(tmp_path):
    (tmp_path/"mine.py").write_text(SHOUT)
    own = f"{tmp_path}/mine.py:shout"
    cfg = preset(tmp_path, f"respond:\n  filters: [missing_answer, '{own}']\nclone:\n  phrases: paper\n")
    why = apply_filters(Response("", "RIVERS RUN.", True, []), ROW, replace(CTX, filters=cfg.respond.filters))
    assert told_reason(why) == dict(reason="all capitals", phrase="RIVERS RU")
    assert (cfg.clone.phrases, cfg.clone.filters) == ("paper", CLONE_FILTERS)


@pytest.mark.parametrize("filters,said", [("[ecko]", "'ecko' is no filter; give one of missing_role"),
    ("['gone.py:f']", "gone.py:f: gone.py cannot be loaded"), ("['json:gone']", "json:gone: json has no gone")])
def test_a_filter_that_is_not_there_is_told_in_one_line(tmp_path, filters, said):
    with pytest.raises(InputError, match=said):
        FILTERS[preset(tmp_path, f"respond:\n  filters: {filters}\n").respond.filters[0]]


def test_a_listing_of_filters_imports_none():
    code = ("import sys; from selfalign.filters.chain import FILTERS; list(FILTERS); "
            "sys.exit('selfalign.filters.turns' in sys.modules)")
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
