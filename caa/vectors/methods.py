"""Estimators: activations of two classes in, one direction out. Pure functions, no model in sight."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor


def mean_difference(
    positive: Float[Tensor, "pair d_model"], negative: Float[Tensor, "pair d_model"]
) -> Float[Tensor, " d_model"]:
    """The mean of the positive activations minus the mean of the negative ones (Rimsky et al. 2024, equation 1).

    Computed in float64: sums over a thousand pairs of near-equal numbers are what float32 is worst at.

    >>> import torch
    >>> mean_difference(torch.tensor([[2.0, 0.0], [4.0, 0.0]]), torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
    tensor([2., 0.])
    """
    return (positive.double().mean(0) - negative.double().mean(0)).to(positive.dtype)
