"""A table in; out comes what `rich.print` shows, in color and without."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from caa.reports.tables.layout import MISSING, Entry, Mark, Table
from caa.reports.tables.turned import has_many_finetunes, printed_tables

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.table import Table as RichTable
    from rich.text import Text

_SIGN: dict[Mark, str] = {"highest": "▲", "lowest": "▼", "sure": "*", "": " "}
_COLOR: dict[Mark, str] = {"highest": "bold blue", "lowest": "red", "sure": "bold", "": ""}


def to_terminal(table: Table) -> TerminalTable:
    """For `rich.print`: highest bold blue with ▲, lowest red with ▼, so that it can be read without color too.

    The spread stands below each mean, so that nine columns of numbers fit into 80 characters.
    """
    return TerminalTable(table)


@dataclass(frozen=True)
class TerminalTable:
    """What `rich.print` takes: the table in one piece where it fits, else one piece for each finetune."""

    table: Table

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.text import Text

        if has_many_finetunes(self.table):
            yield from map(TerminalTable, printed_tables(self.table))
            return
        legend = f"*: {self.table.bold}" if self.table.bold else f"▲ highest, ▼ lowest of {self.table.marks}."
        yield Text(f"\n{self.table.title}", style="bold")
        for headline in self.table.headlines[:1]:  # where there are many, tables.md and the page have all of them
            yield Text(headline.text, style="yellow" if headline.doubtful else "")
        yield from self._pieces(console, options)
        yield Text("\n".join([legend, *self.table.remarks]))
        yield from map(TerminalTable, self.table.below)

    def _pieces(self, console: Console, options: ConsoleOptions) -> Iterable[RichTable]:
        whole = _grid(self.table)
        if console.measure(whole, options=options.update(max_width=10_000)).maximum <= options.max_width:
            return [whole]
        return [_grid(self.table.only(finetune)) for finetune, _ in self.table.groups]


def _grid(table: Table) -> RichTable:
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    grid = RichTable(box=box.SIMPLE_HEAD, padding=0)
    grid.add_column(Text("\n" + table.stub), overflow="fold")  # Text, not str: rich reads "[b]" in a str as markup
    for finetune, multipliers in table.groups:
        for i, multiplier in enumerate(multipliers):
            name = finetune if i == 0 else ""
            grid.add_column(Text(f"{name}\n{multiplier} "), justify="right", no_wrap=True)
    for line in table.lines:
        grid.add_row(Text("  " + line.name if line.control else line.name), *map(_entry, line.entries))
    return grid


def _entry(entry: Entry | None) -> Text:
    from rich.text import Text

    if entry is None:
        return Text(MISSING + " ")
    below = [(f"\n{text} ", "dim") for text in (entry.spread, entry.unjudged) if text]
    return Text.assemble((entry.text + _SIGN[entry.mark], _COLOR[entry.mark]), *below)
