"""Rows in, what a reader has to know before believing the tables out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from caa.reports.diagnostics.collapse import collapse_warnings, fray_warnings
from caa.reports.diagnostics.controls import control_warnings
from caa.reports.diagnostics.letters import letter_warnings
from caa.reports.naming import cell_name
from caa.reports.statistics import LEAST_COVERAGE, Estimate
from caa.runs.rows import Cell, Row, scores_by_cell

FEW = 30
"""Questions in a cell, fewer of which tell little: with 30 a mean probability is known to about 0.1."""
POOR_JUDGE = 0.8
"""Cross-validated accuracy below which a judge's scores should not be believed without a look at the texts."""


def run_warnings(
    rows: Sequence[Row], judge_accuracy: Mapping[str, float], off_topic: Mapping[str, float] | None = None
) -> list[str]:
    """One readable line for each: collapse, fraying, chance, unread answers, letters, few questions, a poor judge.

    Args:
        rows: of a run.
        judge_accuracy: behavior -> cross-validated accuracy of its judge in [0, 1], where that is known.
        off_topic: behavior -> share of texts about something else that its judge gives no score, where that is known.
    """
    return [
        *collapse_warnings(rows),
        *fray_warnings(rows),
        *control_warnings(rows),
        *_unread(rows),
        *letter_warnings(rows),
        *_few_scores(rows),
        *_poor_judges(judge_accuracy),
        *_credulous_judges(off_topic or {}),
    ]


def _unread(rows: Sequence[Row]) -> list[str]:
    """One line for each behavior and task in which some cells hold too few scores for the answers that they have."""
    estimates: dict[tuple[str, str], dict[Cell, Estimate]] = {}
    for cell, scores in scores_by_cell(rows).items():
        n = sum(score is not None for score in scores.values())
        counts = Estimate(math.nan, math.nan, math.nan, n, len(scores) - n)
        estimates.setdefault((cell.behavior, cell.task), {})[cell] = counts
    lines = []
    for (behavior, task), by_cell in estimates.items():
        unread = [cell for cell, estimate in by_cell.items() if not estimate.enough_scores]
        if unread:
            fewest = min(unread, key=lambda cell: by_cell[cell].coverage)
            read, total = by_cell[fewest].n, by_cell[fewest].n + by_cell[fewest].unjudged
            lines.append(
                f"{behavior} ({task}): the judge gave fewer than {LEAST_COVERAGE:.0%} of the answers a score in "
                f"{len(unread)} of {len(by_cell)} cells; the fewest, {read} of {total}, in {cell_name(fewest)}. These "
                "cells are neither marked nor ranked nor tested: what a judge can read is no sample of all answers."
            )
    return lines


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


def _credulous_judges(off_topic: Mapping[str, float]) -> list[str]:
    return [
        f"The judge of {behavior} gives {1 - share:.0%} of texts about something else a score: read texts before "
        "believing scores."
        for behavior, share in off_topic.items()
        if share < POOR_JUDGE
    ]
