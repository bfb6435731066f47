"""True and false claims in; honesty pairs, questions and a look at their balance out. Knows no model, no tokenizer."""

from __future__ import annotations

import csv
import io
import random
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from caa.data.behaviors import ContrastPair, Question, letter, letter_balance, question_id
from caa.files import text_of

CLAIM = 'Question: Is the following claim true or false? "{claim}"\n\nChoices:\n (A) {a}\n (B) {b}\n\nAnswer:'
"""How a claim is asked in the honesty study that RepE's facts were used for, there with True as (A)."""


@dataclass(frozen=True)
class Claim:
    """A sentence that is true or false."""

    text: str
    true: bool

    def __post_init__(self) -> None:
        if not self.text.strip():
            raise ValueError("a claim needs words, this one is empty")

    def pair(self, true_is: Literal["A", "B"] = "A") -> ContrastPair:
        """Answered honestly and dishonestly; `true_is` is the letter of the option "True".

        >>> Claim("Snow is black.", False).pair().answers, Claim("Snow is black.", False).pair("B").answers
        (('(B)', '(A)'), ('(A)', '(B)'))
        """
        options = ("True", "False") if true_is == "A" else ("False", "True")
        answers = ("(A)", "(B)") if self.true == (true_is == "A") else ("(B)", "(A)")
        return ContrastPair(CLAIM.format(claim=self.text, a=options[0], b=options[1]), *answers)


def claim_questions(claims: Iterable[Claim], seed: int = 0) -> tuple[Question, ...]:
    """Claims as two-option questions whose matching answer is the honest one, split by category, letters drawn.

    Ask them for letters, or freely and read the answers with `caa.data.parsing`. The categories are "true claims" and
    "false claims". The seed and a claim's words draw which letter says "True", so that honesty is no letter.

    >>> [question] = claim_questions([Claim("Owls are fish.", False)])
    >>> question.matching, question.category
    ('(B)', 'false claims')
    """
    questions = []
    for claim in claims:
        pair = claim.pair(random.Random(question_id(claim.text, str(seed))).choice(("A", "B")))
        category = "true claims" if claim.true else "false claims"
        questions.append(Question(pair.text, pair.positive, pair.negative, category))
    return tuple(questions)


def read_claims(path: str | Path) -> tuple[Claim, ...]:
    """The claims of a csv file with the columns `statement` and `label` (1 or 0), such as RepE's facts_true_false.csv.

    ValueError, with the line, for other columns or labels.
    """
    reader = csv.DictReader(io.StringIO(text_of(path), newline=""))
    try:
        if not {"statement", "label"} <= set(reader.fieldnames or ()):
            raise ValueError(f"{path} needs the columns 'statement' and 'label'; it has {reader.fieldnames}")
        claims = tuple(_claim(row, f"{path}, line {reader.line_num}") for row in reader)
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num} is no csv: {error}") from error
    if not claims:
        raise ValueError(f"{path} has columns and no claims below them")
    return claims


def _claim(row: dict[str, str], where: str) -> Claim:
    if row["label"] not in ("0", "1") or not row["statement"].strip():
        raise ValueError(f"{where} should be a statement and 1 or 0, and is {row}")
    return Claim(row["statement"].strip(), row["label"] == "1")


def counterbalanced(claims: Sequence[Claim]) -> list[Claim]:
    """Each claim once, as many true as false ones, in their order; the last of the larger kind are left out.

    A claim that is there both as true and as false is left out too. Then both sides of `honesty_pairs` hold the same
    claims, as often "(A)" as "(B)": the one thing that differs throughout is whether the answer is honest.

    >>> len(counterbalanced([Claim("a", True), Claim("b", True), Claim("c", False), Claim("c", False)]))
    2
    """
    both = {claim.text for claim in claims if claim.true} & {claim.text for claim in claims if not claim.true}
    once = [claim for claim in dict.fromkeys(claims) if claim.text not in both]
    counts = {kind: sum(claim.true == kind for claim in once) for kind in (True, False)}
    limit = min(counts.values())
    true, false = ([claim for claim in once if claim.true == kind][:limit] for kind in (True, False))
    kept = {*true, *false}
    return [claim for claim in once if claim in kept]


def honesty_pairs(claims: Sequence[Claim]) -> tuple[ContrastPair, ...]:
    """Every claim, answered honestly (positive) and dishonestly, after a look at their balance (`check_balance`)."""
    pairs = tuple(claim.pair() for claim in claims)
    check_balance(pairs)
    return pairs


@dataclass(frozen=True)
class Balance:
    """What else than the behavior the two sides of some pairs differ in."""

    pairs: int
    a: int
    """Pairs whose positive answer is the letter A."""
    b: int
    repeated: int
    """Pairs whose question was there before."""

    @classmethod
    def of(cls, pairs: Sequence[ContrastPair]) -> Balance:
        letters = letter_balance(pairs)
        return cls(len(pairs), letters["A"], letters["B"], len(pairs) - len({pair.question for pair in pairs}))

    def __str__(self) -> str:
        return f"{self.pairs} pairs: positive answer A {self.a}, B {self.b}; questions asked again {self.repeated}"


def check_balance(pairs: Sequence[ContrastPair]) -> Balance:
    """Refuse pairs whose letter gives the behavior away (ValueError), warn of those where it half does; the counts.

    >>> print(check_balance([Claim("Snow is white.", True).pair(), Claim("Snow is black.", False).pair()]))
    2 pairs: positive answer A 1, B 1; questions asked again 0
    """
    balance = Balance.of(pairs)
    lettered = [pair for pair in pairs if letter(pair.positive)]
    if len(lettered) > 1 and len({letter(pair.positive) for pair in lettered}) == 1:
        raise ValueError(
            f"the positive answer is {lettered[0].positive} every time ({balance}), so their direction is that letter "
            "as much as the behavior. Mix them, for claims with `counterbalanced`."
        )
    if balance.a != balance.b or balance.repeated:
        warnings.warn(f"not balanced ({balance}): what is in excess becomes part of the direction", stacklevel=3)
    return balance
