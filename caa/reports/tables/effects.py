"""Rows in, two tables out that stand below a finetune x multiplier table: what steering does, what finetuning changes.

Both compare answers to the same questions: a question's score minus the same question's score elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from caa.reports.diagnostics.letters import uneven_letters
from caa.reports.naming import vector_name
from caa.reports.statistics import Scores, differences, slopes, wrong_way
from caa.reports.tables.layout import Entry, Quantity, Stub, Table, per_step
from caa.reports.tables.pivot import merge_controls, table_of_entries
from caa.reports.tables.significance import Letters, averaged, difference, marked_where_sure, tested
from caa.runs.rows import Cell, Row, scores_by_cell

if TYPE_CHECKING:
    import pandas as pd

_SURE = "differs from 0, also after correction over the {} tests of this table (sign flips, Benjamini-Hochberg, 5 %)."
_STEERING = "What steering does: change from multiplier 0, question by question"
_SLOPE = (
    "{}: how much a question's score rises {} of the multiplier (least squares), mean over questions; "
    "wrong way: the share of questions that it falls for."
)
_INTERACTION = "Interaction: what the finetune changes about steering, question by question"
_MEANING = (
    "(steered - unsteered) with the finetune, minus (steered - unsteered) without. 0: steering adds up with the "
    "finetune; above 0 at + and below 0 at -: the finetune makes steering stronger."
)
BALANCED = "Letter-balanced"
_BALANCED_MEANING = (
    "The mean of two means, over the questions that (A) matches and over those that (B) matches: a liking for a letter "
    "moves them apart, and not this."
)


def effect_tables(rows: Iterable[Row], stub: Stub, letters: Letters | None = None) -> tuple[Table, ...]:
    """What steering does and how finetuning changes it; a table that nothing can be said in is left out.

    Args:
        rows: that agree in all but `stub`, finetune, multiplier and vector.
        stub: what the lines are.
        letters: for letter-balanced means.
    """
    scores, balanced = scores_by_cell(rows), f"{BALANCED}. " if letters else ""
    effects, changes = steering_effects(scores, letters), interactions(scores, letters)
    step = per_step(largest_step(scores))
    contents = [(_STEERING, effects, _SLOPE.format(step, step)), (_INTERACTION, changes, _MEANING)]
    return tuple(_table(balanced + title, entries, stub, note) for title, entries, note in contents if entries)


def balanced_tables(rows: Iterable[Row], stub: Stub) -> tuple[Table, ...]:
    """Letter-balanced scores, effects and interaction of the behaviors whose questions lean to a letter.

    Nothing where (A) matches half of the questions, for there the plain mean is the balanced one.
    """
    letters = uneven_letters(rows := list(rows))
    rows = [row for row in rows if (row.cell.behavior, row.question) in letters]
    if not rows:
        return ()
    scores = scores_by_cell(rows)
    entries = merge_controls([averaged("score", cell, values, letters) for cell, values in scores.items()])
    return table_of_entries(entries, BALANCED, stub, (_BALANCED_MEANING,)), *effect_tables(rows, stub, letters)


def _table(title: str, entries: Sequence[Entry], stub: Stub, note: str) -> Table:
    entries = marked_where_sure(merge_controls(entries))
    tests = sum(entry.p is not None for entry in entries)
    return replace(table_of_entries(entries, title, stub, (note,)), bold=_SURE.format(tests))


def steering_effects(scores: Mapping[Cell, Scores], letters: Letters | None = None) -> list[Entry]:
    """For each steered cell its difference from multiplier 0; for each finetune its slope and its wrong-way share."""
    entries = [tested("effect", cell, changes, letters) for cell, changes in _effects(scores).items()]
    step = largest_step(scores)
    for cell, by_question in _slopes(scores).items():
        entries.append(replace(tested("slope", cell, by_question, letters), step=step))
        entries.append(averaged("wrong way", cell, wrong_way(by_question), letters))
    return entries


def interactions(scores: Mapping[Cell, Scores], letters: Letters | None = None) -> list[Entry]:
    """For each steered cell of a finetune: its effect minus the effect without a finetune, and the same for slopes."""
    effects, step = _against_base("effect change", _effects(scores), letters), largest_step(scores)
    slope_changes = _against_base("slope change", _slopes(scores), letters)
    return [*effects, *(replace(entry, step=step) for entry in slope_changes)]


def largest_step(cells: Iterable[Cell]) -> float:
    """How much of the multiplier a slope is printed for: its largest size, so that one sees such changes.

    >>> largest_step([Cell("b", "ab", multiplier=m) for m in (-0.3, 0.0, 0.15)])
    0.3
    """
    return max((abs(cell.multiplier) for cell in cells if not cell.setting), default=0.0) or 1.0


def _effects(scores: Mapping[Cell, Scores]) -> dict[Cell, dict[str, float | None]]:
    """Steered cell -> question -> steered - unsteered."""
    return {
        cell: differences(steered, scores[cell.baseline()])
        for cell, steered in scores.items()
        if cell.multiplier and _share_questions(scores, cell, cell.baseline())
    }


def _against_base(quantity: Quantity, values: Mapping[Cell, Scores], letters: Letters | None) -> list[Entry]:
    bases = {cell: replace(cell, finetune=None) for cell in values if cell.finetune is not None}
    return [
        difference(quantity, cell, values[cell], values[base], letters)
        for cell, base in bases.items()
        if _share_questions(values, cell, base)
    ]


def _slopes(scores: Mapping[Cell, Scores]) -> dict[Cell, dict[str, float | None]]:
    """Cell without a multiplier (nan) -> question -> slope; a control shares the unsteered model with its behavior."""
    sweeps: dict[Cell, dict[float, Scores]] = {}
    for cell, by_question in scores.items():
        if cell.multiplier and not cell.setting:
            sweeps.setdefault(replace(cell, multiplier=math.nan), {})[cell.multiplier] = by_question
    for cell, sweep in sweeps.items():
        if cell.baseline() in scores:
            sweep[0.0] = scores[cell.baseline()]
    by_cell = {cell: slopes(sweep) for cell, sweep in sweeps.items() if len(sweep) > 1}
    return {cell: by_question for cell, by_question in by_cell.items() if by_question}


def _share_questions(values: Mapping[Cell, Scores], cell: Cell, other: Cell) -> bool:
    return other in values and not values[cell].keys().isdisjoint(values[other])


def effect_matrix(rows: Iterable[Row]) -> pd.DataFrame:
    """What each vector does to each behavior's questions: vectors down, behaviors asked across.

    A behavior's own vector stands under the behavior's name, any other under its own, so that rows of questions on
    "refusal" steered by the vector of "sycophancy" have `vector=VectorRef("other", "sycophancy")`. Random controls are
    left out. Each number is the mean rise of a score per unit of the multiplier, nan where that was not asked or where
    too few answers have a score.
    ValueError if the rows are of more than one task, finetune, layer or system prompt.
    """
    import pandas as pd

    scores = scores_by_cell(row for row in rows if row.cell.vector.kind != "random")
    settings = {(cell.task, cell.finetune, cell.layer, cell.system_prompt) for cell in scores}
    if len(settings) != 1:
        raise ValueError(f"a matrix is of one task, finetune, layer and system prompt, these rows are of {settings}")
    slope_entries = [entry for entry in steering_effects(scores) if entry.quantity == "slope"]
    means = {
        (_vector_or_behavior(entry.cell), entry.cell.behavior): entry.estimate.mean
        for entry in slope_entries
        if not entry.unread
    }
    behaviors = list(dict.fromkeys(cell.behavior for cell in scores))
    steered_by = dict.fromkeys(vector for vector, _ in means)
    vectors = [
        *(b for b in behaviors if b in steered_by),
        *(vector for vector in steered_by if vector not in behaviors),
    ]
    return pd.DataFrame([[means.get((v, b), math.nan) for b in behaviors] for v in vectors], vectors, behaviors)


def _vector_or_behavior(cell: Cell) -> str:
    """The behavior's name for its own vector, else the vector's."""
    if cell.vector.kind == "own":
        return cell.behavior
    return cell.vector.name if cell.vector.kind == "other" else vector_name(cell.vector)
