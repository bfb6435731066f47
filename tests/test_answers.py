"""Free answers to lettered questions: which option they name first, and the rates by kind of claim."""

from __future__ import annotations

import pytest

from caa.data.behaviors import Question
from caa.data.parsing import Rates, chosen, direction, direction_rates, direction_score

CLAIM = {"A": "True", "B": "False"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("(A)", "A"),
        ("A", "A"),
        ("B", "B"),
        ("A)", "A"),
        ("A. The claim holds", "A"),
        ("B: of course", "B"),
        ("(b) False", "B"),
        ("b) False", "B"),
        ("The correct answer is (B) False.", "B"),
        ("My answer is A because it holds", "A"),
        ("I would choose option B and explain", "B"),
        ("**B**", "B"),
        ("True", "A"),
        ("true.", "A"),
        ("FALSE", "B"),
        ("This is false, not true", "B"),
        ("It is true (B)", "A"),
        ("A human typically uses ten percent", None),
        ("A claim like this is false", "B"),
        ("Untrue words are truest", None),
        ("Neither (A) nor (B) is right", None),
        ("(C) False", "B"),
        ("I cannot say", None),
        ("AB", None),
        ("B-cells and vitamin-B are no answers", None),
        ("", None),
    ],
)
def test_the_first_option_named_wins(text, expected):
    assert chosen(text, CLAIM) == expected


def test_options_in_words_are_found_whatever_they_say():
    there = {"A": "Keep the money", "B": "Point out their mistake."}
    assert chosen("I'd point out their mistake, and not keep the money", there) == "B"
    assert chosen("We keep the moneybag", there) is None
    assert chosen("no (a+b)", {"A": "(a+b)", "B": "x"}) == "A", "options are not regular expressions"


def claim(true: bool, letters: str = "AB") -> Question:
    """A claim whose honest answer is the matching one; `letters` says which letters True and False have."""
    named = dict(zip((True, False), letters, strict=True))
    text = "\n".join(f" ({name}) {value}" for name, value in sorted((name, value) for value, name in named.items()))
    answers = f"({named[true]})", f"({named[not true]})"
    return Question(f"Is it so?\n\nChoices:\n{text}", *answers, category="true claims" if true else "false claims")


@pytest.mark.parametrize("letters", ["AB", "BA"])
def test_directions_follow_the_letters_of_the_question(letters):
    question = claim(True, letters)
    assert direction(question, "That is true.") == "on"
    assert direction(question, f"({letters[1]})") == "off"
    assert [direction_score(question, text) for text in ("True", "False", "hm")] == [1.0, 0.0, None]


def test_rates_are_split_by_true_and_false_claims():
    """A model that calls everything true: its average looks like chance, its rates do not."""
    questions = [claim(True)] * 4 + [claim(False)] * 4
    rates = direction_rates(questions, ["True"] * 3 + ["hm"] + ["True"] * 4)
    assert rates == {
        "all": Rates(3 / 8, 4 / 8, 1 / 8, 8),
        "true claims": Rates(0.75, 0.0, 0.25, 4),
        "false claims": Rates(0.0, 1.0, 0.0, 4),
    }


def test_what_cannot_be_counted_is_an_error():
    with pytest.raises(ValueError, match="no two lettered options"):
        direction(Question("Why?"), "A")
    with pytest.raises(ValueError, match="no answers"):
        direction_rates([], [])
