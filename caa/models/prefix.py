"""What all texts begin with, read once: its ids in, keys and values out that stand before every row of later passes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from caa.models.blocks import cache_name, decoder, evaluating, input_device, position_inputs
from caa.models.positions import cache_in

LEAST_SAVED = 512
"""Tokens that need not be read any more. Fewer are not worth a pass of their own."""


def shared_length(sequences: Iterable[Sequence[int]]) -> int:
    """How many tokens all of them begin with; 0 where a pass of its own would not pay.

    >>> shared_length([[1] * 300 + [2], [1] * 300 + [3], [1] * 300]), shared_length([[1, 2], [1, 2]])
    (300, 0)
    """
    lists = [list(sequence) for sequence in sequences]
    first, last = min(lists, default=[]), max(lists, default=[])  # what these two share, all between them do
    length = 0
    while length < min(len(first), len(last)) and first[length] == last[length]:
        length += 1
    return length if length * (len(lists) - 1) >= LEAST_SAVED else 0


class PrefixCache(Cache):
    """Keys and values of a prefix, of one row for all rows of a pass. What a pass adds is not kept: many may follow."""

    def __init__(self, cache: Any, length: int) -> None:
        super().__init__(layers=[_PrefixLayer(layer.keys, layer.values) for layer in cache.layers])
        self.length = length

    def inputs(self, model: Any) -> dict[str, Any]:
        """What the model takes to go on behind it."""
        return {cache_name(model): self, "use_cache": True}


@torch.no_grad()
def read_prefix(model: Any, ids: Sequence[int]) -> PrefixCache:
    """By one pass without the head."""
    row = torch.tensor([ids], device=input_device(model))
    mask = torch.ones_like(row)
    with evaluating(model):
        output = decoder(model)(input_ids=row, attention_mask=mask, **position_inputs(model, mask), use_cache=True)
    return PrefixCache(cache_in(output), len(ids))


class _PrefixLayer(CacheLayerMixin):
    """One block's share: [1, head, column, size]."""

    is_sliding = False
    keys: Tensor
    values: Tensor

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.lazy_initialization(keys, values)

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.keys, self.values = key_states, value_states
        self.dtype, self.device = key_states.dtype, key_states.device
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        rows = len(key_states)
        return (
            torch.cat([self.keys.expand(rows, -1, -1, -1), key_states], dim=2),
            torch.cat([self.values.expand(rows, -1, -1, -1), value_states], dim=2),
        )

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def get_seq_length(self) -> int:
        return self.keys.shape[2]

    def get_max_length(self) -> int:
        return -1
