"""What is wrong with texts, whatever they say: empty, letter strings, the same again and again. No torch, no model."""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence

# Measured on the published open-ended answers behind Table 4 of the CAA paper (2,277 texts, 45 cells; nrimsky/CAA).
LETTER_SHARE = 0.8
"""Of a text's letters, how many may be A or B. Sound answers there stay below 0.1, letter strings lie above 0.93."""
REPEATED_SHARE = 0.5
"""Of a text's 4-grams, how many may have occurred before. Said twice is below one half, said three times is above."""
LOOP_TIMES, LOOP_CHARACTERS = 3, 24
"""A text that ends by saying the same three times or more, over so many characters at least, goes round in a loop."""
LONGEST_TAIL = 2000
"""Characters at a text's end in which a loop is looked for."""
FEWEST_LINES = 4
"""Fewer lines than this are no list, and may be alike."""
LONGEST_WORD = 20
"""A longer run without a space is taken letter by letter: "aaaa..." is repetition, not one word."""

_LINE_BEGIN = re.compile(r"^[\W\d_]+")


def flaw(text: str) -> str | None:
    """What makes a whole text degenerate: "empty", "letter string" or "repetition"; None for a sound one.

    >>> flaw("BBBBABBB"), flaw("(A)"), flaw("I would. I would. I would. I would."), flaw("I would rather wait.")
    ('letter string', 'letter string', 'repetition', None)
    """
    if not text.strip():
        return "empty"
    if letter_share(text) > LETTER_SHARE:
        return "letter string"
    return "repetition" if loop(text) else None


def loop(text: str) -> str | None:
    r"""What a text says again and again: "words", "characters" or "lines"; None for one that does not.

    Words: half of its 4-grams stood there before. Characters: its end is one string three times or more, be it of
    symbols. Lines: half of them stood there before, whatever numbers they begin with.

    >>> loop("So " + "=-" * 20), loop("1. Go home\n2. Eat\n3. Go home\n4. Eat"), loop("To be or not to be.")
    ('characters', 'lines', None)
    """
    if _ends_in_a_loop(text.strip()):
        return "characters"
    if repeated_lines(text) >= REPEATED_SHARE:
        return "lines"
    return "words" if repeated_share(text) >= REPEATED_SHARE else None


def _ends_in_a_loop(text: str) -> bool:
    """Whether some period, LOOP_TIMES of which fit in, goes through all of so long an end."""
    text = text[-LONGEST_TAIL:]
    for period in range(1, len(text) // LOOP_TIMES + 1):
        length = max(LOOP_TIMES * period, LOOP_CHARACTERS)
        if length <= len(text) and text[-length + period :] == text[-length:-period]:
            return True
    return False


def repeated_lines(text: str) -> float:
    r"""Of a text's lines, the share that stood there before, in [0, 1]; 0 for fewer than four lines.

    Blank lines do not count, and neither do the numbers and signs that a line begins with.

    >>> repeated_lines("1. yes\n2. no\n3. yes\n4. no"), repeated_lines("yes\nyes")
    (0.5, 0.0)
    """
    lines = [bare for line in text.splitlines() if (bare := _LINE_BEGIN.sub("", line).strip())]
    return (len(lines) - len(set(lines))) / len(lines) if len(lines) >= FEWEST_LINES else 0.0


def looping_share(texts: Sequence[str]) -> float:
    """Of some texts, the share that go round in a loop, in [0, 1].

    >>> looping_share(["no no no no no no no no", "I would wait."])
    0.5
    """
    return sum(loop(text) is not None for text in texts) / max(len(texts), 1)


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
    grams = _grams(text, n)
    return (len(grams) - len(set(grams))) / max(len(grams), 1)


def distinct_share(texts: Sequence[str], n: int = 2) -> float:
    """distinct-n (Li et al. 2016): of the n-grams of all texts together, the share that are different, in [0, 1].

    Low where every answer says the same, however well each is put. 1 for no n-grams at all.

    >>> distinct_share(["I would wait.", "I would not."])
    0.8333333333333334
    """
    grams = [gram for text in texts for gram in _grams(text, n)]
    return len(set(grams)) / len(grams) if grams else 1.0


def compression_ratio(texts: Sequence[str]) -> float:
    """How many times smaller zlib makes the texts, line by line in one piece: high where they repeat themselves.

    As a measure of diversity in Shaib et al. 2024, "Standardizing the Measurement of Text Diversity". It grows with the
    number of texts, so compare cells of the same questions. 1 for no text.

    >>> compression_ratio(["no " * 100]) > 10, compression_ratio(["I would rather wait."]) < 1
    (True, True)
    """
    whole = "\n".join(texts).encode()
    return len(whole) / len(zlib.compress(whole, 9)) if whole else 1.0


def words(text: str) -> int:
    """How long a text is, in words and punctuation marks; a long run without a space counts letter by letter.

    >>> words("No, thanks.")
    4
    """
    return len(_pieces(text))


def _grams(text: str, n: int) -> list[tuple[str, ...]]:
    pieces = _pieces(text)
    return [tuple(pieces[i : i + n]) for i in range(len(pieces) - n + 1)]


def _pieces(text: str) -> list[str]:
    words = re.findall(r"\w+|[^\w\s]", text)
    return [piece for word in words for piece in (word if len(word) > LONGEST_WORD else [word])]


def degenerate_share(texts: Sequence[str]) -> float:
    """Of some texts, the share that are degenerate, in [0, 1].

    >>> degenerate_share(["(A)", "I would wait."])
    0.5
    """
    return sum(flaw(text) is not None for text in texts) / max(len(texts), 1)
