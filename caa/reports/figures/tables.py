"""A table of scores in, a heat map of it out, as Table 4 and 5 of the CAA paper are colored."""

from __future__ import annotations

import math
import textwrap
from dataclasses import asdict
from typing import Any

from caa.reports.figures.plot import Figure, heat, numbers, panels
from caa.reports.naming import highest_score
from caa.reports.tables.layout import MISSING, Entry, Line, Mark, Table
from caa.reports.tables.turned import turned

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

    task = _task(table)
    values = [
        [math.nan if entry is None or entry.unread else entry.estimate.mean for entry in line.entries]
        for line in table.lines
    ]
    across = [header for _, group in table.groups for header in group]
    down = [_name(line) for line in table.lines]
    picture, [axes] = panels(2.2 + 0.85 * len(across), 1.6 + 0.45 * len(down))
    image = heat(axes, values, across, down, color="cividis", limits=(0.0, highest_score(task)))
    numbers(axes, image, [[_text(entry) for entry in line.entries] for line in table.lines])
    _finetunes(axes, table)
    axes.set_xlabel("multiplier of the vector")
    titles = textwrap.wrap(table.title, 16 + 9 * len(across))
    axes.set_title("\n".join([*titles, "▲ highest, ▼ lowest; ± half of the 95 % interval"]), pad=28)
    picture.colorbar(image, ax=axes, label=_UNIT.get(task, "mean score"))
    return Figure(name, picture, pd.DataFrame(_records(table)))


def heat_panels(table: Table, name: str) -> Figure:
    """A table of many finetunes: a panel for each behavior, finetunes down, multipliers and settings across.

    The lines of random directions and other vectors stand below the finetune that they were asked of. ValueError for a
    table that is not of scores.
    """
    import pandas as pd

    parts, task = turned(table), _task(table)
    columns = min(len(parts), 2 if len(parts) <= 4 else 3)  # so that the numbers can be read in a page's width
    rows = -(-len(parts) // columns)
    width = columns * (0.4 + 0.72 * len(parts[0].columns)) + 2.6
    picture, panel_of = panels(width, rows * (0.7 + 0.36 * len(parts[0].lines)) + 1.0, rows, columns)
    for place, part in enumerate(parts):
        image = _panel(panel_of[place], part, highest_score(task), named=place % columns == 0)
    for axes in panel_of[len(parts) :]:
        axes.set_axis_off()
    picture.suptitle(
        "\n".join([table.title, "across: multiplier of the vector, named settings; ± half of the 95 % interval"])
    )
    picture.colorbar(image, ax=panel_of, label=_UNIT.get(task, "mean score"), shrink=0.6)
    return Figure(name, picture, pd.DataFrame(_records(table)))


def _task(table: Table) -> str:
    entries = table.entries
    if not entries or {entry.quantity for entry in entries} != {"score"}:
        raise ValueError(f"a heat table shows scores, and {table.title!r} holds none or something else")
    return entries[0].cell.task


def _panel(axes: Any, part: Table, highest: float, named: bool) -> Any:
    """One behavior, with the names of the finetunes at its left where it is the first of its row."""
    values = [[math.nan if e is None or e.unread else e.estimate.mean for e in line.entries] for line in part.lines]
    [(behavior, across)] = part.groups
    down = [(f"  {line.name}" if line.control else line.name) if named else "" for line in part.lines]
    image = heat(axes, values, across, down, color="cividis", limits=(0.0, highest))
    for label in axes.get_xticklabels():
        label.set(rotation=0, horizontalalignment="center")
    texts = [[f"{e.text} {e.spread}".strip() if e else MISSING for e in line.entries] for line in part.lines]
    numbers(axes, image, texts, size=6.5)
    axes.set_title(behavior)
    return image


def _records(table: Table) -> list[dict[str, Any]]:
    return [
        {"line": line.name, **asdict(entry.cell), **asdict(entry.estimate), "mark": entry.mark}
        for line in table.lines
        for entry in line.entries
        if entry
    ]


def _text(entry: Entry | None) -> str:
    return f"{entry.text}{_SIGN[entry.mark]}\n{entry.spread} {entry.unjudged}".rstrip(" ") if entry else MISSING


def _name(line: Line) -> str:
    """A control says whose it is: labels of a picture are read one by one."""
    whose = next((entry.cell.behavior for entry in line.entries if entry), "")
    return f"{line.name} ({whose})" if line.control else line.name


def _finetunes(axes: Any, table: Table) -> None:
    """The names of the finetunes above their columns, and a gap between them."""
    start = 0
    for name, group in table.groups:
        middle = start + (len(group) - 1) / 2
        axes.text(middle, 1.02, f"finetune {name}", transform=axes.get_xaxis_transform(), ha="center", va="bottom")
        start += len(group)
        axes.axvline(start - 0.5, color="white", linewidth=4)
