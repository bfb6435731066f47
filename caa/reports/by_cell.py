"""Rows in; scores, means and texts of each cell out."""

from __future__ import annotations

from collections.abc import Iterable

from caa.reports.statistics import Estimate, mean_interval
from caa.runs.rows import Cell, Row

TEXT = "text"
"""Where a row's evidence keeps the model's answer. Rows of A/B questions and of facts have none."""


def scores_by_cell(rows: Iterable[Row]) -> dict[Cell, dict[str, float | None]]:
    """Cell -> question -> score, in order of appearance."""
    scores: dict[Cell, dict[str, float | None]] = {}
    for row in rows:
        scores.setdefault(row.cell, {})[row.question] = row.score
    return scores


def means_by_cell(rows: Iterable[Row]) -> dict[Cell, Estimate]:
    """Cell -> its mean over questions with a 95 % interval, in order of appearance."""
    scores: dict[Cell, list[float | None]] = {}
    for row in rows:
        scores.setdefault(row.cell, []).append(row.score)
    return {cell: mean_interval(values) for cell, values in scores.items()}


def texts_by_cell(rows: Iterable[Row]) -> dict[Cell, list[str]]:
    """Cell -> the answers written in it; cells without any are left out."""
    texts: dict[Cell, list[str]] = {}
    for row in rows:
        if TEXT in row.evidence:
            texts.setdefault(row.cell, []).append(str(row.evidence[TEXT]))
    return texts


def require_rows(rows: Iterable[Row]) -> list[Row]:
    """The rows as a list; ValueError if there are none."""
    listed = list(rows)
    if not listed:
        raise ValueError("there are no rows to make a table of. Run the grid first: it writes them to rows.jsonl.")
    return listed


def require_one(rows: Iterable[Row], field: str) -> None:
    """ValueError if the rows' cells differ in this field."""
    values = sorted({str(getattr(row.cell, field)) for row in rows})
    if len(values) > 1:
        raise ValueError(
            f"this needs the rows of one {field}, these are of {', '.join(map(repr, values))}: select first"
        )
