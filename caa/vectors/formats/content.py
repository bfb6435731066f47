"""What a foreign file says, as it says it, and the checks that all of them share. Knows no file format."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from caa.vectors.vector import Provenance


class NoLayerError(ValueError):
    """A file of one direction that does not say which layer it is for; give the layer."""


@dataclass(frozen=True)
class Content:
    """Directions and all that a file states about them."""

    kind: str
    """What the file is: "a bare tensor", "a GGUF control vector for 'llama'"."""
    directions: Mapping[int, Tensor]
    """layer -> float32 [d_model], numbered as the file does; below 0 it counts from the last block."""
    site: str = "block output"
    """Where in a block it was read, by the names of `caa.models.sites`."""
    behavior: str = ""
    model: str = ""
    method: str = ""
    origin: Provenance | None = None
    """All of it, in a file of ours."""
    notes: tuple[str, ...] = ()
    """What else is to be known, for the vector's history."""


def from_zero(directions: Mapping[int, Tensor], blocks: int | None, path: str | Path) -> dict[int, Tensor]:
    """The directions by block, counted from 0; `blocks` is how many the base has, where that is known.

    ValueError for layers that count from the end of a base of unknown depth, for two of one block, and for one that
    the base has not.

    >>> list(from_zero({-1: Tensor([1.0]), 2: Tensor([2.0])}, 32, "v.pt"))
    [31, 2]
    """
    if blocks is None and min(directions, default=0) < 0:
        raise ValueError(
            f"{path} counts layer {min(directions)} from the end, and does not say how many there are: give the number "
            "of the base's blocks (blocks=32, or --blocks 32)"
        )
    numbered: dict[int, Tensor] = {}
    for layer, direction in directions.items():
        block = layer + (blocks or 0) if layer < 0 else layer
        if block < 0 or (blocks is not None and block >= blocks):
            raise ValueError(f"{path} has a direction for layer {layer}; a base of {blocks} blocks has no such layer")
        if block in numbered:
            raise ValueError(f"{path} has two directions for block {block}: one is numbered {layer}, from the end")
        numbered[block] = direction
    return numbered


def check_unlayered(path: str | Path, layer: int | None) -> None:
    """ValueError if a layer is given for a file that says its layers."""
    if layer is not None:
        raise ValueError(f"{path} says its layers itself; leave the layer out")


def flat(tensor: Any, path: str | Path) -> Tensor:
    """One direction, float32 [d_model]; ValueError for several in one tensor, for nobody can tell their layers."""
    check_floating(tensor, path)
    if tensor.numel() != max(tensor.shape, default=0) or tensor.numel() < 2:
        raise ValueError(f"{path} holds a tensor of shape {list(tensor.shape)}; save one of shape [d_model] per layer")
    direction: Tensor = tensor.detach().reshape(-1).float()
    if tensor.isfinite().all() and not direction.isfinite().all():
        raise ValueError(f"{path} holds numbers up to {tensor.abs().max().item():.1e}, more than float32 can hold")
    return direction


def check_floating(tensor: Any, path: str | Path) -> None:
    """ValueError for anything but a plain tensor of floating-point numbers that are all in the file."""
    if not isinstance(tensor, Tensor) or tensor.layout is not torch.strided or not tensor.is_floating_point():
        raise ValueError(f"{path} holds {describe(tensor)} where floating-point numbers of shape [d_model] are needed")
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise ValueError(f"{path} is damaged: its tensor is larger than the numbers that it brings")


def describe(value: Any) -> str:
    """What a file holds, in words, for an error."""
    if isinstance(value, dict):
        keys = ", ".join(repr(key)[:30] for key in list(value)[:5])
        return f"a dict with the keys {keys}" if value else "an empty dict"
    return f"a tensor of {value.dtype}, {value.layout}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
