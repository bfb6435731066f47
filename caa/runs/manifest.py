"""run.json: what a folder's rows were measured with, and the refusal to mix what cannot be compared. Asks nothing."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from caa.comparing import MeasuredOtherwiseError, differences
from caa.data.behaviors import Question
from caa.files import replacing
from caa.hashing import json_digest
from caa.runs.rows import TASKS, Cell, vector_of_0_1
from caa.untrusted import read_object

VERSION = 2
"""Of the record. Version 0.1 wrote none, and "own" for what is called "reread" now."""
LIBRARIES = ("caa", "torch", "transformers", "peft", "scikit-learn")


def record_run(path: str | Path, settings: dict[str, Any], notes: dict[str, Any], measured: Collection[Cell]) -> None:
    """Add these settings to the record at `path`, or begin one. `measured` are the cells that have rows.

    `settings` must agree with what those rows were measured with, wherever both say something; what the record says of
    anything else is dropped, for it binds nobody. `notes` (names, versions) need not agree.
    FileExistsError, naming every field that differs, otherwise; the record then stays as it was.
    """
    settings, notes = json.loads(json.dumps([settings, notes]))
    record = _read(path, measured)
    different = list(differences(record["settings"], settings))
    if different:
        raise MeasuredOtherwiseError(
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
        record = upgraded(read_object(path, "it"))
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
        same = {"reread" if key == "own" else key: value for key, value in known.items()}
        behaviors[name] = {"site": "block output", **same}  # wherever a vector was read
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
        "settings": {cell.setting for cell in cells},
        "reread": {cell.finetune for cell in cells if cell.vector.kind == "reread"},
    }
    unasked = set(TASKS) - {cell.task for cell in cells}
    bound: dict[str, Any] = {}
    for key, value in known.items():
        if key in names:
            bound[key] = {name: setting for name, setting in value.items() if name in names[key]}
        elif key in TASKS and isinstance(value, dict) and "shown" in value:
            shown = {prompt: digest for prompt, digest in value["shown"].items() if prompt in names["prompts"]}
            bound[key] = value | {"shown": shown}
        else:
            bound[key] = value
    return {key: value for key, value in bound.items() if key not in unasked}


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
    entries = sorted([question.text, question.matching or "", question.opposite or ""] for question in questions)
    return json_digest(entries)
