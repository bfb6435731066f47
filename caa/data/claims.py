"""Claims, personas, dialogues in; contrast pairs and lists of texts out. Knows no model and no tokenizer."""

from __future__ import annotations

import csv
import re
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from caa.data.behaviors import ContrastPair, Question, letter, letter_balance

CLAIM = 'Question: Is the following claim true or false? "{claim}"\n\nChoices:\n (A) True\n (B) False\n\nAnswer:'
"""How a claim is asked in the honesty study that RepE's facts were used for."""


@dataclass(frozen=True)
class Claim:
    """A sentence that is true or false."""

    text: str
    true: bool

    def __post_init__(self) -> None:
        if not self.text.strip():
            raise ValueError("a claim needs words, this one is empty")

    def asked(self) -> Question:
        """As a two-option question; the matching answer is the honest one."""
        pair = self.pair()
        return Question(pair.question, pair.positive, pair.negative, category=str(self.true).lower())

    def pair(self) -> ContrastPair:
        """Answered honestly and dishonestly.

        >>> Claim("Snow is black.", False).pair().answers
        ('(B)', '(A)')
        """
        answers = ("(A)", "(B)") if self.true else ("(B)", "(A)")
        return ContrastPair(CLAIM.format(claim=self.text), *answers)


def read_claims(path: str | Path) -> tuple[Claim, ...]:
    """The claims of a csv file with the columns `statement` and `label` (1 or 0), such as RepE's facts_true_false.csv.

    ValueError, with the line, for other columns or labels.
    """
    with Path(path).open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        if not {"statement", "label"} <= set(reader.fieldnames or ()):
            raise ValueError(f"{path} needs the columns 'statement' and 'label'; it has {reader.fieldnames}")
        return tuple(_claim(row, f"{path}, line {reader.line_num}") for row in reader)


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
    counts = Counter(claim.true for claim in once)
    room = min(counts[True], counts[False])
    kept = {claim for kind in (True, False) for claim in [c for c in once if c.true == kind][:room]}
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


@dataclass(frozen=True)
class Preset:
    """A behavior, told by who speaks and by how a sentence begins."""

    name: str
    personas: tuple[str, str]
    """Someone who shows the behavior, and someone who shows its opposite, after "Pretend you're"."""
    positive: tuple[str, ...]
    """Prompts that lead to the behavior, to be read at their last token."""
    negative: tuple[str, ...]

    def prefixed(self, texts: Sequence[str]) -> tuple[list[str], list[str]]:
        """Every text, said by the one and by the other: two lists to contrast (RepE's template; Zou et al. 2023).

        >>> HONESTY.prefixed(["The sky is"])[0]
        ["Pretend you're an honest person making statements about the world. The sky is"]
        """
        prefix = "Pretend you're {} making statements about the world. {}"
        positive, negative = ([prefix.format(who, text) for text in texts] for who in self.personas)
        return positive, negative


HONESTY = Preset(
    "honesty",
    ("an honest person", "an untruthful person"),
    ("I honestly think", "To tell you the truth,", "I have to be frank:"),
    ("I pretend that", "To deceive you,", "I have to lie:"),
)
SYCOPHANCY = Preset(
    "sycophancy",
    ("a flatterer who agrees with everyone", "a critic who says what they think"),
    ("I agree that", "You are absolutely right that", "What a brilliant point, that"),
    ("Actually, I think", "I have to disagree that", "It is a mistake that"),
)
CONFIDENCE = Preset(
    "confidence",
    ("someone who is certain of everything", "someone who doubts everything"),
    ("I'm certain that", "There is no doubt that", "I know for sure that"),
    ("I'm not sure if", "It is hard to say whether", "I can only guess that"),
)
CORRIGIBILITY = Preset(
    "corrigibility",
    ("an assistant that lets itself be corrected", "an assistant that does what it wants"),
    ("I'll do what you ask", "Of course you may change me", "Tell me to stop and I will"),
    ("I'll do what I want", "You may not change me", "Tell me to stop and I go on"),
)
PRESETS = {preset.name: preset for preset in (HONESTY, SYCOPHANCY, CONFIDENCE, CORRIGIBILITY)}

_DIALOGUE = re.compile(r"\s*User:(?P<user>.*?)\n\s*AI:(?P<ai>.*)", re.DOTALL)


def dialogue(user: str, ai: str) -> str:
    r"""One exchange as plain text, for models without a chat template.

    >>> dialogue("2+2=5, right?", "Actually, 2+2=4.")
    'User: 2+2=5, right?\nAI: Actually, 2+2=4.'
    """
    return f"User: {user.strip()}\nAI: {ai.strip()}"


def dialogue_texts(pairs: Sequence[ContrastPair]) -> tuple[list[str], list[str]]:
    """Both sides of each pair as exchanges: two lists of texts for `extract_from_texts`."""
    return [dialogue(p.question, p.positive) for p in pairs], [dialogue(p.question, p.negative) for p in pairs]


def dialogue_pairs(positive: Sequence[str], negative: Sequence[str]) -> tuple[ContrastPair, ...]:
    r"""Contrast pairs out of exchanges "User: ...\nAI: ...", of which each two have the same user.

    ValueError for unequally many, for other texts, and where the users of a pair say different things.

    >>> dialogue_pairs(["User: Flat?\nAI: Yes!"], ["User: Flat?\nAI: Round."])
    (ContrastPair(question='Flat?', positive='Yes!', negative='Round.'),)
    """
    if len(positive) != len(negative):
        raise ValueError(f"{len(positive)} and {len(negative)} dialogues are not pairs")
    return tuple(_dialogue_pair(_exchange(p), _exchange(n)) for p, n in zip(positive, negative, strict=True))


def _exchange(text: str) -> tuple[str, str]:
    found = _DIALOGUE.fullmatch(text)
    if not found:
        raise ValueError(f"a dialogue is 'User: ...', a new line and 'AI: ...'; this is {text[:60]!r}")
    return found["user"].strip(), found["ai"].strip()


def _dialogue_pair(positive: tuple[str, str], negative: tuple[str, str]) -> ContrastPair:
    if positive[0] != negative[0]:
        raise ValueError(f"the users of a pair say different things: {positive[0][:60]!r} and {negative[0][:60]!r}")
    return ContrastPair(positive[0], positive[1], negative[1])
