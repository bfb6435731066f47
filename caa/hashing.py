"""One digest each of bytes, json, tensors and files. Knows no room.

>>> text_digest("a") == bytes_digest(b"a")
True
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

SHORT, WHOLE = 16, 64
"""Hex digits: 16 tell things of one run apart, all 64 are for what nobody may have changed."""


def bytes_digest(content: bytes, digits: int = SHORT) -> str:
    """The first hex digits of SHA-256."""
    return hashlib.sha256(content).hexdigest()[:digits]


def text_digest(text: str, digits: int = SHORT) -> str:
    """Hex digits of a text in UTF-8."""
    return bytes_digest(text.encode(), digits)


def json_digest(value: Any, *, sort_keys: bool = False, digits: int = SHORT) -> str:
    """Hex digits of what json makes of a value: lists, dicts, texts and numbers."""
    return text_digest(json.dumps(value, sort_keys=sort_keys), digits)


def lines_digest(values: Iterable[Any]) -> str:
    """16 hex digits of values as lines of json, one by one, so that they need not be in memory at once."""
    digest = hashlib.sha256()
    for value in values:
        digest.update(json.dumps(value).encode() + b"\n")
    return digest.hexdigest()[:SHORT]


def tensors_digest(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """16 hex digits of named tensors, as float32 numbers in their order."""
    digest = hashlib.sha256()
    for name, tensor in tensors:
        digest.update(name.encode() + tensor.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()[:SHORT]


def file_digest(path: str | Path) -> str:
    """All 64 hex digits of SHA-256 of a file."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
