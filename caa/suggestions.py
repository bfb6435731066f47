"""A word that is none of those known in, the one that was probably meant out. Knows no room."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """What to put behind an error that names a word; "" where none of the known ones is close.

    >>> did_you_mean("sycofancy", ["refusal", "sycophancy"]), did_you_mean("x", ["refusal"])
    (", did you mean 'sycophancy'?", '')
    """
    close = difflib.get_close_matches(name, list(known), n=1)
    return f", did you mean {close[0]!r}?" if close else ""
