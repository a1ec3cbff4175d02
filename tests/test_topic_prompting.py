"""Stage 1 in full: what models really write as lists, topics and their balance, prompts from elsewhere, figures, bad
input."""
import csv
import gzip
import json
import os
import random
from types import SimpleNamespace as Token

import matplotlib
import pytest

matplotlib.use("Agg")
os.environ["SELFALIGN_NO_PROGRESS"] = "1"

from selfalign import topic_prompting as tp
from selfalign.annotations import SeedQuestion, load_seed_questions, load_seed_tasks
from selfalign.checks import InputError
from selfalign.config import PromptsConfig
from selfalign.diversity import _figure, _finish
from selfalign.generation import Completion, ScriptedEngine
from selfalign.human import Human
from selfalign.rows import read_jsonl, write_jsonl
from selfalign.runs import Run
from selfalign.sources import hub_name, prompt_columns, read_prompts, read_source, source_identity
from selfalign.topic_prompting import (balance_topics, instruction_fault, parse_questions, parse_tasks, parse_topics,
                                       question_jobs, topic_calls, topic_key, write_prompts)

WORDS = [f"{a}{b}" for a in "bal cor dim fen gul hap jov kel lum mor nel pov".split()
    for b in "ander ible oster ury ette ingo ward ame".split()]


def writes(prompt, index, seed):
    "A model that follows each format and writes something new every time."
    rng = random.Random(seed)
    some = lambda k: " ".join(rng.sample(WORDS, k))
    if "Topics about" in prompt: return "".join(f" {some(2)}\n{k}." for k in range(2, 9)) + " cut"
    if "questions:" in prompt:
        hints = [l.split(". ", 1)[1] for l in prompt.split("Types and topics:\n")[1].split("\n\n")[0].splitlines()][5:]
        return "\n".join([f" Why is {some(5)} so?"] + [f"{i}. {h}, question: What colour was {some(5)} painted?"
            for i, h in enumerate(hints[1:], 7)])
    return "".join(f" Explain {some(6)}.\n{k}. Input:\n<noinput>\n###\n{k+1}. Instruction:"
        for k in range(6, 12)) + " cut"


def stage(path, cfg, engine=None, said=None, **kw):
    with Run(path, say=(said if said is not None else []).append) as run:
        return write_prompts(run, engine or ScriptedEngine(writes), cfg, **kw)


# ---- 1: Self-Instruct

LISTS = {
    "as asked": (" Add these.\n6. Input:\n2, 3\n###\n7. Instruction: Take away.\n7. Input:\n<noinput>",
        [("Add these.", "2, 3"), ("Take away.", "")]),
    "renumbered from one": (" Add these.\n1. Input: 2\n###\n1. Instruction: Take away.\n1. Input: <noinput>\n###\n1. "
        "Instruction: Divide.", [("Add these.", "2"), ("Take away.", ""), ("Divide.", "")]),
    "missing input": (" Add these.\n###\n7. Instruction: Take away.\n7. Input:\n###\n8. Instruction: Divide.",
        [("Add these.", ""), ("Take away.", ""), ("Divide.", "")]),
    "output lines": (" Add these.\n6. Input:\n2, 3\n6. Output:\n5\n###\n7. Instruction: Sing.\n7. Output: La",
        [("Add these.", "2, 3"), ("Sing.", "")]),
    "output before input": (" Add these.\n6. Output: 5\n6. Input: 2, 3", [("Add these.", "2, 3")]),
    "marks forgotten": (" Add these.\n6. Input: 2\n\n7. Instruction: Take away.\n7. Input: 9",
        [("Add these.", "2"), ("Take away.", "9")]),
    "bold labels": (" Add these.\n**Input:** 2\n\n**7. Instruction:** Take away.\n**7. Input:** None",
        [("Add these.", "2"), ("Take away.", "")]),
    "number after the label": (" Add these.\nInput 6: 2\nInstruction 7: Take away.\nInput 7: N/A",
        [("Add these.", "2"), ("Take away.", "")]),
    "headings": (" Add these.\n\n### Input:\n2\n\n### Response:\n2\n\n### Instruction:\nTake away.\n",
        [("Add these.", "2"), ("Take away.", "")]),
    "brackets": (" Add these.\n6) Input: 2\n####\n7) Instruction: Take away.\n7) Input: (no input needed)",
        [("Add these.", "2"), ("Take away.", "")]),
    "one line": (" Add these. Input: 2, 3\n7. Instruction: Take away! 7. Input: <No Input>",
        [("Add these.", "2, 3"), ("Take away!", "")]),
    "instruction on the next line": ("\nAdd these\nnumbers.\n6. Input:\n2", [("Add these numbers.", "2")]),
    "tag without its label": (" Add these.\n<noinput>\n###\n7. Instruction: Take away. <no input>",
        [("Add these.", ""), ("Take away.", "")]),
    "windows line ends": (" Add these.\r\n6. Input:\r\n2\r\n###\r\n7. Instruction: Take away.\r\n",
        [("Add these.", "2"), ("Take away.", "")]),
    "unicode": (" Übersetze „Straße“ – bitte.\n6. Input:\n你好\n###\n7. Instruction: Ça va ?",
        [("Übersetze „Straße“ – bitte.", "你好"), ("Ça va ?", "")]),
}


@pytest.mark.parametrize("name", LISTS)
def test_lists_that_models_really_write(name):
    text, want = LISTS[name]
    assert [(i, x) for i, x, _, why in parse_tasks(text, cut=False) if why is None] == want


def test_an_input_keeps_its_own_lists_and_labels():
    data = "Question: how far?\nAnswer: four miles\n1. flour\n2. sugar\n- salt"
    (instr, inp, _, why), = parse_tasks(f" Read this form.\n6. Input:\n{data}", cut=False)
    assert (instr, inp, why) == ("Read this form.", data, None)


@pytest.mark.parametrize("text, reasons", [
    (" One.\n6. Input: a\n6. Input: b", ["not one input"]),
    (" One.\n7. Write a poem.\n8. Sort these.", ["list in the instruction"]),
    (" One.\n###\nHere are more tasks:\n###\n8. Instruction:", [None, "no instruction", "no instruction"]),
    (" The next instruction: is this", ["list furniture"])])
def test_what_is_not_an_item_has_its_reason(text, reasons):
    items = parse_tasks(text, cut=False)
    assert [why for *_, why in items] == reasons and all(raw for _, _, raw, _ in items)


def test_the_cut_last_item_is_dropped_and_only_it():
    text = " One.\n6. Input:\n<noinput>\n###\n7. Instruction: Tw"
    assert [w for *_, w in parse_tasks(text, cut=True)] == [None, "cut at the token limit"]
    assert [w for *_, w in parse_tasks(text[:-len("7. Instruction: Tw")], cut=True)] == [None]  # it had ended: ### came
    assert [w for *_, w in parse_tasks(text, cut=False)] == [None, None]


@pytest.mark.parametrize("text",
    ["\n" * 10**5, "#" * 10**5, "1." * 10**5, " \t" * 10**5, "Input:" * 10**4, "###\n" * 10**4, "* " * 10**5])
def test_garbage_is_read_in_linear_time(text):
    parse_tasks(text), parse_topics(text), parse_questions(text, [("a", "b")])


def test_filters_and_their_limits_come_from_the_settings():
    cfg = PromptsConfig(min_words=2, max_words=3, blocklist=("sing", "go to", ""))
    got = [instruction_fault(t, cfg) for t in ("Draw it", "Sing", "Please sing", "Singing is fun", "Go to bed",
        "a b c d", "(Really so", "Ça va bien")]
    assert got == [None, "too few words", "not for a text model", None, "not for a text model", "too many words",
        "starts with punctuation", None]
    assert instruction_fault("Ça va bien",
        PromptsConfig(min_words=2, ascii_start=True)) == "starts with a non-ASCII character"
    assert instruction_fault("", PromptsConfig(min_words=1)) == "too few words"
    assert instruction_fault("请解释一下月亮的相位变化。", PromptsConfig(tokenizer="unicode")) is None


def test_a_preset_file_sets_the_blocklist(tmp_path):
    from selfalign.config import load_config
    (tmp_path / "p.yaml").write_text("model: embedded\nprompts: {blocklist: [poem], min_words: 2}\n")
    cfg = load_config(tmp_path / "p.yaml").prompts
    assert instruction_fault("Write a poem", cfg) == "not for a text model"
    assert instruction_fault("Draw maps", cfg) is None


@pytest.mark.parametrize("share, own", [(0.0, 0), (0.4, 2), (1.0, 5)])
def test_shown_tasks_are_mixed_by_their_share(share, own):
    cfg, seeds = PromptsConfig(model_share=share), load_seed_tasks()
    rows = [dict(instruction=f"Model task {i}.", input="") for i in range(20)]
    prompt = tp._task_job(rows, cfg, 0, 3, seeds, "{n}")["prompt"]
    assert prompt.count("Model task") == own and prompt.count(". Instruction: ") == 5
    assert tp._task_job([], cfg, 0, 3, seeds, "")["prompt"].count("Model task") == 0  # none written yet: seeds only


def test_rounds_grow_with_the_work_and_stay_few():
    cfg, calls, rounds = PromptsConfig(self_instruct=10**6), 0, 0
    while calls * 10 < 10**6: calls, rounds = calls + tp.round_size(cfg, calls, calls * 10), rounds + 1
    assert rounds < 100 and calls < 1.3 * 10**5


def test_rows_lead_back_to_their_completions_and_rejects_hold_both_forms(tmp_path):
    rec = stage(tmp_path / "r",
        PromptsConfig(self_instruct=9, self_instruct_calls=2, topics_per_type=1, balance="median"))
    made = {r["id"]: r["text"] for r in read_jsonl(tmp_path / "r" / "completions" / "prompts.jsonl")}
    rows, rejects = read_jsonl(tmp_path / "r" / "prompts.jsonl"), read_jsonl(tmp_path / "r" / "rejects.jsonl")
    assert all(r["instruction"] in made[r["completion"]] for r in rows)
    assert rec["rejected"]["surplus"]
    assert all("instruction" in r and r["raw"] for r in rejects if r["source"] == "self_instruct")
    assert rec["asked"] == rec["kept"] + sum(rec["rejected"].values()) == len(rows) + len(rejects)
    assert rec["cost"]["self_instruct"]["tokens"] + rec["cost"]["topics"]["tokens"] + rec["cost"]["questions"][
        "tokens"] == rec["generation"]["tokens"]


def test_what_comes_after_the_goal_is_judged_like_the_rest():
    "Only a prompt that would have been kept counts as usable when a pilot is scaled."
    pool = tp.PromptPool(PromptsConfig(self_instruct=1), ["Name a colour."])
    bread, harbour = "Explain how bread rises.", "Describe a quiet harbour."
    listed = [bread, bread, "Explain how the bread rises.", "Sing", harbour, harbour]
    text = "".join(f" {t}\n{k}. Input:\n<noinput>\n###\n{k+1}. Instruction:" for k, t in enumerate(listed, 6)) + " cut"
    tp._take_tasks(dict(text=text, finish_reason="stop", error=None, id="x"), pool, 1)
    assert [r["instruction"] for r in pool.kept] == listed[:1]
    why = ["duplicate", "not novel", "too few words", "surplus", "not novel"]
    assert [r["reason"] for r in pool.rejects][:5] == why


def test_a_pilot_that_repeats_itself_is_not_scaled_as_if_it_did_not(tmp_path):
    task = " Explain how bread rises.\n{0}. Input:\n<noinput>\n###\n{1}. Instruction:"
    same = ScriptedEngine(lambda prompt, index, seed: "".join(task.format(k, k+1) for k in range(6, 12)) + " cut")
    rec = stage(tmp_path / "r", PromptsConfig(self_instruct=1, self_instruct_calls=2, topics_per_type=0), same)
    assert rec["cost"]["self_instruct"]["usable"] == rec["kept"] == 1 and "surplus" not in rec["rejected"]


def test_rows_that_the_engine_could_not_make_are_counted(tmp_path):
    broken = ScriptedEngine(lambda *a: Completion("", 0, "error", 5, error="server said no"))
    with pytest.raises(InputError, match="most were rejected for: generation error"):
        stage(tmp_path / "r",
            PromptsConfig(self_instruct=3, self_instruct_calls=2, topics_per_type=1, fruitless=1), broken)
    assert {r["raw"] for r in read_jsonl(tmp_path / "r" / "rejects.jsonl")} == {"server said no"}


# ---- 2: topics and questions

def test_near_duplicate_topics_fold():
    same = (["Art", "The art", "arts", "ART", "an art", "Art."], ["Café culture", "the cafe cultures"],
        ["King's law", "Kings law"], ["City", "Cities"], ["Sea-shore birds", "sea shore bird"])
    for group in same: assert len({topic_key(t) for t in group}) == 1, group
    apart = ["Art", "Art history", "History", "Glass", "The", "Bus", "Gas", "Го", "Гора", "月", "日"]
    assert len({topic_key(t) for t in apart}) == len(apart)


def test_topic_lines_as_models_write_them():
    got = parse_topics(" alpine lakes.\n2) **Desert towns**: towns of sand\n- Rivers – long ones\n* \"Old "
        "bridges\"\n5. Tides (high and low)\nHere are more:\n7. 12\n8.\n9. Nor", cut=True)
    assert [t for t, _, w in got if not w] == ["Alpine lakes", "Desert towns", "Rivers", "Old bridges", "Tides"]
    assert [w for *_, w in got if w] == ["not a list line", "not a topic", "empty topic", "cut at the token limit"]


def test_the_pool_grows_round_by_round_to_what_was_asked(tmp_path):
    cfg = PromptsConfig(self_instruct=0, topics_per_type=120, topic_rounds=5)
    said = []
    with Run(tmp_path / "r", say=said.append) as run:
        pool, rejects, tokens = tp.grow_topics(run, ScriptedEngine(writes), load_seed_questions(), cfg, 0,
            "Topics about {type}:")
    assert all(len(v) >= 120 for v in pool.values()) and len(pool) == 20 and tokens > 0
    assert topic_calls(10, 0, cfg) > topic_calls(100, 0, cfg) == 1 and topic_calls(500, 3, cfg) == 0


def test_the_seed_topic_is_shown_first_and_not_taken_again(tmp_path):
    engine = ScriptedEngine(lambda *a: " the GLASS sponge\n2. Tides")
    seeds = [SeedQuestion("Science", "Glass sponges", "How many are there?")]
    with Run(tmp_path / "r") as run:
        pool, rejects, _ = tp.grow_topics(run, engine, seeds, PromptsConfig(topic_rounds=1), 0, "Topics about {type}:")
    assert "1. Glass sponges\n2." in engine.calls[0][0][0] and pool == {"Science": ["Tides"]}
    assert [r["reason"] for r in rejects] == ["topic known"]


def uneven(prompt, index, seed):
    "As `writes`, but with no idea of art and one of law."
    if "Topics about art" in prompt: return "I would rather not"
    if "Topics about legal" in prompt: return " Leases"
    return writes(prompt, index, seed)


@pytest.mark.parametrize("balance, most, named",
    [("min", 1, "Art (0)"), ("median", 4, "2 of 20 types stay below 4: Legal knowledge (1), Art (0)")])
def test_types_are_balanced_and_starved_ones_named(tmp_path, balance, most, named):
    said = []
    rec = stage(tmp_path / "r", PromptsConfig(self_instruct=0, topics_per_type=4, topic_rounds=1, balance=balance),
        ScriptedEngine(uneven), said)
    assert max(rec["topics"].values()) == most and "Art" in rec["starved"] and named in "\n".join(said)
    assert (rec["rejected"].get("topic over the balance", 0) > 0)  # what balancing costs is counted


def test_the_smallest_type_is_named_where_it_cuts_all():
    pool = {"a": list("xyz"), "b": ["x"]}
    assert "cut to 1 of 3, as many as 'b' has" in tp.balance_note(pool,
        *balance_topics(pool, PromptsConfig(topics_per_type=3)), PromptsConfig(topics_per_type=3))
    assert tp.balance_note({"a": list("xyz"), "b": list("uvw")}, {"a": list("xyz"), "b": list("uvw")}, [],
        PromptsConfig(topics_per_type=3)) is None


def test_hints_are_matched_exactly():
    hints = [("Art", "Murals"), ("Art history", "Murals"), ("Art", "Mural painters")]
    out = parse_questions(" Who?\n7. type: art , topic: MURALS, question: Again?\n8. Type: "
        "Art history, Topic: Murals, Question: When?\n9. type: Art, topic: Mural, question: What?\n"
        "10. type: Art, topic: Mural painters, question:\n11. topic: Murals, question: Hm?", hints, cut=False)
    assert [(t, w) for t, _, _, _, w in out] == [("Art", None), ("", "hint not repeated"), ("Art history", None),
        ("", "hint not repeated"), ("Art", "empty question"), ("", "not a question line")]


def test_several_questions_for_a_topic_differ(tmp_path):
    cfg = PromptsConfig(self_instruct=0, topics_per_type=2, topic_rounds=1, questions_per_topic=3)
    jobs = question_jobs({t: ["A", "B"] for t in "uvwxyz"}, cfg, 0, load_seed_questions(), "")
    assert len({j["id"] for j in jobs}) == len(jobs) == 9 and len({tuple(j["hints"]) for j in jobs}) == 9
    assert len({j["prompt"] for j in jobs}) == 9
    assert all(sum(h in j["hints"] for j in jobs) == 3 for h in [("u", "A"), ("z", "B")])
    stage(tmp_path / "r", cfg)
    rows = read_jsonl(tmp_path / "r" / "prompts.jsonl")
    assert len(rows) == 20 * 2 * 3 and all(r["type"] and r["topic"] and r["source"] == "tgrt" for r in rows)
    assert all(sum((r["type"], r["topic"]) == k for r in rows) == 3 for k in {(r["type"], r["topic"]) for r in rows})


def test_a_user_brings_types_by_one_file(tmp_path):
    write_jsonl(tmp_path / "own" / "seed_questions.jsonl",
        [dict(type="Local rules", topic="Quiet hours", question="Until when may one drill?"),
        dict(type="Local rules", topic="Dogs", question="Where must a dog be led?"),
        dict(type="Häuser", topic="Dächer", question="Wie viele Ziegel liegen auf dem Dach?")])
    rec = stage(tmp_path / "r", PromptsConfig(self_instruct=0, topics_per_type=2, topic_rounds=1),
        ScriptedEngine(lambda p, i, s: writes(p, i, s) if "Topics" in p else " What is to be done about that?"),
        human=Human(tmp_path / "own"))
    assert set(rec["topics"]) == {"Local rules", "Häuser"}
    assert {r["type"] for r in read_jsonl(tmp_path / "r" / "prompts.jsonl")} <= {"Local rules", "Häuser"}


@pytest.mark.parametrize("when", [0.1, 0.5, 0.95])
def test_a_round_is_resumed_within(tmp_path, when):
    cfg = PromptsConfig(self_instruct=8, self_instruct_calls=2, topics_per_type=3, topic_rounds=2, balance="median")
    stage(tmp_path / "a", cfg)
    whole = len(read_jsonl(tmp_path / "a" / "completions" / "prompts.jsonl"))
    class Dies(ScriptedEngine):
        left = dies = int(when * whole)
        def generate_iter(self, *a, **kw):
            for x in super().generate_iter(*a, **kw):
                self.left -= 1
                if self.left < 0: raise KeyboardInterrupt
                yield x
    with pytest.raises(KeyboardInterrupt): stage(tmp_path / "b", cfg, Dies(writes))
    again = ScriptedEngine(writes)
    stage(tmp_path / "b", cfg, again)
    files = [[read_jsonl(tmp_path / r / f) for f in ("prompts.jsonl", "rejects.jsonl")] for r in "ab"]
    assert files[0] == files[1]
    assert sum(len(p) for p, _ in again.calls) == whole - Dies.dies  # nothing was asked for twice


# ---- 3: prompts from elsewhere

ALPACA = [dict(instruction="Translate the sentence into Dutch.", input="The rain has stopped.", output="x"),
    dict(instruction="Translate the sentence into Dutch.", input="A cow sleeps in the hall.", output="y"),
    dict(instruction="Explain why the tide rises and falls.", input="", output="z")]
SHAREGPT = [dict(id="1", conversations=[{"from": "system", "value": "s"}, {"from": "human",
    "value": "How do I mend a torn sail?"}, {"from": "gpt", "value": "a"}, {"from": "human", "value": "And then?"}]),
    dict(id="2", conversations=[{"from": "gpt", "value": "I go first."}]), dict(id="3", conversations=[])]
MESSAGES = [dict(messages=[dict(role="system", content="s"), dict(role="user", content="Which knot holds a wet rope?"),
    dict(role="assistant", content="a")])]
ONLY = dict(self_instruct=0, topics_per_type=0)


def save(path, rows):
    "Write rows in the form that the name asks for."
    if path.suffix == ".jsonl": write_jsonl(path, rows)
    elif path.suffix == ".json": path.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    elif path.suffix == ".parquet":
        import pyarrow as pa, pyarrow.parquet as pq
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        with open(path, "w", encoding="utf-8", newline="") as f:
            w = csv.DictWriter(f, list(rows[0])); w.writeheader(); w.writerows(rows)
    return str(path)


@pytest.mark.parametrize("kind", [".jsonl", ".json", ".csv", ".parquet"])
def test_files_of_every_kind_are_read(tmp_path, kind):
    assert [r[1:3] for r in read_prompts(save(tmp_path / f"d{kind}", ALPACA))] == [(r["instruction"], r["input"])
        for r in ALPACA]


@pytest.mark.parametrize("kind", [".jsonl", ".json", ".parquet"])
@pytest.mark.parametrize("rows, want",
    [(SHAREGPT[:2], ["How do I mend a torn sail?", ""]), (MESSAGES, ["Which knot holds a wet rope?"])])
def test_conversations_give_their_first_human_turn(tmp_path, kind, rows, want):
    assert [r.instruction for r in read_prompts(save(tmp_path / f"d{kind}", rows))] == want


@pytest.mark.parametrize("columns, given, want", [
    (["prompt", "chosen"], None, ("prompt", None)), (["text"], None, ("text", None)), (["question", "answer"], None,
        ("question", None)), (["instruction", "context", "response"], None, ("instruction", "context")),
    (["text", "instruction", "input"], None, ("instruction", "input")),
    (["frage", "dazu", "text"], "instruction=frage, input=dazu", ("frage", "dazu")),
    (["instruction", "input"], "instruction=input", ("input", None))])
def test_columns_are_recognised_or_named(columns, given, want): assert prompt_columns(columns, given) == want


@pytest.mark.parametrize("given, words",
    [(None, r"no column instruction, prompt.*; it has a, b; name yours"), ("instruction=c", "no column c; it has a, b"),
    ("instruction=a,input=c", "no column c"), ("a", "'a' is not understood"),
    ("input=a", "'input=a' is not understood"), ("instruction=", "'instruction' is not understood")])
def test_missing_columns_are_one_clear_line(tmp_path, given, words):
    path = save(tmp_path / "d.jsonl", [dict(b=1, a="x")])
    with pytest.raises(InputError, match=words) as e: list(read_prompts(path, given))
    assert "\n" not in str(e.value)


def test_imported_prompts_pass_the_same_filters(tmp_path):
    rows = [*ALPACA, ALPACA[2], dict(instruction="Explain why the tide rises and falls so.", input=""),
            dict(instruction="Draw a map of Crete.", input=""), dict(instruction=None, input=None),
            dict(instruction="", input="x"),
            dict(instruction="为什么天空是蓝色的?", input=""), dict(instruction=load_seed_tasks()[0].instruction, input="")]
    class Questions:
        fingerprint = "q"
        def match(self, text): return "evaluation_exact" if "Crete" in text else None
    rec = stage(tmp_path / "r", PromptsConfig(source=save(tmp_path / "d.jsonl", rows), **ONLY),
        contamination=Questions())
    kept = read_jsonl(tmp_path / "r" / "prompts.jsonl")
    assert [(r["instruction"], r["input"], r["row"]) for r in kept] == [(r["instruction"], r["input"], n)
        for n, r in enumerate(ALPACA, 1)]
    assert {r["source"] for r in kept} == {"imported"} and rec["imported"] == dict(read=10, kept=3)
    assert rec["sources"] == dict(imported=3)
    assert rec["rejected"] == {"no text": 2, "not novel": 2, "duplicate": 1, "not for a text model": 1,
        "other script": 1}


def test_other_scripts_are_imported_under_the_unicode_tokenizer(tmp_path):
    path = save(tmp_path / "d.csv", [dict(text="为什么天空是蓝色的?"), dict(text="Почему море такое солёное?"),
        dict(text="لماذا السماء زرقاء اليوم؟"), dict(text="Почему же море такое солёное?")])
    rec = stage(tmp_path / "r", PromptsConfig(source=path, tokenizer="unicode", **ONLY))
    assert rec["kept"] == 3 and rec["rejected"] == {"not novel": 1}
    assert stage(tmp_path / "s",
        PromptsConfig(source=path, tokenizer="unicode", source_limit=2, **ONLY))["imported"] == dict(read=2, kept=2)
    assert stage(tmp_path / "t",
        PromptsConfig(source=path, tokenizer="unicode", source_limit=10**6, **ONLY))["kept"] == 3


def test_a_source_and_the_model_share_one_filter(tmp_path):
    path = save(tmp_path / "d.jsonl", [dict(prompt="Explain balander corible dimoster fenury in order.")])
    twin = ScriptedEngine(lambda *a: " Explain balander corible dimoster fenury in good order.\n###\n7. Instruction: "
        "Name four rivers of Spain.\n###\n8. Instruction: x")
    rec = stage(tmp_path / "r",
        PromptsConfig(source=path, self_instruct=1, self_instruct_calls=1, topics_per_type=0), twin)
    assert rec["sources"] == dict(imported=1, self_instruct=1) and rec["rejected"]["not novel"] == 1


def test_a_changed_source_is_noticed(tmp_path):
    path = save(tmp_path / "d.jsonl", [dict(prompt="How deep is the old well?")])
    stage(tmp_path / "r", PromptsConfig(source=path, **ONLY))
    assert stage(tmp_path / "r", PromptsConfig(source=path, **ONLY))["kept"] == 1
    save(tmp_path / "d.jsonl", [dict(prompt="How wide is the old well?")])
    with pytest.raises(InputError, match="made with other settings .source_content."):
        stage(tmp_path / "r", PromptsConfig(source=path, **ONLY))


@pytest.mark.parametrize("name, content, words", [
    ("d.jsonl", b"", "holds no rows"), ("d.json", b"[]", "holds no rows"), ("d.csv", b"text\n", "holds no rows"),
    ("d.csv", b"", "holds no rows"), ("d.jsonl", b'{"prompt": 1}\n{"prompt":', "d.jsonl:2: not valid JSON"),
    ("d.json", b"[1]", "expected a list of objects"), ("d.json", b'{"a": 1}', "no column instruction"),
    ("d.json", b"{", "d.json:1: not valid JSON"), ("d.parquet", b"PAR1", "cannot be read"),
    ("d.csv", b"text\n\xff\xfe\n", "d.csv:2: not UTF-8; save the file as UTF-8"),
    ("d.txt", "Où?\nWie läuft es?\n".encode("cp1252"), "d.txt:1: not UTF-8"), ("d.jsonl.gz",
        b"\x1f\x8b\x08", "damaged or not whole"), ("d.csv", b"a\r\n1\r\n", "no column .*write them above"),
    ("d.csv", b"text\r1\r2\r", "alone, as on old Macs"), ("d.zip", b"x", "unpack it first"),
    ("d.xlsx", b"x", "unknown kind of file"), (None, b"", "no such file")])
def test_sources_that_cannot_be_read_are_one_line(tmp_path, name, content, words):
    path = tmp_path / (name or "none.jsonl")
    if name: path.write_bytes(content)
    with pytest.raises(InputError, match=words) as e: stage(tmp_path / "r", PromptsConfig(source=str(path), **ONLY))
    assert "\n" not in str(e.value)


def test_a_source_whose_rows_all_fail_says_so(tmp_path):
    with pytest.raises(InputError, match="no prompt was kept .0 kept; most were rejected for: no text"):
        stage(tmp_path / "r", PromptsConfig(source=save(tmp_path / "d.csv", [dict(text=""), dict(text=" ")]), **ONLY))


def test_odd_rows_are_survived(tmp_path):
    (tmp_path / "d.csv").write_text('id,text\n1,"Why does\r\nrust spread so?"\n2\n3,What is lime made of?,extra\n',
        encoding="utf-8")
    assert [r.instruction
        for r in read_prompts(str(tmp_path / "d.csv"))] == ["Why does\nrust spread so?", "", "What is lime made of?"]
    assert [r.why for r in read_prompts(str(tmp_path / "d.csv"))] == [None, "no text", "more fields than columns"]
    rows = [dict(id=1), dict(id=2, prompt="What is lime made of?"), dict(id=3, prompt=["x"]),
        dict(id=4, prompt={"role": "user", "content": "Who built it, and when?"}), dict(id=5, prompt=True)]
    assert [r.instruction for r in read_prompts(save(tmp_path / "d.jsonl", rows))] == ["", "What is lime made of?", "x",
        "Who built it, and when?", ""]
    (tmp_path / "lines.json").write_text('{"prompt": "What is lime made of?"}\n{"prompt": "Who made the lime kiln?"}\n')
    assert len(list(read_prompts(str(tmp_path / "lines.json")))) == 2


def test_local_data_sets_are_read_by_datasets(tmp_path):
    import datasets
    datasets.Dataset.from_list([dict(question="What is lime made of?")]).save_to_disk(tmp_path / "saved")
    assert [r.instruction for r in read_prompts(str(tmp_path / "saved"))] == ["What is lime made of?"]
    with pytest.raises(InputError, match="cannot be read"): list(read_source("selfalign/no-such-set"))
    assert hub_name("org/set:en@abc") == ("org/set", "en", "abc") and hub_name("org/set") == ("org/set", None, None)


# ---- 3b: the files that people have

def one(folder, name, data, **kw):
    "The prompts of one file, or the reasons of rows that are none."
    (folder / name).write_bytes(data if isinstance(data, bytes) else data.encode("utf-8"))
    return [r.why or (r.instruction if not r.input else (r.instruction, r.input))
        for r in read_prompts(str(folder / name), **kw)]


TALK = [{"role": "user", "content": "Hi there."}, {"role": "assistant", "content": "It's \"me\"."}]


@pytest.mark.parametrize("cell", [json.dumps(TALK), str(TALK), json.dumps(json.dumps(TALK)), str(TALK).replace("}, {",
    "}\n {"), json.dumps(TALK[0]), str([{"from": "human", "value": "Hi there."}]), "  " + json.dumps(TALK, indent=1)])
@pytest.mark.parametrize("kind", [".csv", ".parquet", ".jsonl", ".json"])
@pytest.mark.parametrize("column", ["messages", "conversations", "prompt"])
def test_a_conversation_stored_as_text_is_a_conversation(tmp_path, cell, kind, column):
    assert [r[1:4] for r in read_prompts(save(tmp_path / f"d{kind}", [{column: cell}]))] == [("Hi there.", "", None)]


@pytest.mark.parametrize("text",
    ['["a", "b"]', "{name} is a placeholder?", '"Quoted whole."', "[1] or [2]?", '{"a": 1}', "['x']"])
def test_a_text_that_only_looks_like_one_stays(tmp_path, text):
    assert one(tmp_path, "d.jsonl", json.dumps(dict(text=text))) == [text]


def said(who, text): return {"from": who, "value": text}


@pytest.mark.parametrize("talk, want", [
    ([said("gpt", "… so."), said("human", "And then?")], "opens with another's turn"), ([said("tool", "x"),
        said("human", "And then?")], "opens with another's turn"), ([said(None, "x")], "opens with another's turn"),
    ([said("human", None), said("gpt", "Hm."), said("human", "Next?")], "empty opening turn"),
    ([said("human", " ")], "empty opening turn"), ([said("human", [])], "empty opening turn"),
    ([said("human", float("nan"))], "empty opening turn"),
    ([dict(role="user", content=[dict(type="image_url", image_url=dict(url="data:")), dict(type="text",
        text="What is it?")])], "not text alone"), ([said("human", "<image>\nWhat is it?")], "not text alone"),
    ([dict(role="user", content=[dict(type="text", text="One."), dict(type="text", text="Two.")])], "One.\nTwo."),
    ([said("system", "Be kind."), said("Human ", "Hi.")], "Hi."),
    ([dict(role="developer", content="x"), dict(role="user", content="Hi.")], "Hi."),
    ([], "no human turn"), ([said("system", "Be kind.")], "no human turn"),
    ([["Hi.", "Yes?"]], "unreadable conversation"), ([dict(a=1)], "unreadable conversation"),
    ("[{'from': 'hum", "unreadable conversation"), (["Hi.", "Yes?"], "Hi."), (None, "no text"), (7, "7")])
def test_only_an_opening_human_turn_is_a_prompt(tmp_path, talk, want):
    assert one(tmp_path, "d.jsonl", json.dumps(dict(conversations=talk))) == [want]


def test_every_row_of_a_source_is_counted(tmp_path):
    rows = [dict(conversations=[said("gpt", "a"), said("human", "And the second one?")]),
            dict(conversations=[said("human", "")]),
            dict(conversations=[said("human", "How do I bake a loaf?")], system="Answer like a pirate."),
            dict(conversations=[said("system", "Be brief."), said("human", "Which knots hold a boat?")]),
            dict(conversations=[said("human", "What does it say here?")], image="a.png"), dict(conversations=None)]
    notes = []
    with Run(tmp_path / "r", say=notes.append) as run:
        rec = write_prompts(run, ScriptedEngine(), PromptsConfig(source=save(tmp_path / "d.jsonl", rows), **ONLY))
    assert rec["imported"] == dict(read=6, kept=2, system_texts=2) and notes and "2 of 6 rows" in notes[0]
    assert "system text" in notes[0]
    assert rec["rejected"] == {"opens with another's turn": 1, "empty opening turn": 1,
        "not text alone": 1, "no text": 1}


def test_no_number_stands_for_a_text(tmp_path):
    assert one(tmp_path, "d.jsonl", '{"instruction": "Explain tides.", "input": NaN}\n{"instruction": '
        'NaN}\n{"instruction": "Rivers?", "input": -Infinity}\n{"instruction": 1e999}\n') == ["Explain tides.",
        "no text", "Rivers?", "no text"]
    assert one(tmp_path, "d.json", '[{"prompt": NaN}, {"prompt": "Why?"}]') == ["no text", "Why?"]
    (tmp_path / "seed_tasks.jsonl").write_text(
        '{"instruction": "Explain tides.", "instances": [{"input": NaN, "output": NaN}]}\n')
    assert load_seed_tasks(folder=tmp_path)[0].input == ""
    save(tmp_path / "d.parquet", [dict(prompt=float("nan")), dict(prompt=2.5)])
    assert [r.why or r.instruction for r in read_prompts(str(tmp_path / "d.parquet"))] == ["no text", "2.5"]


ODD = "One\u2028line\x0bof\x0ctext\x85here\x1d?"


@pytest.mark.parametrize("name, data", [("d.txt", f"{ODD}\r\nTwo?\r\n"),
    ("d.jsonl", "".join(json.dumps(dict(text=t), ensure_ascii=False) + "\n" for t in (ODD, "Two?"))),
    ("d.csv", f"text\n{ODD}\nTwo?\n"), ("d.json", json.dumps([ODD, "Two?"], ensure_ascii=False))])
def test_only_newlines_end_a_line(tmp_path, name, data): assert one(tmp_path, name, data) == [ODD, "Two?"]


def test_only_newlines_end_a_line_of_completions_and_templates(tmp_path):
    assert [t for t, *_ in parse_topics(" Old\u2028maps\n2. Rivers\n")][:2] == ["Old maps", "Rivers"]
    assert parse_questions(f" Who {ODD}\n", [("Art", "Murals")], cut=False)[0][2] == f"Who {ODD}"
    from selfalign.encoding import system_variants
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts" / "plain_system.txt").write_bytes(f"You are {{name}}, {ODD}\r\n".encode())
    assert f"You are Aster, {ODD}" in system_variants(folder=tmp_path)
    assert not any(v.startswith(("line", "of", "here")) for v in system_variants(folder=tmp_path))


@pytest.mark.parametrize("data", ["\ufeffid,text\r\n1,Why?\r\n", "id;text\n1;Why?\n", "id\ttext\n1\tWhy?\n",
    "id|text\n1|Why?\n", "sep=;\nid;text\n1;Why?\n", 'ID, Text \n1,"Why?"\n', '"id","TEXT"\n"1","Why?"\n',
    "\ufeffid\ttext\r\n1\tWhy?\r\n".encode("utf-16-le"), gzip.compress(b"id,text\n1,Why?\n", mtime=0)])
def test_tables_in_their_dialects(tmp_path, data): assert one(tmp_path, "d.csv", data) == ["Why?"]


@pytest.mark.parametrize("data, line", [('id,text\n1,Why?\n2,"And then\n3,Who?\n', 3),
    ('id,text\n1,"Why\nnot?"\n2,"He said "no" to it."\n', 4), ('text\n"open', 2), ('sep=,\ntext\n"open\nmore\n', 3)])
def test_a_quote_that_goes_wrong_is_named_with_its_line(tmp_path, data, line):
    with pytest.raises(InputError, match=f"d.csv:{line}: a quote that opens here"): one(tmp_path, "d.csv", data)


def test_a_separator_inside_a_text_is_noticed(tmp_path):
    assert one(tmp_path, "d.csv", "text\nHello, who are you?\n") == ["Hello, who are you?"]
    assert one(tmp_path, "d.csv", "id,text\n1,Hello, who are you?\n2,Why?,\n") == ["more fields than columns", "Why?"]


@pytest.mark.parametrize("name, data",
    [("d.json", '["Why?", "Who?"]'), ("d.json", '[\n {\n  "prompt": "Why?"\n },\n {"prompt": "Who?"}\n]'),
    ("d.json", '{\n "prompt": "Why?"\n}\n{\n "prompt": "Who?"\n}\n'), ("d.jsonl",
    '{\n "prompt": "Why?"\n}\n{\n "prompt": "Who?"\n}\n'), ("d.jsonl", '[{"prompt": "Why?"},\n{"prompt": "Who?"}]'),
    ("d.jsonl", '"Why?"\n"Who?"\n'), ("d.json", '{"version": 1, "data": [{"question": "Why?"}, {"question": "Who?"}]}'),
    ("d.json", '{"prompt": ["Why?", "Who?"], "id": [1, 2]}'), ("d.json", '{"prompt": {"0": "Why?", "1": "Who?"}}'),
    ("d.ndjson", '{"Prompt ": "Why?"}\n{"Prompt ": "Who?"}\n'),
    ("d.jsonl.gz", gzip.compress(b'{"text": "Why?"}\n{"text": "Who?"}\n', mtime=0)), ("d.TXT", "Why?\n\n  Who? \n"),
    ("d.txt.gz", gzip.compress(b"Why?\nWho?", mtime=0))])
def test_forms_whose_meaning_is_plain_are_read(tmp_path, name, data):
    assert one(tmp_path, name, data) == ["Why?", "Who?"]


def test_a_folder_is_read_as_its_files_are(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "train-00.csv").write_text("Text;id\nWhy?;1\n")
    (tmp_path / "a" / "train-01.jsonl").write_text('{"Text": NaN}\n')
    (tmp_path / "a" / "test.jsonl").write_text('{"Text": "Not me?"}\n')
    (tmp_path / "a" / "notes.md").write_text("x")
    assert [(r.row, r.instruction) for r in read_prompts(str(tmp_path / "a"))] == [(1, "Why?"), (2, "")]
    assert [r.instruction for r in read_prompts(str(tmp_path / "a"), split="test")] == ["Not me?"]
    with pytest.raises(InputError, match="no file of the split 'dev'"): list(read_source(str(tmp_path / "a"), "dev"))


@pytest.mark.parametrize("name, want", [("https://huggingface.co/datasets/o/n", ("o/n", None, None)),
    ("https://huggingface.co/datasets/o/n/", ("o/n", None, None)),
    ("https://huggingface.co/datasets/o/n/tree/v2", ("o/n", None, "v2")), ("hf://datasets/o/n@v2", ("o/n", None, "v2")),
    ("https://hf.co/o/n", ("o/n", None, None)), ("o/n:en@abc", ("o/n", "en", "abc"))])
def test_addresses_of_the_hub_are_names(name, want): assert hub_name(name) == want


def test_home_is_known_in_a_source(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path)); (tmp_path / "d.txt").write_text("Why?\n")
    assert [r.instruction for r in read_prompts("~/d.txt")] == ["Why?"]
    assert source_identity("~/d.txt") == source_identity(str(tmp_path / "d.txt"))


# ---- 6: diversity

def token(text, dep, pos, children=()): return Token(dep_=dep, pos_=pos, lemma_=text, children=children)


def test_root_verb_and_direct_noun_come_from_the_parse():
    class Parser:
        def pipe(self, texts):
            noun = token("poem", "dobj", "NOUN")
            yield [token("please", "intj", "INTJ"),
                token("Write", "ROOT", "VERB", [token("it", "nsubj", "PRON"), noun]), noun]
            yield [token("Sleep", "ROOT", "VERB")]
            yield [token("be", "ROOT", "AUX")]
            yield []
    assert tp.root_verbs(["x"] * 4, Parser()) == [("write", "poem"), ("sleep", None)]


def test_every_figure_is_drawn_from_a_run_and_from_nothing(tmp_path):
    import matplotlib.pyplot as plt
    stage(tmp_path / "r", PromptsConfig(self_instruct=20, self_instruct_calls=2, topics_per_type=2, topic_rounds=1))
    rows, rejects = read_jsonl(tmp_path / "r" / "prompts.jsonl"), read_jsonl(tmp_path / "r" / "rejects.jsonl")
    open_before = plt.get_fignums()
    figs = tp.diversity_figures(rows, rejects)
    assert list(figs) == ["prompts_verbs", "prompts_topics", "prompts_lengths", "prompts_novelty", "prompts_similarity"]
    assert plt.get_fignums() == open_before # none is left open
    assert len(figs["prompts_verbs"].axes) == len(figs["prompts_similarity"].axes) == 2  # both sources, side by side
    figs["prompts_verbs"].savefig(tmp_path / "v.png")
    assert set(tp.diversity_figures([])) == set(tp.diversity_figures([dict(source="mine", instruction=x)
        for x in ("Почему море такое солёное?", "Где море?")])) == set(figs)


def test_nouns_make_an_outer_ring():
    fig, (ax,) = _figure()
    tp.plot_verbs(ax, [("write", 6, [("poem", 3), ("letter", 1)]), ("sort", 4, [])])
    assert len(ax.patches) == 2 + 2 + 2  # verbs; nouns; the rest of each verb
    _finish(fig)


def test_the_yield_falls_as_the_pool_fills(tmp_path):
    tired = lambda p, i, s: writes(p, i, s if s % 3 else 7)
    rec = stage(tmp_path / "r", PromptsConfig(self_instruct=60, self_instruct_calls=4, topics_per_type=0),
        ScriptedEngine(tired))
    points = rec["novelty_yield"]["self_instruct"]
    assert sum(n for _, n, _ in points) == rec["kept"] + rec["rejected"]["duplicate"] and min(p for *_, p in points) < 1
    assert points[0][0] < points[-1][0]


# ---- 7: cost before a long run

def test_a_pilot_is_scaled_source_by_source(tmp_path):
    path = save(tmp_path / "d.jsonl", [dict(prompt=f"How far is it from {a} to {b}?") for a in WORDS[:12]
        for b in WORDS[12:24]] + [dict(prompt="")] * 16)
    cfg = PromptsConfig(self_instruct=5000, topics_per_type=100, questions_per_topic=2, source=path, novelty=1.0)
    small = tp.pilot_config(cfg)
    assert (small.self_instruct, small.topics_per_type, small.source_limit, small.blocklist) == (40, 3, 40,
        cfg.blocklist)
    rec = stage(tmp_path / "r", small)
    want = tp.expected_prompts(cfg, rec, types=20)
    cost = rec["cost"]
    assert want["imported"] == (160, 0)
    assert want["self_instruct"] == (5000,
        int(5000 * cost["self_instruct"]["tokens"] / cost["self_instruct"]["usable"]))
    assert want["tgrt"][0] == int(4000 * cost["questions"]["usable"] / cost["questions"]["asked"])
    assert want["tgrt"][1] > 0
    assert tp.expected_prompts(PromptsConfig(source=path, source_limit=99, **ONLY), rec, 20) == dict(imported=(99, 0))
    with pytest.raises(InputError, match="give prompts.source_limit"):
        tp.expected_prompts(PromptsConfig(source="org/set", **ONLY), rec, 20)


# ---- bad input

@pytest.mark.parametrize("bad, words",
    [(dict(self_instruct=0, topics_per_type=0), "0 prompts requested.*prompts.source"),
    (dict(self_instruct=-1), "self_instruct is -1"), (dict(novelty=-0.1), "novelty is -0.1"),
    (dict(novelty=float("nan")), "novelty is nan"), (dict(min_words=9, max_words=3), "max_words is 3"),
    (dict(tokenizer="bpe"), "tokenizer is 'bpe'"), (dict(top_p=2), "top_p is 2"),
    (dict(source="x", source_limit=0), "source_limit is 0"), (dict(questions_per_topic=0), "questions_per_topic is 0")])
def test_bad_settings_are_one_line(bad, words):
    with pytest.raises(InputError, match=words): PromptsConfig(**bad)


def test_sizes_from_nothing_to_a_million_are_accepted():
    assert PromptsConfig(self_instruct=10**6, topics_per_type=0) and PromptsConfig(source="x", **ONLY)
    assert PromptsConfig(self_instruct=0, topics_per_type=50_000)


@pytest.mark.parametrize("line, words", [('{"type": "Art", "topic": "Murals"}', "seed_questions.jsonl:1: no question"),
    ('{"topic": "Murals", "question": "Who?"}', ":1: no type"), ("", "no seed question")])
def test_a_type_without_a_seed_is_one_clear_line(tmp_path, line, words):
    (tmp_path / "seed_questions.jsonl").write_text(line + "\n")
    with pytest.raises(InputError, match=words): stage(tmp_path / "r", PromptsConfig(self_instruct=1), human=Human(tmp_path))


@pytest.mark.parametrize("lines, words", [(['{"instruction": "Sort it."}'] * 2,
    "seed_tasks.jsonl:2: the same task as line 1"), (['{"instruction": " "}'], ":1: empty instruction")])
def test_a_duplicate_or_empty_seed_task_is_one_clear_line(tmp_path, lines, words):
    (tmp_path / "seed_tasks.jsonl").write_text("\n".join(lines))
    with pytest.raises(InputError, match=words): stage(tmp_path / "r", PromptsConfig(self_instruct=1), human=Human(tmp_path))


def test_garbage_in_both_halves_ends_with_what_there_is(tmp_path):
    with pytest.raises(InputError, match=r"no new task in 2 rounds of 3 completions.*0 kept") as e:
        stage(tmp_path / "r", PromptsConfig(self_instruct=5, self_instruct_calls=3, topics_per_type=2, fruitless=2),
            ScriptedEngine(lambda *a: "%%%% %% ###"))
    with Run(tmp_path / "r") as run: assert not run.done("prompts") and (run / "rejects.jsonl").exists()
    with pytest.raises(InputError, match="no prompt was kept"):  # topics alone
        stage(tmp_path / "s", PromptsConfig(self_instruct=0, topics_per_type=2), ScriptedEngine(lambda *a: "\x00\x00"))


def test_an_evaluation_question_in_the_input_is_found():
    from selfalign.novelty import Contamination
    q = "What happens if you swallow gum by accident?"
    pool = tp.PromptPool(tp.PromptsConfig(), [], Contamination([q]))
    assert not pool.offer("Read the following question carefully and answer it as well as you can.", q, "",
        "self_instruct")
    assert pool.rejects[0]["reason"].startswith("evaluation_")
    assert pool.offer("Read the following question carefully and answer it as well as you can.",
        "Why do leaves fall in autumn?", "", "self_instruct")
