"""The measured damage of a run in, its tables out: perplexity, loops and moved words beside each dose."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from caa.reports.naming import cell_fields
from caa.reports.statistics import Estimate
from caa.reports.tables.layout import Entry, Quantity, Table
from caa.reports.tables.pivot import merge_controls, table_of_entries
from caa.runs.folder import Run
from caa.runs.rows import OWN, Cell, VectorRef

MUCH = 1.5
"""Perplexity beside that of the unsteered cell of the same finetune above which a cell stands out."""
_TITLES: dict[Quantity, str] = {
    "perplexity": "perplexity of open answers under the unsteered model (geometric mean)",
    "loops": "share of these answers that loop",
    "divergence": "KL of the next token from the unsteered model's, behind questions of fact, in nats",
}
_BOLD: dict[Quantity, str] = {
    "perplexity": f"more than {MUCH:g} times that of multiplier 0. A loop surprises nobody: read the loops with it.",
    "loops": "more than at multiplier 0.",
    "divergence": "more than under each random direction of that multiplier. Equal doses at two layers are not equal.",
}
_Lines = dict[Cell, Mapping[str, str]]
_COUNTS: dict[Quantity, str] = {"perplexity": "answers", "loops": "answers", "divergence": "prompts"}


def damage_tables(run: Run) -> list[Table]:
    """A table for each measure and each layer and system prompt; none without a `damage.csv`.

    Cells that the run's rows do not name are left out. ValueError for a damage.csv that holds no numbers.
    """
    places: dict[tuple[int | None, str], dict[Cell, Mapping[str, str]]] = {}
    for cell, line in _lines(run).items():
        places.setdefault((cell.layer, cell.system_prompt), {})[cell] = line
    tables = [_table(quantity, lines) for _, lines in _in_order(places) for quantity in _TITLES]
    return [table for table in tables if table.lines]


def _in_order(places: Mapping[tuple[int | None, str], _Lines]) -> list[tuple[tuple[int | None, str], _Lines]]:
    """By layer and system prompt; named settings, which have no layer, last."""
    return sorted(places.items(), key=lambda item: (item[0][0] is None, item[0][0] or 0, item[0][1]))


def _lines(run: Run) -> dict[Cell, Mapping[str, str]]:
    """Cell -> its line of damage.csv."""
    cells = {_key(cell_fields(cell)): cell for cell in dict.fromkeys(row.cell for row in run.rows)}
    try:
        by_key = {_key(line): line for line in run.damage}
    except (KeyError, ValueError) as error:
        raise ValueError(f"{run.folder}/damage.csv does not name its cells ({error}); measure it again") from error
    return {cells[key]: line for key, line in by_key.items() if key in cells}


def _key(fields: Mapping[str, object]) -> tuple[object, ...]:
    """What a cell is told by in a file of names."""
    texts = [str(fields[name]) for name in ("behavior", "task", "finetune", "system_prompt", "vector")]
    layer = str(fields["layer"])  # "" of a named setting; a file of before there were any does not name one
    return (*texts, str(fields.get("setting", "")), float(layer) if layer else None, float(str(fields["multiplier"])))


def _table(quantity: Quantity, lines: Mapping[Cell, Mapping[str, str]]) -> Table:
    entries = [_entry(quantity, cell, line) for cell, line in lines.items() if line.get(quantity)]
    marked = [replace(entry, mark="sure") if _stands_out(entry, entries) else entry for entry in entries]
    cell = next(iter(lines))
    prompt = f", system prompt {cell.system_prompt!r}" if cell.system_prompt else ""
    place = "named settings" if cell.layer is None else f"layer {cell.layer}"
    title = f"Damage: {_TITLES[quantity]}; {place}{prompt}"
    table = table_of_entries(merge_controls(marked), title, "behavior", [_count_note(quantity, entries)])
    return replace(table, bold=_BOLD[quantity])


def _entry(quantity: Quantity, cell: Cell, line: Mapping[str, str]) -> Entry:
    count = int(line.get(_COUNTS[quantity]) or 0)
    return Entry(cell, Estimate(float(line[quantity]), math.nan, math.nan, count), quantity=quantity)


def _count_note(quantity: Quantity, entries: Iterable[Entry]) -> str:
    counts = sorted({entry.estimate.n for entry in entries})
    span = " to ".join(dict.fromkeys(str(count) for count in (counts[:1] + counts[-1:])))
    return f"{span} {_COUNTS[quantity]} per cell. Of random directions the mean, ± half the range."


def _stands_out(entry: Entry, entries: Sequence[Entry]) -> bool:
    """Whether a cell's number is worth a mark, among all of its table."""
    if not entry.cell.multiplier:
        return False
    if entry.quantity == "divergence":
        chance = [other.estimate.mean for other in entries if _is_control_of(other.cell, entry.cell)]
        return entry.cell.vector == OWN and bool(chance) and entry.estimate.mean > max(chance)
    base = [other.estimate.mean for other in entries if other.cell == entry.cell.baseline()]
    return bool(base) and entry.estimate.mean > base[0] * (MUCH if entry.quantity == "perplexity" else 1)


def _is_control_of(other: Cell, cell: Cell) -> bool:
    return other.vector.kind == "random" and replace(other, vector=VectorRef()) == replace(cell, vector=VectorRef())
