"""A folder of runs in; out come one summary of each, side by side, and a report over all of them in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from caa.files import own_files
from caa.reports.diagnostics.controls import changes, rivals
from caa.reports.naming import cell_fields, signed_change, steering_name
from caa.reports.summaries import warnings_of
from caa.reports.tables.finetune import finetune_tables
from caa.reports.tables.formats.markdown import in_markdown
from caa.runs.folder import Run, read_run
from caa.runs.rows import OWN, Cell, scores_by_cell

ROWS = "rows.jsonl"
_INNER = ("validation", "pairwise")
"""Folders in a run's own whose rows are no run."""


@dataclass(frozen=True)
class Best:
    """The cell of a behavior and task whose score steering moves most, without a finetune."""

    cell: Cell
    change: float
    """Mean over questions, in the unit of the score."""
    by_chance: bool
    """Whether a random direction moves it as much."""

    def __str__(self) -> str:
        chance = ", as a random direction does" if self.by_chance else ""
        return f"{signed_change(self.change)} at {steering_name(self.cell)}{chance}"


@dataclass(frozen=True)
class Summary:
    """What a run is and what came out of it, as far as one line can say it."""

    run: Run
    best: dict[tuple[str, str], Best]
    """(behavior, task) -> where steering does most; facts, which it should leave alone, are left out."""
    warnings: list[str]

    @property
    def behaviors(self) -> list[str]:
        return list(dict.fromkeys(row.cell.behavior for row in self.run.rows))


def run_folders(folder: str | Path) -> list[Path]:
    """The folders of runs in a folder, itself among them, by name. FileNotFoundError if there is none."""
    folders = [path.parent for path in own_files(folder, f"**/{ROWS}") if path.parent.name not in _INNER]
    if not folders:
        raise FileNotFoundError(f"there are no runs in {folder}: no folder there holds {ROWS}")
    return folders


def summary(folder: str | Path) -> Summary:
    """Of one run; errors as those of `read_run`."""
    run = read_run(folder)
    scores = scores_by_cell(run.rows)
    moved_by_chance = rivals(scores)
    best: dict[tuple[str, str], Best] = {}
    for cell in scores:
        known = list(changes(scores, cell).values()) if _steers(cell) else []
        if known and cell.task != "facts":
            change, place = fmean(known), (cell.behavior, cell.task)
            if place not in best or abs(change) > abs(best[place].change):
                best[place] = Best(cell, change, cell in moved_by_chance)
    return Summary(run, best, warnings_of(run))


def _steers(cell: Cell) -> bool:
    return cell.vector == OWN and cell.finetune is None and bool(cell.multiplier)


def records(one: Summary) -> list[dict[str, Any]]:
    """The lines of a run in a list of runs as data, one for each behavior and task, numbers as numbers."""
    run: dict[str, Any] = {"run": str(one.run.folder), "model": one.run.model, "rows": len(one.run.rows)}
    warnings = {"warnings": len(one.warnings)}
    if not one.best:
        return [{**run, "behavior": name, **warnings} for name in one.behaviors]
    lines: list[dict[str, Any]] = []
    for best in one.best.values():
        moved = {"change": best.change, "by chance": best.by_chance}
        lines.append({**run, **cell_fields(best.cell), **moved, **warnings})
    return lines


def overview(summaries: Iterable[Summary]) -> str:
    """Markdown: a table of the runs, then what happened in each, and its warnings."""
    listed = list(summaries)
    lines = ["# Runs", "", "| run | model | rows | behavior | steering does most | warnings |"]
    lines += ["| --- | --- | ---: | --- | --- | ---: |", *(line for one in listed for line in _lines(one)), ""]
    for one in listed:
        lines += [f"## {in_markdown(str(one.run.folder))}", ""]
        for table in finetune_tables(one.run.rows):
            lines += [f"**{in_markdown(table.title)}**", ""]
            lines += [*(f"- {in_markdown(headline.text)}" for headline in table.headlines), ""]
        lines += [*(f"- Warning: {in_markdown(warning)}" for warning in one.warnings), ""]
    return "\n".join(lines)


def _lines(one: Summary) -> Iterator[str]:
    """One for each behavior and task; what is of the whole run stands in the first."""
    first = [in_markdown(str(one.run.folder)), in_markdown(one.run.model), f"{len(one.run.rows):,}"]
    last = str(len(one.warnings))
    for (behavior, task), best in one.best.items() or [(("", ""), None)]:
        where = f"{in_markdown(behavior)} ({task})" if behavior else ", ".join(map(in_markdown, one.behaviors))
        yield "| " + " | ".join([*first, where, in_markdown(str(best)) if best else "no steered cell", last]) + " |"
        first, last = ["", "", ""], ""
