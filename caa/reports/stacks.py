"""Rows in, tables out of what prompting, finetuning and steering do to a model, each alone and stacked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import combinations

from caa.reports.effects import ALPHA, scores_by_cell
from caa.reports.layout import Entry, Line, Table
from caa.reports.naming import signed
from caa.reports.statistics import Scores, corrected, differences, mean_interval, p_value
from caa.runs.rows import OWN, Cell, Row

WAYS = ("prompt", "finetune", "steering")
_GROUPS = ("alone", "two", "all")


def stack_tables(rows: Iterable[Row]) -> list[Table]:
    """For each task, layer and direction: the change of the score from the plain model, question by question.

    Positive: the positive system prompt, the finetune "positive" and the largest multiplier; negative: the opposite.
    Only where rows with a system prompt are there. Bold as in the tables of effects.
    """
    scores = scores_by_cell(row for row in rows if row.cell.vector == OWN)
    kinds = sorted({(cell.task, cell.layer) for cell in scores if cell.system_prompt})
    tables = [_table(scores, *kind, direction) for kind in kinds for direction in ("positive", "negative")]
    return [table for table in tables if table.lines]


def _table(scores: Mapping[Cell, Scores], task: str, layer: int, direction: str) -> Table:
    multipliers = [cell.multiplier for cell in scores if (cell.task, cell.layer) == (task, layer)]
    multiplier = max(multipliers) if direction == "positive" else min(multipliers)
    changed = {"prompt": {"system_prompt": direction}, "finetune": {"finetune": direction}}
    changed |= {"steering": {"multiplier": multiplier}} if multiplier else {}  # type: ignore[dict-item]
    stacks = [stack for size in (1, 2, 3) for stack in combinations([way for way in WAYS if way in changed], size)]
    behaviors = dict.fromkeys(cell.behavior for cell in scores if cell.task == task)
    plain = {name: Cell(name, task, layer=layer) for name in behaviors}
    found = {
        name: [_entry(scores, plain[name], [changed[way] for way in stack]) for stack in stacks] for name in behaviors
    }
    lines = _corrected({name: entries for name, entries in found.items() if any(entries)})
    columns = tuple((_GROUPS[len(stack) - 1], " + ".join(stack)) for stack in stacks)
    tests = sum(entry is not None for line in lines for entry in line.entries)
    stacked = f"Prompting, finetuning, steering by {signed(multiplier)} and their stacks, {direction}"
    bold = f"differs from 0, also after correction over the {tests} tests of this table (sign flips, 5 %)."
    notes = ("Change of the score from the model without prompt, finetune and steering, question by question.",)
    return Table(f"{stacked}: {task}; layer {layer}", "behavior", columns, lines, notes, bold)


def _entry(scores: Mapping[Cell, Scores], plain: Cell, changes: Iterable[Mapping[str, object]]) -> Entry | None:
    cell = plain
    for change in changes:
        cell = replace(cell, **change)  # type: ignore[arg-type]
    if cell not in scores or plain not in scores:
        return None
    values = differences(scores[cell], scores[plain])
    return Entry(cell, mean_interval(values.values()), quantity="effect", p=p_value(values.values()))


def _corrected(lines: Mapping[str, list[Entry | None]]) -> tuple[Line, ...]:
    """The p-values corrected over all lines; marked where they are below 5 %."""
    flat = [entry for entries in lines.values() for entry in entries if entry is not None]
    p_values = iter(corrected([entry.p for entry in flat]))  # type: ignore[misc]

    def known(entry: Entry | None) -> Entry | None:
        if entry is None:
            return None
        p = next(p_values)
        return replace(entry, p=p, mark="sure" if p < ALPHA else "")

    return tuple(Line(name, tuple(known(entry) for entry in entries)) for name, entries in lines.items())
