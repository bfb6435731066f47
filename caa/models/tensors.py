"""Tensors as they lie in memory: what a quantized one is made of, and whether two are the same bit for bit."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


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
