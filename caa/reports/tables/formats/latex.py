"""A table in, LaTeX with booktabs out. Names are escaped."""

from __future__ import annotations

from collections.abc import Iterable

from caa.reports.tables.layout import MISSING, Entry, Line, Mark, Table
from caa.reports.tables.turned import printed_tables
from caa.untrusted import plain

_AROUND: dict[Mark, str] = {"highest": r"\textbf{%s}", "sure": r"\textbf{%s}", "lowest": r"\underline{%s}", "": "%s"}


def to_latex(table: Table) -> str:
    r"""A `table*` with booktabs: highest \textbf, lowest \underline, spreads small below, notes in the caption.

    The tables that belong under it follow, each a `table*` of its own.
    """
    return "\n".join(map(_table, printed_tables(table)))


def _table(table: Table) -> str:
    rows = [row for line in table.lines for row in _rows(line)]
    lines = [
        r"% needs \usepackage{booktabs}",
        r"\begin{table*}\centering\small\setlength{\tabcolsep}{4pt}",
        rf"\begin{{tabular}}{{l{'r' * len(table.columns)}}}",
        r"\toprule",
        *_header(table),
        r"\midrule",
        *rows,
        r"\bottomrule",
        r"\end{tabular}",
        rf"\caption{{{_caption(table)}}}",
        r"\end{table*}",
        "",
    ]
    return "\n".join(lines)


def _caption(table: Table) -> str:
    extremes = r"\textbf{Bold}: highest, \underline{underlined}: lowest of " + in_latex(table.marks) + "."
    legend = r"\textbf{Bold}: " + in_latex(table.bold) if table.bold else extremes
    happened = [in_latex(headline.text) for headline in table.headlines]
    return " ".join([in_latex(table.title) + ".", *happened, legend, *map(in_latex, table.remarks)])


def _header(table: Table) -> list[str]:
    """The finetunes, a rule below each across its multipliers, the multipliers."""
    names, rules, last = [""], "", 1
    for name, group in table.groups:
        names.append(rf"\multicolumn{{{len(group)}}}{{c}}{{{in_latex(name)}}}")
        rules += rf"\cmidrule(lr){{{last + 1}-{last + len(group)}}}"
        last += len(group)
    multipliers = [_number(multiplier) for _, group in table.groups for multiplier in group]
    return [_row(names), rules, _row([in_latex(table.stub), *multipliers])]


def _number(text: str) -> str:
    """Numbers in math mode, which has a true minus; words as they are."""
    return f"${text}$" if text.strip("+-0123456789.e") == "" else in_latex(text)


def _row(cells: Iterable[str]) -> str:
    return " & ".join(cells) + r" \\"


def _rows(line: Line) -> list[str]:
    """The means, and below them their spread where it is known."""
    name = rf"\quad {in_latex(line.name)}" if line.control else in_latex(line.name)
    spreads = list(map(_spread, line.entries))
    means = _row([name, *map(_mean, line.entries)])
    return [means, _row(["", *spreads])] if any(spreads) else [means]


def _mean(entry: Entry | None) -> str:
    return _AROUND[entry.mark] % in_latex(entry.text).replace("-", "$-$") if entry else MISSING


def _spread(entry: Entry | None) -> str:
    known = [text for text in (entry.spread, entry.unjudged) if text] if entry else []
    return rf"{{\scriptsize {in_latex(' '.join(known))}}}" if known else ""


_ESCAPES = {character: "\\" + character for character in "&%$#_{}"} | {
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


def in_latex(text: str) -> str:
    r"""Escaped for LaTeX, in one line.

    >>> in_latex("50% of ai_coordination & more")
    '50\\% of ai\\_coordination \\& more'
    """
    return "".join(_ESCAPES.get(character, character) for character in plain(" ".join(text.split())))
