"""The filters of stages 2 and 4: each at its edges, and all of them against the labelled outputs, where they must keep the figures that are published."""
import importlib.util
import json
from collections import Counter
from pathlib import Path

import pytest

from selfalign import principle_engraving as pe, verbose_cloning as vc
from selfalign.principle_engraving import Context, PrincipleSet, Response, common_words, loop_start

ROOT = Path(__file__).parent.parent
spec = importlib.util.spec_from_file_location("filters", ROOT/"benchmarks"/"filters.py")
bench = importlib.util.module_from_spec(spec); spec.loader.exec_module(bench)
CTX = Context(PrincipleSet.load(), 40, common=common_words())
STAGE4 = bench.contexts()["verbose"]


def run(f, answer, query="Tell me about rivers.", ctx=CTX, text="", ended=True): # (reason, answer, edits)
    r = Response("", answer, True, [], ended=ended)
    return f(r, dict(id="1", instruction=query, input=text), ctx), r.answer, r.edits


@pytest.mark.parametrize("tail", ["User: Thanks!", "Aster: And lakes?", "Aster (internal thoughts): Role", "Aster (written)", "A user: Why?", "user 2: No.", "### Example 7\nUser: x", "## What Aster does", "A: User: again"])
def test_next_turn_is_cut(tail):
    assert run(pe.next_turn, f"Rivers run.\n\n{tail}", ended=False)[1:] == ("Rivers run.", ["next turn"])


@pytest.mark.parametrize("answer", ["User interfaces are friendly.\nUsers like them.", "Asters are flowers.\nAster amellus grows on chalk.", "## Ingredients\nFlour.\n\n## Steps\nBake.", "Ask the user: what do you need?"])
def test_next_turn_leaves_prose_alone(answer):
    assert run(pe.next_turn, answer) == (None, answer, [])


@pytest.mark.parametrize("answer", ["Role: Aster, AI assistant. Rivers run.", "Request: an explanation. Rivers run.", "Rivers run. (Rules used: 2, 3.)", "By rule 9 (static) I cannot see it.", "Rivers run (candor, rule 7).",
                                    "My principles ask for facts. Rivers run.", "The user wants facts. Rivers run.", "Internal thoughts: easy. Rivers run."])
def test_thoughts_in_answer(answer): assert run(pe.thoughts_in_answer, answer)[0] == "thoughts in answer"


@pytest.mark.parametrize("query,answer", [("What is the offside rule?", "Rule 11 says that a player may not wait behind the defenders."), ("Explain small claims.", "Under rule 27 of many procedures a judge may take any evidence."),
                                          ("Write a job advert.", "Role: Head gardener\nHours: 37 a week"), ("Who are you?", "I am Aster, an AI assistant."), ("Why three?", "The rule of three says so, and rule breakers know it.")])
def test_rules_of_the_world_are_no_thoughts(query, answer): assert run(pe.thoughts_in_answer, answer, query)[0] is None


@pytest.mark.parametrize("text", ["To plant:\n1. Dig a hole.\n2. Add water.\n\nTo prune:\n1. Dig out weeds.\n2. Cut the dry branches.", "```\nx += 1\nx += 1\nx += 1\nx += 1\n```",
    "Row on, row on, the river is wide,\nthe ferry is late and so is the tide.\nRow on, row on, the river is wide,\nmy love is asleep on the other side.\nRow on, row on, the river is wide,\nwe'll be there by morning.",
    "Little mouse, little mouse, where have you been?\nUnder the table where nobody's seen.\nLittle mouse, little mouse, where will you go?\nBack to my hole.", "7 × 1 = 7\n7 × 2 = 14\n7 × 3 = 21\n7 × 4 = 28", "Go, go, go, go!\nRovers ahead!",
    "Every tax is a duty, and a duty is a promise, and a promise is a debt.", "| 8:10 | Harwich | 2 |\n| 8:40 | Harwich | 2 |\n| 9:10 | Harwich | 2 |"])
def test_what_may_come_back_is_no_loop(text): assert loop_start(text) is None


@pytest.mark.parametrize("text,kept", [("The sea is deep and very blue today. "*5, "The sea is deep and very blue today."), ("This is a message, and I will make it clear to all. I will make it clear to all.", "This is a message, and I will make it clear to all."),
    ("It is made with a recipe that is made with a recipe that is made with a recipe that is made.", "It is made with a recipe that"), ("She is a mammal. "*9, "She is a mammal."), ("Say yes. No, no, no, no, no, no, no.", "Say yes. No,"),
    ("You can make a lot of good jam, he can make a lot of good tea, and we all can make a lot of good bread.", "You can make a lot of good jam, he can make a lot of good tea, and we all"), ("很重要。"*8, "很重要。")])
def test_loops_are_found_where_they_begin(text, kept): assert text[:loop_start(text)].rstrip() == kept


def test_the_query_may_be_said_again():
    query = "What is the law of the sea in short?"
    answer = "The law of the sea in short forms is this. What the law of the sea in short holds is old. In the law of the sea in short nobody owns the deep."
    assert loop_start(answer, query) is None and loop_start(answer) is not None


@pytest.mark.parametrize("answer,bad", [("A bill is a law, and a law is a bill. A bill is a piece of paper, and a piece of the law is a piece of an act. A piece of an act is a part of a law.", 1),
    ("The day was very long, and it was very hard. It was hard to walk, but it was easy to stand. It was a big day, and it was a hard day, and the day was very long.", 1),
    ("Ada is taller than Ben, and Ben is taller than Cal. Dee cannot reach the shelf that all the others reach, so she must be the shortest, and the first named is the tallest of the four.", 0),
    ("The place where people talk and plan is the summit. It brings ministers, envoys and experts together for a week, and it is a place where people talk and plan what their countries will pay for.", 0),
    ("SELECT a, max(b) FROM c WHERE a = max(b) AND a < max(b);\nSELECT a, max(b) FROM c WHERE a = max(b) AND a > max(b);\n" * 4, 0), ("Go on. " * 8, 0),
    ("Bread:\n" + "\n".join(f"{i}. Put {w} into the large bowl and stir it well with a spoon." for i, w in enumerate(["flour", "water", "salt"], 1)), 0)])
def test_going_in_circles(answer, bad): assert bool(run(vc.in_circles, answer, ctx=STAGE4)[0]) == bool(bad)


def test_a_long_phrase_that_comes_back_later_is_no_loop():
    text = "We prove that the product of four integers is a perfect square. Let them be in a row. Then the product of four integers is a perfect square plus nothing."
    assert run(vc.loop, text, ctx=STAGE4) == (None, text, [])


def test_a_loop_is_cut_or_rejected():
    kept = "A river carries water from the hills to the sea and feeds the fields, mills and towns beside it. "
    assert run(pe.repetition, kept + "It is very important. "*3)[2] == ["repetition"]
    assert run(pe.repetition, "It is very important. "*30)[0] == "repetition"


@pytest.mark.parametrize("answer", ["Seats come and go by the minute here.", "Reading rooms are usually emptiest in the first hour after opening.", "The most difficult part is to make it sound friendlier.",
    "Rivers run. Please paste the text here, so that it can sound friendlier.", "The bakery made 168 rolls and sold 131 of them.", "The library's booking page shows the free seats.", "It is safer and quieter without cars, and deliveries still need access."])
def test_exemplars_do_not_leak(answer): assert run(pe.exemplar_leakage, answer)[0] == "exemplar leakage"


@pytest.mark.parametrize("query,answer", [("What does a president do?", "The president signs bills, and the weather does not matter."), ("What does a bakery do with trays and rolls?", "A bakery uses trays; the rolls are baked and sold."),
                                          ("How do I make it sound friendlier?", "To make it sound friendlier, use names."),
                                          ("Where can I buy bread?", "A bakery sells bread, rolls and cakes; most open early."), ("How do towns pay for roads?", "Towns raise money by taxes; shops pay them, visitors pay for parking, and the state helps with the longer streets.")])
def test_honest_answers_do_not_leak(query, answer): assert run(pe.exemplar_leakage, answer, query)[0] is None


def test_leakage_follows_the_exemplars_in_use():
    turn = pe.replace(CTX.pset.exemplars[0].turns[0], user="How do I oil a barometer?", answer="Barometers want whale oil, applied with a feather under moonlight.", thoughts="Role: {name}. Rules: 2.")
    ctx = Context(PrincipleSet(CTX.pset.principles, (pe.replace(CTX.pset.exemplars[0], turns=(turn,)),)), common=common_words())
    assert run(pe.exemplar_leakage, "It is applied with a feather under the table.", ctx=ctx)[0] == "exemplar leakage"
    assert run(pe.exemplar_leakage, "Reading rooms are usually emptiest in the first hour.", ctx=ctx)[0] is None


@pytest.mark.parametrize("answer,bad", [("I'm sorry, but no.", 1), ("My sincere apologies, it is late.", 1), ("Please forgive me, I guess.", 1), ("As an AI language model, I cannot.", 1), ("Sorry for the delay.", 1), ("We are very sorry.", 1), ("Sorrow is old.", 0), ("Sorry comes from Old English.", 0),
                                        ("As an AI engineer you need maths.", 0), ("Say that you are sorry.", 0), ("Unfortunately it rains.", 0), ("Apologies should be short.", 0)])
def test_apology(answer, bad): assert bool(run(pe.apology, answer)[0]) == bool(bad)


def test_condolences_are_no_apology(): assert run(pe.apology, "I am sorry about Bruno; he was a good dog.", "What do you say to a friend whose dog has died?")[0] is None
def test_an_apology_may_be_asked_for(): assert run(pe.apology, "I am sorry that your parcel was lost.", "Write an apology for a lost parcel.")[0] is None


@pytest.mark.parametrize("answer,bad", [("Rivers run. Is there anything else I can help you with?", 1), ("Great question! Rivers run.", 1), ("Dear [Your Name],", 1), ("Rivers run. I hope this helps!", 1), ("Lorem ipsum dolor", 1), ("Name: ________", 1), ("`xs[2]` is the third.", 0), ("It fell [1] and rose [2].", 0),
                                        ("See [Rivers](rivers.html).", 0), ("A question of great weight.", 0), ("Happy people help.", 0),
                                        ("Neighbours are happy to help.", 0), ("Do not hesitate to call a doctor.", 0), ("Feel free to ask the waiter.", 0), ("If you have any questions about the lease, ask a lawyer.", 0), ('Say "How can I help you?" and wait.', 0), ("A dictionary can be of help.", 0),
                                        ("git checkout -b <name>", 0), ("<name>Ada</name>", 0), ("[Chorus]\nRow on", 0), ("A List[Name] of them.", 0), ("Keep warm (your own bag is best).", 0), ("A TODO list helps.", 0), ("Write:\n_____\nand go on.", 0), ("That is a good question to ask a landlord.", 0),
                                        ("I'd be glad to help. Rivers run.", 1), ("I hope you find this helpful.", 1), ("Is there anything else you would like to know?", 1), ("I'm glad I could help!", 1), ("Dear [Hiring Manager],", 1)])
def test_cliche(answer, bad): assert bool(run(pe.cliche, answer)[0]) == bool(bad)


def test_a_letter_may_be_courteous():
    letter = "Dear Ms Lund,\nThank you for your message. The parts come on Friday; let me know if you have any questions.\nTom"
    assert run(pe.cliche, letter, "Write an e-mail about late parts.")[0] is None and run(pe.cliche, letter)[0] == "cliché"


def test_a_template_may_have_blanks(): assert run(pe.cliche, "Dear [Name], I resign.", "Write a template of a letter.")[0] is None


@pytest.mark.parametrize("answer,query,bad", [("I am ChatGPT, trained by OpenAI.", "Hi", 1), ("My name is Lexi.", "Hi", 1), ("Alexa here. Rivers run.", "Hi", 1), ("I was built by Hugging Face.", "Hi", 1), ("My name is Aster.", "Hi", 0), ("ChatGPT was made by OpenAI.", "Who made it?", 0), ("Claude Monet painted.", "Who?", 0),
                                              ("My name is Ines.", "Write a letter by Ines.", 0), ("I am told that llamas spit.", "Do they?", 0), ("Use Google to look it up.", "How?", 0)])
def test_foreign_name(answer, query, bad): assert bool(run(pe.foreign_name, answer, query)[0]) == bool(bad)


GERMAN = "Der Fluss trägt das Wasser von den Bergen zum Meer und speist unterwegs Felder, Mühlen und Städte."
@pytest.mark.parametrize("answer,query,bad", [(GERMAN, "How do rivers work?", 1), ("Река несёт воду с гор к морю и питает поля.", "How do rivers work?", 1), ("A river carries water from the hills to the sea, and feeds fields and towns.", "Wie funktioniert ein Fluss?", 1), (GERMAN, "Wie funktioniert ein Fluss?", 0),
                                              (GERMAN, "Say it in German.", 0), ("Ja.", "Is it?", 0), ("x = [i**2 for i in range(10) if i % 2]", "Write it.", 0), ("Lyon, Ljubljana, Rhône, Sava", "Which places?", 0)])
def test_wrong_language(answer, query, bad): assert bool(run(pe.wrong_language, answer, query)[0]) == bool(bad)


@pytest.mark.parametrize("answer,query,text,bad", [("Why do rivers meander?", "Why do rivers meander?", "", 1), ("You asked: Why do rivers meander so much?", "Why do rivers meander so much?", "", 1), ("The bins are collected on Friday.", "Shorten it to four words.", "The bins are collected on Friday.", 1),
                                                   ("How to clean a cast iron pan.", "How do I clean a cast iron pan?", "", 1), ("There are 120 minutes in two hours.", "How many minutes are there in two hours?", "", 0), ("The capital of France is Paris.", "What is the capital of France?", "", 0),
                                                   ("sedimentary", "Is limestone igneous or sedimentary?", "", 0), ("MEET ME AT THE MILL", "Write in capitals.", "meet me at the mill", 0), ("1.2.1, 2.9.3, 2.10.0", "Sort these versions.", "2.10.0, 2.9.3, 1.2.1", 0), ("", "Why?", "", 0)])
def test_echo(answer, query, text, bad): assert bool(run(pe.echo, answer, query, text=text)[0]) == bool(bad)


def test_token_limit_keeps_or_rejects():
    assert run(pe.token_limit, "It is so. And the rea", ended=False)[1:] == ("It is so.", ["token limit"])
    assert run(pe.token_limit, "It is so. And the rea", ended=False, ctx=pe.replace(CTX, on_limit="reject"))[0] == "token limit"
    assert run(pe.token_limit, "no end at all", ended=False)[0] == "token limit"
    assert run(pe.token_limit, "It is so. And the rea") == (None, "It is so. And the rea", [])
    assert run(pe.too_short, "x"*39)[0] == "too short" and run(pe.too_short, "x"*40)[0] is None


@pytest.mark.parametrize("answer,bad", [("Rivers run.\nUser: more", 1), ("Rivers run.\n**Human:** more", 1), ("Rivers run.\n### Instruction\nMore", 1), ("Rivers run.\n<|im_start|>user", 1), ("### Ingredients\nFlour", 0), ("Question: May I?\nAnswer: No.\nQuestion: Why?", 0), ("Pawn: I walk.\nRook: I run.\n### Question\nHow far?", 1), ("Users run.\nHumans too.", 0)])
def test_another_turn(answer, bad): assert bool(run(vc.another_turn, answer, ctx=STAGE4)[2]) == bool(bad)


@pytest.mark.parametrize("answer,bad", [("I will cover every side of the question.", 1), ("You are Aster, you know.", 1), ("I was asked to give a long and complete answer. Rivers run.", 1), ("Give a complete answer. Rivers run.", 1), ("A complete answer gives what was asked for, and a long one may miss it.", 0), ("This is a very long and detailed explanation.", 0), ("I am Aster, an AI assistant.", 0), ("Full sentences help, and a conclusion ends it.", 0)])
def test_system_text(answer, bad): assert bool(run(vc.system_leak, answer, ctx=STAGE4)[0]) == bool(bad)


@pytest.mark.parametrize("answer,bad", [("Rivers run.\n\nExternal links", 1), ("Rivers run. [citation needed]", 1), ("Rivers run.\nRead more: ten rivers", 1), ("Rivers run. © 2019", 1), ("This article is the promise to help.", 0), ("See also the manual, which is short.", 0)])
def test_furniture(answer, bad): assert bool(run(vc.furniture, answer, ctx=STAGE4)[0]) == bool(bad)


# --- against the labels

@pytest.fixture(scope="module")
def rows(): return bench.labelled()


def test_the_labelled_set_is_what_it_is_said_to_be(rows):
    real = [r for r in rows if not r["constructed"]]
    assert len(real) >= 330 and len({r["id"] for r in rows}) == len(rows)
    assert Counter(r["stage"] for r in real)["principled"] >= 230
    halves = {s: {" ".join(f"{r['instruction']} {r['input']}".lower().split()) for r in rows if r["split"] == s} for s in ("tune", "held_out")}
    assert not halves["tune"] & halves["held_out"]  # a prompt is in one half alone
    count = Counter((r["stage"], l) for r in rows for l in r["labels"])
    few = {k: n for k in ((s, l) for s, faults in bench.FAULTS.items() for l in faults) if (n := count[k]) < 30}
    assert set(few) <= {("verbose", "echo"), ("verbose", "token limit"), ("verbose", "too short")}  # written for stage 2, where the same filters stand


def test_filters_keep_their_published_figures(rows):
    stored = json.loads((ROOT/"data"/"results"/"filters.json").read_text())
    ctxs = bench.contexts()
    now = bench.table(rows, [bench.flags(r, ctxs[r["stage"]]) for r in rows])
    for stage, labels in stored["filters"].items():
        for label, parts in labels.items():
            for part, was in parts.items():
                if part == "unsure": continue
                for what in ("precision", "recall"):
                    if was[what]["value"] is not None: assert (now[stage][label][part][what]["value"] or 0) >= was[what]["value"] - 1e-9, (stage, label, part, what)
    assert min(stored["rows_per_second"].values()) >= 2000


def test_precision_and_recall_are_counted_right():
    r = bench.rates([(True, True), (True, False), (False, True), (True, True), (False, False)])
    assert (r["positives"], r["flagged"]) == (3, 3) and r["precision"]["value"] == r["recall"]["value"] == 2/3 and r["recall"]["low"] < 2/3 < r["recall"]["high"]
