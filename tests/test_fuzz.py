"""Any text at all goes into the readers: none may crash, and each input is kept or rejected. `make fuzz` gives them a million inputs."""
import json
import os

from hypothesis import HealthCheck, given, settings, strategies as st

from selfalign.annotations import load_exemplars, load_principles, read_yaml
from selfalign.evaluation import parse_verdict
from selfalign.principle_engraving import Context, PrincipleSet, cited_rules, common_words, judge, loop_start
from selfalign.runs import InputError, Journal, iter_jsonl
from selfalign.topic_prompting import PromptPool, PromptsConfig, parse_questions, parse_tasks, parse_topics
from selfalign.verbose_cloning import VerboseContext, judge_verbose

N = int(os.environ.get("SELFALIGN_FUZZ", 60))
PSET, ROW = PrincipleSet.load(), dict(id="1", instruction="Tell me about rivers.", input="")
CTX, VCTX = Context(PSET, 20, common=common_words()), VerboseContext("Cover every side of the question.", 20)
PIECES = ["###", "\n", "1. Instruction:", "2. Input:", "<noinput>", "Output:", "Aster:", "Aster (internal thoughts):", "User:", "Role: Aster", "Rules: 2 (informative), 99", "<|im_end|>", "```",
          "type: Art, topic: Murals, question:", "- ", "12. ", "Verdict: A", "[[B]]", "{", "}", '"', ":", "\ud800", "\u202e", "\x00", "\r\n", "é", "水", "Sorry", "rule ", "9" * 30]
TEXT = st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=12)), max_size=25).map("".join)
fuzz = lambda **kw: (lambda f: settings(max_examples=N, deadline=5000, suppress_health_check=list(HealthCheck))(given(**kw)(f)))


@fuzz(text=TEXT, cut=st.booleans())
def test_lists(text, cut):
    pool = PromptPool(PromptsConfig(tokenizer="unicode"), [])
    items = parse_tasks(text, cut=cut)
    for instr, inp, raw, why in items: pool.offer(instr, inp, raw, "self_instruct", why)
    assert len(pool.kept) + len(pool.rejects) == len(items)
    for topic, raw, why in parse_topics(text, cut=cut): assert why or 0 < len(topic.split()) <= 3
    for *_, q, raw, why in parse_questions(text, [("Art", "Murals"), ("Art history", "Murals")], cut=cut): assert why or q


@fuzz(text=TEXT, reason=st.sampled_from(["stop", "length"]))
def test_answers(text, reason):
    out = dict(text=text, n_tokens=9, n_prompt=9, finish_reason=reason)
    for got, why in (judge(ROW, out, CTX), judge_verbose(ROW, out, VCTX)):
        assert got["raw"] == text and (why is not None or got["answer"].strip())
        if why is None and "cited" in got: assert all(1 <= n <= 16 for n in got["cited"]) and "\nUser:" not in got["answer"]  # no forged rule, no forged turn
    cited_rules(text); at = loop_start(text)
    assert at is None or 0 <= at <= len(text)


@fuzz(text=TEXT)
def test_a_query_stays_inside_its_turn(text):
    body = PSET.render(text)[len(PSET.prefix()):]
    assert sum(l.startswith(("User:", "Aster")) for l in body.split("\n")) == 2 and body.endswith(PSET.thoughts_cue)


@fuzz(text=TEXT)
def test_verdicts(text): assert parse_verdict(text) in ("A", "B", "tie", None)


@fuzz(raw=st.one_of(st.binary(max_size=200), TEXT.map(lambda t: t.encode("utf-8", "replace"))))
def test_files(raw, tmp_path_factory):
    p = tmp_path_factory.mktemp("f") / "file"
    p.write_bytes(raw)
    for read in (lambda: list(iter_jsonl(p)), lambda: read_yaml(p), lambda: load_principles(p), lambda: load_exemplars(p)):
        try: read()
        except InputError as e: assert "\n" not in str(e).strip()
    with Journal(p, say=lambda s: None) as j: n = len(j); j.add(dict(id="new", text="x"))
    with Journal(p, say=lambda s: None) as j: assert "new" in j and len(j) in (n, n + 1)


@fuzz(text=TEXT)
def test_a_row_comes_back(text, tmp_path_factory):
    p = tmp_path_factory.mktemp("f") / "rows"
    with Journal(p) as j: j.add(dict(id="1", text=text))
    with Journal(p) as j: assert j["1"]["text"] == text and len(p.read_bytes().splitlines()) == 1
    assert json.loads(p.read_text())["text"] == text
