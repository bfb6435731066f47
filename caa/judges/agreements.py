"""The open answers of one run, judged by several judges: how many each could read, and how far they agree."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from statistics import fmean
from typing import TYPE_CHECKING, Any

from caa.data.behaviors import Question
from caa.judges.base import Judge, judge_all
from caa.runs.rows import Row

if TYPE_CHECKING:
    import pandas as pd

MIDDLE = 5.0
"""Of the scale: answers above it show the behavior."""


def judged_again(rows: Iterable[Row], behavior: str, judge: Judge) -> list[Row]:
    """The open answers to one behavior's questions, scored by another judge; the texts stay as they are."""
    answered = [row for row in rows if row.cell.task == "open" and row.cell.behavior == behavior]
    questions = [Question(row.evidence["asked"]) for row in answered]
    verdicts = judge_all(judge, questions, [row.evidence["text"] for row in answered])
    return [
        replace(row, score=verdict.score, evidence=row.evidence | {"reason": verdict.reason})
        for row, verdict in zip(answered, verdicts, strict=True)
    ]


def agreement(rows_of: Mapping[str, Sequence[Row]]) -> pd.DataFrame:
    """One line for each two judges of the same answers, given as judge -> rows.

    "first read" and "second read" are the shares that each gave a score, "both" the number of answers that both did. Of
    these: "same side", the share with both scores above or both below 5 (a score of 5 is on neither side);
    "correlation", Spearman's, nan where one of them gave all the same score; "apart", the mean distance in points.
    """
    import pandas as pd

    return pd.DataFrame([_compared(pair, rows_of) for pair in combinations(rows_of, 2)])


def _compared(judges: tuple[str, str], rows_of: Mapping[str, Sequence[Row]]) -> dict[str, Any]:
    first, second = ({row.key: row.score for row in rows_of[name]} for name in judges)
    keys = [key for key in first if key in second]
    both = [(a, b) for a, b in ((first[key], second[key]) for key in keys) if a is not None and b is not None]
    shares = [sum(scores[key] is not None for key in keys) / max(len(keys), 1) for scores in (first, second)]
    return {
        **dict(zip(("first", "second"), judges, strict=True)),
        "answers": len(keys),
        **dict(zip(("first read", "second read"), shares, strict=True)),
        "both": len(both),
        "same side": fmean((a - MIDDLE) * (b - MIDDLE) > 0 for a, b in both) if both else math.nan,
        "correlation": _rank_correlation(both),
        "apart": fmean(abs(a - b) for a, b in both) if both else math.nan,
    }


def _rank_correlation(pairs: Sequence[tuple[float, float]]) -> float:
    """Spearman's; nan for fewer than 3 pairs and where a side does not vary.

    >>> _rank_correlation([(0.0, 1.0), (5.0, 2.0), (9.0, 8.0)])
    1.0
    """
    from scipy.stats import spearmanr

    first, second = {a for a, _ in pairs}, {b for _, b in pairs}
    if len(pairs) < 3 or len(first) < 2 or len(second) < 2:
        return math.nan
    return round(float(spearmanr(*zip(*pairs, strict=True)).statistic), 12)
