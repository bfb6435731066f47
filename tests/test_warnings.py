"""Warnings of a run: few questions, poor judges, and collapse among them."""

from __future__ import annotations

from caa.reports.diagnostics.warnings import run_warnings
from caa.runs.rows import Cell, Row


def test_collapse_few_questions_and_a_poor_judge():
    collapsed = [Row(Cell("b", "open"), f"q{n}", 0.0, {"text": "BBBBBBBB"}) for n in range(40)]
    lines = run_warnings([*collapsed, Row(Cell("c", "ab"), "q", 0.5, {})], {"b": 0.5, "c": 0.9})
    assert [line for line in lines if "has collapsed" in line]
    assert [line for line in lines if "1 of 2 cells hold fewer than 30" in line and "c (ab)" in line]
    assert [line for line in lines if "The judge of b is right in 50%" in line]
    assert not [line for line in lines if "judge of c" in line]
    assert run_warnings([Row(Cell("c", "ab"), f"q{n}", 0.5, {}) for n in range(30)], {}) == []
