"""Rows, tables and CSV files in; what the HTML page draws and its script reads out. All of it is data, no markup."""

from __future__ import annotations

import base64
import csv
import math
import re
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from caa.files import own_files
from caa.reports.naming import SCORES, finetune_name, highest_score, setting_name, signed, vector_name
from caa.reports.pages.captions import in_reading_order
from caa.reports.pages.tokens import shaded
from caa.reports.tables.layout import Entry, Table
from caa.runs.rows import TEXT, Cell, Row
from caa.untrusted import cell_text


def score_entries(tables: Iterable[Table]) -> list[Entry]:
    """The mean scores of all tables; differences, slopes and named settings are no point of a curve."""
    entries = [entry for table in tables for entry in table.entries]
    return [entry for entry in entries if entry.quantity == "score" and entry.cell.layer is not None]


def curve_points(entries: Iterable[Entry]) -> list[dict[str, Any]]:
    """The points of the curves: what is picked, as `answers` calls it, and the numbers; None where there is none."""
    return [
        {
            **_choices(entry.cell),
            "task": entry.cell.task,
            "mean": _number(entry.estimate.mean),
            "low": _number(entry.estimate.low),
            "high": _number(entry.estimate.high),
            "says": exact_numbers(entry),
        }
        for entry in entries
    ]


def curve_axes(entries: Iterable[Entry]) -> dict[str, dict[str, Any]]:
    """Task -> the label of its axis and where it ends."""
    tasks = dict.fromkeys(entry.cell.task for entry in entries)
    return {task: {"label": SCORES.get(task, "mean score"), "most": highest_score(task)} for task in tasks}


def _number(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 4)


def exact_numbers(entry: Entry) -> str:
    """The numbers behind an entry, not rounded to what fits: shown where the mouse hovers."""
    estimate = entry.estimate
    unit = "" if entry.step == 1 else " per unit of the multiplier"
    interval = "" if math.isnan(estimate.low) else f", 95 % interval {estimate.low:.3f} to {estimate.high:.3f}"
    unjudged = f", {estimate.unjudged} without a score" if estimate.unjudged else ""
    p = "" if entry.p is None else f", p = {entry.p:.2g}"
    unread = f"; neither marked nor tested, for only {entry.unread}" if entry.unread else ""
    return f"{estimate.mean:.3f}{unit}{interval}, {estimate.n} questions{unjudged}{p}{unread}"


def answers(rows: Iterable[Row]) -> dict[str, Any]:
    """The answers in words, cell by cell, as the page's script reads them; each question stands once."""
    questions: dict[str, str] = {}
    by_cell: dict[Cell, dict[str, list[Any]]] = {}
    for row in rows:
        if TEXT in row.evidence:
            questions.setdefault(row.question, str(row.evidence.get("asked", row.question)))
            score = None if row.score is None or math.isnan(row.score) else round(row.score, 2)
            by_cell.setdefault(row.cell, {})[row.question] = [str(row.evidence[TEXT]), score]
    behaviors = list(dict.fromkeys(cell.behavior for cell in by_cell))
    cells = sorted(by_cell, key=lambda cell: (behaviors.index(cell.behavior), -1 if cell.layer is None else cell.layer))
    return {"questions": questions, "cells": [{**_choices(cell), "answers": by_cell[cell]} for cell in cells]}


def _choices(cell: Cell) -> dict[str, str]:
    """What is picked in the page, under the names of its fields."""
    return {
        "behavior": cell.behavior,
        "finetune": finetune_name(cell.finetune),
        "layer": "of the setting" if cell.layer is None else str(cell.layer),
        "multiplier": setting_name(cell.setting) if cell.setting else signed(cell.multiplier),
        "vector": vector_name(cell.vector),
        "system": cell.system_prompt or "none",
    }


def story(tables: Iterable[Table]) -> list[dict[str, Any]]:
    """For each table with sentences: what was asked, in which unit, the first sentence, and whether more follow."""
    parts = []
    for table in tables:
        if table.headlines:
            task, _, place = table.title.partition(";")
            unit = SCORES.get(table.entries[0].cell.task, "mean score")
            name = f"{task.partition(':')[0]},{place}"
            parts.append({"name": name, "unit": unit, "first": table.headlines[0], "several": len(table.headlines) > 1})
    return parts


_WEIGHTS = re.compile(r"(?P<small> \([^()]*\))|(?<= by )(?P<b>[+-]?\d+\.\d+)")


def weighed(text: str) -> list[tuple[str, str]]:
    """A sentence in pieces for the eye: intervals small, changes bold, the rest plain.

    >>> weighed("Steering by +0.30 (+0.2 to +0.4).")
    [('', 'Steering by '), ('b', '+0.30'), ('small', ' (+0.2 to +0.4)'), ('', '.')]
    """
    pieces, end = [], 0
    for match in _WEIGHTS.finditer(text):
        pieces += [("", text[end : match.start()]), (match.lastgroup or "", match[0])]
        end = match.end()
    return [piece for piece in (*pieces, ("", text[end:])) if piece[1]]


def sentences(tables: Iterable[Table]) -> list[dict[str, Any]]:
    """What happened to each behavior, under what is picked for a curve; none where one sentence says all of a table."""
    records = []
    for table in tables:
        for headline in table.headlines if len(table.headlines) > 1 else ():
            if headline.behavior:
                choices = _choices(table.entries[0].cell) | {"task": table.entries[0].cell.task}
                where = {field: choices[field] for field in ("task", "layer", "system")}
                records.append({**where, "behavior": headline.behavior, "text": headline.text})
    return records


def token_files(figures: Path) -> dict[str, Path]:
    """Name -> CSV of colored tokens, as `caa figures` leaves it."""
    return {path.stem: path for path in own_files(figures, "tokens-*.csv")}


def read_tokens(path: Path) -> dict[str, Any]:
    """The tokens of a figure and the color of each; ValueError for a file that holds something else."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            [(_, _, unit), *lines] = list(csv.reader(file))  # not pandas: the token "NA" is a word
        tokens, values = [cell_text(line[1]) for line in lines], [float(line[2]) for line in lines]
        return {"unit": unit, "tokens": shaded(tokens, values)}
    except (ValueError, IndexError, csv.Error) as error:
        raise ValueError(
            f"{path} does not hold place, token and number in each line ({error}); draw it again"
        ) from error


def pictures(figures: Path, left_out: Collection[str] = ()) -> dict[str, str]:
    """Name -> PNG in base64, for an address that needs no network; in the order in which they are read."""
    paths = [path for path in own_files(figures, "*.png") if path.stem not in left_out]
    by_name = {path.stem: base64.b64encode(path.read_bytes()).decode() for path in paths}
    return {name: by_name[name] for name in in_reading_order(by_name)}
