"""Lists of ids to padded tensors, in batches of similar lengths."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from jaxtyping import Int
from torch import Tensor


def pad(
    sequences: Sequence[Sequence[int]], pad_id: int, side: Literal["left", "right"] = "right"
) -> tuple[Int[Tensor, "row position"], Int[Tensor, "row position"]]:
    """Ids and attention mask of a batch.

    >>> pad([[5, 6], [7]], pad_id=0, side="left")
    (tensor([[5, 6],
            [0, 7]]), tensor([[1, 1],
            [0, 1]]))
    """
    longest = max(map(len, sequences))
    ids = torch.full((len(sequences), longest), pad_id)
    mask = torch.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        place = slice(longest - len(sequence), None) if side == "left" else slice(len(sequence))
        ids[row, place] = torch.tensor(sequence)
        mask[row, place] = 1
    return ids, mask


def by_length(sequences: Sequence[Sequence[Any]], batch_size: int) -> list[list[int]]:
    """Batches of indices, shortest texts first, so that little is spent on padding.

    >>> by_length([[1, 1, 1], [1], [1, 1]], batch_size=2)
    [[1, 2], [0]]
    """
    if batch_size < 1:
        raise ValueError(f"a batch holds at least one row, this batch_size is {batch_size}")
    order = sorted(range(len(sequences)), key=lambda i: len(sequences[i]))
    return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]


def position_ids(attention_mask: Int[Tensor, "row position"]) -> Int[Tensor, "row position"]:
    """The position of each token among the real ones of its row; pads get position 0.

    >>> position_ids(torch.tensor([[0, 1, 1]]))
    tensor([[0, 0, 1]])
    """
    return (attention_mask.long().cumsum(1) - 1).clamp(min=0)
