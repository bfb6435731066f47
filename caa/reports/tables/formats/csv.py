"""Tables in, the numbers behind them out as CSV, not rounded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING

from caa.reports.naming import cell_fields
from caa.reports.tables.layout import Entry, Table
from caa.untrusted import plain_cell, plain_frame

if TYPE_CHECKING:
    import pandas as pd


def to_csv(*tables: Table) -> str:
    """The data behind tables, not rounded: one line per entry with its cell, mean, low, high, n, unjudged, quantity, p.

    The lines of the tables below follow those of their table. p is corrected over its table. For a control over several
    seeds, low and high are the lowest and highest mean of a seed. "coverage" is the share of the answers that have a
    score, "balanced" says whether letters weigh alike, "note" why an entry is neither marked nor tested. Slopes are per
    unit of the multiplier. Each sentence of what happened is a line of quantity "headline", each warning one of
    "warning", the text in "note". Before what a spreadsheet would run stands an apostrophe.
    """
    return _frame(tables).to_csv(index=False, lineterminator="\n")


def csv_by_model(tables: Mapping[str, Iterable[Table]]) -> str:
    """The same of several models: the first column of each line says which."""
    import pandas as pd

    frames = [_frame(of_model) for of_model in tables.values()]
    for model, frame in zip(tables, frames, strict=True):
        frame.insert(0, "model", plain_cell(model))
    return str(pd.concat(frames).to_csv(index=False, lineterminator="\n"))


def _frame(tables: Iterable[Table]) -> pd.DataFrame:
    import pandas as pd

    printed = [part for table in tables for part in (table, *table.below)]
    records = [entry_record(entry) for table in printed for entry in table.entries]
    blank = dict.fromkeys(records[0] if records else (), "")  # not left out: pandas would make floats of all layers
    warnings = [warning for table in printed for warning in table.warnings]
    headlines = [headline for table in printed for headline in table.headlines]
    records += [{**blank, "behavior": h.behavior, "quantity": "headline", "note": h.text} for h in headlines]
    records += [{**blank, "quantity": "warning", "note": warning} for warning in warnings]
    frame: pd.DataFrame = plain_frame(pd.DataFrame(records))
    return frame


def entry_record(entry: Entry) -> dict[str, object]:
    """An entry as a line of data: its cell, then its numbers, not rounded."""
    numbers = {**asdict(entry.estimate), "quantity": entry.quantity, "p": entry.p}
    more = {"coverage": entry.estimate.coverage, "balanced": entry.balanced, "note": entry.unread}
    return {**cell_fields(entry.cell), **numbers, **more}
