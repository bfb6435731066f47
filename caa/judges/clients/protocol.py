"""What a judge needs of a language model: prompts in, replies out. Implemented by a server and by a local model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from caa.judges.scales import Tokens


@dataclass(frozen=True)
class Reply:
    """What a model said to one prompt, and what it might have said."""

    text: str
    first: Tokens | None = None
    """The likeliest tokens where the reply's first word begins; None from a server that does not tell."""
    after_one: Tokens | None = None
    """The likeliest tokens after a "1" in that place; None where nobody asked, see `may_begin_ten`."""
    refused: str = ""
    """Why there is no reply to this prompt, and will be none."""


@runtime_checkable
class Asker(Protocol):
    """A model that answers prompts, greedily."""

    @property
    def settings(self) -> dict[str, Any]:
        """What a reply depends on besides its prompt. No key."""
        ...

    def __call__(self, prompts: Sequence[str]) -> list[Reply]: ...
