"""Entries in, one table out: lines down, finetune x multiplier across, a caption that says what the signs mean."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from typing import Any

from caa.reports.naming import BASE, cell_name, finetune_name, merged_random, usual_first, vector_name
from caa.reports.statistics import LEAST_COVERAGE, Estimate, means_by_cell
from caa.reports.tables.layout import Column, Entry, Line, Quantity, Stub, Table, marked
from caa.runs.rows import OWN, Cell, Row, VectorRef

_FINETUNES = (BASE, "positive", "negative")
_SPREAD = "± is half the width of the 95 % interval (bootstrap over questions); both ends are in the CSV."
_UNJUDGED = "12%?: share of answers that the judge could not tell; they are left out of the mean."


def table_of_rows(rows: Iterable[Row], title: str, stub: Stub, notes: Iterable[str] = ()) -> Table:
    """One table of scores, of rows that agree in all but `stub`, finetune, multiplier and vector."""
    entries = merge_controls([Entry(cell, estimate) for cell, estimate in means_by_cell(rows).items()])
    return table_of_entries(entries, title, stub, (*_caption(entries), *notes))


def table_of_entries(entries: Sequence[Entry], title: str, stub: Stub, notes: Iterable[str] = ()) -> Table:
    """One table of entries: scores with highest and lowest marked, differences as they are marked already."""
    columns = _columns(entries)
    return Table(title, stub, columns, tuple(_lines(entries, columns, stub)), (*notes, *unread_notes(entries)))


def unread_notes(entries: Iterable[Entry]) -> list[str]:
    """Which numbers are neither marked nor tested because too few answers have a score; nothing if all may be."""
    entries = list(entries)
    unread = [entry for entry in entries if entry.unread]
    if not unread:
        return []
    fewest = min(unread, key=lambda entry: entry.estimate.coverage)
    return [
        f"{len(unread)} of {len(entries)} numbers are neither marked nor ranked nor tested: the judge could read fewer "
        f"than {LEAST_COVERAGE:.0%} of the answers behind them (the fewest: {fewest.unread}, "
        f"{cell_name(fewest.cell)})."
    ]


def _column(entry: Entry) -> Column:
    return finetune_name(entry.cell.finetune), entry.column


def _columns(entries: Iterable[Entry]) -> tuple[Column, ...]:
    """The usual finetunes first; of each the multipliers ascending, then named settings and what is about all."""
    distinct = dict.fromkeys(map(_column, entries))
    finetunes = usual_first((finetune for finetune, _ in distinct), _FINETUNES)

    def place(column: Column) -> tuple[int, float]:
        finetune, above = column
        return finetunes.index(finetune), math.inf if isinstance(above, str) else above

    return tuple(sorted(distinct, key=place))


def _lines(entries: Iterable[Entry], columns: Sequence[Column], stub: Stub) -> list[Line]:
    """For each behavior (or layer) the line of its own vector, and one below it for every other vector."""
    by_name: dict[Any, dict[VectorRef, dict[Column, Entry]]] = {}
    for entry in entries:
        by_vector = by_name.setdefault(getattr(entry.cell, stub), {OWN: {}})
        by_vector.setdefault(entry.cell.vector, {})[_column(entry)] = entry
    lines = []
    for name in sorted(by_name) if stub == "layer" else by_name:
        for vector, by_column in by_name[name].items():
            line = tuple(map(by_column.get, columns))
            lines.append(
                Line(str(name), marked(line)) if vector == OWN else Line(vector_name(vector), line, control=True)
            )
    return lines


def merge_controls(entries: Sequence[Entry]) -> list[Entry]:
    """Cells that differ only in the seed of a random vector become one: mean over the seeds, range of their means."""
    controls = {entry.cell.vector for entry in entries if entry.cell.vector.kind == "random"}
    merged: dict[tuple[Cell, Quantity], list[Entry]] = {}
    for entry in entries:
        cell = replace(entry.cell, vector=merged_random(len(controls))) if entry.cell.vector in controls else entry.cell
        merged.setdefault((cell, entry.quantity), []).append(entry)
    return [_over_seeds(cell, seeds) for (cell, _), seeds in merged.items()]


def _over_seeds(cell: Cell, seeds: Sequence[Entry]) -> Entry:
    """The mean over the seeds, from the lowest of them to the highest; a single seed keeps its interval."""
    if len(seeds) == 1:
        return replace(seeds[0], cell=cell)
    estimates = [seed.estimate for seed in seeds]
    means = [estimate.mean for estimate in estimates if estimate.n]
    mean = sum(means) / len(means) if means else math.nan
    low, high = (min(means), max(means)) if len(means) > 1 else (math.nan, math.nan)
    n, unjudged = sum(estimate.n for estimate in estimates), sum(estimate.unjudged for estimate in estimates)
    return replace(seeds[0], cell=cell, estimate=Estimate(mean, low, high, n, unjudged), p=None, mark="")


def _caption(entries: Iterable[Entry]) -> list[str]:
    """How many questions, what the signs mean; only for signs that occur."""
    estimates = {entry.cell: entry.estimate for entry in entries}
    controls = {cell.vector for cell in estimates if cell.vector.kind == "random"}
    counts = {e.n + e.unjudged for cell, e in estimates.items() if cell.vector not in controls}
    notes = [f"{_span(counts)} questions per cell. {_SPREAD}"] if counts else []
    notes += [_UNJUDGED] if any(estimate.unjudged for estimate in estimates.values()) else []
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
