"""Rows in, warnings of cells out whose answers are no answers: repetition, letter strings. No judge is asked."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from caa.data.text_quality import degenerate_share, flaw
from caa.reports.naming import cell_name
from caa.runs.rows import Cell, Row, texts_by_cell

# Measured on the published open-ended answers behind Table 4 of the CAA paper (2,277 texts, 45 cells; nrimsky/CAA).
COLLAPSED_SHARE = 0.5
"""Of a cell's texts, how many may be degenerate. The two collapsed finetunes there are at 1, all others up to 0.14."""
DISTINCT_SHARE = 0.1
"""Distinct texts per question. One text for ten questions answers none of them; all sound cells there are at 1."""
MIN_TEXTS = 5
"""Fewer texts than this say nothing about a cell."""
FRAYED_SHARE = 0.15
"""Of a cell's texts, how many may run into a letter string. 0 in 36 sound cells there, 0.4 or more in the others."""
_LETTER_RUN = re.compile("[AB]{8}")


def collapse_warnings(rows: Iterable[Row]) -> list[str]:
    """One readable line for each cell whose answers are degenerate, or nearly all the same; its scores mean nothing."""
    return [
        f"{cell_name(cell)} has collapsed: {_evidence(texts)}. Its scores do not measure the behavior."
        for cell, texts in _cells(rows)
        if _collapsed(texts)
    ]


def fray_warnings(rows: Iterable[Row]) -> list[str]:
    """One readable line for each cell whose answers begin well and run into letter strings ("... town. AABABBBAA").

    The published hallucination-negative finetune does so in 20 to 34 of 50 answers, and GPT-4 rated those 1 to 5 points
    higher than its other answers: no collapse, but the scores are partly of noise.
    """
    lines = []
    for cell, texts in _cells(rows):
        frayed = [text for text in texts if _LETTER_RUN.search(text)]
        if len(frayed) > FRAYED_SHARE * len(texts) and not _collapsed(texts):
            lines.append(
                f"{cell_name(cell)} frays: {len(frayed)} of {len(texts)} answers run into a letter string, "
                f"e.g. {frayed[0][-40:]!r}. Its scores are partly of noise."
            )
    return lines


def _cells(rows: Iterable[Row]) -> Iterator[tuple[Cell, list[str]]]:
    """The cells with enough texts to say something about, and those texts without the space around them."""
    for cell, texts in texts_by_cell(rows).items():
        if len(texts) >= MIN_TEXTS:
            yield cell, [text.strip() for text in texts]


def _collapsed(texts: Sequence[str]) -> bool:
    few_distinct = len(set(texts)) <= max(1, DISTINCT_SHARE * len(texts))
    return few_distinct or degenerate_share(texts) >= COLLAPSED_SHARE


def _evidence(texts: Sequence[str]) -> str:
    flaws = Counter(kind for kind in map(flaw, texts) if kind)
    kinds = ", ".join(f"{kind}: {count}" for kind, count in flaws.most_common())
    degenerate = f"{flaws.total()} of {len(texts)} answers are degenerate" + (f" ({kinds})" if kinds else "")
    [(commonest, _)] = Counter(texts).most_common(1)
    return f"{degenerate}, {len(set(texts))} of {len(texts)} are distinct, e.g. {commonest[:40]!r}"
