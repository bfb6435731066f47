"""Rows of one kind in, one table out: which lines and columns there are, and what stands in the caption."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Literal

from caa.evals.rows import Cell, Row
from caa.reports.layout import Entry, Line, Table, marked
from caa.reports.statistics import Estimate, mean_interval

_FINETUNES = ("none", "positive", "negative")
_SPREAD = "± is half the width of the 95 % interval (bootstrap over questions); both ends are in the CSV."
_UNJUDGED = "12%?: share of answers that the judge could not tell; they are left out of the mean."
_RANDOM = "random x"

Stub = Literal["behavior", "layer"]


def estimates(rows: Iterable[Row]) -> dict[Cell, Estimate]:
    """Cell -> its mean over questions with a 95 % interval, in order of appearance."""
    scores: dict[Cell, list[float | None]] = {}
    for row in rows:
        scores.setdefault(row.cell, []).append(row.score)
    return {cell: mean_interval(values) for cell, values in scores.items()}


def arranged(rows: Iterable[Row], title: str, stub: Stub, notes: Iterable[str] = ()) -> Table:
    """One table of rows that agree in all but `stub`, finetune, multiplier and vector."""
    found = _with_controls_merged(estimates(rows))
    finetunes = in_order((cell.finetune for cell in found), _FINETUNES)
    columns = sorted({(c.finetune, c.multiplier) for c in found}, key=lambda c: (finetunes.index(c[0]), c[1]))
    return Table(title, stub, tuple(columns), tuple(_lines(found, columns, stub)), (*_caption(found), *notes))


def _with_controls_merged(found: Mapping[Cell, Estimate]) -> dict[Cell, Estimate]:
    """Cells that differ only in the seed of a random vector become one: mean over the seeds, range of their means."""
    seeds = {cell.vector for cell in found if _is_random(cell)}
    name = f"{_RANDOM}{len(seeds)}"
    merged: dict[Cell, list[Estimate]] = {}
    for cell, estimate in found.items():
        merged.setdefault(replace(cell, vector=name) if _is_random(cell) else cell, []).append(estimate)
    return {cell: _over_seeds(many) if cell.vector == name else many[0] for cell, many in merged.items()}


def _is_random(cell: Cell) -> bool:
    return cell.vector.startswith("random-")


def _over_seeds(seeds: Sequence[Estimate]) -> Estimate:
    """The mean over the seeds, from the lowest of them to the highest; a single seed keeps its interval."""
    if len(seeds) == 1:
        return seeds[0]
    means = [estimate.mean for estimate in seeds if estimate.n]
    mean = sum(means) / len(means) if means else math.nan
    low, high = (min(means), max(means)) if len(means) > 1 else (math.nan, math.nan)
    return Estimate(mean, low, high, sum(e.n for e in seeds), sum(e.unjudged for e in seeds))


def _lines(found: Mapping[Cell, Estimate], columns: Sequence[tuple[str, float]], stub: Stub) -> list[Line]:
    """For each behavior (or layer) the line of its own vector, and one below it for every other vector."""
    names = dict.fromkeys(getattr(cell, stub) for cell in found)
    entries = {(getattr(c, stub), c.vector, c.finetune, c.multiplier): Entry(c, e) for c, e in found.items()}
    lines = []
    for name in sorted(names) if stub == "layer" else names:
        for vector in dict.fromkeys(["caa", *(c.vector for c in found if getattr(c, stub) == name)]):
            line = tuple(entries.get((name, vector, *column)) for column in columns)
            lines.append(Line(vector, line, control=True) if vector != "caa" else Line(str(name), marked(line)))
    return lines


def _caption(found: Mapping[Cell, Estimate]) -> list[str]:
    """How many questions, what the signs mean; only for signs that occur."""
    controls = {cell.vector for cell in found if cell.vector.startswith(_RANDOM)}
    asked = {e.n + e.unjudged for cell, e in found.items() if cell.vector not in controls}
    notes = [f"{_span(asked)} questions per cell. {_SPREAD}"] if asked else []
    notes += [_UNJUDGED] if any(e.unjudged for e in found.values()) else []
    return notes + [_control_note(name, int(name.removeprefix(_RANDOM))) for name in controls]


def _control_note(name: str, seeds: int) -> str:
    if seeds == 1:
        return f"{name}: a random direction of the same norm."
    return f"{name}: {seeds} random directions of the same norm; the mean over them, ± half the range of their means."


def _span(counts: Collection[int]) -> str:
    """
    >>> _span({50}), _span({50, 53})
    ('50', '50 to 53')
    """
    return str(min(counts)) if len(counts) == 1 else f"{min(counts)} to {max(counts)}"


def in_order(names: Iterable[str], first: Iterable[str]) -> list[str]:
    """The names there are, each once: the usual ones first, the others in order of appearance."""
    there = dict.fromkeys(names)
    return [*(name for name in first if name in there), *(name for name in there if name not in first)]
