"""A model's name in, the place of its files out, and back. Loads nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import caa

EMBEDDED = ("tiny-chat", "tiny-base")
"""The models that come with the package."""
ADAPTER_CONFIG = "adapter_config.json"
"""What makes a folder an adapter of PEFT."""


def model_path(name: str) -> str:
    """Where a model lies: the folder of an embedded one, in a clone or an installed wheel; else the name as it is."""
    if name not in EMBEDDED or Path(name).exists():
        return name
    folders = _embedded_folders(name)
    for folder in folders:
        if (folder / "config.json").exists():
            return str(folder)
    raise FileNotFoundError(f"the embedded model {name!r} is missing; looked in {', '.join(map(str, folders))}")


def adapter_base(name: str) -> str | None:
    """The base of an adapter whose folder is named as a model; None for a name that is no such folder.

    ValueError, with the way out, for a steered adapter, a damaged one, and one that does not say its base.
    """
    folder = Path(model_path(name))
    if (folder / "steering.json").is_file():
        raise ValueError(f"{name} is a steered adapter and no model: load it with SteeringWrapper.from_pretrained")
    if not (folder / ADAPTER_CONFIG).is_file() or (folder / "config.json").is_file():
        return None
    try:
        base = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{folder / ADAPTER_CONFIG} is damaged ({error}); download or save it again") from error
    if not base:
        raise ValueError(
            f"{folder} is an adapter that does not say its base: load the base, and then the adapter with "
            "SteeringWrapper(model).load_adapter(folder, name)"
        )
    return str(base)


def adapter_name(folder: str | Path) -> str:
    """What an adapter that is loaded as a model is called: as its folder is, in characters that PEFT takes."""
    return Path(folder).resolve().name.replace(".", "-")


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
