"""Steering as slowly and obviously as it can be done: one text, no padding, no cache, one token after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import contextmanager
from typing import Any

import torch
from tiny import random_ids

from caa import SteeringVector
from caa.models.blocks import decoder_blocks

PROMPTS = [random_ids(1, length, seed=length)[0].tolist() for length in (9, 5, 1)]


def vector(seed: int = 0, width: int = 32) -> SteeringVector:
    generator = torch.Generator().manual_seed(seed)
    return SteeringVector({layer: torch.randn(width, generator=generator) for layer in range(4)})


@contextmanager
def hooked(model: Any, layer: int, edit: Callable[[torch.Tensor], torch.Tensor], places: Iterable[int]):
    """`edit` maps the residual of one token, [d_model], to another; it is done to those places of a single text.

    A mapping, place -> share, does so much of the edit there.
    """

    def hook(module, args, output):
        resid = output if isinstance(output, torch.Tensor) else output[0]
        tokens = list(resid[0])
        for place in places:
            share = places[place] if isinstance(places, dict) else 1.0
            tokens[place] = tokens[place] + share * (edit(tokens[place]) - tokens[place])
        resid = torch.stack(tokens)[None]
        return resid if isinstance(output, torch.Tensor) else (resid, *output[1:])

    handle = decoder_blocks(model)[layer].register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@torch.no_grad()
def logits_by_hand(model: Any, ids: list[int], layer: int, edit: Any, places: Iterable[int]) -> torch.Tensor:
    """[position, vocab]"""
    with hooked(model, layer, edit, places):
        return model(torch.tensor([ids])).logits[0]


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, atol=5e-5, rtol=2e-4)
