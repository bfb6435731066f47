"""Lists of ids in, tensors out: padded rows, batches of similar lengths, one prompt with many continuations."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from caa.models.blocks import first_position, input_device
from caa.models.positions import position_ids

Result = TypeVar("Result")

TOKENS_ON_A_CPU = 1024
"""In a pass that reads: with twice as many, reading took a fifth longer (docs/LOG.md)."""


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


def even_batches(sequences: Sequence[Sequence[Any]], batch_size: int) -> list[list[int]]:
    """`by_length` in batches that hold as many, to one, and an even number of them where one does not hold all.

    >>> even_batches(["a", "aaaa", "aa", "a", "aaa"], batch_size=2)
    [[0], [3], [2], [4, 1]]
    >>> [len(batch) for batch in even_batches(["a"] * 50, 32)], [len(batch) for batch in even_batches("a", 32)]
    ([25, 25], [1])
    """
    order = [i for batch in by_length(sequences, batch_size) for i in batch]
    number = -(-len(order) // batch_size)
    number += number % 2 if number > 1 else 0
    bounds = [len(order) * n // number for n in range(number + 1)] if order else []
    return [order[start:end] for start, end in pairwise(bounds)]


def shares(costs: Sequence[float], number: int) -> list[list[int]]:
    """Indices, each in one of so many shares whose costs are much the same: the dearest first, to who has least.

    >>> shares([5, 9, 4, 3, 3], 2)
    [[1, 3], [0, 2, 4]]
    """
    dealt: list[list[int]] = [[] for _ in range(number)]
    sums = [0.0] * number
    for i in sorted(range(len(costs)), key=lambda i: -costs[i]):
        least = sums.index(min(sums))
        dealt[least].append(i)
        sums[least] += costs[i]
    return [sorted(share) for share in dealt]


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


def tokens_of_a_pass(model: Any, texts: int, longest: int) -> int:
    """The most tokens of a pass that is to read so many texts; on a CPU `TOKENS_ON_A_CPU` at most."""
    tokens = texts * longest
    return min(tokens, TOKENS_ON_A_CPU) if input_device(model).type == "cpu" else tokens


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


# One prompt, many continuations in one forward pass. What stands before the first steered token does not depend on
# layer or multiplier, so it is read once. Behind it stand the continuations: their positions all restart where the stem
# ends, and a mask lets each see the stem and itself alone.


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
    behind: int = 0
    """Tokens of a cache that stand before every stem, and that all of its tokens see."""

    def mask(self, dtype: torch.dtype) -> Float[Tensor, "row 1 column seen"]:
        """0 where a token (third axis) sees another (fourth), the dtype's lowest number where it does not."""
        column = torch.arange(self.ids.shape[1])
        branch = torch.where(column < self.stem, -1, (column - self.stem) // self.width)
        family = (branch[:, None] == branch) | (branch == -1)
        earlier = (column[:, None] >= column) & family
        itself = torch.eye(len(column), dtype=torch.bool)  # pads too: a token that sees nothing would be NaN
        sees = (earlier & self.real.bool()[:, None]) | itself
        hidden = torch.nn.functional.pad(~sees, (self.behind, 0))
        return torch.zeros(hidden.shape, dtype=dtype).masked_fill_(hidden, torch.finfo(dtype).min)[:, None]

    def inputs(self, model: Any) -> dict[str, Tensor]:
        """What the model takes, on its device."""
        positions = self.positions + first_position(model)
        named = {"input_ids": self.ids, "position_ids": positions, "attention_mask": self.mask(model.dtype)}
        device = input_device(model)
        return {name: tensor.to(device) for name, tensor in named.items()}


def branched(
    stems: Sequence[Sequence[int]], branches: Sequence[Sequence[Sequence[int]]], pad_id: int, behind: int = 0
) -> Branched:
    """Each stem followed by its branches, as many for every stem; short branches are padded on the right.

    All of it may stand behind some tokens of a cache, from which positions go on.

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
    positions = torch.cat([position_ids(real_heads), real_heads.sum(1, keepdim=True) + within], dim=1)
    real = torch.cat([real_heads, real_tails], dim=1)
    ids = torch.cat([heads, tails], dim=1)
    return Branched(ids, (positions + behind) * real, real, heads.shape[1], width, behind)
