"""Prompts in words in, the length of the residual stream behind them out; vectors brought to that length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from caa.data.chat import ChatFormat
from caa.extraction.norms import StreamProfile, in_doses, stream_profiles
from caa.vectors.vector import SteeringVector


def prompt_profiles(
    model: Any,
    chat: ChatFormat | Any,
    prompts: Sequence[str],
    layers: Sequence[int] | None = None,
    *,
    batch_size: int = 16,
) -> dict[int, StreamProfile]:
    """layer -> how long the stream is at the last token of these prompts, put as `chat` puts a question.

    The model is read as it is, adapters included. ValueError for no prompts.
    """
    chat = ChatFormat.of(chat)
    ids = [chat.encode(prompt) for prompt in prompts]
    return stream_profiles(model, chat.tokenizer, ids, layers, batch_size=batch_size)


def to_doses(vector: SteeringVector, profiles: Mapping[int, StreamProfile]) -> SteeringVector:
    """The vector at the length of the stream (to four digits), so that its multipliers are relative doses."""
    return in_doses(vector, {layer: profile.short_norm for layer, profile in profiles.items()})
