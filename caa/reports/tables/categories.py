"""Rows whose evidence names a category in, means by category out: where knowledge is lost."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from caa.reports.naming import cell_fields
from caa.runs.rows import OWN, Row

if TYPE_CHECKING:
    import pandas as pd

AVERAGE = "average"


def by_category(rows: Iterable[Row]) -> pd.DataFrame:
    """Categories down, (behavior, finetune, layer, multiplier, setting) across: mean scores; last comes the average.

    The average is over questions, as in Table 5 of the CAA paper. Controls are left out, answers without a score or a
    category are not counted. ValueError if no row names a category.
    """
    import pandas as pd

    scored = [row for row in rows if row.score is not None and row.cell.vector == OWN]
    records = [
        {**cell_fields(row.cell), "category": row.evidence["category"], "score": row.score}
        for row in scored
        if row.evidence.get("category")
    ]
    if not records:
        raise ValueError("no row names a category: give questions with one, e.g. load_facts('caa:mmlu')")
    frame = pd.DataFrame(records)
    columns = ["behavior", "finetune", "layer", "multiplier", *(["setting"] if frame.setting.any() else [])]
    table = frame.pivot_table(index="category", columns=columns, values="score", aggfunc="mean")
    average = frame.groupby(columns)["score"].mean().rename(AVERAGE)
    return pd.concat([table, average.to_frame().T])
