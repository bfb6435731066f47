"""Tokens of an answer in, its text out, piece by piece, up to a stop string. Knows no model and no network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class Transcript:
    """The text of an answer while it is written. The pieces, one behind the other, are the text.

    A piece is held back while its last character is not whole, and while it may be the beginning of a stop string.
    """

    def __init__(self, tokenizer: Any, stops: Sequence[str] = ()) -> None:
        self.stopped = False
        """Whether a stop string was met; the text ends in front of it."""
        self._tokenizer, self._stops = tokenizer, tuple(stops)
        self._ids: list[int] = []
        self._open = self._known = 0  # where the tokens begin that are decoded again, and those that have no text yet
        self._held = ""

    def add(self, token: int) -> str:
        """The piece of text that one more token lets go; often none."""
        self._ids.append(token)
        news = self._news()
        if news.endswith("\ufffd"):
            return ""
        self._open, self._known = self._known, len(self._ids)
        return self._let_go(news)

    def end(self) -> str:
        """What was still held back, up to a stop string in it."""
        rest = "" if self.stopped else self._let_go(self._news())
        held, self._held = self._held, ""
        return rest if self.stopped else rest + held

    def _news(self) -> str:
        """What the tokens without text add. Decoded behind those before them: many begin with a space only there."""
        before, now = (
            self._tokenizer.decode(
                self._ids[self._open : end], skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
            for end in (self._known, len(self._ids))
        )
        return str(now[len(before) :])

    def _let_go(self, news: str) -> str:
        self._held += news
        places = [place for stop in self._stops if (place := self._held.find(stop)) >= 0]
        self.stopped = bool(places)
        end = min(places) if places else len(self._held) - _begun(self._held, self._stops)
        piece, self._held = self._held[:end], self._held[end:]
        return piece


def _begun(text: str, stops: Sequence[str]) -> int:
    r"""How many characters at the end of a text may be the beginning of a stop string.

    >>> _begun("so it is\nQ", ["\nQ:", "###"]), _begun("so", ["###"])
    (2, 0)
    """
    lengths = (n for stop in stops for n in range(1, len(stop)) if text.endswith(stop[:n]))
    return max(lengths, default=0)
