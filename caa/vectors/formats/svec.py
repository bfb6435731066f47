"""The .svec files of AISteer360 and IBM's activation-steering: JSON, a direction for each layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from caa.untrusted import read_json
from caa.vectors.formats.content import Content, check_unlayered, flat


def read_svec(path: str | Path, layer: int | None = None, blocks: int | None = None) -> Content:
    """`{"model_type", "directions": {"13": [...] or [[...]]}}`; ValueError for other JSON, with what it holds.

    Layer L was read at the output of block L in both tools, where AISteer360 also adds it; activation-steering adds
    it to block L's input. A direction of several rows, one for each token of a prompt, is refused.
    """
    try:
        record = read_json(path, "it")
    except ValueError as error:
        raise ValueError(f"{path} is damaged: it is no JSON ({error})") from error
    directions = record.get("directions") if isinstance(record, dict) else None
    if not isinstance(directions, dict) or not directions:
        raise ValueError(f"{path} is JSON without directions by layer, so no .svec file; it holds {_keys(record)}")
    check_unlayered(path, layer)
    hint = record.get("model_type")
    kind = f"a .svec file for {hint!r}" if hint else "a .svec file"
    return Content(kind, {_layer(key, path): _direction(key, value, path) for key, value in directions.items()})


def _keys(record: Any) -> str:
    return ", ".join(map(repr, list(record)[:5])) if isinstance(record, dict) else f"a {type(record).__name__}"


def _layer(key: str, path: str | Path) -> int:
    number = key.removeprefix("-")
    if not number.isdecimal() or str(int(number)) != number:
        raise ValueError(f"{path} has a direction for {key!r}; a .svec file's are numbered by layer")
    return int(key)


def _direction(key: str, numbers: Any, path: str | Path) -> Tensor:
    try:
        tensor = torch.tensor(numbers, dtype=torch.float32)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise ValueError(f"{path}: the direction of layer {key} is no list of numbers ({error})") from error
    if tensor.ndim == 2 and len(tensor) > 1:
        raise ValueError(
            f"{path} has {len(tensor)} rows for layer {key}, one for each position of a prompt (ActAdd); such a vector "
            "cannot be added to every token"
        )
    return flat(tensor, f"{path}, layer {key},")
