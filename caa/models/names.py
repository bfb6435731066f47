"""A model's name in, the place of its files out, and back. Loads nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import caa

EMBEDDED = ("tiny-chat", "tiny-base")
"""The models that come with the package."""


def model_path(name: str) -> str:
    """Where a model lies: the folder of an embedded one, in a clone or an installed wheel; else the name as it is."""
    if name not in EMBEDDED or Path(name).exists():
        return name
    folders = _embedded_folders(name)
    for folder in folders:
        if (folder / "config.json").exists():
            return str(folder)
    raise FileNotFoundError(f"the embedded model {name!r} is missing; looked in {', '.join(map(str, folders))}")


def model_name(model: Any) -> str:
    """The name to find this model by again: its embedded name, its Hub id, or its path."""
    path = str(model.config.name_or_path)
    for name in EMBEDDED:
        if path and Path(path).resolve() in _embedded_folders(name):
            return name
    return path


def _embedded_folders(name: str) -> list[Path]:
    """Inside an installed package, or beside it in a clone."""
    package = Path(caa.__file__).resolve().parent
    return [root / "checkpoints" / name for root in (package, package.parent)]
