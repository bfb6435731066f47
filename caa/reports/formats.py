"""A table in, text out: terminal, Markdown, CSV, LaTeX. Names of models and behaviors are data, never markup."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from caa.reports.layout import Entry, Line, Mark, Table
from caa.reports.naming import cell_fields

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.table import Table as RichTable
    from rich.text import Text

MISSING = "-"
_ARROW: dict[Mark, str] = {"highest": "▲", "lowest": "▼", "sure": "*", "": " "}
_COLOR: dict[Mark, str] = {"highest": "bold blue", "lowest": "red", "sure": "bold", "": ""}


@dataclass(frozen=True)
class TerminalTable:
    """What `rich.print` takes: the table in one piece where it fits, else one piece for each finetune."""

    table: Table

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.text import Text

        legend = f"*: {self.table.bold}" if self.table.bold else f"▲ highest, ▼ lowest of each {self.table.stub}."
        yield Text(f"\n{self.table.title}", style="bold")
        yield from self._pieces(console, options)
        yield Text("\n".join([legend, *self.table.notes]))
        yield from map(TerminalTable, self.table.below)

    def _pieces(self, console: Console, options: ConsoleOptions) -> Iterable[RichTable]:
        whole = _grid(self.table)
        if console.measure(whole, options=options.update(max_width=10_000)).maximum <= options.max_width:
            return [whole]
        return [_grid(self.table.only(finetune)) for finetune, _ in self.table.groups]


def to_terminal(table: Table) -> TerminalTable:
    """For `rich.print`: highest bold blue with ▲, lowest red with ▼, so that it can be read without color too.

    The spread stands below each mean, so that nine columns of numbers fit into 80 characters.
    """
    return TerminalTable(table)


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
        grid.add_row(Text("  " + line.name if line.control else line.name), *map(_terminal_entry, line.entries))
    return grid


def _terminal_entry(entry: Entry | None) -> Text:
    from rich.text import Text

    if entry is None:
        return Text(MISSING + " ")
    below = [(f"\n{text} ", "dim") for text in (entry.spread, entry.unjudged) if text]
    return Text.assemble((entry.text + _ARROW[entry.mark], _COLOR[entry.mark]), *below)


def to_markdown(table: Table) -> str:
    """GitHub Markdown: highest in bold, lowest in italics, the notes below; then the tables that belong under it."""
    return "\n".join([_md_table(table, "###"), *(_md_table(below, "####") for below in table.below)])


def _md_table(table: Table, level: str) -> str:
    header = [f"{in_markdown(finetune)} {multiplier}" for finetune, group in table.groups for multiplier in group]
    lines = [
        _md_line([in_markdown(table.stub), *header]),
        _md_line(["---", *["---:"] * len(header)]),
        *(_md_line([_md_name(line), *map(_md_entry, line.entries)]) for line in table.lines),
    ]
    legend = f"**bold**: {table.bold}" if table.bold else f"**bold**: highest, _italic_: lowest of each {table.stub}."
    notes = [legend, *map(in_markdown, table.notes)]
    return "\n".join([f"{level} {in_markdown(table.title)}", "", *lines, "", *(f"- {note}" for note in notes), ""])


def _md_line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _md_name(line: Line) -> str:
    return f"&nbsp;&nbsp;{in_markdown(line.name)}" if line.control else in_markdown(line.name)


def _md_entry(entry: Entry | None) -> str:
    if entry is None:
        return MISSING
    sign = {"highest": "**", "sure": "**", "lowest": "_", "": ""}[entry.mark]
    unjudged = f"({entry.unjudged})" if entry.unjudged else ""
    return " ".join(part for part in (f"{sign}{entry.text}{sign}", entry.spread, unjudged) if part)


def in_markdown(text: str) -> str:
    r"""Escaped for Markdown. An underscore inside a word is harmless there, and stays readable.

    >>> in_markdown("a|b *c* ai_coordination _d_")
    'a\\|b \\*c\\* ai_coordination \\_d\\_'
    """
    return re.sub(r"([\\`*|<>\[\]#~&$]|(?<![^\W_])_|_(?![^\W_]))", r"\\\1", _one_line(text))


def to_csv(*tables: Table) -> str:
    """The data behind tables, not rounded: one line per entry with its cell, mean, low, high, n, unjudged, quantity, p.

    The lines of the tables below follow those of their table. p is corrected over its table. For a control over several
    seeds, low and high are the lowest and highest mean of a seed.
    """
    import pandas as pd

    everything = [part for table in tables for part in (table, *table.below)]
    records = [_record(entry) for table in everything for entry in table.entries]
    return pd.DataFrame(records).to_csv(index=False, lineterminator="\n")


def _record(entry: Entry) -> dict[str, object]:
    return {**cell_fields(entry.cell), **asdict(entry.estimate), "quantity": entry.quantity, "p": entry.p}


def to_latex(table: Table) -> str:
    r"""A `table*` with booktabs: highest \textbf, lowest \underline, spreads small below, notes in the caption.

    The tables that belong under it follow, each a `table*` of its own.
    """
    return "\n".join(map(_tex_table, [table, *table.below]))


def _tex_table(table: Table) -> str:
    extremes = r"\textbf{Bold}: highest, \underline{underlined}: lowest of each " + _tex(table.stub) + "."
    legend = r"\textbf{Bold}: " + _tex(table.bold) if table.bold else extremes
    caption = " ".join([_tex(table.title) + ".", legend, *map(_tex, table.notes)])
    return "\n".join(
        [
            r"% needs \usepackage{booktabs}",
            r"\begin{table*}\centering\small\setlength{\tabcolsep}{4pt}",
            rf"\begin{{tabular}}{{l{'r' * len(table.columns)}}}",
            r"\toprule",
            *_tex_header(table),
            r"\midrule",
            *(row for line in table.lines for row in _tex_rows(line)),
            r"\bottomrule",
            r"\end{tabular}",
            rf"\caption{{{caption}}}",
            r"\end{table*}",
            "",
        ]
    )


def _tex_header(table: Table) -> list[str]:
    """The finetunes, a rule below each across its multipliers, the multipliers."""
    names, rules, last = [""], "", 1
    for name, group in table.groups:
        names.append(rf"\multicolumn{{{len(group)}}}{{c}}{{{_tex(name)}}}")
        rules += rf"\cmidrule(lr){{{last + 1}-{last + len(group)}}}"
        last += len(group)
    multipliers = [_tex_number(multiplier) for _, group in table.groups for multiplier in group]
    return [_tex_line(names), rules, _tex_line([_tex(table.stub), *multipliers])]


def _tex_number(text: str) -> str:
    """Numbers in math mode, which has a true minus; words as they are."""
    return f"${text}$" if text.strip("+-0123456789.e") == "" else _tex(text)


def _tex_line(cells: list[str]) -> str:
    return " & ".join(cells) + r" \\"


def _tex_rows(line: Line) -> list[str]:
    """The means, and below them what is known of their spread."""
    name = rf"\quad {_tex(line.name)}" if line.control else _tex(line.name)
    below = [_tex_spread(entry) for entry in line.entries]
    rows = [[name, *map(_tex_entry, line.entries)], *([["", *below]] if any(below) else [])]
    return [_tex_line(row) for row in rows]


def _tex_entry(entry: Entry | None) -> str:
    if entry is None:
        return MISSING
    text = _tex(entry.text).replace("-", "$-$")
    return {"highest": r"\textbf{%s}", "sure": r"\textbf{%s}", "lowest": r"\underline{%s}", "": "%s"}[entry.mark] % text


def _tex_spread(entry: Entry | None) -> str:
    known = [text for text in (entry.spread, entry.unjudged) if text] if entry else []
    return rf"{{\scriptsize {_tex(' '.join(known))}}}" if known else ""


_TEX = {character: "\\" + character for character in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
    # A line may begin with a name, and \\ before it would take these for its own.
    "[": "{[}",
    "*": "{*}",
}


def _tex(text: str) -> str:
    r"""Escaped for LaTeX.

    >>> _tex("50% of ai_coordination & more")
    '50\\% of ai\\_coordination \\& more'
    """
    return "".join(_TEX.get(character, character) for character in _one_line(text))


def _one_line(text: str) -> str:
    return " ".join(text.split())
