"""Entries with p-values in; the same out, corrected over their table, those sure to differ from 0 marked."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from caa.reports.statistics import (
    Scores,
    balanced_interval,
    balanced_values,
    corrected,
    differences,
    mean_interval,
    p_value,
)
from caa.reports.tables.layout import Entry, Quantity
from caa.runs.rows import Cell

ALPHA = 0.05
Letters = Mapping[tuple[str, str], str]
"""(behavior, question) -> the letter that matches."""


def difference(quantity: Quantity, cell: Cell, first: Scores, second: Scores, letters: Letters | None = None) -> Entry:
    """The mean of first - second over the questions of both, with its p-value. ValueError if they share none."""
    return tested(quantity, cell, differences(first, second), letters)


def tested(quantity: Quantity, cell: Cell, values: Scores, letters: Letters | None) -> Entry:
    """The mean of one value per question, with the p-value of its difference from 0; None if too few have a value.

    With `letters` it is the letter-balanced mean.
    """
    entry = averaged(quantity, cell, values, letters)
    if not entry.estimate.enough_scores:
        return entry
    known = balanced_values(by_letter(cell, values, letters)) if letters else values.values()
    return replace(entry, p=p_value(known))


def averaged(quantity: Quantity, cell: Cell, values: Scores, letters: Letters | None = None) -> Entry:
    """The mean of one value per question; with `letters` the letter-balanced one."""
    if not letters:
        return Entry(cell, mean_interval(values.values()), quantity=quantity)
    return Entry(cell, balanced_interval(by_letter(cell, values, letters)), quantity=quantity, balanced=True)


def by_letter(cell: Cell, values: Scores, letters: Letters) -> list[list[float | None]]:
    """The values of the questions that (A) matches, and of those that (B) matches."""
    groups: dict[str, list[float | None]] = {"A": [], "B": []}
    for question, value in values.items():
        groups[letters[cell.behavior, question]].append(value)
    return list(groups.values())


def marked_where_sure(entries: Sequence[Entry]) -> list[Entry]:
    """The same entries with p-values corrected over all of them, and those marked that are below `ALPHA`."""
    p_values = corrected([math.nan if entry.p is None else entry.p for entry in entries])
    return [
        entry if entry.p is None else replace(entry, p=p, mark="sure" if p < ALPHA else "")
        for entry, p in zip(entries, p_values, strict=True)
    ]
