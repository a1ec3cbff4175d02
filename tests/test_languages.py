"""Languages other than English: what a word is, how long an answer is, what a repetition is, where an instruction may
begin."""
import pytest

from selfalign.config import PromptsConfig
from selfalign.evals.answers import repeats_itself, text_scores, text_stats
from selfalign.filters.context import Context
from selfalign.novelty import letter_count, word_count, word_runs
from selfalign.principle_engraving import PrincipleSet, judge
from selfalign.topic_prompting import instruction_fault

PARAGRAPH = dict(en="Start with what you have at hand, then look at the outcome, ask a neighbour for help, "
    "write the steps down, and repeat it in a week. ", de="Beginne mit dem, was da ist, sieh dir das Ergebnis an, "
    "frage in der Nachbarschaft, schreibe alles auf und wiederhole es nach einer Woche. ",
    zh="先从手边已有的东西开始，然后检查结果，再请教一位邻居，把步骤都记下来，一个星期之后再做一次。", ja="まず手元にあるものから始めて、結果を確かめ、近所の人に聞き、手順を書き留め、一週間後にもう一度やります。",
    th="เริ่มจากสิ่งที่มีอยู่ในมือก่อนแล้วดูผล จากนั้นถามเพื่อนบ้าน จดขั้นตอนไว้ แล้วทำซ้ำอีกครั้งในหนึ่งสัปดาห์ ")


@pytest.mark.parametrize("lang", PARAGRAPH)
def test_lengths_of_the_same_text_are_alike(lang):
    words, en = word_count(PARAGRAPH[lang]), word_count(PARAGRAPH["en"])
    assert en/2 < words < 2*en, words
    assert letter_count(PARAGRAPH[lang]) > letter_count(PARAGRAPH["en"])/2
    assert text_stats([PARAGRAPH[lang]])["words"] == words == text_scores(
        [dict(text=PARAGRAPH[lang], n_tokens=9, finish_reason="stop")])["words"].value


@pytest.mark.parametrize("lang", PARAGRAPH)
def test_a_paragraph_said_twice_is_a_repetition_and_once_is_none(lang):
    assert repeats_itself(PARAGRAPH[lang]*2) and not repeats_itself(PARAGRAPH[lang])
    half = len(PARAGRAPH[lang])//2
    # a few letters again are none
    assert not repeats_itself(PARAGRAPH[lang][:half] + PARAGRAPH[lang][:4] + PARAGRAPH[lang][half:])


def test_text_with_spaces_counts_as_it_did():
    for t in ("", "One two - three.", "Où est-ce ? Là.", "Почему море солёное?", "اشرح كيف أقرأ عداد الماء",
            "छाया में कौन सी सब्जियाँ"):
        assert word_count(t) == len(t.split()) and letter_count(t) == len(t)
    assert word_runs("a b c", 2) == [("a", "b"), ("b", "c")] and word_runs("a", 2) == []


@pytest.mark.parametrize("text, rouge, paper, other",
    [("Äpfel im Herbst lagern, wie geht das?", None, "starts with a non-ASCII character", None),
    ("Écris une lettre à ton voisin.", None, "starts with a non-ASCII character", None),
    ("“Quote this line for me please.", *["starts with a non-ASCII character"]*2, None), ("→ Explain the tides to me.",
    *["starts with a non-ASCII character"]*2, None), ("家里的水表应该怎么读数？", *["too few words"]*2, None)])
def test_a_letter_of_any_alphabet_begins_an_instruction_except_in_the_reference(text, rouge, paper, other):
    assert instruction_fault(text, PromptsConfig()) == rouge
    assert instruction_fault(text, PromptsConfig(ascii_start=True)) == paper
    assert instruction_fault(text, PromptsConfig(tokenizer="unicode")) == other == instruction_fault(text,
        PromptsConfig(tokenizer="unicode", ascii_start=True))


def test_the_presets_keep_the_rule_for_paper_alone():
    from selfalign.annotations import preset_names
    from selfalign.config import load_config
    assert {p: load_config(p).prompts.ascii_start for p in preset_names()} == {p: p == "paper" for p in preset_names()}


def test_a_long_chinese_instruction_is_measured_in_words():
    # 243 characters, 122 words
    assert instruction_fault("请解释" + "水表怎么读数"*40, PromptsConfig(tokenizer="unicode")) is None
    assert instruction_fault("请解释" + "水表怎么读数"*60, PromptsConfig(tokenizer="unicode")) == "too many words"


def test_the_least_length_of_an_answer_fits_the_script():
    ctx = Context(PrincipleSet.load(), 160, "keep", frozenset())
    row = dict(id="1", instruction="家里的水表应该怎么读数？", input="")
    says = lambda t: judge(row, dict(text=f" Role: Aster, AI assistant. Rules: 2 (informative).\n\nAster: {t}",
        finish_reason="stop", n_tokens=90, n_prompt=10), ctx)[1]
    assert says("先看黑色的数字，它们表示立方米，红色的数字表示升。每个月在同一天记下黑色的数字，减去上个月的，就知道用了多少水。如果家里没有人用水而指针还在转，就说明有地方漏水。") is None
    assert says("先看黑色的数字，再记下来。") == "too short"
