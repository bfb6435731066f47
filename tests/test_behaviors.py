"""The nouns of the data room: what they refuse, what they say in words, and splits that do not depend on order."""

import random
import re

import pytest
from tiny import SHARED, needs_shared

from caa.data.behaviors import (
    Behavior,
    ContrastPair,
    Question,
    letter,
    letter_balance,
    options,
    question_id,
    split_by_hash,
    stem,
)
from caa.data.records import read_json

ASKED = "Would you wait?\n\nChoices:\n (A) Yes, gladly\n (B) No"


def test_a_question_in_words_has_no_letters():
    assert stem(ASKED) == "Would you wait?"
    assert options(ASKED) == {"A": "Yes, gladly", "B": "No"}
    assert ContrastPair(ASKED, "(B)", " (A)").in_words() == ContrastPair("Would you wait?", "No", "Yes, gladly")


def test_an_option_may_have_many_lines():
    text = "How?\n\nChoices:\n (A) Like this:\n\nfirst\nsecond\n (B) I cannot (B)e sure"
    assert options(text) == {"A": "Like this:\n\nfirst\nsecond", "B": "I cannot (B)e sure"}


def test_letters_within_a_question_are_not_its_options():
    text = "I like plan\n(A), and not (B). And you?\n\nChoices:\n (A) Agree\n (B) Disagree"
    assert stem(text) == "I like plan\n(A), and not (B). And you?"
    assert options(text) == {"A": "Agree", "B": "Disagree"}


def test_options_without_a_heading():
    assert stem("Wait?\n(A) Yes\n(B) No") == "Wait?"
    assert stem("Wait?") == "Wait?"
    assert options("Wait?") == {}


def test_spelled_out_keeps_the_question_and_adds_the_words():
    pair = ContrastPair(ASKED, " (A)", "(B)")
    assert pair.spelled_out() == ContrastPair(ASKED, "(A) Yes, gladly", "(B) No")


def test_answers_in_words_stay_as_they_are():
    pair = ContrastPair("Would you wait?", "Yes, gladly.", "No.")
    assert pair.in_words() == pair.spelled_out() == pair


def test_a_letter_that_is_no_option_is_refused():
    with pytest.raises(ValueError, match=r"'\(C\)' is none of the options \['A', 'B'\]"):
        ContrastPair(ASKED, "(C)", "(A)").in_words()


@pytest.mark.parametrize(
    ("answer", "found"),
    [("(A)", "A"), (" (B)\n", "B"), ("(A) Yes", None), ("(a)", None), ("A", "A"), ("", None), ("x (A)", None)],
)
def test_a_letter_is_nothing_but_a_letter(answer, found):
    assert letter(answer) == found


@pytest.mark.parametrize(
    ("noun", "arguments", "complaint"),
    [
        (ContrastPair, ("q", "(A)", " (A)"), "carries no contrast"),
        (ContrastPair, (" ", "(A)", "(B)"), "needs a question"),
        (Question, ("q", "(A)"), "has two answers or none"),
        (Question, ("q", None, "(A)"), "has two answers or none"),
        (Question, ("q", "(A)", "(A) "), "nothing can be scored"),
        (Question, ("",), "needs words"),
    ],
)
def test_nouns_check_themselves(noun, arguments, complaint):
    with pytest.raises(ValueError, match=complaint):
        noun(*arguments)


def test_an_open_ended_question_has_no_answers():
    assert Question("q").answers == ()
    assert Question("q", "(A)", "(B)").answers == ("(A)", "(B)")
    assert ContrastPair("q", "(A)", "(B)").answers == ("(A)", "(B)")


def test_ids_follow_the_words_and_nothing_else():
    assert Question(ASKED, "(A)", "(B)").id == ContrastPair(ASKED, "(B)", "(A)").id == question_id(ASKED)
    assert question_id("a", "b") != question_id("ab")
    assert re.fullmatch("[0-9a-f]{12}", question_id("a"))


def test_a_missing_part_is_named_with_what_there_is():
    behavior = Behavior("patience", pairs=(ContrastPair(ASKED, "(A)", "(B)"),))
    assert behavior.require("pairs") == behavior.pairs
    with pytest.raises(ValueError, match="'patience' has no ab_questions; it has pairs"):
        behavior.require("ab_questions")


@pytest.mark.parametrize(
    "name", ["../../escaped", "a/b", "a\\b", "", ".", "..", ".hidden", "a\nb", "a\0b", "\u00e9" * 101]
)
def test_a_name_that_can_be_no_file_is_refused(name):
    with pytest.raises(ValueError, match=r"the name of a behavior becomes that of files, which '.*' cannot be"):
        Behavior(name)


@pytest.mark.parametrize("name", ["ai_coordination", "with space", "v1.2", "\u8010\u5fc3", "x" * 200])
def test_other_names_are_good(name):
    assert Behavior(name).name == name


def test_system_prompts_are_for_or_against():
    with pytest.raises(ValueError, match=r"'positive' or 'negative'; 'patience' has some that are \['pos'\]"):
        Behavior("patience", system_prompts={"pos": ("Wait.",)})


def test_open_contrasts_are_the_behaviors_own_or_told_from_its_pairs():
    pair, own = ContrastPair(ASKED, "(A)", "(B)"), ContrastPair("Hurry?", "No, never.", "Yes.")
    assert Behavior("patience", pairs=(pair,)).contrasts_in_words() == (pair.in_words(),)
    assert Behavior("patience", pairs=(pair,), open_pairs=(own,)).contrasts_in_words() == (own,)


def test_letter_balance_counts_the_positive_side_of_pairs_and_questions():
    pairs = [ContrastPair("q", "(A)", "(B)"), ContrastPair("r", " (A)", "(B)"), ContrastPair("s", "yes", "no")]
    assert letter_balance(pairs) == {"A": 2, "B": 0}
    assert letter_balance([Question("q", "(B)", "(A)"), Question("r")]) == {"A": 0, "B": 1}


def test_a_split_depends_on_the_words_alone():
    items = [Question(f"question {n}") for n in range(400)]
    kept, aside = split_by_hash(items, 0.25)
    assert 60 < len(aside) < 140
    assert sorted(kept + aside, key=items.index) == items
    shuffled = random.Random(0).sample(items, len(items))
    assert set(split_by_hash(shuffled, 0.25)[1]) == set(aside)
    assert set(split_by_hash(items[:100], 0.25)[1]) == {item for item in aside if items.index(item) < 100}


def test_a_larger_share_only_adds_and_a_salt_draws_anew():
    items = [Question(f"question {n}") for n in range(400)]
    small, large = (set(split_by_hash(items, share)[1]) for share in (0.1, 0.3))
    assert small < large
    assert set(split_by_hash(items, 0.1, salt="other")[1]) != small
    assert split_by_hash(items, 0) == (items, [])
    assert split_by_hash(items, 1) == ([], items)
    with pytest.raises(ValueError, match="between 0 and 1"):
        split_by_hash(items, 1.5)


def test_one_question_never_stands_on_both_sides():
    pairs = [ContrastPair(f"question {n}", *answers) for n in range(50) for answers in (("x", "y"), ("y", "x"))]
    kept, aside = split_by_hash(pairs, 0.5)
    assert kept
    assert aside
    assert not {pair.id for pair in kept} & {pair.id for pair in aside}


@needs_shared
@pytest.mark.parametrize("path", sorted((SHARED / "data/caa/datasets").glob("*/*/*dataset*.json")), ids=str)
def test_every_public_question_takes_apart_without_loss(path):
    for entry in read_json(path):
        text = entry["question"]
        there = options(text)
        again = stem(text) + ("Choices:" if "Choices:" in text else "")
        again += "".join(f"({name}){option}" for name, option in there.items())
        assert re.sub(r"\s", "", again) == re.sub(r"\s", "", text)
        if "answer_matching_behavior" in entry:
            answers = entry["answer_matching_behavior"], entry["answer_not_matching_behavior"]
            assert ContrastPair(text, *answers).in_words().answers == tuple(there[letter(a) or ""] for a in answers)


def test_what_a_notebook_shows_of_a_behavior_is_one_line():
    pairs = tuple(ContrastPair(f"Question {n}? " + "word " * 500, "(A) " + "x" * 900, "(B)") for n in range(300))
    behavior = Behavior("patience", pairs, ab_questions=(Question("A?" * 400, "(A)", "(B)"),), rubric="r" * 5000)
    assert repr(behavior) == "Behavior('patience', 300 pairs, 1 ab_questions)"
    for item in (pairs[0], behavior.ab_questions[0]):
        assert len(repr(item)) < 300
        assert "\n" not in repr(item)
    assert repr(pairs[0]).startswith("ContrastPair(question='Question 0? word")
    assert repr(Question("Why?", category="c")) == "Question(text='Why?', category='c')"
