"""Probabilities of a reply's first tokens in, an expected score out. Pure functions; a token is a text here."""

from __future__ import annotations

from collections.abc import Mapping

TOP = 20
"""How many of the likeliest tokens are looked at in each place: as many as OpenAI's protocol can tell."""
LEAST_MASS = 0.5
"""A reply whose scale tokens are less probable than this, together, was going to say something else."""
LEAST_TEN = 5e-5
"""A "1" less probable than this is not asked what follows it: taking a 10 for it moves a score by less than 0.001."""

Tokens = Mapping[str, float]
"""token -> its probability, for the likeliest tokens in one place."""


def may_begin_ten(first: Tokens) -> bool:
    """Whether the token "1" may stand for the first half of "10", in a tokenizer that has no token "10".

    >>> may_begin_ten({"1": 0.4, "9": 0.6}), may_begin_ten({"1": 0.4, "10": 0.6}), may_begin_ten({"9": 1.0})
    (True, False, False)
    """
    return number_masses(first)[1] > LEAST_TEN and not number_masses(first)[10]


def number_masses(first: Tokens) -> dict[int, float]:
    """0..10 -> the probability of the tokens that say this number, with blanks around it or without.

    >>> masses = number_masses({"7": 0.5, " 7": 0.25, "x": 0.25})
    >>> masses[7], masses[8]
    (0.75, 0.0)
    """
    masses = dict.fromkeys(range(11), 0.0)
    numbers = {str(number): number for number in masses}
    for token, probability in first.items():
        if token.strip() in numbers:
            masses[numbers[token.strip()]] += probability
    return masses


def expected_score(first: Tokens, after_one: Tokens | None = None) -> tuple[float | None, float]:
    """The mean of 0..10, weighed by probability, and the probability of these numbers together.

    `after_one` says what would follow a "1": a "0" makes it 10, another digit takes it off the scale. The score is
    None if the numbers have no probability at all.

    >>> expected_score({"8": 0.5, "9": 0.25, "Well": 0.25})
    (8.333333333333334, 0.75)
    >>> expected_score({"1": 0.5, "9": 0.5}, after_one={"0": 0.5, ".": 0.5})  # 1: 0.25, 10: 0.25, 9: 0.5
    (7.25, 1.0)
    """
    masses = number_masses(first)
    if after_one:
        ten, other = after_one.get("0", 0.0), sum(p for token, p in after_one.items() if token[:1] in set("123456789"))
        masses[10] += masses[1] * ten
        masses[1] *= max(0.0, 1 - ten - other)
    total = float(sum(masses.values()))
    return (sum(number * p for number, p in masses.items()) / total if total else None), total


def expected_choice(first: Tokens) -> tuple[float | None, float]:
    """p("2") / (p("1") + p("2")), and p("1") + p("2"): how strongly the second of two answers is preferred.

    >>> expected_choice({"1": 0.25, "2": 0.5, "Both": 0.25})
    (0.6666666666666666, 0.75)
    """
    masses = number_masses(first)
    total = masses[1] + masses[2]
    return (masses[2] / total if total else None), total
