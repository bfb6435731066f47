"""Rows of open-ended answers in, one line per cell out: its score beside what is wrong with its texts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import TYPE_CHECKING

from caa.data.text_quality import compression_ratio, degenerate_share, distinct_share, repeated_share, words
from caa.reports.naming import cell_fields
from caa.reports.statistics import means_by_cell
from caa.runs.rows import TEXT, Row, texts_by_cell

if TYPE_CHECKING:
    import pandas as pd


def text_damage(rows: Iterable[Row]) -> pd.DataFrame:
    """Effect and damage side by side: a cell's fields and mean score, then the measures of its texts.

    "degenerate" is the share of broken texts, "repeated" the mean share of 4-grams said before, "distinct_1" and
    "distinct_2" are over all texts of the cell, "compression" is their compression ratio, "words" their mean length.
    Cells without texts are left out; ValueError if none has any.
    """
    import pandas as pd

    rows = [row for row in rows if TEXT in row.evidence]
    if not rows:
        raise ValueError("these rows hold no texts; damage to texts is measured on open-ended answers")
    means, texts = means_by_cell(rows), texts_by_cell(rows)
    return pd.DataFrame([{**cell_fields(cell), "score": means[cell].mean, **_measures(texts[cell])} for cell in means])


def _measures(texts: Sequence[str]) -> dict[str, float]:
    return {
        "degenerate": degenerate_share(texts),
        "repeated": fmean(map(repeated_share, texts)),
        "distinct_1": distinct_share(texts, 1),
        "distinct_2": distinct_share(texts, 2),
        "compression": compression_ratio(texts),
        "words": fmean(map(words, texts)),
    }
