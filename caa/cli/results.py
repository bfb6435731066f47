"""Commands that read a finished run or data: `caa report`, `caa figures`, `caa published`, `caa data`."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Literal

from caa.cli.console import is_json, print_as, refuse_to_overwrite, say, show


def report(run: Path, format: Literal["html", "md", "terminal", "csv", "latex"] = "html") -> None:
    """Report a finished run from its rows; its tables are written as tables.md, .csv and .tex in any case.

    Args:
        run: a run's folder.
        format: html writes report.html, one page that needs no network; md writes report.md, the appendix of a paper;
            terminal, csv and latex print the tables.
    """
    from caa.reports import tables
    from caa.reports.pages import appendix, html

    if is_json():
        print_as(tables.write_report(run), "terminal")
    elif format in ("html", "md"):
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
    table: Literal["4", "5", "both", "all"] = "both",
    layers: list[int] | None = None,
    format: Literal["terminal", "md", "csv", "latex"] = "terminal",
) -> None:
    """Print Tables 4 and 5 of Rimsky et al. (2024) from the result files of nrimsky/CAA, or all that these hold.

    With intervals; in the terminal both in short, and in one line each what finetuning does to steering.

    Args:
        folder: a clone of nrimsky/CAA, or its folder `results`.
        table: 4 (open answers, finetunes against steering), 5 (MMLU), both, or all there are: every task, layer and
            system prompt. One by name, or all, come with effects, interactions, notes and warnings.
        layers: of all tables those of these layers (outputs of these blocks, counted from 0).
        format: what to print.
    """
    from caa.reports.tables.formats.csv import csv_by_model
    from caa.reports.tables.published import all_tables, interactions, paper_tables
    from caa.runs.published import read_published

    results = read_published(folder)
    sys.stderr.write(f"{results}\n")
    if table == "all" or layers is not None:
        made = all_tables(results.rows, layers)
    else:
        made = paper_tables(results.rows, ("4", "5") if table == "both" else (table,))
    printed = [one for tables in made.values() for one in tables]
    if format == "csv":
        sys.stdout.write(csv_by_model(made))
        return None
    if format != "terminal" or table != "both" or layers is not None:
        return print_as(printed, format)
    print_as([replace(one, notes=(), warnings=(), below=()) for one in printed], format)
    for name, counts in interactions(results.rows).items():
        say(f"Finetunes and steering, {name}: {counts}.")
    say(f"{sum(len(one.warnings) for one in printed)} warnings; --table 4 and --table 5 tell them, and all numbers")
    return None


def runs_(folder: Path, out: Path | None = None) -> None:
    """List the runs of a folder side by side: model, behaviors, where steering does most, warnings.

    Args:
        folder: that holds runs, at any depth.
        out: a Markdown file to write as well: the same table, what happened in each run, and all warnings.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from caa.files import replacing
    from caa.reports.overview import overview, records, run_folders, summary

    if out is not None:
        refuse_to_overwrite(out)
    summaries = [summary(path) for path in run_folders(folder)]
    table = Table("run", "model", "rows", "behavior", "task", "steering does most", "warnings", box=box.SIMPLE_HEAD)
    for one in summaries:
        facts = [str(one.run.folder), one.run.model, f"{len(one.run.rows):,}"]
        for behavior, task in one.best or [(", ".join(one.behaviors), "")]:
            best = str(one.best[behavior, task]) if one.best else "no steered cell"
            table.add_row(*(Text(word) for word in (*facts, behavior, task, best, str(len(one.warnings)))))
    show(table, [line for one in summaries for line in records(one)])
    if out is not None:
        with replacing(out) as scratch:
            scratch.write_text(overview(summaries), encoding="utf-8", errors="replace")
        say(f"{out} is the report over {len(summaries)} runs")


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
