"""Rows of open-ended answers in, one line per cell out: its score beside what is wrong with its texts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING

from caa.data.text_quality import (
    compression_ratio,
    degenerate_share,
    distinct_share,
    loop,
    looping_share,
    repeated_share,
    words,
)
from caa.reports.naming import cell_fields, finetune_name, signed, vector_name
from caa.reports.statistics import means_by_cell
from caa.runs.rows import OWN, TEXT, Cell, Row, texts_by_cell

if TYPE_CHECKING:
    import pandas as pd


def text_damage(rows: Iterable[Row], perplexities: Mapping[tuple[Cell, str], float] | None = None) -> pd.DataFrame:
    """Effect and damage side by side: a cell's fields and mean score, then the measures of its texts.

    "degenerate" is the share of broken texts, "loops" of those that go round in words, characters or lines, "coverage"
    of those that the judge gave a score; "repeated" is the mean share of 4-grams said before, "distinct_1" and
    "distinct_2" are over all texts of the cell, "compression" is their compression ratio, "words" their mean length.
    With `perplexities` of the answers, by the keys of their rows, "perplexity" is their geometric mean: never without
    the loops beside it, for a loop surprises nobody. Cells without texts are left out; ValueError if none has any.
    """
    import pandas as pd

    rows = [row for row in rows if TEXT in row.evidence]
    if not rows:
        raise ValueError("these rows hold no texts; damage to texts is measured on open-ended answers")
    means, texts = means_by_cell(rows), texts_by_cell(rows)
    surprises: dict[Cell, list[float]] = {}
    for (cell, _), perplexity in (perplexities or {}).items():
        surprises.setdefault(cell, []).append(perplexity)
    records = []
    for cell, mean in means.items():
        damage = {"perplexity": geometric_mean(surprises[cell])} if cell in surprises else {}
        scores = {"score": mean.mean, "coverage": mean.coverage, "answers": len(texts[cell])}
        records.append({**cell_fields(cell), **scores, **damage, **_measures(texts[cell])})
    return pd.DataFrame(records)


def loop_notes(rows: Iterable[Row]) -> list[str]:
    """For each behavior of whose answers some loop: how many in each cell, each control by itself; zeros left out."""
    lines: dict[str, list[str]] = {}
    for cell, texts in texts_by_cell(rows).items():
        if loops := sum(loop(text) is not None for text in texts):
            vector = "" if cell.vector == OWN else f" {vector_name(cell.vector)}"
            place = f"{finetune_name(cell.finetune)} {cell.setting or signed(cell.multiplier)}{vector}"
            lines.setdefault(cell.behavior, []).append(f"{place} {loops} of {len(texts)}")
    return [
        f"{behavior}: answers that loop (the same words, characters or lines again and again): {', '.join(cells)}; "
        "none in the other cells."
        for behavior, cells in lines.items()
    ]


def geometric_mean(values: Iterable[float]) -> float:
    """Over those that are numbers; nan for none.

    >>> geometric_mean([1.0, 4.0, math.nan])
    2.0
    """
    logs = [math.log(value) for value in values if not math.isnan(value)]
    return math.exp(fmean(logs)) if logs else math.nan


def _measures(texts: Sequence[str]) -> dict[str, float]:
    return {
        "degenerate": degenerate_share(texts),
        "loops": looping_share(texts),
        "repeated": fmean(map(repeated_share, texts)),
        "distinct_1": distinct_share(texts, 1),
        "distinct_2": distinct_share(texts, 2),
        "compression": compression_ratio(texts),
        "words": fmean(map(words, texts)),
    }
