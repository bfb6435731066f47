"""Rows in, two tables out that stand below a finetune x multiplier table: what steering does, what finetuning changes.

Both compare answers to the same questions: a question's score minus the same question's score elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from caa.reports.arranging import Stub, merged_controls, table_of
from caa.reports.layout import Entry, Quantity, Table
from caa.reports.naming import vector_name
from caa.reports.statistics import Scores, corrected, differences, mean_interval, p_value, slopes, wrong_way
from caa.runs.rows import Cell, Row

if TYPE_CHECKING:
    import pandas as pd

ALPHA = 0.05
_SURE = "differs from 0, also after correction over the {} tests of this table (sign flips, Benjamini-Hochberg, 5 %)."
_STEERING = "What steering does: change from multiplier 0, question by question"
_SLOPE = (
    "per unit: how much a question's score rises per unit of the multiplier (least squares), mean over questions; "
    "wrong way: the share of questions that it falls for."
)
_INTERACTION = "Interaction: what the finetune changes about steering, question by question"
_MEANING = (
    "(steered - unsteered) with the finetune, minus (steered - unsteered) without. 0: steering adds up with the "
    "finetune; above 0 at + and below 0 at -: the finetune makes steering stronger."
)


def effect_tables(rows: Iterable[Row], stub: Stub) -> tuple[Table, ...]:
    """What steering does and how finetuning changes it; a table that nothing can be said in is left out.

    Args:
        rows: that agree in all but `stub`, finetune, multiplier and vector.
        stub: what the lines are.
    """
    scores = scores_by_cell(rows)
    found = [
        (_STEERING, steering_effects(scores), (_SLOPE,)),
        (_INTERACTION, interactions(scores), (_MEANING,)),
    ]
    return tuple(_table(title, entries, stub, notes) for title, entries, notes in found if entries)


def _table(title: str, entries: Sequence[Entry], stub: Stub, notes: Sequence[str]) -> Table:
    tested = _tested(merged_controls(entries))
    tests = sum(entry.p is not None for entry in tested)
    return replace(table_of(tested, title, stub, notes), bold=_SURE.format(tests))


def _tested(entries: Iterable[Entry]) -> list[Entry]:
    """The same entries with p-values corrected over all of them, and those marked that are below 5 %."""
    found = list(entries)
    p_values = corrected([math.nan if entry.p is None else entry.p for entry in found])
    return [
        entry if entry.p is None else replace(entry, p=p, mark="sure" if p < ALPHA else "")
        for entry, p in zip(found, p_values, strict=True)
    ]


def scores_by_cell(rows: Iterable[Row]) -> dict[Cell, dict[str, float | None]]:
    """Cell -> question -> score, in order of appearance."""
    found: dict[Cell, dict[str, float | None]] = {}
    for row in rows:
        found.setdefault(row.cell, {})[row.question] = row.score
    return found


def steering_effects(scores: Mapping[Cell, Scores]) -> list[Entry]:
    """For each steered cell its difference from multiplier 0; for each finetune its slope and its wrong-way share."""
    entries = [_entry("effect", cell, each) for cell, each in _effects(scores).items()]
    for cell, each in _slopes(scores).items():
        entries += [_entry("slope", cell, each), _entry("wrong way", cell, wrong_way(each))]
    return entries


def interactions(scores: Mapping[Cell, Scores]) -> list[Entry]:
    """For each steered cell of a finetune: its effect minus the effect without a finetune, and the same for slopes."""
    return [*_against_base("effect change", _effects(scores)), *_against_base("slope change", _slopes(scores))]


def _effects(scores: Mapping[Cell, Scores]) -> dict[Cell, dict[str, float | None]]:
    """Steered cell -> question -> steered - unsteered."""
    return {
        cell: differences(each, scores[cell.baseline()])
        for cell, each in scores.items()
        if cell.multiplier and _comparable(scores, cell, cell.baseline())
    }


def _against_base(quantity: Quantity, values: Mapping[Cell, Scores]) -> list[Entry]:
    bases = {cell: replace(cell, finetune=None) for cell in values if cell.finetune is not None}
    return [
        _entry(quantity, cell, differences(values[cell], values[base]))
        for cell, base in bases.items()
        if _comparable(values, cell, base)
    ]


def _slopes(scores: Mapping[Cell, Scores]) -> dict[Cell, dict[str, float | None]]:
    """Cell without a multiplier (nan) -> question -> slope; a control shares the unsteered model with its behavior."""
    places: dict[Cell, dict[float, Scores]] = {}
    for cell, each in scores.items():
        if cell.multiplier:
            places.setdefault(replace(cell, multiplier=math.nan), {})[cell.multiplier] = each
    for place, by_multiplier in places.items():
        if (unsteered := place.baseline()) in scores:
            by_multiplier[0.0] = scores[unsteered]
    slopes_of = {place: slopes(each) for place, each in places.items() if len(each) > 1}
    return {place: each for place, each in slopes_of.items() if each}


def _comparable(values: Mapping[Cell, Scores], cell: Cell, other: Cell) -> bool:
    return other in values and not values[cell].keys().isdisjoint(values[other])


def _entry(quantity: Quantity, cell: Cell, values: Scores) -> Entry:
    p = None if quantity == "wrong way" else p_value(values.values())
    return Entry(cell, mean_interval(values.values()), quantity=quantity, p=p)


def effect_matrix(rows: Iterable[Row]) -> pd.DataFrame:
    """What each vector does to each behavior's questions: vectors down, behaviors asked across.

    A behavior's own vector stands under the behavior's name, any other under its own, so that rows of questions on
    "refusal" steered by the vector of "sycophancy" have `vector=VectorRef("other", "sycophancy")`. Random controls are
    left out. Each number is the mean rise of a score per unit of the multiplier, nan where that was not asked.
    ValueError if the rows are of more than one task, finetune, layer or system prompt.
    """
    import pandas as pd

    scores = scores_by_cell(row for row in rows if row.cell.vector.kind != "random")
    settings = {(cell.task, cell.finetune, cell.layer, cell.system_prompt) for cell in scores}
    if len(settings) != 1:
        raise ValueError(f"a matrix is of one task, finetune, layer and system prompt, these rows are of {settings}")
    found = [entry for entry in steering_effects(scores) if entry.quantity == "slope"]
    cells = {(_vector_of(entry.cell), entry.cell.behavior): entry.estimate.mean for entry in found}
    behaviors = list(dict.fromkeys(cell.behavior for cell in scores))
    vectors = dict.fromkeys([*(b for b in behaviors if any(v == b for v, _ in cells)), *(v for v, _ in cells)])
    return pd.DataFrame([[cells.get((v, b), math.nan) for b in behaviors] for v in vectors], list(vectors), behaviors)


def _vector_of(cell: Cell) -> str:
    ref = cell.vector
    if ref.kind == "own":
        return cell.behavior
    return ref.name if ref.kind == "other" else vector_name(ref)
