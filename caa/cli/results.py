"""Commands that read what is there: `caa report`, `caa published`, `caa data`. None needs torch."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

from caa.cli.console import console, print_as


def report(run: Path, format: Literal["html", "md", "terminal", "csv", "latex"] = "html") -> None:
    """Report a finished run from its rows; its tables are written as tables.md, .csv and .tex in any case.

    Args:
        run: a run's folder.
        format: html writes report.html, one page that needs no network; md writes report.md, the appendix of a paper;
            terminal, csv and latex print the tables.
    """
    from caa.reports import appendix, html, tables

    if format in ("html", "md"):
        path = html.write_html(run) if format == "html" else appendix.write_appendix(run)
        console().print(f"{path} is the report", markup=False, highlight=False, soft_wrap=True)
    else:
        print_as(tables.write_report(run), format)


def published(
    folder: Path,
    layers: list[int] | None = None,
    format: Literal["terminal", "md", "csv", "latex"] = "terminal",
) -> None:
    """Print the tables of Rimsky et al. (2024) from the result files of nrimsky/CAA, with intervals and interactions.

    Args:
        folder: a clone of nrimsky/CAA, or its folder `results`.
        layers: the layers to print (outputs of these blocks, counted from 0); all if not given.
        format: what to print.
    """
    from caa.reports import tables
    from caa.runs.published import read_published

    found = read_published(folder)
    sys.stderr.write(f"{found}\n")
    made = [
        table
        for model, rows in found.rows.items()
        if (chosen := [row for row in rows if layers is None or row.cell.layer in layers])
        for table in tables.finetune_tables(chosen, model=model)
    ]
    print_as(made, format)


def data(what: str) -> None:
    """Say what a behavior's data holds, list the behaviors there are, or fetch the public CAA datasets.

    Args:
        what: a built-in behavior, a path to one of your own, or one of two words: "list", and "download", which fetches
            the datasets of nrimsky/CAA into the cache folder, to be used as caa:NAME.
    """
    from caa.data import sources

    if what == "list":
        lines = list(sources.BUILTIN)
    elif what == "download":
        lines = [f"the public datasets are in {sources.download_caa()}; use them as caa:NAME"]
    else:
        lines = sources.describe(sources.load_behavior(what))
    console().print("\n".join(lines), markup=False, highlight=False)
