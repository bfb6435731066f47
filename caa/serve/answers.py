"""What clients get, as OpenAI's interface has it: whole answers and pieces of them, of both kinds of completions."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from caa.serve.engine import End, Piece
from caa.serve.sampling import TokenInfo


@dataclass
class Written:
    """What was written of one choice so far."""

    text: str = ""
    infos: list[TokenInfo] = field(default_factory=list)
    end: End | None = None

    def add(self, event: Piece | End) -> None:
        if isinstance(event, End):
            self.end = event
        else:
            self.text += event.text
            self.infos += [event.info] if event.info else []


class Shape(Protocol):
    """One kind of completions."""

    prefix: str
    kind: str
    chunk_kind: str

    def whole(self, written: Written, *, logprobs: bool) -> dict[str, Any]:
        """A choice that is done."""

    def piece(self, piece: Piece | None, *, first: bool) -> dict[str, Any]:
        """What a chunk adds to a choice; None where it only ends."""


class ChatShape:
    """chat.completion"""

    prefix, kind, chunk_kind = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def whole(self, written: Written, *, logprobs: bool) -> dict[str, Any]:
        message = {"role": "assistant", "content": written.text, "refusal": None}
        return {"message": message, "logprobs": self._logprobs(written.infos) if logprobs else None}

    def piece(self, piece: Piece | None, *, first: bool) -> dict[str, Any]:
        delta = {"role": "assistant"} if first else {}
        if piece is None:
            return {"delta": delta, "logprobs": None}
        return {
            "delta": delta | {"content": piece.text},
            "logprobs": self._logprobs([piece.info]) if piece.info else None,
        }

    def _logprobs(self, infos: Sequence[TokenInfo]) -> dict[str, Any]:
        content = []
        for info in infos:
            top = [self._token(token, logprob) for token, logprob in info.top]
            content.append(self._token(info.token, info.logprob) | {"top_logprobs": top})
        return {"content": content, "refusal": None}

    def _token(self, token: int, logprob: float) -> dict[str, Any]:
        text = self.tokenizer.decode([token])
        return {"token": text, "logprob": logprob, "bytes": list(text.encode())}


class TextShape:
    """text_completion"""

    prefix, kind, chunk_kind = "cmpl", "text_completion", "text_completion"

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def whole(self, written: Written, *, logprobs: bool) -> dict[str, Any]:
        return {"text": written.text, "logprobs": self._logprobs(written.infos) if logprobs else None}

    def piece(self, piece: Piece | None, *, first: bool) -> dict[str, Any]:
        infos = [piece.info] if piece and piece.info else []
        return {"text": piece.text if piece else "", "logprobs": self._logprobs(infos) if infos else None}

    def _logprobs(self, infos: Sequence[TokenInfo]) -> dict[str, Any]:
        tokens = [self.tokenizer.decode([info.token]) for info in infos]
        top = [{self.tokenizer.decode([token]): logprob for token, logprob in info.top} for info in infos]
        offsets = [sum(map(len, tokens[:place])) for place in range(len(tokens))]
        logprobs = [info.logprob for info in infos]
        return {"tokens": tokens, "token_logprobs": logprobs, "top_logprobs": top, "text_offset": offsets}


@dataclass(frozen=True)
class Envelope:
    """What surrounds the choices of one answer."""

    shape: Shape
    model: str
    fingerprint: str
    steering: Sequence[dict[str, Any]]
    prompt_tokens: int
    identity: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, choices: Sequence[Written], *, logprobs: bool) -> dict[str, Any]:
        """A whole answer."""
        shown = []
        for index, written in enumerate(choices):
            reason = written.end.reason if written.end else None
            choice = {"index": index, **self.shape.whole(written, logprobs=logprobs), "finish_reason": reason}
            shown.append(choice)
        return self._around(self.shape.kind, shown) | {"usage": self.usage(choices)}

    def chunk(self, index: int, event: Piece | End, *, first: bool) -> dict[str, Any]:
        """One line of a stream."""
        piece, reason = (None, event.reason) if isinstance(event, End) else (event, None)
        choice = {"index": index, **self.shape.piece(piece, first=first), "finish_reason": reason}
        return self._around(self.shape.chunk_kind, [choice])

    def last_chunk(self, choices: Sequence[Written]) -> dict[str, Any]:
        """The line of a stream that tells the usage."""
        return self._around(self.shape.chunk_kind, []) | {"usage": self.usage(choices)}

    def usage(self, choices: Sequence[Written]) -> dict[str, int]:
        completion = sum(written.end.tokens for written in choices if written.end)
        total = self.prompt_tokens + completion
        return {"prompt_tokens": self.prompt_tokens, "completion_tokens": completion, "total_tokens": total}

    def _around(self, kind: str, choices: Sequence[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": f"{self.shape.prefix}-{self.identity}",
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
            "choices": choices,
            **({"steering": self.steering} if self.steering else {}),
        }
