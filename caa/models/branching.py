"""One prompt, many continuations in one forward pass: a row of tokens, positions and a mask that keep them apart.

What stands before the first steered token does not depend on layer or multiplier, so it is read once. Behind it stand
the continuations: their positions all restart where the stem ends, and a mask lets each see the stem and itself alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from caa.models.batching import pad, position_ids
from caa.models.blocks import input_device


@dataclass(frozen=True)
class Branched:
    """A batch of branched texts. Stems are padded on the left, so that branches stand in the same columns."""

    ids: Int[Tensor, "row column"]
    positions: Int[Tensor, "row column"]
    """Of each token in its own text; pads have position 0."""
    real: Int[Tensor, "row column"]
    """1 for a token, 0 for padding: the attention mask, where each stem has one branch."""
    stem: int
    """Columns before the first branch."""
    width: int
    """Columns of one branch."""

    def mask(self, dtype: torch.dtype) -> Float[Tensor, "row 1 column column"]:
        """0 where a token (third axis) sees another (fourth), the dtype's lowest number where it does not."""
        column = torch.arange(self.ids.shape[1])
        branch = torch.where(column < self.stem, -1, (column - self.stem) // self.width)
        family = (branch[:, None] == branch) | (branch == -1)
        earlier = (column[:, None] >= column) & family
        itself = torch.eye(len(column), dtype=torch.bool)  # pads too: a token that sees nothing would be NaN
        sees = (earlier & self.real.bool()[:, None]) | itself
        return torch.zeros(sees.shape, dtype=dtype).masked_fill_(~sees, torch.finfo(dtype).min)[:, None]

    def inputs(self, model: Any) -> dict[str, Tensor]:
        """What the model takes, on its device."""
        named = {"input_ids": self.ids, "position_ids": self.positions, "attention_mask": self.mask(model.dtype)}
        device = input_device(model)
        return {name: tensor.to(device) for name, tensor in named.items()}


def branched(stems: Sequence[Sequence[int]], branches: Sequence[Sequence[Sequence[int]]], pad_id: int) -> Branched:
    """Each stem followed by its branches, as many for every stem; short branches are padded on the right.

    >>> text = branched([[5, 6, 7], [5]], [[[8], [9]], [[8], [9]]], pad_id=0)
    >>> text.ids
    tensor([[5, 6, 7, 8, 9],
            [0, 0, 5, 8, 9]])
    >>> text.positions
    tensor([[0, 1, 2, 3, 3],
            [0, 0, 0, 1, 1]])
    >>> (text.mask(torch.float32)[0, 0] == 0).int()
    tensor([[1, 0, 0, 0, 0],
            [1, 1, 0, 0, 0],
            [1, 1, 1, 0, 0],
            [1, 1, 1, 1, 0],
            [1, 1, 1, 0, 1]], dtype=torch.int32)
    """
    heads, real_heads = pad(stems, pad_id, side="left")
    tails, real_tails = pad([branch for row in branches for branch in row], pad_id)
    rows, width = len(stems), tails.shape[1]
    within = (torch.arange(width) * real_tails).view(rows, -1)
    tails, real_tails = tails.view(rows, -1), real_tails.view(rows, -1)
    positions = (real_heads.sum(1, keepdim=True) + within) * real_tails
    return Branched(
        torch.cat([heads, tails], dim=1),
        torch.cat([position_ids(real_heads), positions], dim=1),
        torch.cat([real_heads, real_tails], dim=1),
        heads.shape[1],
        width,
    )
