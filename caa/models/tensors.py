"""Tensors: what a quantized one is made of, whether two are the same bit for bit, whether logits are numbers still."""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import LogitsProcessor

NO_NUMBERS = "the logits are no numbers any more"
"""How every error about NaN and infinity in a model's output begins."""


def plain_parts(tensor: Any) -> list[Tensor]:
    """The plain tensors that a tensor consists of: itself, or the numbers, scales and zero points of a quantized one.

    >>> [part.tolist() for part in plain_parts(torch.ones(2))]
    [[1.0, 1.0]]
    """
    if not hasattr(tensor, "__tensor_flatten__"):
        return [tensor]
    names, _ = tensor.__tensor_flatten__()
    return [part for name in names for part in plain_parts(getattr(tensor, name))]


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two plain tensors are equal in every bit: NaN equals itself, and -0 is not 0.

    >>> nan, zero = torch.tensor([float("nan")]), torch.tensor([0.0])
    >>> same_bits(nan, nan.clone()), same_bits(zero, -zero)
    (True, False)
    """
    if a is b:
        return True
    if a.shape != b.shape or a.dtype != b.dtype or a.device != b.device:
        return False
    if a.is_meta:
        return True  # there are no numbers
    bits = [tensor.detach().contiguous().reshape(-1).view(torch.uint8) for tensor in (a, b)]
    return torch.equal(*bits)


def check_logits(logits: Float[Tensor, "*row vocabulary"], about: str = "") -> None:
    """ValueError if one of the rows holds NaN, +inf or nothing but -inf: then no token is likelier than another.

    >>> check_logits(torch.tensor([[0.0, -torch.inf]]))
    """
    # One number to look at: a sum of largest ones is finite if each is, and what is asked at each token costs least so.
    if not math.isfinite(logits.amax(-1).sum(dtype=torch.float32).item()):
        raise ValueError(
            f"{NO_NUMBERS}{about and f' {about}'} (NaN or infinity). Use a smaller multiplier, or load the model in "
            "float32."
        )


class FiniteLogits(LogitsProcessor):
    """Changes nothing, and stops `generate` where it would write the token with number 0 for ever."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        check_logits(scores)
        return scores
