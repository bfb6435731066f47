"""Correction over a table: marks follow the corrected p-values, and what is no test stays as it is."""

from __future__ import annotations

import pytest

from caa.reports.statistics import mean_interval
from caa.reports.tables.layout import Entry
from caa.reports.tables.significance import difference, marked_where_sure
from caa.runs.rows import Cell

CELL = Cell("b", "ab", multiplier=1.0)


def test_marks_follow_the_corrected_p_values():
    entries = [Entry(CELL, mean_interval([0.1]), quantity="effect", p=p) for p in (0.01, 0.04, None, 0.3)]
    corrected = marked_where_sure(entries)
    assert [entry.p for entry in corrected] == [pytest.approx(0.03), pytest.approx(0.06), None, pytest.approx(0.3)]
    assert [entry.mark for entry in corrected] == ["sure", "", "", ""], "0.04 is below 5 % before the correction alone"
    assert corrected[2] == entries[2]


def test_a_difference_is_first_minus_second_over_the_questions_of_both():
    entry = difference("effect", CELL, {"q0": 0.9, "q1": 0.8, "q2": 0.1}, {"q1": 0.2, "q0": 0.1, "q3": 0.0})
    assert (entry.estimate.mean, entry.estimate.n, entry.p) == (pytest.approx(0.7), 2, 0.5)
    with pytest.raises(ValueError, match="share no question"):
        difference("effect", CELL, {"q0": 0.9}, {"q1": 0.2})
