"""Entries with p-values in; the same out, corrected over their table, those sure to differ from 0 marked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from caa.reports.statistics import Scores, corrected, differences, mean_interval, p_value
from caa.reports.tables.layout import Entry, Quantity
from caa.runs.rows import Cell

ALPHA = 0.05


def difference(quantity: Quantity, cell: Cell, first: Scores, second: Scores) -> Entry:
    """The mean of first - second over the questions of both, with its p-value. ValueError if they share none."""
    return tested(quantity, cell, differences(first, second))


def tested(quantity: Quantity, cell: Cell, values: Scores) -> Entry:
    """The mean of one value per question, with the p-value of its difference from 0."""
    return Entry(cell, mean_interval(values.values()), quantity=quantity, p=p_value(values.values()))


def marked_where_sure(entries: Sequence[Entry]) -> list[Entry]:
    """The same entries with p-values corrected over all of them, and those marked that are below `ALPHA`."""
    p_values = corrected([math.nan if entry.p is None else entry.p for entry in entries])
    return [
        entry if entry.p is None else replace(entry, p=p, mark="sure" if p < ALPHA else "")
        for entry, p in zip(entries, p_values, strict=True)
    ]
