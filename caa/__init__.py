"""Steer a language model, finetune it, and know what each does to the other. Names are imported when first used."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

from caa._moved import NAMES, MovedModules, moved_name

__version__ = "0.2.0"

_NAMES = {
    "Behavior": "data.behaviors",
    "ChatFormat": "data.chat",
    "ContrastPair": "data.behaviors",
    "EvalGrid": "evals.grid",
    "Experiment": "experiment",
    "Intervention": "steering.intervention",
    "Question": "data.behaviors",
    "SteeringVector": "vectors.vector",
    "SteeringWrapper": "steering.wrapper",
    "extract": "extraction.extract",
    "finetune": "training.sft",
    "load_behavior": "data.sources",
    "load_model": "models.loading",
    "search": "studies.search",
    "write_report": "reports.tables.report",
}
_NAMESPACES = {
    "formats": "vectors.formats",
    "judges": "judges",
    "methods": "vectors.methods",
    "operators": "steering.operators",
    "scopes": "steering.scopes",
}
__all__ = sorted([*_NAMES, *_NAMESPACES])
sys.meta_path.append(MovedModules())


def __getattr__(name: str) -> Any:
    if name in _NAMESPACES:
        return import_module(f"caa.{_NAMESPACES[name]}")
    if name in _NAMES:
        return getattr(import_module(f"caa.{_NAMES[name]}"), name)
    if name in NAMES:
        return moved_name(name)
    raise AttributeError(f"caa has no {name!r}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return __all__
