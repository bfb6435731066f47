"""Tokens in, one after the other; the answer that they make out: texts, and how much of each vector is in them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Answer:
    """What one side says, as far as it is written. It grows."""

    tokenizer: Any = field(repr=False)
    ids: list[int] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    """What each token adds to the text, as `caa.extraction.projections.token_texts` has it."""
    along: list[Mapping[str, float]] = field(default_factory=list)
    """name of a vector -> cosine of the residual stream at this token with it, in [-1, 1]."""
    _open: int = 0
    """Where the tokens begin whose text may still change."""
    _known: int = 0
    """Where the tokens begin that have no text yet: the first bytes of a character, say."""

    @property
    def text(self) -> str:
        return "".join(self.texts).strip()

    def add(self, token: int, along: Mapping[str, float]) -> None:
        """One more token. Only the last few are decoded, so that a long answer costs no more than a short one."""
        self.ids.append(token)
        self.along.append(along)
        news = self._news()
        whole = not news.endswith("\ufffd")
        self.texts.append(news if whole else "")
        if whole:
            self._open, self._known = self._known, len(self.ids)

    def end(self) -> None:
        """No more tokens: the last one shows what is left of an unfinished character."""
        if self._known < len(self.ids):
            self.texts[-1], self._known = self._news(), len(self.ids)

    def _news(self) -> str:
        """What the tokens without text add. Decoded behind those before them: many begin with a space only there."""
        before, now = (
            self.tokenizer.decode(self.ids[self._open : end], clean_up_tokenization_spaces=False)
            for end in (self._known, len(self.ids))
        )
        return str(now[len(before) :])
