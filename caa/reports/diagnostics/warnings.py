"""Rows in, what a reader has to know before believing the tables out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from caa.reports.diagnostics.collapse import collapse_warnings, fray_warnings
from caa.reports.diagnostics.letters import letter_warnings
from caa.reports.naming import cell_name
from caa.runs.rows import Row, scores_by_cell

FEW = 30
"""Questions in a cell, fewer of which tell little: with 30 a mean probability is known to about 0.1."""
POOR_JUDGE = 0.8
"""Cross-validated accuracy below which a judge's scores should not be believed without a look at the texts."""


def run_warnings(rows: Sequence[Row], judge_accuracy: Mapping[str, float]) -> list[str]:
    """One readable line for each: collapse, fraying, lopsided letters, few questions, a poor judge.

    Args:
        rows: of a run.
        judge_accuracy: behavior -> cross-validated accuracy of its judge in [0, 1], where that is known.
    """
    return [
        *collapse_warnings(rows),
        *fray_warnings(rows),
        *letter_warnings(rows),
        *_few_scores(rows),
        *_poor_judges(judge_accuracy),
    ]


def _few_scores(rows: Sequence[Row]) -> list[str]:
    counts = {
        cell: sum(score is not None for score in scores.values()) for cell, scores in scores_by_cell(rows).items()
    }
    few = [cell for cell, count in counts.items() if count < FEW]
    if not few:
        return []
    least = min(few, key=lambda cell: counts[cell])
    return [
        f"{len(few)} of {len(counts)} cells hold fewer than {FEW} scores; the fewest, {counts[least]}, are in "
        f"{cell_name(least)}. Their intervals are wide, and may be too narrow still."
    ]


def _poor_judges(accuracy: Mapping[str, float]) -> list[str]:
    return [
        f"The judge of {behavior} is right in {share:.0%} of its cross-validation: read texts before believing scores."
        for behavior, share in accuracy.items()
        if share < POOR_JUDGE
    ]
