"""Rows, tables and CSV files in; what the report page draws and its script reads out. All of it is data, no markup."""

from __future__ import annotations

import base64
import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from caa.reports.arranging import in_order
from caa.reports.collapse import TEXT
from caa.reports.figures.texts import shaded
from caa.reports.layout import Entry, Table
from caa.reports.naming import SCORES, finetune_name, most, signed, vector_name
from caa.runs.rows import Cell, Row


def score_entries(tables: Iterable[Table]) -> list[Entry]:
    """The mean scores of all tables; differences and slopes are no point of a curve."""
    return [entry for table in tables for entry in table.entries if entry.quantity == "score"]


def scores(entries: Iterable[Entry]) -> list[dict[str, Any]]:
    """The points of the curves: what is picked, as `texts` calls it, and the numbers; None where there is none."""
    return [
        {
            **_setting(entry.cell),
            "task": entry.cell.task,
            "mean": _number(entry.estimate.mean),
            "low": _number(entry.estimate.low),
            "high": _number(entry.estimate.high),
            "says": hover(entry),
        }
        for entry in entries
    ]


def axes(entries: Iterable[Entry]) -> dict[str, dict[str, Any]]:
    """Task -> what its axis says and where it ends."""
    tasks = dict.fromkeys(entry.cell.task for entry in entries)
    return {task: {"label": SCORES.get(task, "mean score"), "most": most(task)} for task in tasks}


def _number(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 4)


def hover(entry: Entry) -> str:
    """The numbers behind an entry, not rounded to what fits."""
    found = entry.estimate
    between = "" if math.isnan(found.low) else f", 95 % interval {found.low:.3f} to {found.high:.3f}"
    p = "" if entry.p is None else f", p = {entry.p:.2g}"
    unjudged = f", {found.unjudged} without a score" if found.unjudged else ""
    return f"{found.mean:.3f}{between}, {found.n} questions{unjudged}{p}"


def texts(rows: Iterable[Row]) -> dict[str, Any]:
    """The answers in words, cell by cell, as the page's script reads them; each question stands once."""
    asked: dict[str, str] = {}
    cells: dict[Cell, dict[str, list[Any]]] = {}
    for row in rows:
        if TEXT in row.evidence:
            asked.setdefault(row.question, str(row.evidence.get("asked", row.question)))
            score = None if row.score is None or math.isnan(row.score) else round(row.score, 2)
            cells.setdefault(row.cell, {})[row.question] = [str(row.evidence[TEXT]), score]
    order = in_order((cell.behavior for cell in cells), ())
    listed = sorted(cells, key=lambda cell: (order.index(cell.behavior), cell.layer))
    return {"questions": asked, "cells": [{**_setting(cell), "answers": cells[cell]} for cell in listed]}


def _setting(cell: Cell) -> dict[str, str]:
    """What is picked in the page, as it is called there."""
    return {
        "behavior": cell.behavior,
        "finetune": finetune_name(cell.finetune),
        "layer": str(cell.layer),
        "multiplier": signed(cell.multiplier),
        "vector": vector_name(cell.vector),
        "system": cell.system_prompt or "none",
    }


def token_files(figures: Path) -> dict[str, Path]:
    """Name -> CSV of colored tokens, as the figures' recipe leaves it."""
    return {path.stem: path for path in sorted(figures.glob("tokens-*.csv"))}


def read_tokens(path: Path) -> dict[str, Any]:
    """The tokens of a figure and the color of each; ValueError for a file that holds something else."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            [(_, _, unit), *lines] = list(csv.reader(file))  # not pandas: the token "NA" is a word
        tokens, values = [line[1] for line in lines], [float(line[2]) for line in lines]
        return {"unit": unit, "tokens": shaded(tokens, values)}
    except (ValueError, IndexError, csv.Error) as error:
        raise ValueError(
            f"{path} does not hold place, token and number in each line ({error}); draw it again"
        ) from error


def pictures(figures: Path, left_out: Sequence[str] | Mapping[str, Any] = ()) -> dict[str, str]:
    """Name -> PNG in base64, for an address that needs no network."""
    found = [path for path in sorted(figures.glob("*.png")) if path.stem not in left_out]
    return {path.stem: base64.b64encode(path.read_bytes()).decode() for path in found}
