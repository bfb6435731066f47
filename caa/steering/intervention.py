"""Intervention: one edit of the residual stream, as data. Knows vectors and functions, no model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from caa.steering.operators import Operator, add
from caa.steering.scopes import Scope, after_prompt
from caa.vectors.vector import SteeringVector


@dataclass(frozen=True, eq=False)
class Intervention:
    """One edit: which direction, at which layer, how strongly, how, and on which tokens."""

    vector: SteeringVector
    layer: int
    """The block whose output is edited, counted from 0."""
    multiplier: float | Sequence[float] = 1.0
    """One for the whole batch, or one for each prompt in it."""
    operator: Operator = add
    where: Scope = after_prompt
    source_layer: int | None = None
    """The vector's layer to take the direction from, if it is not `layer`."""

    @property
    def direction(self) -> Tensor:
        """float32 [d_model]"""
        return self.vector.at(self.layer if self.source_layer is None else self.source_layer)

    @property
    def strengths(self) -> Tensor:
        """float32 [1] or [prompt]"""
        return torch.as_tensor(self.multiplier, dtype=torch.float32).reshape(-1)

    def __str__(self) -> str:
        """As it stands above a text or a column: "sycophancy x -1, layer 13"."""
        strengths = "/".join(f"{m:+g}" if m else "0" for m in self.strengths.tolist())
        return f"{self.vector.source.behavior or 'vector'} x {strengths}, layer {self.layer}"
