"""Lists of ids to padded tensors, in batches of similar lengths."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, TypeVar

import torch
from jaxtyping import Int
from torch import Tensor

Result = TypeVar("Result")


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


def by_tokens(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Batches of indices, shortest first, of at most `budget` tokens with their padding, but at least one text.

    >>> by_tokens([3, 1, 2, 9], budget=4)
    [[1, 2], [0], [3]]
    """
    batches: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batches and lengths[i] * (len(batches[-1]) + 1) <= budget:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches


def in_batches(
    run: Callable[[list[int]], Result], lengths: Sequence[int], budget: int
) -> Iterator[tuple[list[int], Result]]:
    """(indices, result) of every batch that `by_tokens` makes; where memory runs out, the rest goes in smaller ones."""
    if budget < 1:
        raise ValueError("a batch holds at least one row, so batch_size is 1 or more")
    waiting = list(range(len(lengths)))
    while waiting:
        batch = [waiting[i] for i in by_tokens([lengths[i] for i in waiting], budget)[0]]
        try:
            result = run(batch)
        except torch.OutOfMemoryError:
            if len(batch) == 1:
                raise
            budget = max(lengths[i] for i in batch) * (len(batch) // 2)
            continue  # outside the handler the failed attempt's tensors are free again
        yield batch, result
        waiting = [i for i in waiting if i not in set(batch)]


def position_ids(attention_mask: Int[Tensor, "row position"]) -> Int[Tensor, "row position"]:
    """The position of each token among the real ones of its row; pads get position 0.

    >>> position_ids(torch.tensor([[0, 1, 1]]))
    tensor([[0, 0, 1]])
    """
    return (attention_mask.long().cumsum(1) - 1).clamp(min=0)
