"""A table of scores in, a heat map of it out, as Table 4 and 5 of the CAA paper are colored."""

from __future__ import annotations

import math
import textwrap
from dataclasses import asdict
from typing import Any

from caa.reports.figures.plot import Figure, heat, numbers, panels
from caa.reports.naming import highest_score
from caa.reports.tables.layout import MISSING, Entry, Mark, Table

_UNIT = {
    "ab": "mean p(matching)",
    "open": "mean score",
    "facts": "mean p(correct)",
}
_SIGN: dict[Mark, str] = {"highest": " ▲", "lowest": " ▼", "sure": " *", "": ""}


def heat_table(table: Table, name: str) -> Figure:
    """Lines down, finetune x multiplier across; each entry with its spread, highest and lowest of a line marked.

    ValueError for a table that is not of scores.
    """
    import pandas as pd

    entries = table.entries
    if not entries or {entry.quantity for entry in entries} != {"score"}:
        raise ValueError(f"a heat table shows scores, and {table.title!r} holds none or something else")
    task = entries[0].cell.task
    values = [
        [math.nan if entry is None or entry.unread else entry.estimate.mean for entry in line.entries]
        for line in table.lines
    ]
    across = [header for _, group in table.groups for header in group]
    down = [f"  {line.name}" if line.control else line.name for line in table.lines]
    picture, [axes] = panels(2.2 + 0.85 * len(across), 1.6 + 0.45 * len(down))
    image = heat(axes, values, across, down, color="cividis", limits=(0.0, highest_score(task)))
    numbers(axes, image, [[_text(entry) for entry in line.entries] for line in table.lines])
    _finetunes(axes, table)
    axes.set_xlabel("multiplier of the vector")
    titles = textwrap.wrap(table.title, 16 + 9 * len(across))
    axes.set_title("\n".join([*titles, "▲ highest, ▼ lowest; ± half of the 95 % interval"]), pad=28)
    picture.colorbar(image, ax=axes, label=_UNIT.get(task, "mean score"))
    return Figure(name, picture, pd.DataFrame(_records(table)))


def _records(table: Table) -> list[dict[str, Any]]:
    return [
        {"line": line.name, **asdict(entry.cell), **asdict(entry.estimate), "mark": entry.mark}
        for line in table.lines
        for entry in line.entries
        if entry
    ]


def _text(entry: Entry | None) -> str:
    return f"{entry.text}{_SIGN[entry.mark]}\n{entry.spread} {entry.unjudged}".rstrip(" ") if entry else MISSING


def _finetunes(axes: Any, table: Table) -> None:
    """The names of the finetunes above their columns, and a gap between them."""
    start = 0
    for name, group in table.groups:
        middle = start + (len(group) - 1) / 2
        axes.text(middle, 1.02, f"finetune {name}", transform=axes.get_xaxis_transform(), ha="center", va="bottom")
        start += len(group)
        axes.axvline(start - 0.5, color="white", linewidth=4)
