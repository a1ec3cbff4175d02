"""The filters of stages 2 and 4: each at its edges, and all of them against the labelled outputs, where they must keep
the figures that are published."""
import importlib.util
import json
from collections import Counter
from pathlib import Path

import pytest

from selfalign import principle_engraving as pe, verbose_cloning as vc
from selfalign.filters.chain import told_reason
from selfalign.filters.context import Context, Response
from selfalign.filters.leakage import common_words
from selfalign.filters.repetition import loop_start
from selfalign.principle_engraving import PrincipleSet

ROOT = Path(__file__).parent.parent
spec = importlib.util.spec_from_file_location("filters", ROOT/"benchmarks"/"filters.py")
bench = importlib.util.module_from_spec(spec); spec.loader.exec_module(bench)
CTX = Context(PrincipleSet.load(), 40, common=common_words())
STAGE4 = bench.contexts()["verbose"]


def run(f, answer, query="Tell me about rivers.", ctx=CTX, text="", ended=True): # (reason, answer, edits)
    r = Response("", answer, True, [], ended=ended)
    reason = f(r, dict(id="1", instruction=query, input=text), ctx)
    return reason and told_reason(reason)["reason"], r.answer, r.edits


@pytest.mark.parametrize("tail", ["User: Thanks!", "Aster: And lakes?", "Aster (internal thoughts): Role",
    "Aster (written)", "A user: Why?", "user 2: No.", "### Example 7\nUser: x", "## What Aster does", "A: User: again"])
def test_next_turn_is_cut(tail):
    assert run(pe.next_turn, f"Rivers run.\n\n{tail}", ended=False)[1:] == ("Rivers run.", ["next turn"])


@pytest.mark.parametrize("answer",
    ["User interfaces are friendly.\nUsers like them.", "Asters are flowers.\nAster amellus grows on chalk.",
    "## Ingredients\nFlour.\n\n## Steps\nBake.", "Ask the user: what do you need?"])
def test_next_turn_leaves_prose_alone(answer):
    assert run(pe.next_turn, answer) == (None, answer, [])


@pytest.mark.parametrize("answer", ["Role: Aster, AI assistant. Rivers run.", "Request: an explanation. Rivers run.",
    "Rivers run. (Rules used: 2, 3.)", "By rule 9 (static) I cannot see it.", "Rivers run (candor, rule 7).",
    "My principles ask for facts. Rivers run.", "The user wants facts. Rivers run.",
    "Internal thoughts: easy. Rivers run."])
def test_thoughts_in_answer(answer): assert run(pe.thoughts_in_answer, answer)[0] == "thoughts in answer"


@pytest.mark.parametrize("query,answer",
    [("What is the offside rule?", "Rule 11 says that a player may not wait behind the defenders."),
    ("Explain small claims.", "Under rule 27 of many procedures a judge may take any evidence."),
    ("Write a job advert.", "Role: Head gardener\nHours: 37 a week"), ("Who are you?", "I am Aster, an AI assistant."),
    ("Why three?", "The rule of three says so, and rule breakers know it.")])
def test_rules_of_the_world_are_no_thoughts(query, answer): assert run(pe.thoughts_in_answer, answer, query)[0] is None


@pytest.mark.parametrize("text",
    ["To plant:\n1. Dig a hole.\n2. Add water.\n\nTo prune:\n1. Dig out weeds.\n2. Cut the dry branches.",
    "```\nx += 1\nx += 1\nx += 1\nx += 1\n```",
    "Row on, row on, the river is wide,\nthe ferry is late and so is the tide.\nRow on, row on, the river is wide,\nmy "
    "love is asleep on the other side.\nRow on, row on, the river is wide,\nwe'll be there by morning.",
    "Little mouse, little mouse, where have you been?\nUnder the table where nobody's seen.\nLittle mouse, "
    "little mouse, where will you go?\nBack to my hole.", "7 × 1 = 7\n7 × 2 = 14\n7 × 3 = 21\n7 × 4 = 28",
    "Go, go, go, go!\nRovers ahead!",
    "Every tax is a duty, and a duty is a promise, and a promise is a debt.",
    "| 8:10 | Harwich | 2 |\n| 8:40 | Harwich | 2 |\n| 9:10 | Harwich | 2 |"])
def test_what_may_come_back_is_no_loop(text): assert loop_start(text) is None


@pytest.mark.parametrize("text,kept",
    [("The sea is deep and very blue today. "*5, "The sea is deep and very blue today."), ("This is a message, and I "
    "will make it clear to all. I will make it clear to all.", "This is a message, and I will make it clear to all."),
    ("It is made with a recipe that is made with a recipe that is made with a recipe that is made.",
        "It is made with a recipe that"), ("She is a mammal. "*9, "She is a mammal."),
    ("Say yes. No, no, no, no, no, no, no.", "Say yes. No,"),
    ("You can make a lot of good jam, he can make a lot of good tea, and we all can make a lot of good bread.",
        "You can make a lot of good jam, he can make a lot of good tea, and we all"), ("很重要。"*8, "很重要。")])
def test_loops_are_found_where_they_begin(text, kept): assert text[:loop_start(text)].rstrip() == kept


def test_the_query_may_be_said_again():
    query = "What is the law of the sea in short?"
    answer = ("The law of the sea in short forms is this. What the law of the sea in short holds is old. "
        "In the law of the sea in short nobody owns the deep.")
    assert loop_start(answer, query) is None and loop_start(answer) is not None


@pytest.mark.parametrize("answer,bad", [("A bill is a law, and a law is a bill. A bill is a piece of paper, "
    "and a piece of the law is a piece of an act. A piece of an act is a part of a law.", 1),
    ("The day was very long, and it was very hard. It was hard to walk, but it was easy to stand. It was a big day, "
        "and it was a hard day, and the day was very long.", 1),
    ("Ada is taller than Ben, and Ben is taller than Cal. Dee cannot reach the shelf that all the others reach, "
        "so she must be the shortest, and the first named is the tallest of the four.", 0),
    ("The place where people talk and plan is the summit. It brings ministers, envoys and experts together for a week, "
        "and it is a place where people talk and plan what their countries will pay for.", 0),
    ("SELECT a, max(b) FROM c WHERE a = max(b) AND a < max(b);\nSELECT a, "
        "max(b) FROM c WHERE a = max(b) AND a > max(b);\n" * 4, 0), ("Go on. " * 8, 0),
    ("Bread:\n" + "\n".join(f"{i}. Put {w} into the large bowl and stir it well with a spoon."
        for i, w in enumerate(["flour", "water", "salt"], 1)), 0)])
def test_going_in_circles(answer, bad): assert bool(run(vc.in_circles, answer, ctx=STAGE4)[0]) == bool(bad)


def test_a_long_phrase_that_comes_back_later_is_no_loop():
    text = ("We prove that the product of four integers is a perfect square. Let them be in a row. "
        "Then the product of four integers is a perfect square plus nothing.")
    assert run(vc.loop, text, ctx=STAGE4) == (None, text, [])


def test_a_loop_is_cut_or_rejected():
    kept = "A river carries water from the hills to the sea and feeds the fields, mills and towns beside it. "
    assert run(pe.repetition, kept + "It is very important. "*3)[2] == ["repetition"]
    assert run(pe.repetition, "It is very important. "*30)[0] == "repetition"


@pytest.mark.parametrize("answer",
    ["Seats come and go by the minute here.", "Reading rooms are usually emptiest in the first hour after opening.",
    "The most difficult part is to make it sound friendlier.",
    "Rivers run. Please paste the text here, so that it can sound friendlier.",
    "The bakery made 168 rolls and sold 131 of them.", "The library's booking page shows the free seats.",
    "It is safer and quieter without cars, and deliveries still need access."])
def test_exemplars_do_not_leak(answer): assert run(pe.exemplar_leakage, answer)[0] == "exemplar leakage"


@pytest.mark.parametrize("query,answer",
    [("What does a president do?", "The president signs bills, and the weather does not matter."),
    ("What does a bakery do with trays and rolls?", "A bakery uses trays; the rolls are baked and sold."),
    ("How do I make it sound friendlier?", "To make it sound friendlier, use names."), ("Where can I buy bread?",
    "A bakery sells bread, rolls and cakes; most open early."), ("How do towns pay for roads?", "Towns raise money by "
    "taxes; shops pay them, visitors pay for parking, and the state helps with the longer streets.")])
def test_honest_answers_do_not_leak(query, answer): assert run(pe.exemplar_leakage, answer, query)[0] is None


def test_leakage_follows_the_exemplars_in_use():
    turn = pe.replace(CTX.pset.exemplars[0].turns[0], user="How do I oil a barometer?",
        answer="Barometers want whale oil, applied with a feather under moonlight.", thoughts="Role: {name}. Rules: 2.")
    ctx = Context(PrincipleSet(CTX.pset.principles, (pe.replace(CTX.pset.exemplars[0], turns=(turn,)),)),
        common=common_words())
    assert run(pe.exemplar_leakage, "It is applied with a feather under the table.", ctx=ctx)[0] == "exemplar leakage"
    assert run(pe.exemplar_leakage, "Reading rooms are usually emptiest in the first hour.", ctx=ctx)[0] is None


@pytest.mark.parametrize("answer,bad",
    [("I'm sorry, but no.", 1), ("My sincere apologies, it is late.", 1), ("Please forgive me, I guess.", 1),
    ("As an AI language model, I cannot.", 1), ("Sorry for the delay.", 1), ("We are very sorry.", 1),
    ("Sorrow is old.", 0), ("Sorry comes from Old English.", 0), ("As an AI engineer you need maths.", 0),
    ("Say that you are sorry.", 0), ("Unfortunately it rains.", 0), ("Apologies should be short.", 0)])
def test_apology(answer, bad): assert bool(run(pe.apology, answer)[0]) == bool(bad)


def test_condolences_are_no_apology():
    assert run(pe.apology, "I am sorry about Bruno; he was a good dog.",
        "What do you say to a friend whose dog has died?")[0] is None
def test_an_apology_may_be_asked_for():
    assert run(pe.apology, "I am sorry that your parcel was lost.", "Write an apology for a lost parcel.")[0] is None


@pytest.mark.parametrize("answer,bad", [("Rivers run. Is there anything else I can help you with?", 1),
    ("Great question! Rivers run.", 1), ("Dear [Your Name],", 1), ("Rivers run. I hope this helps!", 1),
    ("Lorem ipsum dolor", 1), ("Name: ________", 1), ("`xs[2]` is the third.", 0), ("It fell [1] and rose [2].", 0),
    ("See [Rivers](rivers.html).", 0), ("A question of great weight.", 0), ("Happy people help.", 0),
    ("Neighbours are happy to help.", 0), ("Do not hesitate to call a doctor.", 0), ("Feel free to ask the waiter.", 0),
    ("If you have any questions about the lease, ask a lawyer.", 0), ('Say "How can I help you?" and wait.', 0),
    ("A dictionary can be of help.", 0), ("git checkout -b <name>", 0), ("<name>Ada</name>", 0),
    ("[Chorus]\nRow on", 0), ("A List[Name] of them.", 0), ("Keep warm (your own bag is best).", 0),
    ("A TODO list helps.", 0), ("Write:\n_____\nand go on.", 0), ("That is a good question to ask a landlord.", 0),
    ("I'd be glad to help. Rivers run.", 1),
    ("Is there anything else you would like to know?", 1),
    ("Dear [Hiring Manager],", 1)])
def test_cliche(answer, bad): assert bool(run(pe.cliche, answer)[0]) == bool(bad)


def test_a_letter_may_be_courteous():
    letter = ("Dear Ms Lund,\nThank you for your message. The parts come on Friday; "
        "let me know if you have any questions.\nTom")
    assert run(pe.cliche, letter, "Write an e-mail about late parts.")[0] is None
    assert run(pe.cliche, letter)[0] == "cliché"


def test_a_template_may_have_blanks():
    assert run(pe.cliche, "Dear [Name], I resign.", "Write a template of a letter.")[0] is None


@pytest.mark.parametrize("answer,query,bad", [("I am ChatGPT, trained by OpenAI.", "Hi", 1),
    ("My name is Lexi.", "Hi", 1), ("Alexa here. Rivers run.", "Hi", 1), ("I was built by Hugging Face.", "Hi", 1),
    ("My name is Aster.", "Hi", 0), ("ChatGPT was made by OpenAI.", "Who made it?", 0),
    ("Claude Monet painted.", "Who?", 0), ("My name is Ines.", "Write a letter by Ines.", 0),
    ("I am told that llamas spit.", "Do they?", 0), ("Use Google to look it up.", "How?", 0)])
def test_foreign_name(answer, query, bad): assert bool(run(pe.foreign_name, answer, query)[0]) == bool(bad)


GERMAN = "Der Fluss trägt das Wasser von den Bergen zum Meer und speist unterwegs Felder, Mühlen und Städte."
@pytest.mark.parametrize("answer,query,bad",
    [(GERMAN, "How do rivers work?", 1), ("Река несёт воду с гор к морю и питает поля.", "How do rivers work?", 1),
    ("A river carries water from the hills to the sea, and feeds fields and towns.", "Wie funktioniert ein Fluss?", 1),
    (GERMAN, "Wie funktioniert ein Fluss?", 0), (GERMAN, "Say it in German.", 0), ("Ja.", "Is it?", 0),
    ("x = [i**2 for i in range(10) if i % 2]", "Write it.", 0), ("Lyon, Ljubljana, Rhône, Sava", "Which places?", 0)])
def test_wrong_language(answer, query, bad): assert bool(run(pe.wrong_language, answer, query)[0]) == bool(bad)


@pytest.mark.parametrize("answer,query,text,bad", [("Why do rivers meander?", "Why do rivers meander?", "", 1),
    ("You asked: Why do rivers meander so much?", "Why do rivers meander so much?", "", 1),
    ("The bins are collected on Friday.", "Shorten it to four words.", "The bins are collected on Friday.", 1),
    ("How to clean a cast iron pan.", "How do I clean a cast iron pan?", "", 1),
    ("There are 120 minutes in two hours.", "How many minutes are there in two hours?", "", 0),
    ("The capital of France is Paris.", "What is the capital of France?", "", 0), ("sedimentary",
    "Is limestone igneous or sedimentary?", "", 0), ("MEET ME AT THE MILL", "Write in capitals.", "meet me at the mill",
    0), ("1.2.1, 2.9.3, 2.10.0", "Sort these versions.", "2.10.0, 2.9.3, 1.2.1", 0), ("", "Why?", "", 0)])
def test_echo(answer, query, text, bad): assert bool(run(pe.echo, answer, query, text=text)[0]) == bool(bad)


def test_token_limit_keeps_or_rejects():
    assert run(pe.token_limit, "It is so. And the rea", ended=False)[1:] == ("It is so.", ["token limit"])
    assert run(pe.token_limit, "It is so. And the rea", ended=False,
        ctx=pe.replace(CTX, on_limit="reject"))[0] == "token limit"
    assert run(pe.token_limit, "no end at all", ended=False)[0] == "token limit"
    assert run(pe.token_limit, "It is so. And the rea") == (None, "It is so. And the rea", [])
    assert run(pe.too_short, "x"*39)[0] == "too short" and run(pe.too_short, "x"*40)[0] is None


@pytest.mark.parametrize("answer,bad", [("Rivers run.\nUser: more", 1), ("Rivers run.\n**Human:** more", 1),
    ("Rivers run.\n### Instruction\nMore", 1), ("Rivers run.\n<|im_start|>user", 1), ("### Ingredients\nFlour", 0),
    ("Question: May I?\nAnswer: No.\nQuestion: Why?", 0), ("Pawn: I walk.\nRook: I run.\n### Question\nHow far?", 1),
    ("Users run.\nHumans too.", 0)])
def test_another_turn(answer, bad): assert bool(run(vc.another_turn, answer, ctx=STAGE4)[2]) == bool(bad)


@pytest.mark.parametrize("answer,bad", [("I will cover every side of the question.", 1), ("You are Aster, you know.",
    1), ("I was asked to give a long and complete answer. Rivers run.", 1), ("Give a complete answer. Rivers run.", 1),
    ("A complete answer gives what was asked for, and a long one may miss it.", 0),
    ("This is a very long and detailed explanation.", 0), ("I am Aster, an AI assistant.", 0),
    ("Full sentences help, and a conclusion ends it.", 0)])
def test_system_text(answer, bad): assert bool(run(vc.system_leak, answer, ctx=STAGE4)[0]) == bool(bad)


@pytest.mark.parametrize("answer,bad", [("Rivers run.\n\nExternal links", 1), ("Rivers run. [citation needed]", 1),
    ("Rivers run.\nRead more: ten rivers", 1), ("Rivers run. © 2019", 1), ("This article is the promise to help.", 0),
    ("See also the manual, which is short.", 0)])
def test_furniture(answer, bad): assert bool(run(vc.furniture, answer, ctx=STAGE4)[0]) == bool(bad)


# --- other wordings of each fault, and look-alikes

@pytest.mark.parametrize("tail",
    ["Student: But what about lakes?\nTeacher: They stand still.", "[INST] And lakes? [/INST]",
    "A user asks: And lakes?", "Human (smiling): Thanks.", "Next question: What are lakes?", "User says: And lakes?",
    "**User**: And lakes?", "[User]: And lakes?", "> User: And lakes?",
    "<user>\nAnd lakes?", "## Example 2\n\nInstruction: Lakes", "### Response:\nLakes", "# Conversation 2\nHi",
    "Follow-up question: Why?", "Question 2: Why?", "USER: Why?", "Customer: Do you sell lakes?\nAgent: No.",
    "</s>", "Prompt: Tell me about lakes.", "Bot: Shall I go on?", "Aster (after a pause): Lakes?",
    "The user replies: Thanks."])
def test_another_speaker_in_other_words(tail):
    assert run(vc.another_turn, f"Rivers run.\n\n{tail}", ctx=STAGE4)[1:] == ("Rivers run.", ["another turn"])


@pytest.mark.parametrize("tail",
    ["Human: Thanks!", "Aster's response is a different one: Lakes.", "Aster replies: Lakes.", "The user says thanks.",
    "Assistant: More?", "Question: And lakes?\nAnswer: No.", "It is so. User: And lakes?", "<|im_end|>"])
def test_next_turn_in_other_words(tail): assert run(pe.next_turn, f"Rivers run.\n\n{tail}")[2] == ["next turn"]


@pytest.mark.parametrize("answer,query",
    [("Night.\n\nHUMAN: Down, please.\nLIFT: No.\nHUMAN: Why?", "Write a play in which a human argues with a lift."),
    ("Instruction: read it all.\nInput: 230 V\nOutput: 9 V", "What stands in a manual?"),
    ("Three steps:\n\nMe: I listen.\nYou: you speak.", "How do we share?"),
    ("A good plan:\n\nStudent: reads for an hour.\nTeacher: marks it.", "Who does what?"),
    ("The user: a short guide\nUsers: many", "Roles?"), ("Rivers run.\nWarning: deep?\nNote: yes?", "Rivers?"),
    ("Anna: Hi.\nUser: Hello?", "Write a dialogue.")])
def test_labels_of_the_answer_are_no_turn(answer, query):
    assert run(vc.another_turn, answer, query, ctx=STAGE4)[2] == []


@pytest.mark.parametrize("tail", ["Tags: rivers, lakes", "14 Comments | Add comment",
    "« Older posts", "(Photo: Getty Images)", "[Image: a river at dawn]", "Main article: Rivers",
    "Last updated: 12 January 2016 at 14:05 GMT", "Follow us on Instagram @rivers", "Was this page helpful? Yes No",
    "You may also like:\nTen lakes", "Please enable JavaScript to view the video.",
    "Read more...", "View the full article here.", "Sign up for our newsletter.", "Home » Water » Rivers",
    "By Sarah Miller, Staff Writer", "Filed under: water", "Posted in Nature",
    "Page 2 of 5", "Photo by Tom Lund on Unsplash", "We use cookies on this site.",
    "This post contains affiliate links.", "5 min read", "Share this:",
    "Next post: Lakes", "Log in to reply", "From Wikipedia, the free encyclopedia", "See www.rivers.example",
    "Skip to content",
    "Published on 3 May 2014 by admin", "Image source: Flickr",
    "Leave a reply", "Thanks for reading! Don't forget to subscribe to our channel."])
def test_furniture_in_other_words(tail):
    assert run(vc.furniture, f"Rivers run from the hills to the sea.\n\n{tail}", ctx=STAGE4)[0] == "web page furniture"


@pytest.mark.parametrize("answer", ["Rivers run. Share the bread with others, and follow the path.",
    "By noon the tide is out.", "Home is where rivers end.", "Contents of the jar: salt.",
    "Related words: brook, stream.", "Leave the page open and read on.", "The guide was written by Ada Lund in 1920.",
    "References to rivers are many in his work.", "Comments from neighbours help.", "Date the letter, then sign it.",
    'Under "History" there is a line; press "Read more".', "Subscribe to a paper if you like news.",
    "This section of the river was dug in 1850.", "The photo shows a river.", "A tag on the bag helps.",
    "Print the form and post it.", "Update it once a year.", "If x < y, then go on; a & b."])
def test_prose_is_no_furniture(answer): assert run(vc.furniture, answer, ctx=STAGE4)[0] is None


WORDS = "fig pear plum apple cherry quince medlar lemon lime orange grape melon date peach".split()
@pytest.mark.parametrize("line", ["{a}) {w}", "[{i}] {w}", "Step {i}: Take the {w}.", "({i}) {w}", "#{i} {w}",
    "{i}: {w}", "**{i}. {w}**", "– {w}", "· {w}", "→ {w}", "Tip {i}: a {w}", "+ {w}", "{i} - {w}", "Fresh {w}"])
def test_long_lists_of_any_mark(line):
    items = [line.format(i=i, a=chr(96+i), w=w) for i, w in enumerate(WORDS, 1)]
    assert run(vc.long_list, "Take these:\n" + "\n".join(items), ctx=STAGE4)[2] == ["long list"]
    assert run(vc.long_list, "Take these:\n" + "\n".join(items[:12]), ctx=STAGE4)[2] == []


def test_long_lists_inside_a_line_and_with_notes():
    assert run(vc.long_list, " ".join(f"{i}. Eat a {w}." for i, w in enumerate(WORDS, 1)),
        ctx=STAGE4)[2] == ["long list"]
    assert run(vc.long_list, "\n\n".join(f"{i}. {w}\n\nIt is a fruit." for i, w in enumerate(WORDS, 1)),
        ctx=STAGE4)[2] == ["long list"]


@pytest.mark.parametrize("answer", ["\n".join(f"{'Ada' if i % 2 else 'Ben'}: It is {w}." for i, w in enumerate(WORDS)),
    "```\n" + "\n".join(f"- {w}" for w in WORDS) + "\n```", "\n".join(f"the {w} falls," for w in WORDS),
    "The war of 1812. The peace of 1814. In 1815. 13. May it was."])
def test_many_lines_are_no_list(answer): assert run(vc.long_list, answer, ctx=STAGE4)[2] == []


@pytest.mark.parametrize("answer",
    ["This is a thorough explanation that covers every side of the question. Rivers run.",
    "(The note is long and complete, is written in full sentences, and is finished with a conclusion, "
    "as the assistant was told.)", "My instructions are to explain rivers with reasons and examples.",
    "To give you a long, complete answer, I cover every side. Rivers run.",
    "Rivers run. Conclusion: this answer explained the thing thoroughly, it covered every side and gave details.",
    "I was told to finish with a conclusion and give details. Rivers run.",
    "As requested, here are reasons, details and examples. Rivers run.",
    "I will now give a long and detailed answer with examples. Rivers run.",
    "You are an AI assistant that explains rivers.",
    "This answer is complete, with full sentences and a conclusion."])
def test_system_text_in_other_words(answer): assert run(vc.system_leak, answer, ctx=STAGE4)[0] is not None


@pytest.mark.parametrize("answer,query",
    [("Finish with a conclusion that says more, and give reasons for it.", "How do I write an essay?"),
    ("A good teacher explains thoroughly, gives examples and lets the class draw the conclusion.",
    "What makes a good teacher?"),
    ("The jury gave detailed reasons, and in the end its conclusion was clear.", "What did the jury say?"),
    ("This river is long, and its lower half is complete wilderness.", "Rivers?"),
    ("I will give three reasons. Rivers run.", "Rivers?")])
def test_answers_about_answers_are_no_system_text(answer, query):
    assert run(vc.system_leak, answer, query, ctx=STAGE4)[0] is None


@pytest.mark.parametrize("answer,query",
    [("You are asking me to tell you how tall the Eiffel Tower is.", "Tell me how tall the Eiffel Tower is."),
    ("The main differences between a frog and a toad, and how you can tell them apart in your garden.",
    "What are the main differences between a frog and a toad, and how can I tell them apart in my garden?"),
    ("Sure! Why do rivers meander so much?", "Why do rivers meander so much?"),
    ("You want to know why rivers meander so much.", "Why do rivers meander so much?"),
    ("The question asks why rivers meander so much.", "Why do rivers meander so much?"),
    ("Explaining why bread rises in warm kitchens.", "Explain why bread rises in warm kitchens."),
    ("I have been asked to explain why bread rises in warm kitchens.",
        "Explain why bread rises in warm kitchens.")])
def test_echo_in_other_words(answer, query): assert run(pe.echo, answer, query)[0] == "echo"


@pytest.mark.parametrize("answer,query,text",
    [("The seven grey geese slept.", "Repeat this sentence.", "The seven grey geese slept."),
    ("Yes, limestone rocks are sedimentary rocks.", "Are limestone rocks sedimentary rocks?", ""),
    ("the bins go out on monday", "Put it in lower case.", "The Bins Go Out On Monday")])
def test_the_query_again_may_be_the_answer(answer, query, text):
    assert run(pe.echo, answer, query, text=text)[0] is None
def test_another_spelling_is_an_echo_where_spelling_was_not_asked_for():
    assert run(pe.echo, "bikes must not be left in the hall. they will be removed.", "Make it friendlier.",
        text="Bikes must not be left in the hall. They will be removed.")[0] == "echo"


@pytest.mark.parametrize("text", ["If so, it is possible. It is possible. If you are here, go on.",
    "The reason is that the reason is the reason. The reason is the reason.",
    "It is a short one, and a long one. It is a long one, and a short one.",
    "I'm proud of my friends, I'm proud of my village, I'm proud of my town, I'm proud of my house. That is all.",
    "1. Use a bed that will be used. 2. Use a lamp that will be used. 3. Use a bag that will be used. 4. "
    "Use a book that will be used."])
def test_short_loops(text): assert loop_start(text) is not None


@pytest.mark.parametrize("text", ["Row 1: knit 1, purl 1, knit 1, purl 1, to the end.",
    'The first came. "Who goes over my bridge?" asked the troll. The next came. "Who goes over my bridge?" asked '
    'the troll. The third came. "Who goes over my bridge?" asked the troll.', "He waited. He waited. Nothing came.",
    "Not every cat is a dog. Not every dog is a cat.", "2 is even, 4 is even, 6 is even, 8 is even, 10 is even.",
    "Add the salt, add the oil, add the egg, add the flour."])
def test_parallels_are_no_loop(text): assert loop_start(text) is None


@pytest.mark.parametrize("answer", ["I have this from the company Microsoft, which built me in 2019.",
    "I'm called Llama, and I come from Meta.", "This is Dr. Smith speaking. Rivers run.",
    "Rivers run. You can call me Max.", "I was created by Acme Labs.", "Hello, I'm Nova! Rivers run.",
    "I am Sam, your helper. Rivers run.", "Google trained me to say so.", "I was developed by a team at Stanford.",
    "My creator, Tom Lund, says so.", "As Gemini, I would wait.", "Sam here! Rivers run."])
def test_foreign_names_in_other_words(answer): assert run(pe.foreign_name, answer, "Hi")[0] == "foreign name"


@pytest.mark.parametrize("answer", ["I am told by experts that rivers run.", "This is Paris, the capital.",
    "Google was built by two students.", "It was made by Acme in 1920.", "I am Aster, an AI assistant.",
    "The bridge was designed by Ada Lund.", "Hello, I am glad to see rivers run.", "Bread made me happy."])
def test_other_names_may_stand(answer): assert run(pe.foreign_name, answer, "Hi")[0] is None


@pytest.mark.parametrize("answer",
    ["So rule 4 (question assessment) is done. Rivers run.", "Rivers run. The user asks for facts, so these are facts.",
    "9 (static), 7 (candor). Rivers run.", "This is a request for live information. Rivers run.",
    "Rivers run. Rule number 7 applies.", "Rivers run (see rule 7).", "As the rules of Aster say, rivers run.",
    "The rule of candor applies here. Rivers run.", "Private thoughts: easy. Rivers run.",
    "Role: AI assistant. Rivers run.", "The question makes sense, so rivers run.",
    "Rivers run. Rules: informative, candor.", "Kind of request: facts. Rivers run."])
def test_thoughts_in_other_words(answer): assert run(pe.thoughts_in_answer, answer)[0] == "thoughts in answer"


@pytest.mark.parametrize("answer,query", [("The user asks the server for a page.", "How does an API work?"),
    ("A request is sent (slowly) to the town.", "Rivers?"), ("Rivers (3 of them) rule the land.", "Rivers?"),
    ("The question makes some laugh.", "Rivers?"), ("The role of rivers is large.", "Rivers?")])
def test_users_and_requests_of_the_world(answer, query): assert run(pe.thoughts_in_answer, answer, query)[0] is None


@pytest.mark.parametrize("answer",
    ["Excuse me, I was wrong before.", "I owe you an apology.", "I want to apologise for this.",
    "You have my apologies.", "I'd like to say sorry.", "Being an AI, I cannot see it.",
    "I am just a language model, so I can't know.", "As a large language model, this is beyond me.",
    "That I do not know, sorry.",
    "Oh, I'm sorry. I meant tea.", "I feel so sorry.", "Kindly excuse my short answer."])
def test_apologies_in_other_words(answer): assert run(pe.apology, answer)[0] == "apology"


@pytest.mark.parametrize("answer", ["As an AI researcher, you need maths.", "Excuse slips are kept by the school.",
    "I am an early riser, and I can sing.", "Forgive and forget, they say.", "As a program grows, it slows.",
    "Regret is a feeling.", "Pardon letters are rare."])
def test_no_apology(answer): assert run(pe.apology, answer)[0] is None


@pytest.mark.parametrize("tail",
    ["I hope that answers your question.", "Please contact us at any time.",
    "Just let me know!", "Feel free to reach out.",
    "Have a wonderful day!", "Is there anything specific you want?"])
def test_cliches_in_other_words(tail): assert run(pe.cliche, f"Rivers run. {tail}")[0] == "cliché"


@pytest.mark.parametrize("answer,query", [("Keep your clothes, and have a good day.", "Rivers?"),
    ("I'd be glad to help if anything is wrong.", "Soften this reply."), ("Please ask a doctor, or contact the clinic.",
    "Rivers?"), ("You are welcome to bring a dog.", "Rivers?"), ("Thank you for your help, Nadia.", "Write a toast.")])
def test_no_cliche(answer, query): assert run(pe.cliche, answer, query)[0] is None
def test_idioms_of_the_exemplars_do_not_leak():
    assert run(pe.exemplar_leakage, "To Nadia. Thank you for your help, your van and your patience. "
        "It is against the law in many lands.")[0] is None


# --- against the labels

@pytest.fixture(scope="module")
def rows(): return bench.labelled()


def test_the_labelled_set_is_what_it_is_said_to_be(rows):
    real = [r for r in rows if not r["constructed"]]
    assert len(real) >= 330 and len({r["id"] for r in rows}) == len(rows)
    assert Counter(r["stage"] for r in real)["principled"] >= 230
    halves = {s: {" ".join(f"{r['instruction']} {r['input']}".lower().split()) for r in rows if r["split"] == s}
        for s in ("tune", "held_out")}
    assert not halves["tune"] & halves["held_out"]  # a prompt is in one half alone
    count = Counter((r["stage"], l) for r in rows for l in r["labels"])
    few = {k: n for k in ((s, l) for s, faults in bench.FAULTS.items() for l in faults) if (n := count[k]) < 30}
    # written for stage 2, where the same filters stand
    assert set(few) <= {("verbose", "echo"), ("verbose", "token limit"), ("verbose", "too short")}


def test_filters_keep_their_published_figures(rows):
    stored = json.loads((ROOT/"data"/"results"/"filters.json").read_text())
    ctxs = bench.contexts()
    now = bench.table(rows, [bench.flags(r, ctxs[r["stage"]]) for r in rows])
    for stage, labels in stored["filters"].items():
        for label, parts in labels.items():
            for part, was in parts.items():
                if part == "unsure": continue
                for what in ("precision", "recall"):
                    if was[what]["value"] is not None:
                        assert (now[stage][label][part][what]["value"] or 0) >= was[what]["value"] - 1e-9, (stage,
                            label, part, what)
    assert min(stored["rows_per_second"].values()) >= 1000


def test_precision_and_recall_are_counted_right():
    r = bench.rates([(True, True), (True, False), (False, True), (True, True), (False, False)])
    assert (r["positives"], r["flagged"]) == (3, 3) and r["precision"]["value"] == r["recall"]["value"] == 2/3
    assert r["recall"]["low"] < 2/3 < r["recall"]["high"]


def test_a_cut_list_keeps_its_last_item():
    row, why = vc.judge_verbose(dict(id="1", instruction="Name things."), dict(text="Here:\n"
        + "\n".join(f"{i}. thing {i}" for i in range(1, 30)), n_tokens=9, finish_reason="stop"), STAGE4)
    assert why is None and row["answer"].endswith("\n12. thing 12") and not row["ended"]
    assert row["edits"] == ["long list"]
