"""The folder of a run in; its rows and its record out: what every report of it is made from. No torch."""

from __future__ import annotations

import csv
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from caa.files import replacing
from caa.runs.rows import TASKS, Row, read_rows
from caa.untrusted import cell_text, check_fields, read_object

RECORD = "run.json"
DAMAGE = "damage.csv"
"""What the open answers of each cell say again and again, and how much they surprise the unsteered model."""


@dataclass(frozen=True)
class Run:
    """What a run left behind."""

    folder: Path
    rows: list[Row]
    record: Mapping[str, Any] = field(default_factory=dict)
    """Its run.json: `settings` that all rows agree in, `notes` such as names and versions; empty if there is none."""

    @property
    def model(self) -> str:
        """The model's name; "unknown model" if the record does not say it."""
        return str(self.record.get("notes", {}).get("model") or "unknown model")

    @property
    def damage(self) -> list[dict[str, str]]:
        """The lines of its damage.csv, by the names of its columns; none if there is none."""
        path = self.folder / DAMAGE
        if not path.exists():
            return []
        lines = csv.DictReader(path.read_text(encoding="utf-8").splitlines())
        return [{name: cell_text(value) for name, value in line.items() if value is not None} for line in lines]

    @property
    def figures(self) -> Path:
        """Where `caa figures` leaves pictures; reports show what is there."""
        return self.folder / "figures"

    @property
    def captions(self) -> dict[str, Any]:
        """What the record says that the caption of a table needs; nothing without one, ValueError for a broken one."""
        if not self.record:
            return {}
        try:
            notes = self.record["notes"]
            behaviors = self.record["settings"]["behaviors"]
            return {
                "model": notes.get("model", ""),
                "judge_accuracy": _of_judges(behaviors, "accuracy"),
                "off_topic": _of_judges(behaviors, "off_topic"),
                "doses": dict(notes.get("doses", {})),
                "finetunes": dict(notes.get("finetunes", {})),
            }
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(_broken(self.folder / RECORD, error)) from error

    def write(self, name: str, text: str) -> Path:
        """Write a file of this name beside the rows, whole or not at all; its path."""
        with replacing(self.folder / name) as scratch:
            scratch.write_text(text, encoding="utf-8", errors="replace")  # a model may write half a character
        return self.folder / name


def _of_judges(behaviors: Mapping[str, Any], quality: str) -> dict[str, float]:
    """Behavior -> such a number of its judge, where it was judged and the judge could be checked."""
    judges = {behavior: tasks.get("open", {}).get("judge") for behavior, tasks in behaviors.items()}
    known = {behavior: judge.get(quality) for behavior, judge in judges.items() if judge}
    return {behavior: share for behavior, share in known.items() if share is not None}


def read_run(folder: str | Path) -> Run:
    """Read rows.jsonl and, if there is one, run.json.

    FileNotFoundError if the folder holds no rows, ValueError for a broken row, a broken run.json, and a row of which
    run.json knows nothing.
    """
    folder = Path(folder)
    record = read_record(folder / RECORD)
    rows = read_rows(folder / "rows.jsonl", partial(check_recorded, record=record))
    if not rows:
        raise FileNotFoundError(
            f"{folder} holds no rows (rows.jsonl): give the folder of a run, or run `caa grid` first"
        )
    return Run(folder, rows, record)


def check_recorded(row: Row, record: Mapping[str, Any]) -> None:
    """ValueError for a row of a behavior, task, finetune, system prompt, vector or setting that is none of those that a
    run.json lists."""
    cell, behaviors = row.cell, record.get("settings", {}).get("behaviors")
    if not behaviors:
        return
    _check_listed("behavior", cell.behavior, behaviors)
    known = behaviors[cell.behavior]
    if cell.task in TASKS and not known.keys().isdisjoint(TASKS):
        _check_listed("task", cell.task, [task for task in TASKS if task in known])
    vector = cell.vector.name if cell.vector.kind == "other" else ""
    asked = {"finetunes": cell.finetune, "prompts": cell.system_prompt, "also": vector, "settings": cell.setting}
    for kind, name in asked.items():
        if name and isinstance(known.get(kind), dict):
            _check_listed(_LISTS[kind], name, known[kind])


_LISTS = {"finetunes": "finetune", "prompts": "system prompt", "also": "vector", "settings": "setting"}


def _check_listed(kind: str, name: str, listed: Collection[str]) -> None:
    if name not in listed:
        raise ValueError(f"{RECORD} knows no {kind} {name!r}, only {', '.join(map(repr, listed)) or 'none'}")


_SETTINGS = {"behaviors": dict[str, dict[str, Any]], "model": dict[str, Any]}
_TASKS = {"ab": dict[str, Any], "open": dict[str, Any], "facts": dict[str, Any]}
_OPEN = {"judge": dict[str, Any] | None, "max_new_tokens": int}
_VECTOR = {"method": str, "n_pairs": int, "checks": dict[str, float]}
_JUDGE = {"name": str, "accuracy": float | None, "off_topic": float | None}
_NOTES = {
    "model": str,
    "versions": dict[str, str],
    "vectors": dict[str, dict[str, Any]],
    "doses": dict[str, dict[str, float]],
    "finetunes": dict[str, dict[str, str]],
    "batch_size": int,
}


def read_record(path: Path) -> dict[str, Any]:
    """What a run.json says, {} if there is none; ValueError for one that no run has written."""
    if not path.exists():
        return {}
    try:
        record = check_fields(read_object(path, "it"), {"settings": dict, "notes": dict}, "it", required=False)
        check_fields(record.get("settings", {}), _SETTINGS, "its settings", required=False)
        check_fields(record.get("notes", {}), _NOTES, "its notes", required=False)
        for name, source in record.get("notes", {}).get("vectors", {}).items():
            check_fields(source, _VECTOR, f"the vector of {name}", required=False)
        for name, tasks in record.get("settings", {}).get("behaviors", {}).items():
            asked = check_fields(tasks, _TASKS, name, required=False).get("open", {})
            judge = check_fields(asked, _OPEN, f"{name}, open", required=False).get("judge")
            check_fields(judge or {}, _JUDGE, f"the judge of {name}", required=False)
        return record
    except ValueError as error:
        raise ValueError(_broken(path, error)) from error


def _broken(path: Path, error: Exception) -> str:
    return f"{path} is not the record of a run ({error}); without it the captions say less"
