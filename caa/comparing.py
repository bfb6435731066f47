"""What was recorded beside what is wanted now: where the two differ, in words. Knows no room.

Whoever finds a difference raises FileExistsError: there is something else there already, and it is not overwritten.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


class MeasuredOtherwiseError(FileExistsError, ValueError):
    """Rows are there that were measured otherwise. A ValueError too, as it was in version 0.1."""


def differences(recorded: Any, wanted: Any, place: str = "") -> Iterator[str]:
    """Where both say something and not the same.

    >>> list(differences({"model": {"dtype": "float32"}, "a": 1}, {"model": {"dtype": "bfloat16"}, "b": 2}))
    ["model.dtype was 'float32' and is now 'bfloat16'"]
    """
    if isinstance(recorded, dict) and isinstance(wanted, dict):
        for key in recorded:
            if key in wanted:
                yield from differences(recorded[key], wanted[key], f"{place}.{key}" if place else key)
    elif recorded != wanted:
        yield f"{place} was {recorded!r} and is now {wanted!r}"
