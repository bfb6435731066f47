"""Commands that read a finished run or data: `caa report`, `caa figures`, `caa published`, `caa data`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

from caa.cli.console import print_as, say


def report(run: Path, format: Literal["html", "md", "terminal", "csv", "latex"] = "html") -> None:
    """Report a finished run from its rows; its tables are written as tables.md, .csv and .tex in any case.

    Args:
        run: a run's folder.
        format: html writes report.html, one page that needs no network; md writes report.md, the appendix of a paper;
            terminal, csv and latex print the tables.
    """
    from caa.reports import tables
    from caa.reports.pages import appendix, html

    if format in ("html", "md"):
        path = html.write_html(run) if format == "html" else appendix.write_appendix(run)
        say(f"{path} is the report")
    else:
        print_as(tables.write_report(run), format)


def figures(run: Path, out: Path | None = None, behavior: str | None = None, base: str | None = None) -> None:
    """Draw every figure of a finished run: Tables 4 and 5 in color, Figures 6 to 10 of the CAA paper, doses, damage.

    Needs matplotlib: pip install 'caa[plot]'.

    Args:
        run: the folder of a finished experiment, as `caa demo` and `caa run` leave one.
        out: where the figures go; figures/ in the run's folder if not given, where reports look for them.
        behavior: whose vector is looked at closely; the run's first if not given.
        base: the model before chat training, for Figures 9 and 10; tiny-base for tiny-chat, none for other models.
    """
    from importlib.util import find_spec

    if not find_spec("matplotlib"):
        raise ImportError("figures need matplotlib: pip install 'caa[plot]'")
    from caa.gallery import Gallery

    for path in Gallery(run, behavior, base).save(out or run / "figures"):
        say(str(path))


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

    results = read_published(folder)
    sys.stderr.write(f"{results}\n")
    printed = []
    for model, rows in results.rows.items():
        chosen = [row for row in rows if layers is None or row.cell.layer in layers]
        printed += tables.finetune_tables(chosen, model=model) if chosen else []
    print_as(printed, format)


def data(name: str) -> None:
    """Say what a behavior's data holds, list the behaviors there are, or fetch the public CAA datasets.

    Args:
        name: a built-in behavior, a path to one of your own, or one of two words: "list", and "download", which fetches
            the datasets of nrimsky/CAA into the cache folder, to be used as caa:NAME.
    """
    from caa.data import sources

    if name == "list":
        lines = [*sources.BUILTIN, *sources.IN_WORDS]
    elif name == "download":
        lines = [f"the public datasets are in {sources.download_caa()}; use them as caa:NAME"]
    else:
        lines = sources.describe(sources.load_behavior(name))
    say("\n".join(lines))
