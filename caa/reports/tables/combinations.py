"""Rows in, tables out of what prompting, finetuning and steering do to a model, each alone and combined."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from itertools import combinations

from caa.reports.naming import signed
from caa.reports.statistics import Scores
from caa.reports.tables.layout import Entry, Line, Table
from caa.reports.tables.pivot import unread_notes
from caa.reports.tables.significance import difference, marked_where_sure
from caa.runs.rows import OWN, Cell, Row, scores_by_cell

WAYS = ("prompt", "finetune", "steering")
_GROUPS = ("alone", "two", "all")
_NOTE = "Change of the score from the model without prompt, finetune and steering, question by question."


def combination_tables(rows: Iterable[Row]) -> list[Table]:
    """For each task, layer and direction: the change of the score from the plain model, question by question.

    Positive: the positive system prompt, the finetune "positive" and the largest multiplier; negative: the opposite.
    Only where rows with a system prompt are there. Bold as in the tables of effects.
    """
    scores = scores_by_cell(row for row in rows if row.cell.vector == OWN)
    places = sorted({(c.task, c.layer) for c in scores if c.system_prompt and c.layer is not None})
    tables = [
        _table(scores, task, layer, direction) for task, layer in places for direction in ("positive", "negative")
    ]
    return [table for table in tables if table.lines]


def _table(scores: Mapping[Cell, Scores], task: str, layer: int, direction: str) -> Table:
    multipliers = [cell.multiplier for cell in scores if (cell.task, cell.layer) == (task, layer)]
    multiplier = max(multipliers) if direction == "positive" else min(multipliers)
    ways = WAYS if multiplier else WAYS[:2]
    mixes = [mix for size in (1, 2, 3) for mix in combinations(ways, size)]
    plain = [Cell(name, task, layer=layer) for name in dict.fromkeys(c.behavior for c in scores if c.task == task)]
    changes = _changes(scores, plain, mixes, direction, multiplier)
    behaviors = dict.fromkeys(behavior for behavior, _ in changes)
    lines = tuple(Line(behavior, tuple(changes.get((behavior, mix)) for mix in mixes)) for behavior in behaviors)
    columns = tuple((_GROUPS[len(mix) - 1], " + ".join(mix)) for mix in mixes)
    title = f"Prompting, finetuning, steering by {signed(multiplier)} and their combinations, {direction}: {task}"
    bold = f"differs from 0, also after correction over the {len(changes)} tests of this table (sign flips, 5 %)."
    notes = (_NOTE, *unread_notes(changes.values()))
    return Table(f"{title}; layer {layer}", "behavior", columns, lines, notes, bold)


def _changes(
    scores: Mapping[Cell, Scores],
    plain: Iterable[Cell],
    mixes: Iterable[tuple[str, ...]],
    direction: str,
    multiplier: float,
) -> dict[tuple[str, tuple[str, ...]], Entry]:
    """(behavior, ways that are combined) -> the change that they make, where it was measured."""
    changes = {}
    for unchanged in plain:
        for mix in mixes:
            cell = _changed(unchanged, mix, direction, multiplier)
            if cell in scores and unchanged in scores:
                changes[cell.behavior, mix] = difference("effect", cell, scores[cell], scores[unchanged])
    return dict(zip(changes, marked_where_sure(list(changes.values())), strict=True))


def _changed(cell: Cell, ways: Collection[str], direction: str, multiplier: float) -> Cell:
    return replace(
        cell,
        system_prompt=direction if "prompt" in ways else "",
        finetune=direction if "finetune" in ways else None,
        multiplier=multiplier if "steering" in ways else 0.0,
    )
