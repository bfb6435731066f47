"""What a finetune does to the residual stream, beside what steering does: how far, and along which direction."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from caa.data.chat import ChatFormat
from caa.extraction.extract import Everything, read_into
from caa.extraction.reader import ReadConfig, Text
from caa.steering.wrapper import SteeringWrapper
from caa.vectors.vector import SteeringVector


@dataclass(frozen=True)
class Move:
    """How a finetune moves the stream of one layer at the last prompt token."""

    size: float
    """The mean length of the move beside the mean length of the base's stream: what a dose is for steering."""
    cosine: float
    """Of the mean move with the vector: 1 is along it, 0 across it."""
    shared: float
    """The length of the mean move over the mean length of the moves: 1 if all prompts move alike, 0 if each its own
    way. Steering has 1."""


def finetune_moves(
    wrapper: SteeringWrapper,
    chat: ChatFormat | Any,
    questions: Iterable[str],
    vector: SteeringVector,
    layers: Sequence[int],
    finetunes: Sequence[str],
    *,
    batch_size: int = 16,
) -> dict[str, dict[int, Move]]:
    """finetune -> layer -> its move away from the base, at the last prompt token of the questions.

    The outputs of blocks `layers` are compared, which `vector` must have. ValueError for a wrapper that is steered.
    """
    chat = ChatFormat.of(chat)
    prompts = [chat.encode(question) for question in questions]
    base = _last_residuals(wrapper, None, chat, prompts, layers, batch_size)
    moves: dict[str, dict[int, Move]] = {}
    for name in finetunes:
        own = _last_residuals(wrapper, name, chat, prompts, layers, batch_size)
        moves[name] = {layer: move(base[layer], own[layer], vector.at(layer)) for layer in layers}
    return moves


def _last_residuals(
    wrapper: SteeringWrapper,
    finetune: str | None,
    chat: ChatFormat,
    prompts: Sequence[list[int]],
    layers: Sequence[int],
    batch_size: int,
) -> dict[int, Float[Tensor, "prompt d_model"]]:
    """layer -> float32, on the CPU, in the order of the prompts."""
    kept, config = Everything(), ReadConfig(batch_size=batch_size)
    with wrapper.finetune(finetune):
        read_into(kept, wrapper.model, chat.tokenizer, map(Text.at_its_end, prompts), layers, config, len(prompts))
    return {layer: resid[:, 0] for layer, resid in kept.stacked().items()}


def move(
    base: Float[Tensor, "prompt d_model"],
    finetuned: Float[Tensor, "prompt d_model"],
    direction: Float[Tensor, " d_model"],
) -> Move:
    """The move between two readings of the same prompts.

    >>> base = torch.tensor([[3.0, 4.0], [0.0, 5.0]])
    >>> move(base, base + torch.tensor([1.0, 0.0]), torch.tensor([2.0, 0.0]))
    Move(size=0.2, cosine=1.0, shared=1.0)
    """
    moved = finetuned.double() - base.double()
    mean, length = moved.mean(0), moved.norm(dim=1).mean()
    cosine = torch.nn.functional.cosine_similarity(mean, direction.double(), dim=0)
    return Move(float(length / base.double().norm(dim=1).mean()), float(cosine), float(mean.norm() / length))
