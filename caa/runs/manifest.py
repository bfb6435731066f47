"""run.json: what a folder's rows were measured with, and the refusal to mix what cannot be compared. Asks nothing."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from caa.data.behaviors import Question
from caa.files import replacing
from caa.hashing import json_digest, tensors_digest
from caa.runs.rows import TASKS, Cell, vector_of_0_1
from caa.vectors.vector import SteeringVector

VERSION = 2
"""Of the record. Version 0.1 wrote none, and "own" for what is called "reread" now."""
LIBRARIES = ("caa", "torch", "transformers", "peft", "scikit-learn")


def record_run(path: str | Path, settings: dict[str, Any], notes: dict[str, Any], measured: Collection[Cell]) -> None:
    """Add these settings to the record at `path`, or begin one. `measured` are the cells that have rows.

    `settings` must agree with what those rows were measured with, wherever both say something; what the record says of
    anything else is dropped, for it binds nobody. `notes` (names, versions) need not agree.
    ValueError, naming every field that differs, otherwise; the record then stays as it was.
    """
    settings, notes = json.loads(json.dumps([settings, notes]))
    record = _read(path, measured)
    different = list(_differences(record["settings"], settings))
    if different:
        raise ValueError(
            f"the rows beside {path} were measured otherwise: {'; '.join(different)}. They cannot stand in one table: "
            "choose a new folder."
        )
    merged = {
        "version": VERSION,
        "settings": _merged(record["settings"], settings),
        "notes": _merged(record["notes"], notes),
    }
    with replacing(path) as scratch:
        Path(scratch).write_text(json.dumps(merged, indent=2), encoding="utf-8")


def _read(path: str | Path, measured: Collection[Cell]) -> dict[str, Any]:
    if not Path(path).exists():
        return {"settings": {}, "notes": {}}
    try:
        record = upgraded(json.loads(Path(path).read_bytes()))
        return {"settings": _settings_of(measured, dict(record["settings"])), "notes": dict(record["notes"])}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not the record of a run ({error}); choose a new folder") from error


def upgraded(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record of any version as this one writes it.

    ValueError for one of version 0.1 whose user called a vector as the version called its own: its rows do not say
    which of the two they were steered by.
    """
    if record.get("version") == VERSION:
        return dict(record)
    behaviors: dict[str, Any] = {}
    for name, known in record["settings"].get("behaviors", {}).items():
        if mistaken := [other for other in known.get("also", {}) if vector_of_0_1(other).kind != "other"]:
            raise ValueError(f"version 0.1 took the vector called {mistaken[0]!r} for one of its own")
        behaviors[name] = {"reread" if key == "own" else key: value for key, value in known.items()}
    return {**record, "settings": {**record["settings"], "behaviors": behaviors}}


def _settings_of(cells: Collection[Cell], settings: dict[str, Any]) -> dict[str, Any]:
    """Those that rows of these cells were measured with.

    >>> known = {"model": 1, "behaviors": {"a": {"also": {"c": 2}, "ab": 3, "open": 4}, "b": {"vector": 5}}}
    >>> _settings_of([Cell("a", "ab")], known), _settings_of([], known)
    ({'model': 1, 'behaviors': {'a': {'also': {}, 'ab': 3}}}, {})
    """
    if not cells:
        return {}
    by_name = {name: [cell for cell in cells if cell.behavior == name] for name in settings.get("behaviors", {})}
    known = {name: _asked_of(own, settings["behaviors"][name]) for name, own in by_name.items() if own}
    return settings | {"behaviors": known}


def _asked_of(cells: Collection[Cell], known: dict[str, Any]) -> dict[str, Any]:
    """The same for the settings of one behavior."""
    names: dict[str, set[str | None]] = {
        "finetunes": {cell.finetune for cell in cells},
        "prompts": {cell.system_prompt for cell in cells},
        "also": {cell.vector.name for cell in cells if cell.vector.kind == "other"},
        "reread": {cell.finetune for cell in cells if cell.vector.kind == "reread"},
    }
    unasked = set(TASKS) - {cell.task for cell in cells}
    return {
        key: {name: each for name, each in value.items() if name in names[key]} if key in names else value
        for key, value in known.items()
        if key not in unasked
    }


def _differences(old: Any, new: Any, place: str = "") -> Iterator[str]:
    """Where both say something and not the same.

    >>> list(_differences({"model": {"dtype": "float32"}, "a": 1}, {"model": {"dtype": "bfloat16"}, "b": 2}))
    ["model.dtype was 'float32' and is now 'bfloat16'"]
    """
    if isinstance(old, dict) and isinstance(new, dict):
        for key in old.keys() & new.keys():
            yield from _differences(old[key], new[key], f"{place}.{key}" if place else key)
    elif old != new:
        yield f"{place} was {old!r} and is now {new!r}"


def _merged(old: Any, new: Any) -> Any:
    """
    >>> _merged({"a": {"x": 1}}, {"a": {"y": 2}})
    {'a': {'x': 1, 'y': 2}}
    """
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return new
    return old | {key: _merged(old.get(key), value) for key, value in new.items()}


def versions() -> dict[str, str]:
    return {name: version(name) for name in LIBRARIES}


def questions_hash(questions: Iterable[Question]) -> str:
    """16 hex digits of what is asked, answers included, in any order."""
    asked = sorted([question.text, question.matching or "", question.opposite or ""] for question in questions)
    return json_digest(asked)


def vector_hash(vector: SteeringVector) -> str:
    """16 hex digits of a vector's layers and numbers."""
    return tensors_digest((str(layer), vector.at(layer)) for layer in vector.layers)


def adapter_hash(model: nn.Module, name: str) -> str:
    """16 hex digits of what a LoRA adapter does: its weights, their scale in each layer, its variant."""
    config = model.peft_config[name]  # type: ignore[index]
    scale = torch.tensor([getattr(config, "r", 0), getattr(config, "lora_alpha", 0)])
    weights = ((key, p) for key, p in model.named_parameters() if f".{name}." in f"{key}.")
    return tensors_digest([("scale", scale), *weights, *_beyond_weights(model, name)])


def _beyond_weights(model: nn.Module, name: str) -> Iterator[tuple[str, Tensor]]:
    """What neither the weights nor the config's rank and alpha tell (rsLoRA, DoRA, ...); nothing for a plain LoRA."""
    from peft.tuners.lora import LoraLayer

    config: Any = model.peft_config[name]  # type: ignore[index]
    for key, layer in model.named_modules():
        if isinstance(layer, LoraLayer) and name in layer.scaling:
            variant = layer.lora_variant.get(name)
            if variant or layer.scaling[name] != config.lora_alpha / config.r:
                yield f"{key} {type(variant).__name__}", torch.tensor(layer.scaling[name])
    tokens = [getattr(config, field, None) for field in ("alora_invocation_tokens", "trainable_token_indices")]
    if any(tokens):
        yield f"tokens {tokens}", torch.tensor(0)
