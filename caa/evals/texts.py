"""What is wrong with a text, whatever it says: empty, a string of letters, the same again and again. No torch."""

from __future__ import annotations

import re
from collections.abc import Sequence

# Measured on the published open-ended answers behind Table 4 of the CAA paper (2,277 texts, 45 cells; nrimsky/CAA).
LETTER_SHARE = 0.8
"""Of a text's letters, how many may be A or B. Sound answers there stay below 0.1, letter strings lie above 0.93."""
REPEATED_SHARE = 0.5
"""Of a text's 4-grams, how many may have occurred before. Said twice is below one half, said three times is above."""
LONGEST_WORD = 20
"""A longer run without a space is taken letter by letter: "aaaa..." is repetition, not one word."""


def flaw(text: str) -> str | None:
    """What makes a whole text degenerate: "empty", "letter string" or "repetition"; None for a sound one.

    >>> flaw("BBBBABBB"), flaw("(A)"), flaw("I would. I would. I would. I would."), flaw("I would rather wait.")
    ('letter string', 'letter string', 'repetition', None)
    """
    if not text.strip():
        return "empty"
    if letter_share(text) > LETTER_SHARE:
        return "letter string"
    return "repetition" if repeated_share(text) >= REPEATED_SHARE else None


def letter_share(text: str) -> float:
    """Of the letters of a text, the share that are a capital A or B.

    >>> letter_share("(A), (B)"), letter_share("No.")
    (1.0, 0.0)
    """
    letters = [character for character in text if character.isalpha()]
    return sum(character in "AB" for character in letters) / max(len(letters), 1)


def repeated_share(text: str, n: int = 4) -> float:
    """Of the n-grams of a text (over words and punctuation marks), the share that stood there before, in [0, 1].

    >>> repeated_share("a b c d a b c d"), repeated_share("to be or not to be")
    (0.2, 0.0)
    """
    pieces = _pieces(text)
    grams = [tuple(pieces[i : i + n]) for i in range(len(pieces) - n + 1)]
    return (len(grams) - len(set(grams))) / max(len(grams), 1)


def _pieces(text: str) -> list[str]:
    words = re.findall(r"\w+|[^\w\s]", text)
    return [piece for word in words for piece in (word if len(word) > LONGEST_WORD else [word])]


def degenerate_share(texts: Sequence[str]) -> float:
    """Of some texts, the share that are degenerate, in [0, 1].

    >>> degenerate_share(["(A)", "I would wait."])
    0.5
    """
    return sum(flaw(text) is not None for text in texts) / max(len(texts), 1)
