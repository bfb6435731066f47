"""What is done to the residual stream. Pure functions: (resid, direction, strength) -> resid, nothing in place."""

from __future__ import annotations

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor

Operator = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(resid [row, position, d_model], direction float32 [d_model], strength float32 [row, position]) -> resid."""


def add(
    resid: Float[Tensor, "row position d_model"],
    direction: Float[Tensor, " d_model"],
    strength: Float[Tensor, "row position"],
) -> Float[Tensor, "row position d_model"]:
    """Contrastive Activation Addition (Rimsky et al. 2024): resid + strength * direction.

    The push is rounded to the stream's dtype once, after the multiplication.

    >>> import torch
    >>> add(torch.zeros(1, 2, 2), torch.tensor([1.0, 2.0]), torch.tensor([[0.0, 3.0]]))
    tensor([[[0., 0.],
             [3., 6.]]])
    """
    return resid + (strength[..., None] * direction).to(resid.dtype)


OPERATORS: dict[str, Operator] = {"add": add}
"""The names by which saved adapters and configs call them."""
