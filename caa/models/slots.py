"""Keys and values of texts that come and go: each row writes its next token at its own place."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from caa.models.blocks import cache_name, decoder_blocks, first_position, input_device, model_width, text_config

MOST_ROWS = 256
"""Texts that are written at once, where memory allows: more gain little (docs/LOG.md)."""
LEAST_MEMORY = 256 * 2**20
"""Bytes that their keys and values may take however small the model is; a larger one's, half of what its weights do."""


def rows_by_memory(model: Any, columns: int) -> int:
    """How many texts of so many tokens are written at once if nobody says: `MOST_ROWS`, or what memory is there for."""
    row = columns * 2 * len(decoder_blocks(model)) * _width_of_keys(model) * model.dtype.itemsize
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    return int(max(1, min(MOST_ROWS, max(LEAST_MEMORY, weights // 2) // row)))


def _width_of_keys(model: Any) -> int:
    """Numbers in the keys of one token in one block, by the config; those of the residual stream if it does not say."""
    config = text_config(model)
    heads = getattr(config, "num_attention_heads", None)
    keys = getattr(config, "num_key_value_heads", None) or heads
    if not isinstance(heads, int) or not isinstance(keys, int):
        return model_width(model)
    return keys * (getattr(config, "head_dim", None) or model_width(model) // heads)


class SlotCache(Cache):
    """A cache of so many rows of so many columns. Each row in use holds one text, from column 0 on.

    A pass over one token of every row in use writes it behind its own text, and `advance` counts it. What stands
    further right is of texts that are gone, and `mask` hides it: texts of any length share a pass without padding.
    """

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__(layer_class_to_replicate=partial(_SlotLayer, self))  # type: ignore[arg-type]
        self.rows, self.columns = rows, columns
        self.lengths: list[int] = []
        """Tokens in each row in use."""
        self.places = torch.tensor(self.lengths)
        """Where each row in use writes in this pass: its length, on the device of the pass."""
        self.seen = 0
        """Columns that this pass looks at; a number of its own, which compiled code need not work out."""

    @property
    def width(self) -> int:
        """Columns that the next pass looks at."""
        return max(self.lengths, default=0) + 1

    def mask(self, dtype: torch.dtype) -> Float[Tensor, "row 1 1 column"]:
        """For the next pass: 0 for a row's own tokens and the one that it is reading, the smallest number elsewhere."""
        later = torch.arange(self.width) > torch.tensor(self.lengths)[:, None]
        return torch.zeros(later.shape, dtype=dtype).masked_fill_(later, torch.finfo(dtype).min)[:, None, None]

    def inputs(self, model: Any, tokens: Sequence[int]) -> dict[str, Any]:
        """What the model takes to read one token more of each row in use, on its device."""
        device = input_device(model)
        self.places, self.seen = torch.tensor(self.lengths, device=device), self.width
        return {
            "input_ids": torch.tensor(tokens, device=device)[:, None],
            "attention_mask": self.mask(model.dtype).to(device),
            "position_ids": self.places[:, None] + first_position(model),
            cache_name(model): self,
            "use_cache": True,
        }

    def reserve(self, rows: int, columns: int, *, beside: bool = False) -> None:
        """Make room for at least so many rows and columns, where there is less.

        Layer by layer, which takes least memory; `beside` makes all of the new room first, so that nothing has changed
        where there is no memory for it.
        """
        if rows <= self.rows and columns <= self.columns:
            return
        rows, columns = max(rows, self.rows), max(columns, self.columns)
        own: list[Any] = self.layers
        layers = [layer for layer in own if layer.is_initialized]
        rooms = (layer.enlarged(rows, columns) for layer in layers)
        for layer, room in zip(layers, list(rooms) if beside else rooms, strict=True):
            layer.keys, layer.values = room
        self.rows, self.columns = rows, columns

    def advance(self) -> None:
        """Every row in use has read one token more."""
        self.lengths = [length + 1 for length in self.lengths]

    def add(self, stem: Any, row: int, length: int, times: int) -> None:
        """Put the first `length` tokens of one row of another cache into as many new rows as `times` says."""
        new = slice(len(self.lengths), len(self.lengths) + times)
        for layer, source in zip(self._layers_as_in(stem), stem.layers, strict=True):
            layer.keys[new, :, :length] = source.keys[row, :, :length]
            layer.values[new, :, :length] = source.values[row, :, :length]
        self.lengths += [length] * times

    def add_empty(self, times: int) -> None:
        """As many new rows of no tokens."""
        self.lengths += [0] * times

    def remove(self, row: int) -> None:
        """Let a text go; that of the last row takes its place."""
        last, length = len(self.lengths) - 1, self.lengths.pop()
        if row == last:
            return
        self.lengths[row] = length
        layers: list[Any] = self.layers
        for layer in layers:
            layer.keys[row, :, :length] = layer.keys[last, :, :length]
            layer.values[row, :, :length] = layer.values[last, :, :length]

    def _layers_as_in(self, stem: Any) -> list[Any]:
        layers: list[Any] = self.layers
        layers += [_SlotLayer(self) for _ in stem.layers[len(layers) :]]
        for layer, source in zip(layers, stem.layers, strict=True):
            if not layer.is_initialized:
                layer.lazy_initialization(source.keys, source.values)
        return layers


class _SlotLayer(CacheLayerMixin):
    """One block's share of a `SlotCache`: [row, head, column, size]."""

    is_sliding = False
    keys: Tensor
    values: Tensor

    def __init__(self, slots: SlotCache) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.slots = slots

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        rows, columns = self.slots.rows, self.slots.columns
        self.keys, self.values = _room(key_states, rows, columns), _room(value_states, rows, columns)
        self.dtype, self.device = key_states.dtype, key_states.device
        self.is_initialized = True

    def enlarged(self, rows: int, columns: int) -> list[Tensor]:
        """Copies of the keys and the values with so much room."""
        rooms = [_room(states, rows, columns) for states in (self.keys, self.values)]
        for room, states in zip(rooms, (self.keys, self.values), strict=True):
            room[: states.shape[0], :, : states.shape[2]] = states
        return rooms

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        places = self.slots.places.to(self.device)
        rows = torch.arange(len(places), device=self.device)
        self.keys[rows, :, places] = key_states[:, :, 0]
        self.values[rows, :, places] = value_states[:, :, 0]
        shown = slice(len(places)), slice(None), slice(self.slots.seen)
        return self.keys[shown], self.values[shown]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.slots.seen, 0

    def get_seq_length(self) -> int:
        return self.slots.seen - 1

    def get_max_length(self) -> int:
        return self.slots.columns


def _room(states: Tensor, rows: int, columns: int) -> Tensor:
    """Zeros: what is hidden weighs nothing, and nothing times no number would be none."""
    return states.new_zeros(rows, states.shape[1], columns, states.shape[3])
