"""A table with many finetunes in, one for each behavior out: finetunes down, multipliers and settings across."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from caa.reports.tables.layout import Column, Entry, Line, Table

MANY = 5
"""Finetunes that no longer fit side by side."""


def has_many_finetunes(table: Table) -> bool:
    return table.stub == "behavior" and len(table.groups) >= MANY


def printed_tables(table: Table) -> list[Table]:
    """A table and those below it, as they are printed one after the other: turned where there are many finetunes."""
    tables = [replace(table, below=()), *table.below]
    return [part for whole in tables for part in (turned(whole) if has_many_finetunes(table) else [whole])]


def turned(table: Table) -> list[Table]:
    """One table for each behavior: finetunes down, below each its controls. What is said of all stands once."""
    by_behavior: dict[str, list[Line]] = {}
    behavior = ""
    for line in table.lines:
        behavior = behavior if line.control else line.name
        by_behavior.setdefault(behavior, []).append(line)
    tables = [_turned(table, name, lines) for name, lines in by_behavior.items()]
    tables[0] = replace(tables[0], headlines=table.headlines)
    return [*tables[:-1], replace(tables[-1], notes=table.notes, warnings=table.warnings)]


def _turned(table: Table, behavior: str, lines: list[Line]) -> Table:
    above = tuple(dict.fromkeys(column for _, column in table.columns))
    finetunes = [line for name, _ in table.groups for line in _lines_of(table, name, lines, above)]
    columns: tuple[Column, ...] = tuple((behavior, column) for column in above)
    title = f"{behavior}. {table.title}"
    return Table(title, "finetune", columns, tuple(finetunes), bold=table.bold, compared="table")


def _lines_of(table: Table, finetune: str, lines: list[Line], above: tuple[float | str, ...]) -> Iterator[Line]:
    """The line of a finetune's own vector, and those of its controls that were measured."""
    for line in lines:
        entries: dict[float | str, Entry] = {}
        for (name, column), entry in zip(table.columns, line.entries, strict=True):
            if name == finetune and entry is not None:
                entries[column] = entry
        if entries:
            yield Line(line.name if line.control else finetune, tuple(map(entries.get, above)), line.control)
