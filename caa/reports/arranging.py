"""Entries of one kind in, one table out: which lines and columns there are, and what stands in the caption."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from typing import Literal

from caa.reports.layout import Entry, Line, Quantity, Table, marked
from caa.reports.naming import BASE, finetune_name, merged_random, vector_name
from caa.reports.statistics import Estimate, mean_interval
from caa.runs.rows import OWN, Cell, Row, VectorRef

_FINETUNES = (BASE, "positive", "negative")
_SPREAD = "± is half the width of the 95 % interval (bootstrap over questions); both ends are in the CSV."
_UNJUDGED = "12%?: share of answers that the judge could not tell; they are left out of the mean."

Stub = Literal["behavior", "layer"]


def estimates(rows: Iterable[Row]) -> dict[Cell, Estimate]:
    """Cell -> its mean over questions with a 95 % interval, in order of appearance."""
    scores: dict[Cell, list[float | None]] = {}
    for row in rows:
        scores.setdefault(row.cell, []).append(row.score)
    return {cell: mean_interval(values) for cell, values in scores.items()}


def arranged(rows: Iterable[Row], title: str, stub: Stub, notes: Iterable[str] = ()) -> Table:
    """One table of scores, of rows that agree in all but `stub`, finetune, multiplier and vector."""
    entries = merged_controls(Entry(cell, estimate) for cell, estimate in estimates(rows).items())
    return table_of(entries, title, stub, (*_caption(entries), *notes))


def table_of(entries: Sequence[Entry], title: str, stub: Stub, notes: Iterable[str] = ()) -> Table:
    """One table of entries: scores with highest and lowest marked, differences as they are marked already."""
    finetunes = in_order((finetune_name(entry.cell.finetune) for entry in entries), _FINETUNES)
    columns = sorted(
        {(finetune_name(entry.cell.finetune), entry.column) for entry in entries},
        key=lambda column: (finetunes.index(column[0]), *_order(column[1])),
    )
    return Table(title, stub, tuple(columns), tuple(_lines(entries, columns, stub)), tuple(notes))


def _order(column: float | str) -> tuple[float, str]:
    """Multipliers ascending, then what is about all of them."""
    return (math.inf, column) if isinstance(column, str) else (column, "")


def merged_controls(entries: Iterable[Entry]) -> list[Entry]:
    """Cells that differ only in the seed of a random vector become one: mean over the seeds, range of their means."""
    found = list(entries)
    controls = {entry.cell.vector for entry in found if entry.cell.vector.kind == "random"}
    merged: dict[tuple[Cell, Quantity], list[Entry]] = {}
    for entry in found:
        cell = replace(entry.cell, vector=merged_random(len(controls))) if entry.cell.vector in controls else entry.cell
        merged.setdefault((cell, entry.quantity), []).append(entry)
    return [_over_seeds(cell, many) for (cell, _), many in merged.items()]


def _over_seeds(cell: Cell, seeds: Sequence[Entry]) -> Entry:
    """The mean over the seeds, from the lowest of them to the highest; a single seed keeps its interval."""
    if len(seeds) == 1:
        return replace(seeds[0], cell=cell)
    found = [seed.estimate for seed in seeds]
    means = [estimate.mean for estimate in found if estimate.n]
    mean = sum(means) / len(means) if means else math.nan
    low, high = (min(means), max(means)) if len(means) > 1 else (math.nan, math.nan)
    estimate = Estimate(mean, low, high, sum(e.n for e in found), sum(e.unjudged for e in found))
    return Entry(cell, estimate, quantity=seeds[0].quantity)


def _lines(found: Sequence[Entry], columns: Sequence[tuple[str, float | str]], stub: Stub) -> list[Line]:
    """For each behavior (or layer) the line of its own vector, and one below it for every other vector."""
    names = dict.fromkeys(getattr(entry.cell, stub) for entry in found)
    places = {(getattr(e.cell, stub), e.cell.vector, finetune_name(e.cell.finetune), e.column): e for e in found}
    lines = []
    for name in sorted(names) if stub == "layer" else names:
        for vector in dict.fromkeys([OWN, *(e.cell.vector for e in found if getattr(e.cell, stub) == name)]):
            line = tuple(places.get((name, vector, *column)) for column in columns)
            own = vector == OWN
            lines.append(Line(str(name), marked(line)) if own else Line(vector_name(vector), line, control=True))
    return lines


def _caption(found: Iterable[Entry]) -> list[str]:
    """How many questions, what the signs mean; only for signs that occur."""
    estimates = {entry.cell: entry.estimate for entry in found}
    controls = {cell.vector for cell in estimates if cell.vector.kind == "random"}
    asked = {e.n + e.unjudged for cell, e in estimates.items() if cell.vector not in controls}
    notes = [f"{_span(asked)} questions per cell. {_SPREAD}"] if asked else []
    notes += [_UNJUDGED] if any(e.unjudged for e in estimates.values()) else []
    return notes + [_control_note(control) for control in controls]


def _control_note(control: VectorRef) -> str:
    name, seeds = vector_name(control), int(control.name.removeprefix("x"))
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
