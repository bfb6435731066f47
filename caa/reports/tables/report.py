"""The folder of a run in; its tables beside the rows out, as Markdown, CSV and LaTeX."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from caa.files import replacing
from caa.reports.tables.combinations import combination_tables
from caa.reports.tables.damage import damage_tables
from caa.reports.tables.finetune import finetune_tables
from caa.reports.tables.formats import to_csv, to_latex, to_markdown
from caa.reports.tables.layout import Table
from caa.runs.folder import Run, read_run

FORMATS = ("md", "csv", "tex")


def write_report(run_folder: str | Path, formats: Collection[str] = FORMATS) -> list[Table]:
    """Make the tables of a run from its rows.jsonl and write them beside it; run.json is for the captions, damage.csv
    for tables of the damage, where they are.

    Writes tables.md, tables.csv, tables.tex, each whole or not at all, and returns the tables for printing.
    FileNotFoundError if the folder holds no rows, ValueError for a broken row, a broken run.json, an unknown format.
    """
    return write_tables(read_run(run_folder), formats)


def write_tables(run: Run, formats: Collection[str] = FORMATS) -> list[Table]:
    """The same for a run that is read already."""
    if unknown := set(formats) - set(FORMATS):
        raise ValueError(f"unknown format {', '.join(sorted(unknown))}; a report is written as {', '.join(FORMATS)}")
    tables = [*finetune_tables(run.rows, **run.captions), *combination_tables(run.rows), *damage_tables(run)]
    for suffix in formats:
        with replacing(run.folder / f"tables.{suffix}") as scratch:
            scratch.write_text(_text(tables, suffix), encoding="utf-8")
    return tables


def _text(tables: Sequence[Table], suffix: str) -> str:
    if suffix == "csv":
        return to_csv(*tables)
    return "\n".join(map({"md": to_markdown, "tex": to_latex}[suffix], tables))
