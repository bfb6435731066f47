"""A table in, GitHub Markdown out. Names are escaped."""

from __future__ import annotations

import re
from collections.abc import Iterable

from caa.reports.tables.layout import MISSING, Entry, Line, Mark, Table
from caa.reports.tables.turned import printed_tables
from caa.untrusted import plain

_AROUND: dict[Mark, str] = {"highest": "**", "sure": "**", "lowest": "_", "": ""}


def to_markdown(table: Table) -> str:
    """GitHub Markdown: highest in bold, lowest in italics, the notes below; then the tables that belong under it."""
    first, *more = printed_tables(table)
    return "\n".join([_table(first, "###"), *(_table(below, "####") for below in more)])


def _table(table: Table, level: str) -> str:
    header = [f"{in_markdown(finetune)} {in_markdown(column)}" for finetune, group in table.groups for column in group]
    lines = [
        _row([in_markdown(table.stub), *header]),
        _row(["---", *["---:"] * len(header)]),
        *(_row([_name(line), *map(_entry, line.entries)]) for line in table.lines),
    ]
    legend = f"**bold**: {table.bold}" if table.bold else f"**bold**: highest, _italic_: lowest of {table.marks}."
    notes = [legend, *map(in_markdown, table.remarks)]
    happened = [f"{in_markdown(headline.text)}\n" for headline in table.headlines]
    title = f"{level} {in_markdown(table.title)}\n"
    return "\n".join([title, *happened, *lines, "", *(f"- {note}" for note in notes), ""])


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _name(line: Line) -> str:
    return f"&nbsp;&nbsp;{in_markdown(line.name)}" if line.control else in_markdown(line.name)


def _entry(entry: Entry | None) -> str:
    if entry is None:
        return MISSING
    around = _AROUND[entry.mark]
    unjudged = f"({entry.unjudged})" if entry.unjudged else ""
    return " ".join(part for part in (f"{around}{entry.text}{around}", entry.spread, unjudged) if part)


def in_markdown(text: str) -> str:
    r"""Escaped for Markdown, in one line. An underscore inside a word is harmless there, and stays readable.

    >>> in_markdown("a|b *c* ai_coordination _d_")
    'a\\|b \\*c\\* ai_coordination \\_d\\_'
    """
    return re.sub(r"([\\`*|<>\[\]#~&$]|(?<![^\W_])_|_(?![^\W_]))", r"\\\1", plain(" ".join(text.split())))
