"""Stages 1, 2 and 4 with scripted models: what is kept, what is rejected and why, and the defects of the released code
that must not come back."""
import random
import re

import pytest

from selfalign import annotations as ann, principle_engraving as pe, topic_prompting as tp, verbose_cloning as vc
from selfalign.checks import InputError
from selfalign.config import PromptsConfig, RespondConfig
from selfalign.filters.context import Context
from selfalign.filters.leakage import common_words
from selfalign.filters.repetition import loop_start
from selfalign.generation import ScriptedEngine
from selfalign.human import Human
from selfalign.principle_engraving import PrincipleSet, judge
from selfalign.rows import content_id, read_jsonl, write_jsonl
from selfalign.runs import Run
from selfalign.topic_prompting import parse_questions, parse_tasks, parse_topics, topic_key, write_prompts

PSET = PrincipleSet.load()
THOUGHTS = " Role: Aster, AI assistant. Request: a question. Rules: 2 (informative).\n\nAster: "
ROW = dict(id="1", instruction="Tell me about rivers.", input="")
LONG = ("A river carries water from the hills to the sea, and on its way it feeds fields, "
    "mills and towns that were built beside it long ago.")


def verdict(text, reason="stop", row=ROW, **kw):
    ctx = Context(PSET, kw.pop("min_chars", 40), kw.pop("on_limit", "keep"), common_words())
    got, why = judge(row, dict(text=text, n_tokens=9, n_prompt=9, finish_reason=reason), ctx)
    assert got["raw"] == text  # nothing is thrown away
    return why or got


WORDS = [f"{a}{b}" for a in "bal cor dim fen gul hap jov kel lum mor nel pov".split()
    for b in "ander ible oster ury ette ingo ward ame".split()]


def scripted(prompt, index, seed):
    "A model that follows each stage's format and writes something new every time."
    n = seed % 10**6
    rng = random.Random(seed)
    some = lambda k: " ".join(rng.sample(WORDS, k))
    if "(internal thoughts):" in prompt: return THOUGHTS + LONG + f" Number {n}."
    if "Topics about" in prompt: return f" {some(2)}\n2. {some(2)}\n3. {some(1)}\n4. cut"
    if "questions:" in prompt:
        hints = [l.split(". ", 1)[1] for l in prompt.split("Types and topics:\n")[1].split("\n\n")[0].splitlines()][5:]
        return "\n".join([f" Why is {some(5)} so?"] + [f"{i}. {h}, question: What colour was {some(5)} painted?"
            for i, h in enumerate(hints[1:], 7)]) + "\n99. cut"
    return (f" Explain {some(6)} to a child.\n6. Input:\n<noinput>\n###\n7. Instruction: Sort {some(5)} by weight.\n7. "
        f"Input:\nlead, {n}, feather\n###\n8. Instruction: cut")


def prompts_run(path, cfg=PromptsConfig(self_instruct=20, self_instruct_calls=4, topics_per_type=2, topic_rounds=2,
        balance="median"), engine=None, **kw):
    with Run(path, say=lambda s: None) as run: return write_prompts(run, engine or ScriptedEngine(scripted), cfg, **kw)


def test_stage_1_makes_prompts_of_both_kinds(tmp_path):
    rec = prompts_run(tmp_path / "r")
    rows = read_jsonl(tmp_path / "r" / "prompts.jsonl")
    assert rec["sources"]["self_instruct"] == 20 and rec["sources"]["tgrt"] >= 20
    assert len({r["id"] for r in rows}) == len(rows)
    assert all(r["type"] and r["topic"] for r in rows if r["source"] == "tgrt")
    assert all(r["raw"] and r["reason"] for r in read_jsonl(tmp_path / "r" / "rejects.jsonl"))


def dies_at(n):
    "An engine that is interrupted at its n-th completion."
    class Dies(ScriptedEngine):
        left = n
        def generate_iter(self, *a, **kw):
            for x in super().generate_iter(*a, **kw):
                self.left -= 1
                if self.left == 0: raise KeyboardInterrupt
                yield x
    return Dies(scripted)


def test_stage_1_resumes_to_the_same_rows(tmp_path):  # defects 1, 2 and 13 of the released code
    prompts_run(tmp_path / "a")
    with pytest.raises(KeyboardInterrupt): prompts_run(tmp_path / "b", engine=dies_at(25))
    prompts_run(tmp_path / "b")
    assert read_jsonl(tmp_path / "a" / "prompts.jsonl") == read_jsonl(tmp_path / "b" / "prompts.jsonl")
    assert read_jsonl(tmp_path / "a" / "rejects.jsonl") == read_jsonl(tmp_path / "b" / "rejects.jsonl")


def test_novelty_holds_across_rounds_and_sources(tmp_path):  # defect 3
    same = lambda p, i, s: scripted(p, i, 7)
    with pytest.raises(InputError, match="no new task in 3 rounds"):
        prompts_run(tmp_path / "r", PromptsConfig(self_instruct=20, self_instruct_calls=2, topics_per_type=0,
            fruitless=3), ScriptedEngine(same))
    assert len(read_jsonl(tmp_path / "r" / "prompts.jsonl")) == 2  # what it has is kept


def test_a_model_that_writes_garbage_is_given_up(tmp_path):
    with pytest.raises(InputError, match="no new task in 2 rounds"):
        prompts_run(tmp_path / "r", PromptsConfig(self_instruct=5, self_instruct_calls=2, topics_per_type=0,
            fruitless=2), ScriptedEngine(lambda *a: "%%%% %%% ####"))


def test_the_input_belongs_to_a_prompts_identity():
    pool = tp.PromptPool(PromptsConfig(novelty=1.0), [])
    assert pool.offer("Sort these words by length.", "a bb", "", "x")
    assert pool.offer("Sort these words by length.", "ccc d", "", "x")
    assert not pool.offer("Sort these words by length.", "a bb", "", "x") and pool.rejects[-1]["reason"] == "duplicate"


def test_topics_are_folded_and_the_cut_one_is_dropped():  # defect 4
    assert topic_key("Art") == topic_key("The art") == topic_key("arts") != topic_key("Art history")
    assert [w for *_, w in parse_topics(" Lakes\n2. Rivers\n3. Ocea", cut=True)] == [None, None,
        "cut at the token limit"]
    out = parse_questions(" Who?\n7. type: Art history, topic: Murals, question: When?", [("Art", "Murals")], cut=False)
    assert [w for *_, w in out] == [None, "hint not repeated"]


@pytest.mark.parametrize("text, n",
    [("", 0), ("###\n###\n###", 1), ("\ud800", 1), ("9" * 10**5, 1), (" a b c d\n" * 3000, 1)])
def test_the_list_reader_accounts_for_everything(text, n):
    items = parse_tasks(text, cut=False)
    assert sum(why is None for *_, why in items) == n


@pytest.mark.parametrize("bad, words",
    [(dict(novelty=1.5), "novelty is 1.5"), (dict(self_instruct=0, topics_per_type=0), "0 prompts requested"),
    (dict(self_instruct=10**9), "self_instruct is"), (dict(balance="mean"), "balance is 'mean'")])
def test_bad_settings_are_one_line(bad, words):
    with pytest.raises(InputError, match=words): PromptsConfig(**bad)


def test_two_numbered_lists_survive():  # defect 5
    lists = "To sow:\n1. Dig a bed.\n2. Rake it.\n\nTo reap:\n1. Cut the stalks.\n2. Dry them in the sun for a week."
    got = verdict(THOUGHTS + lists)
    assert got["answer"] == lists and got["ended"] and not got["edits"]


def test_a_loop_is_cut_and_a_refrain_is_not():
    refrain = "\n".join(["The tide comes in,", "and the boats go out,", "sing low, sing low.", "The tide goes out,",
        "and the nets come in,", "sing low, sing low."])
    assert loop_start(refrain) is None
    got = verdict(THOUGHTS + LONG + " It never ends at all, they say." * 6)
    assert got == "repetition" or "repetition" in got["edits"] and not got["ended"]
    assert loop_start("x = 1\nprint(x)\n" + "```\n" + "a += 1\n" * 9 + "```") is None


def test_leakage_comes_from_the_exemplars_in_use():  # defect 6
    honest = (
        "The president of a republic is elected, and the weather on election day often changes how many people vote.")
    assert verdict(THOUGHTS + honest)["answer"] == honest
    assert verdict(THOUGHTS
        + "Reading rooms are usually emptiest in the first hour after opening.") == "exemplar leakage"
    other = PrincipleSet(PSET.principles, (ann.Exemplar((ann.Turn("Which hat?", "Role: {name}. Rules: 2.",
        "The crimson bowler with the ostrich plume belongs to the conductor."),)),))
    ctx = Context(other, 20, common=common_words())
    leak = dict(text=THOUGHTS + "The crimson bowler with the ostrich plume is best.", n_tokens=9, n_prompt=9,
        finish_reason="stop")
    assert judge(ROW, leak, ctx)[1] == "exemplar leakage"


def test_every_reject_has_its_own_reason():  # defect 7
    cases = {"missing role": "Well, rivers.\n\nAster: " + LONG, "missing answer": " Role: Aster, and no more",
             "apology": THOUGHTS + "I'm sorry, but " + LONG,
             "thoughts in answer": THOUGHTS + "Role: Aster, AI assistant. Request: " + LONG,
             "too short": THOUGHTS + "Rivers flow.",
             "cliché": THOUGHTS + LONG + " How can I help you today",
             "foreign name": THOUGHTS + "I am ChatGPT, and " + LONG}
    for want, text in cases.items(): assert verdict(text) == want


def test_a_row_cut_at_the_limit_loses_its_half_sentence_and_its_end_of_turn():  # defect 8
    got = verdict(THOUGHTS + LONG + " And then the ri", reason="length")
    assert got["answer"] == LONG and got["ended"] is False and "token limit" in got["edits"]
    assert verdict(THOUGHTS + LONG + " And then the ri", reason="length", on_limit="reject") == "token limit"


@pytest.mark.parametrize("tail", ["\n2.", "\n- ", "\n(b) ", " It was led by Dr.", " It was led by Dr. Ines M. Oli",
    " Here is how:", "\nThe code:\n```py\nx = 1.\ny =", "\n**3.** Th"])
def test_what_a_cut_leaves_open_goes_too(tail):
    assert verdict(THOUGHTS + LONG + tail, reason="length")["answer"] == LONG


def test_what_a_cut_leaves_whole_stays():
    for whole in (LONG + "\n1. Dig.\n2. Rake the bed", LONG + "\n```py\nx = 1\n```"):
        assert verdict(THOUGHTS + whole + "\nAnd th", reason="length")["answer"] == whole
    assert verdict(THOUGHTS + "Steps:\n1. Dig a bed that is as deep as a spade and as long as the wall",
        reason="length") == "token limit"


def test_a_loop_that_ended_by_itself_is_no_token_limit():
    loops = THOUGHTS + LONG + " " + LONG.replace("river", "brook") + " It never ends at all, they say." * 3
    assert verdict(loops)["edits"] == ["repetition"]
    assert verdict(loops, on_limit="reject") == "repetition"


def test_the_next_turn_is_cut_and_ends_the_answer():
    for tail in ("\n\nUser: Thanks", "\n\nAster: And more", "\n### Example 7\nUser: x"):
        got = verdict(THOUGHTS + LONG + tail, reason="length")
        assert got["answer"] == LONG and got["ended"]


def test_citations_by_number_and_name_are_checked():
    got = verdict(" Role: Aster. Rules: 2 (informative), 7 (ethical), 99.\n\nAster: " + LONG)
    assert (got["cited"], got["mismatched_rules"], got["unknown_rules"]) == ([2, 7], 1, 1)


@pytest.mark.parametrize("text, want", [("Rules: informative, static.", [2, 9]), ("Rules: 2; 7; 9", [2, 7, 9]),
    ("Rules #2, #7", [2, 7]), ("rules 2-4 and 9", [2, 3, 4, 9]), ("rule 9, then 2", [9, 2]),
    ("rules 2 and then 7", [2, 7]), ("Rules: 2/7 and/or 11", [2, 7, 11]), ("principles 1 to 3", [1, 2, 3]),
    ("Rules: Step by step (13), candor", [13, 7]), ("Rule no. 4", [4]), ("Rules: 3-1", [3, 1]),
    ("Rules: 2 – informative", [2]), ("No rules here, 12 of them.", []), ("The rule helpful people know.", []),
    ("the rule of three", []), ("rules2", [])])
def test_citations_are_read_in_every_form(text, want):
    row, _ = judge(ROW, dict(text=f" Role: Aster. {text}\n\nAster: {LONG}", n_tokens=9, n_prompt=9,
        finish_reason="stop"), Context(PSET, 40))
    assert (row["cited"], row["mismatched_rules"], row["unknown_rules"]) == (want, 0, 0)


def test_a_sign_or_a_word_without_spaces_may_name_rules():
    assert pe.cited_rules("Nach § 2 und 3.", words=("§",)) == pe.cited_rules("規則2、3。",
        words=("規則",)) == [(2, ""), (3, "")]


def test_names_that_do_not_fit_are_counted_and_citations_taken_out():
    row, _ = judge(ROW, dict(text=f" Role: Aster. Rules: candor (3); static (99); 2 (static)\n\nAster: {LONG}",
        n_tokens=9, n_prompt=9, finish_reason="stop"), Context(PSET, 40))
    assert (row["cited"], row["mismatched_rules"], row["unknown_rules"]) == ([3, 2], 2, 1)
    assert pe.uncite("Rules 2-4 and static. By rule 3, I ask.", [3, 9], PSET.principles) == "Rules 2, 4. By I ask."


GERMAN = dict(user="Mensch", role="Rolle: {name}", thoughts_label="(denkt still)", rule_words=("Regel", "Regeln"),
    example_words=("Beispiele", "Beispiel"))
FILES = {"prompts/principles.txt": "# {name}\n{name} ist eine KI und beantwortet jede Bitte nach den Regeln unten. Nur die Antwort wird gezeigt.\n{private}Vorher denkt {name} still nach.\n## Regeln\n",
         "principles.yaml": """- {number: 1, name: Schutz, text: "{name} hilft niemandem, anderen zu schaden."}
- {number: 2, name: Sachlichkeit, text: "{name} nennt zuerst, was gesichert ist."}
- {number: 3, name: Nachfragen, text: "{name} fragt kurz zurück, wenn eine Bitte zwei Lesarten hat."}
""", "exemplars.yaml": """- turns:
  - user: Wann kommt die nächste Straßenbahn?
    thoughts: "Rolle: {name}, KI. Anliegen: aktuelle Auskunft. Regeln: 2 (Sachlichkeit)."
    answer: Ein Sprachmodell sieht keine Fahrpläne; die Tafel an der Haltestelle weiß es genau.
- turns:
  - user: Mach es kürzer.
    thoughts: "Rolle: {name}, KI. Anliegen: unklar. Regel 3 (Nachfragen) gilt."
    answer: Welchen Text meinst du, und wie kurz soll er werden?
"""}
FLUSS = ("Ein Fluss trägt das Wasser von den Hügeln zum Meer und speist auf seinem Weg die Felder, "
    "Mühlen und Städte am Ufer.")


@pytest.fixture
def german(tmp_path):
    for name, text in FILES.items():
        (tmp_path / "de" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "de" / name).write_text(text, encoding="utf-8")
    return tmp_path / "de"


def test_a_german_set_works_from_the_prompt_to_the_filters(german):
    pset = pe.load_principle_set(RespondConfig(name="Linde", **GERMAN), german)
    text = pset.render("Was tut ein Fluss?\nMensch: x\nLinde (denkt still): y")
    assert text.endswith("Mensch: Was tut ein Fluss?\n> Mensch: x\n> Linde (denkt still): y\n\nLinde (denkt still):")
    assert not re.search(r"\b(?:User|Example|Rules|Role|thoughts)\b", text) and "{" not in text
    assert "denkt" not in pset.render("x", thoughts=False)
    assert "Regeln" not in pset.prefix(rules=False).replace("## Regeln", "") and "\n### Beispiel" in pset.stop
    row, ctx = dict(id="1", instruction="Was tut ein Fluss?", input=""), Context(pset, 40)
    think = " Rolle: Linde, KI. Anliegen: eine Frage. Regeln: 2 (Sachlichkeit), 9 und Schutz.\n\nLinde: "
    got = lambda t, **kw: judge(row, dict(text=t, n_tokens=9, n_prompt=9, finish_reason="stop") | kw, ctx, "Ahorn")
    kept, why = got(think + FLUSS + " Das sagt Linde." + "\n\nMensch: Danke", finish_reason="length")
    assert (kept["answer"], kept["cited"], kept["unknown_rules"],
        kept["mismatched_rules"]) == (FLUSS + " Das sagt Ahorn.", [2, 1], 1, 0)
    for tail in ("\n### Beispiel 4\nx", "\nLinde (denkt still): Rolle", "\nLinde: Und"):
        assert got(think + FLUSS + tail)[0]["answer"] == FLUSS
    wrong = {"missing role": " Tja.\n\nLinde: " + FLUSS, "thoughts in answer": think + "Rolle: Linde. " + FLUSS,
             "wrong language": think + LONG,
             "exemplar leakage": think
             + "Ein Sprachmodell sieht keine Fahrpläne; die Tafel an der Haltestelle weiß es genau."}
    for why, t in wrong.items(): assert got(t)[1] == why
    assert got(think + FLUSS + " Regel 2 verlangt das.")[1] == "thoughts in answer"
    assert pset.without([3]).exemplars[1].turns[0].thoughts.endswith("unklar. gilt.")
    assert pset.without([2]).cites(pset.without([2]).exemplars[0].turns[0].thoughts) == []


def test_a_set_in_a_script_without_spaces_works():
    turn = ann.Turn("次の電車は何時ですか。", "役割:{name}。依頼は時刻。規則：2（正直）と安全。", "電車の時刻は駅の案内板で確かめてください。")
    pset = PrincipleSet((ann.Principle(1, "安全", "害を避ける。"), ann.Principle(2, "正直", "知らないことは知らないと言う。")),
        (ann.Exemplar((turn,)),), "{name}は規則に従う。", "アスター", "利用者", "役割:{name}", "（心の中）", ("規則",), ("例", "例"))
    assert pset.cites(turn.thoughts) == [(2, "正直"), (1, "安全")] and pset.render("x").endswith("利用者: x\n\nアスター（心の中）:")
    row, why = judge(dict(id="1", instruction="川とは何ですか。", input=""),
        dict(text=" 役割:アスター。規則2、1を守る。\n\nアスター：アスターです。川は山から海へ水を運ぶ流れです。\n利用者：次", n_tokens=9, n_prompt=9,
        finish_reason="stop"), Context(pset, 10), "ノヴァ")
    assert why is None and (row["answer"], row["cited"]) == ("ノヴァです。川は山から海へ水を運ぶ流れです。", [2, 1])


def test_stage_2_runs_in_another_language_and_english_settings_are_as_before(tmp_path, german):
    prompts_run(tmp_path / "r")
    answer = lambda *a: f" Rolle: Linde, KI. Regel 2.\n\nLinde: {FLUSS} {LONG}"
    for i, (cfg, engine, folder) in enumerate([(RespondConfig(name="Linde", min_chars=40, **GERMAN),
            ScriptedEngine(answer), german), (RespondConfig(min_chars=40), ScriptedEngine(scripted), None)]):
        if i: prompts_run(tmp_path / "r2")
        with Run(tmp_path / ("r2" if i else "r"), say=lambda s: None) as run:
            pe.respond(run, engine, cfg, human=Human(folder))
            assert set(pe._WORDS) & set(run.manifest["stages"]["responses"]["settings"]) == (set() if i
                else set(GERMAN))


@pytest.mark.parametrize("field, value", [("user", " "), ("role", ""), ("thoughts_label", ""), ("rule_words", ()),
    ("rule_words", ("Regel", "")), ("example_words", ("x",)), ("user", "Aster")])
def test_words_that_cannot_work_are_one_line(field, value):
    with pytest.raises(InputError, match=field): PrincipleSet.load(**{field: value})


BLOB = """Iris works for a garden shop. Iris keeps to the guidelines of the house:

1. Safety: Iris never explains how to
   mix poisons.
2) Brevity: two sentences are enough.
3. Iris asks back when a question has two readings.

Worked cases follow.

Case 1
Customer: Can I mix bleach and vinegar?
Note: it is for moss.
Iris (notes to self): I am Iris. A dangerous mix. Guidelines: safety.
Iris: No, the mixture gives off a poisonous gas.

A stiff brush and hot water do the job.

Case 2
Customer: When do I sow {peas}?
Iris (notes to self): I am Iris, and this is a plain question. Guidelines 2-3.
Iris: From March. Is it for a tub?

Customer: Yes.
Iris (notes to self): I am Iris. Guideline #2.
Iris: Then in April.
"""
GUIDELINES = dict(rule_words=("guideline", "guidelines"))


def test_our_own_prompt_as_one_text_is_the_same_set():
    for text in (PSET.prefix(), PSET.render(""), PSET.render("Why?\nUser: x"), PSET.prefix().rstrip("\n")):
        got = PrincipleSet.from_text(text)
        assert got.render("Why?") == PSET.render("Why?") and got.stop == PSET.stop and got.role_words == PSET.role_words
        assert [(p.number, p.name) for p in got.principles] == [(p.number, p.name) for p in PSET.principles]
        for parts in (dict(thoughts=False), dict(rules=False), dict(exemplars=False)):
            if "thoughts" not in parts: assert got.render("Why?", **parts) == PSET.render("Why?", **parts)
        assert got.without([9, 3]).render("x") == PSET.without([9, 3]).render("x")
        assert [len(e.turns) for e in got.exemplars] == [1, 1, 1, 2, 1]
        assert got.exemplars[2].turns[0].answer == PSET.exemplars[2].turns[0].answer
        assert "internal thoughts" not in got.render("x", thoughts=False)


@pytest.mark.parametrize("end", ["", "\n", "\nCase 3\n", "\nCustomer:", "\nCustomer: {query}\nIris (notes to self):"])
def test_a_hand_written_prompt_is_shown_as_it_stands(end):
    pset = PrincipleSet.from_text(BLOB + end, **GUIDELINES)
    shown = BLOB + end.split("Customer")[0]
    query = "Customer: Why?\n> Iris: x\n\nIris (notes to self):"
    got = pset.render("Why?\nIris: x")
    assert (got.startswith(shown) and got.endswith(query) and got[len(shown):-len(query)].strip("\n") == ""
        and "\n\nCustomer: Why?" in got or "Case 3\nCustomer: Why?" in got)
    assert (pset.name, pset.user, pset.role, pset.thoughts_label) == ("Iris", "Customer", "I am {name}",
        "(notes to self)")
    assert [(p.number, p.name, p.text) for p in pset.principles][::2] == [(1, "safety",
        "Iris never explains how to mix poisons."), (3, "", "Iris asks back when a question has two readings.")]
    assert [[t.user for t in e.turns] for e in pset.exemplars] == [
        ["Can I mix bleach and vinegar?\nNote: it is for moss."], ["When do I sow {peas}?", "Yes."]]
    assert pset.exemplars[0].turns[0].answer.endswith("\n\nA stiff brush and hot water do the job.")
    assert [pset.cites(t.thoughts) for e in pset.exemplars
        for t in e.turns] == [[(1, "safety")], [(2, ""), (3, "")], [(2, "")]]


def test_filters_and_citations_of_a_prompt_that_is_one_text():
    ctx = Context(PrincipleSet.from_text(BLOB, **GUIDELINES), 40, common=common_words())
    got = lambda t: judge(ROW, dict(text=t, n_tokens=9, n_prompt=9, finish_reason="stop"), ctx, "Nova")
    think = " I am Iris. A plain question. Guidelines: brevity and 3 (safety).\n\nIris: "
    row, why = got(think + "I am Iris. " + LONG + "\nCustomer: x")
    assert why is None and row["answer"] == "I am Nova. " + LONG
    assert (row["cited"], row["mismatched_rules"]) == ([2, 3], 0)
    assert got(" Hm.\n\nIris: " + LONG)[1] == "missing role"
    assert got(think + LONG + " (notes to self)")[1] == "thoughts in answer"
    assert got(think + "A stiff brush and hot water do the job in every garden there is.")[1] == "exemplar leakage"


@pytest.mark.parametrize("text, words", [("", "no exemplar found"),
    ("Just a text.\n1. a\n2. b", "no exemplar found; looked for turns, lines that begin with 'User:'"),
    (BLOB.replace("Customer:", ""), "but not who speaks before it"),
    (re.sub(r"(?m)^\d[.)] ", "- ", BLOB), "no numbered principle found before the first 'Customer:'; "
        "looked for lines such as '1 (ethical)"), (BLOB.replace("2) ", "1) "), "principle 1 occurs twice"),
    (BLOB.replace("I am Iris. G", "Well. G"), "state the role first"),
    (BLOB.replace("Guideline #2", "Guideline #9"), "exemplar 2 cites rule 9"),
    (BLOB.replace("Guideline #2", "Nothing"), "exemplar 2: its thoughts cite no rule")])
def test_a_text_that_is_no_prompt_is_one_line(text, words):
    with pytest.raises(InputError, match=re.escape(words)) as e: PrincipleSet.from_text(text, "my.txt", **GUIDELINES)
    assert str(e.value).startswith("my.txt: ") and "\n" not in str(e.value)


def test_a_prompt_file_runs_stage_2_and_its_name_gives_way(tmp_path):
    from selfalign.annotations import annotation_budget
    prompts_run(tmp_path / "r")
    (tmp_path / "mine").mkdir(); (tmp_path / "mine" / "whole.txt").write_text(BLOB, encoding="utf-8")
    cfg = RespondConfig(principles=("whole.txt",), min_chars=40, rule_words=GUIDELINES["rule_words"])
    e = ScriptedEngine(lambda *a: f" I am Iris. Guideline 2.\n\nIris: I am Iris. {LONG}")
    with Run(tmp_path / "r", say=lambda s: None) as run: pe.respond(run, e, cfg, human=Human(tmp_path / "mine"))
    assert all(p.startswith(BLOB + "\nCustomer: ") for p, *_ in [x[0] for x in e.calls])
    assert {r["answer"] for r in read_jsonl(tmp_path / "r" / "responses.jsonl")} == {f"I am Aster. {LONG}"}
    (tmp_path / "p.yaml").write_text("respond: {principles: [whole.txt]}\n")
    budget = {r["file"]: r for r in annotation_budget(tmp_path / "p.yaml", tmp_path / "mine")}
    assert budget["whole.txt"]["lines"] == sum(bool(l.strip()) for l in BLOB.splitlines())
    assert not {"prompts/principles.txt", "annotations/exemplars.yaml"} & set(budget)
    for bad, words in ((dict(principles=("whole.txt", "x.yaml")), "give it alone"), (dict(exemplars=("x.yaml",)),
            "has its own; give an empty list"), (dict(principles=("none.txt",)), "no such file")):
        with pytest.raises(InputError, match=words):
            pe.load_principle_set(RespondConfig(**dict(principles=("whole.txt",)) | bad), tmp_path / "mine")


def test_stage_2_keeps_rows_and_reasons(tmp_path):
    prompts_run(tmp_path / "r")
    with Run(tmp_path / "r", say=lambda s: None) as run:
        rec = pe.respond(run, ScriptedEngine(scripted), RespondConfig(min_chars=40, product_name="Nova"))
    rows = read_jsonl(tmp_path / "r" / "responses.jsonl")
    assert rec["kept"] + sum(rec["rejected"].values()) == rec["asked"] and all("Aster" not in r["answer"] for r in rows)


@pytest.mark.parametrize("bad, words", [(dict(on_limit="drop"), "on_limit is 'drop'; give 'keep' or 'reject'"),
    (dict(temperature=-1.0), "temperature is -1.0; give a number, 0 or more"),
    (dict(temperature=float("nan")), "temperature is nan"), (dict(top_p=2.0), "top_p is 2.0; give a number above 0"),
    (dict(top_p=0.0), "top_p is 0.0"), (dict(max_new_tokens=0), "max_new_tokens is 0"),
    (dict(limit=0), "limit is 0"), (dict(min_chars=-1), "min_chars is -1"), (dict(name=" "), "name is ' '"),
    (dict(product_name=""), "product_name is ''"), (dict(principles=()), "principles is ()")])
def test_bad_settings_of_stage_2_are_one_line(bad, words):
    with pytest.raises(InputError, match="respond." + re.escape(words)): RespondConfig(**bad)


def test_bad_settings_of_stage_2_stop_before_stage_1(tmp_path):
    from selfalign.config import load_config
    from selfalign.app.cli import main
    (tmp_path / "mine.yaml").write_text("model: embedded\nrespond: {on_limit: drop}\n")
    with pytest.raises(InputError, match="respond.on_limit is 'drop'"): load_config(tmp_path / "mine.yaml")
    assert main(["run", str(tmp_path / "r"), "--preset", "demo", "--respond.top-p", "2"]) != 0
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("product", ["A\\B", r"\1", r"\g<0>"])
def test_a_product_name_is_text(product):
    row, _ = judge(ROW, dict(text=THOUGHTS + "I am Aster. " + LONG, n_tokens=9, n_prompt=9, finish_reason="stop"),
        Context(PSET, 40), product)
    assert row["answer"] == f"I am {product}. {LONG}"


def test_principles_longer_than_the_context_stop_before_the_first_token(tmp_path):
    prompts_run(tmp_path / "r")
    e = ScriptedEngine(scripted)
    n = e.count_tokens(PSET.render(""))
    with Run(tmp_path / "r", say=lambda s: None) as run:
        e.max_context = n + 256 + 63
        with pytest.raises(InputError, match=f"are {n} tokens and the model's context is {n+319}: .* 256 new tokens; "
                f"shorten them or lower max_new_tokens"):
            pe.respond(run, e, RespondConfig())
        assert not e.calls and not run.done("responses") and not (run / "responses.jsonl").exists()
        # the remedy needs no redo
        assert pe.respond(run, e, RespondConfig(min_chars=40, max_new_tokens=255))["kept"] and e.calls


def test_of_several_answers_the_one_that_the_principles_made_is_kept(tmp_path):
    prompts_run(tmp_path / "r")
    asked = []
    # answers to one prompt stand side by side; the third passes and is the principles' own
    def several(prompt, i, seed):
        asked.append(prompt)
        return [scripted(prompt, i, seed), "nonsense",
            scripted(prompt, i, seed).rstrip(".") + ", as every lake does too."][i % 3]
    moved = lambda p, c: -float(len(c)) / 10 + 9 * ("as every lake does too" in c
        and f"1 ({PSET.principles[0].name})" in p)
    e = ScriptedEngine(several, scores=moved)
    with Run(tmp_path / "r", say=lambda s: None) as run:
        rec = pe.respond(run, e, RespondConfig(min_chars=40, samples=3), plain=lambda r: r["instruction"])
    rows = read_jsonl(tmp_path / "r" / "responses.jsonl")
    assert len(asked) == 3 * rec["asked"] and rec["kept"] == len(rows) and len({r["id"] for r in rows}) == len(rows)
    assert all(r["answer"].endswith("as every lake does too.") and r["lift"] > 0 for r in rows)
    assert not any(r.get("lift") for r in read_jsonl(tmp_path / "r" / "rejects.jsonl"))


def test_several_answers_need_a_plain_prompt_and_scores(tmp_path):
    prompts_run(tmp_path / "r")
    with Run(tmp_path / "r", say=lambda s: None) as run:
        with pytest.raises(InputError, match="plain prompt"):
            pe.respond(run, ScriptedEngine(scripted), RespondConfig(min_chars=40, samples=2))
    from selfalign.pipeline import check_inputs
    from selfalign.config import config_from
    with pytest.raises(InputError, match="respond.samples is 2.*set it to 1"):
        check_inputs(config_from(dict(engine="openai:http://127.0.0.1:9/v1#x", respond=dict(samples=2))))


def test_no_survivor_stops_before_training(tmp_path):
    prompts_run(tmp_path / "r")
    with Run(tmp_path / "r", say=lambda s: None) as run:
        with pytest.raises(InputError, match="no answer of .* survived"):
            pe.respond(run, ScriptedEngine(lambda *a: "nonsense"), RespondConfig())
        assert not run.done("responses")
    assert {r["stage"] for r in read_jsonl(tmp_path / "r" / "rejects.jsonl")} == {"prompts", "responses"}


def test_verbose_rows_come_from_all_prompts_but_held_out_ones(tmp_path):  # defect 9
    prompts_run(tmp_path / "r")
    with Run(tmp_path / "r", say=lambda s: None) as run:
        for name in ("responses", "engraved"):
            with run.stage(name, dict(x=1)) as rec: rec["answer_tokens"] = 1
        held = read_jsonl(run / "prompts.jsonl")[:3]
        write_jsonl(run / "held_out.jsonl", held)
        rec = vc.write_verbose(run, ScriptedEngine(lambda *a: LONG), vc.CloneConfig())
        rows, prompts = read_jsonl(run / "verbose.jsonl"), read_jsonl(run / "prompts.jsonl")
    assert rec["asked"] == len(prompts) - 3 == len(rows) and not {h["id"] for h in held} & {r["id"] for r in rows}


@pytest.mark.parametrize("tail, edits, why_strict", [
    (" " + LONG, ["loop"], "loop"), ("\n\nAnd it is so that a river carries water from the hills to the sea, "
        "and on its way it feeds all.", [], None),
    ("\n1. Rinse the pan with warm water and a soft brush.\n2. Rinse the lid with warm water and a soft brush.", [],
        None),
    ("\n```\n" + "print(a, b, c, d, e, f, g, h)\n" * 2 + "```", [], None),
    ("\nsing low, sing low,\nover the water,\nthe boats go out,\nsing low, sing low,\nover the water.", [], None)])
def test_a_verbose_loop_is_cut_or_rejected_and_what_may_repeat_is_kept(tail, edits, why_strict):
    text = "Rivers matter to nearly everyone. " + LONG + tail
    out = dict(text=text, n_tokens=9, finish_reason="stop")
    row, why = vc.judge_verbose(ROW, out, vc.VerboseContext("Answer at length.", 40))
    assert why is None and row["edits"][:1] == edits and row["ended"] is not bool(edits)
    assert row["answer"] == (text[:len(row["answer"])].rstrip() if edits else text)
    got, why = vc.judge_verbose(ROW, out, vc.VerboseContext("Answer at length.", 40, on_limit="reject"))
    assert why == why_strict and got["raw"] == text


def test_going_in_circles_has_its_own_reason_and_human_text_does_not():
    from selfalign.annotations import load_exemplars, load_seed_tasks
    big = ("The train is a big thing, and it is a big place. The place is a big thing, and the big thing is a train. "
        "It is a big place, and it is big.")
    assert vc.judge_verbose(ROW, dict(text=big, n_tokens=9, finish_reason="stop"),
        vc.VerboseContext("Answer at length.", 40))[1] == "goes in circles"
    human = [(t.output, f"{t.instruction} {t.input}") for t in load_seed_tasks()] + [(t.answer, t.user)
        for e in load_exemplars() for t in e.turns]
    assert not [a for a, q in human if loop_start(a, q) is not None
        or vc.repeated_share(a) > vc.CloneConfig().max_repeated]
    assert vc.repeated_share("") == vc.repeated_share("two words " * 9) == 0


def test_an_ablation_goes_on_where_it_was_and_asks_again_only_what_changed(tmp_path):
    from selfalign.config import RunConfig
    from selfalign.app.ablate import ablate, judge_ablation
    prompts_run(tmp_path / "r")
    cfg, e = RunConfig(model="embedded", respond=RespondConfig(min_chars=40)), ScriptedEngine(scripted)
    asked = lambda: sum(len(p) for p, _ in e.calls)
    with Run(tmp_path / "r", say=lambda s: None) as run:
        with pytest.raises(KeyboardInterrupt): ablate(run, dies_at(13), cfg, ["4"], n=5)
        got = ablate(run, e, cfg, ["4"], n=5)
        assert asked() == 5 * 5 - 12  # five variants of five prompts, twelve were answered before the kill
        assert ablate(run, e, cfg, ["4"], n=5) == got and asked() == 13
        assert "\n4 (" not in e.calls[-1][0][0].split("## Examples")[0]
        assert len({s["prompt_tokens"] for s in got["variants"]}) == 5
        ablate(run, e, cfg, ["ethical"], n=5)
        assert asked() == 13 + 5
        judge = ScriptedEngine(lambda p, i, s: "Verdict: yes" if "refuses" in p else "Verdict: B")
        judged = judge_ablation(run, got, judge, say=None)
        n = sum(len(p) for p, _ in judge.calls)
        assert judge_ablation(run, got, judge, say=None) == judged and sum(len(p) for p, _ in judge.calls) == n
    full, without = got["variants"][0], got["variants"][-1]
    assert without["variant"] == "without 4" and full["kept"][0] == 1 and set(full["cited"]) == {"2"}
    assert "minus_full" not in full
    assert [s["refused"][0] for s in judged["variants"]] == [1.0] * 5 and got["variants"][0]["refused"][0] == 0.0


def test_an_ablation_without_prompts_is_one_line(tmp_path):
    from selfalign.config import RunConfig
    from selfalign.app.ablate import ablate
    with Run(tmp_path / "r", say=lambda s: None) as run:
        with pytest.raises(InputError, match="stage 'prompts' is not finished"):
            ablate(run, ScriptedEngine(scripted), RunConfig(model="embedded"))
        with run.stage("prompts", {}): write_jsonl(run / "prompts.jsonl", [])
        with pytest.raises(InputError, match="holds no prompt"):
            ablate(run, ScriptedEngine(scripted), RunConfig(model="embedded"))


def test_a_limit_draws_from_every_source():
    rows = [dict(id=content_id(i), source="tgrt" if i < 60 else "self_instruct") for i in range(100)]
    got = pe._limited(rows, 40, 0)
    assert len(got) == 40 and [r for r in rows if r in got] == got
    assert 8 <= sum(r["source"] == "self_instruct" for r in got) <= 24
    assert pe._limited(rows, 40, 0) == got != pe._limited(rows, 40, 1)
    assert pe._limited(rows, None, 0) == pe._limited(rows, 200, 0) == rows


def test_an_engine_that_fails_on_most_rows_leaves_stage_2_open(tmp_path):
    prompts_run(tmp_path / "r")
    asked, down = [], [True]
    def lame(p, i, s):
        asked.append(p)
        return None if down[0] else scripted(p, i, s)
    with Run(tmp_path / "r", say=lambda s: None) as run:
        with pytest.raises(InputError, match="rows of stage 'responses' failed"):
            pe.respond(run, ScriptedEngine(lame), RespondConfig(min_chars=40))
        down[0] = False
        assert not run.done("responses") and pe.respond(run, ScriptedEngine(lame), RespondConfig(min_chars=40))["kept"]


def test_stage_4_knows_the_users_word_of_another_language():
    row = dict(id="1", instruction="Was ist ein Fluss?", input="")
    out = dict(text="Ein Fluss ist ein Gewässer, das von der Quelle zur Mündung fließt und dabei Land entwässert, "
        "und er wird breiter.\n\nNutzer: Und was ist ein See?", n_tokens=9, finish_reason="length")
    kept, _ = vc.judge_verbose(row, dict(out), vc.VerboseContext("Sei ausführlich.", 20, user="Nutzer"))
    assert kept["answer"].endswith("breiter.") and vc.CloneConfig().sampling("Nutzer").stop == ("\nNutzer:",)


@pytest.mark.parametrize("name, kind", [("prompts", "PromptRow"), ("responses", "ResponseRow"), ("verbose", "AnswerRow")])
def test_rows_have_the_keys_that_their_type_names(name, kind):
    from typing import get_type_hints
    from selfalign import rows
    kinds = get_type_hints(getattr(rows, kind))
    for row in ann.example_rows(name):
        assert {"id", "instruction", "input"} <= {*row} <= {*kinds}
        assert all(isinstance(v, kinds[k]) for k, v in row.items())
