"""Rows in, tables out: behaviors (or layers) down, finetune x multiplier across, as in Table 4 of the CAA paper."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from caa.files import replacing
from caa.reports.arranging import arranged, estimates, in_order
from caa.reports.collapse import collapse_warnings, fray_warnings
from caa.reports.effects import effect_matrix, effect_tables
from caa.reports.formats import to_csv, to_latex, to_markdown, to_terminal
from caa.reports.layout import Table
from caa.reports.naming import cell_fields, describe, signed
from caa.reports.stacks import stack_tables
from caa.runs.folder import Run, read_run
from caa.runs.rows import OWN, Cell, Row, VectorRef

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "FORMATS",
    "Table",
    "best_layer",
    "effect_matrix",
    "finetune_tables",
    "summarize",
    "sweep_table",
    "to_csv",
    "to_latex",
    "to_markdown",
    "to_terminal",
    "write_report",
    "write_tables",
]

FORMATS = ("md", "csv", "tex")
_TASKS = {
    "ab": "A/B questions: mean probability of the matching answer, p(match) / (p(A) + p(B))",
    "open": "Open-ended questions: mean score, 0 to 10",
    "facts": "Facts: mean probability of the correct one of two options",
}


def summarize(rows: Iterable[Row]) -> pd.DataFrame:
    """One line per cell: the cell's fields, then mean, low, high (95 % bootstrap), n and unjudged."""
    import pandas as pd

    return pd.DataFrame([{**cell_fields(cell), **asdict(found)} for cell, found in estimates(rows).items()])


def finetune_tables(
    rows: Iterable[Row],
    *,
    model: str = "",
    judge_accuracy: Mapping[str, float] | None = None,
    doses: Mapping[str, Mapping[str, float]] | None = None,
) -> list[Table]:
    """One table for each task, layer and system prompt: behaviors down, finetune x multiplier across.

    Below each stand what steering does (changes from multiplier 0, steerability) and the interaction (what finetuning
    changes about it).

    Args:
        rows: of any number of cells. Cells of random vectors become one control line below their behavior, cells of any
            other vector than the behavior's own a line of its own.
        model: what the caption says was steered.
        judge_accuracy: behavior -> cross-validated accuracy of the judge in [0, 1], for the caption of open questions.
        doses: behavior -> layer (as text) -> relative dose of multiplier 1, for the caption.
    """
    rows = _some(rows)
    tasks = in_order((row.cell.task for row in rows), _TASKS)
    kinds = {(row.cell.task, row.cell.layer, row.cell.system_prompt) for row in rows}
    return [
        _finetune_table([row for row in rows if _kind(row) == kind], model, judge_accuracy or {}, doses or {})
        for kind in sorted(kinds, key=lambda kind: (tasks.index(kind[0]), kind[1:]))
    ]


def _kind(row: Row) -> tuple[str, int, str]:
    return row.cell.task, row.cell.layer, row.cell.system_prompt


def _some(rows: Iterable[Row]) -> list[Row]:
    found = list(rows)
    if not found:
        raise ValueError("there are no rows to make a table of. Run the grid first: it writes them to rows.jsonl.")
    return found


def _finetune_table(
    rows: list[Row], model: str, judge_accuracy: Mapping[str, float], doses: Mapping[str, Mapping[str, float]]
) -> Table:
    task, layer, prompt = _kind(rows[0])
    asked = f", system prompt {prompt!r}" if prompt else ""
    about = f"{f'Model: {model}. ' if model else ''}Layer {layer} is the output of block {layer}, counted from 0."
    judged = _judge_note(judge_accuracy) if task == "open" else []
    notes = [
        about,
        *_dose_note(doses, layer),
        *judged,
        *_mass_note(rows),
        *collapse_warnings(rows),
        *fray_warnings(rows),
    ]
    table = arranged(rows, f"{_TASKS.get(task, task)}; layer {layer}{asked}", "behavior", notes)
    return replace(table, below=effect_tables(rows, "behavior"))


def _dose_note(doses: Mapping[str, Mapping[str, float]], layer: int) -> list[str]:
    each = ", ".join(f"{name} {of[str(layer)]:.2f}" for name, of in doses.items() if str(layer) in of)
    return (
        [f"Relative dose of multiplier 1, its push over the stream at the last prompt token: {each}."] if each else []
    )


def _judge_note(accuracy: Mapping[str, float]) -> list[str]:
    each = ", ".join(f"{behavior} {share:.2f}" for behavior, share in accuracy.items())
    return [f"Accuracy of the judge, cross-validated: {each}."] if each else []


def _mass_note(rows: Iterable[Row]) -> list[str]:
    """How much probability the two answers had at all: where it is little, the model wanted to say something else."""
    masses: dict[Cell, list[float]] = {}
    for row in rows:
        if {"p_matching", "p_opposite"} <= row.evidence.keys():
            masses.setdefault(row.cell, []).append(row.evidence["p_matching"] + row.evidence["p_opposite"])
    if not masses:
        return []
    means = {cell: sum(values) / len(values) for cell, values in masses.items()}
    least = min(means, key=lambda cell: means[cell])
    average = sum(means.values()) / len(means)
    return [
        f"The two answers together have a probability of {average:.2f} on average; "
        f"the least is {means[least]:.2f}, in {describe(least)}."
    ]


def sweep_table(rows: Iterable[Row]) -> Table:
    """Layers down, multipliers across, for one behavior, task and system prompt: to choose a layer by."""
    rows = _some(rows)
    for field in ("behavior", "task", "system_prompt"):
        _only_one(rows, field)
    cell = rows[0].cell
    title = f"{cell.behavior}, every layer. {_TASKS.get(cell.task, cell.task)}"
    return arranged(rows, title, "layer", ["Layer L is the output of block L, counted from 0."])


def _only_one(rows: Iterable[Row], field: str) -> None:
    values = sorted({str(getattr(row.cell, field)) for row in rows})
    if len(values) > 1:
        raise ValueError(
            f"this needs the rows of one {field}, these are of {', '.join(map(repr, values))}: select first"
        )


def best_layer(rows: Iterable[Row]) -> int:
    """The layer at which steering moves the score most: mean(+m) - mean(-m), averaged over the behaviors.

    m is the largest multiplier that was tried both ways. Only rows without a finetune count. Where other vectors were
    asked too (those of other behaviors, random ones), the mean size of what they do is taken off: a layer at which any
    push moves any score is a poor one. Of equal layers the smallest is taken. Give it the rows of validation questions,
    or the layer is chosen on the test. ValueError if no multiplier has both signs, or a layer lacks a behavior that
    another layer has.
    """
    rows = _some(rows)
    own = [row for row in rows if row.cell.vector == OWN and row.cell.finetune is None]
    for field in ("task", "system_prompt"):
        _only_one(own, field)
    means = {_place(cell): estimate.mean for cell, estimate in estimates(own).items() if estimate.n}
    top = _largest_both_ways({multiplier for *_, multiplier in means})
    behaviors = {behavior for _, behavior, _ in means}
    layers = sorted({layer for layer, _, _ in means})
    missing = [(i, b, m) for i in layers for b in behaviors for m in (top, -top) if (i, b, m) not in means]
    if missing:
        layer, behavior, multiplier = min(missing)
        raise ValueError(
            f"{behavior!r} was not asked at layer {layer}, multiplier {signed(multiplier)}; finish the sweep"
        )
    strange = _strange_moves(rows, top)
    # max() keeps the first of equals, and the layers are sorted. Rounded: 0.9 - 0.7 and 0.4 - 0.2 are equal.
    return max(
        layers,
        key=lambda i: round(sum(means[i, b, top] - means[i, b, -top] - strange.get((i, b), 0) for b in behaviors), 9),
    )


def _strange_moves(rows: Iterable[Row], top: float) -> dict[tuple[int, str], float]:
    """(layer, behavior) -> mean size of what vectors other than the behavior's own do to its score."""
    found: dict[tuple[int, str, VectorRef], dict[float, float]] = {}
    for cell, estimate in estimates(row for row in rows if row.cell.vector != OWN).items():
        if cell.finetune is None and abs(cell.multiplier) == top and estimate.n:
            found.setdefault((cell.layer, cell.behavior, cell.vector), {})[cell.multiplier] = estimate.mean
    moves: dict[tuple[int, str], list[float]] = {}
    for (layer, behavior, _), each in found.items():
        if len(each) == 2:
            moves.setdefault((layer, behavior), []).append(abs(each[top] - each[-top]))
    return {place: sum(sizes) / len(sizes) for place, sizes in moves.items()}


def _place(cell: Cell) -> tuple[int, str, float]:
    return cell.layer, cell.behavior, cell.multiplier


def _largest_both_ways(multipliers: Collection[float]) -> float:
    both = [multiplier for multiplier in multipliers if multiplier > 0 and -multiplier in multipliers]
    if not both:
        there = ", ".join(map(signed, sorted(multipliers))) or "none"
        raise ValueError(
            f"a layer is chosen by the same multiplier with both signs; there are {there}. Sweep -1 and 1."
        )
    return max(both)


def write_report(run_folder: str | Path, formats: Collection[str] = FORMATS) -> list[Table]:
    """Make the tables of a run from its rows.jsonl (and run.json, for the captions) and write them beside it.

    Writes tables.md, tables.csv, tables.tex, each whole or not at all, and returns the tables for printing.
    FileNotFoundError if the folder holds no rows, ValueError for a broken row, a broken run.json, an unknown format.
    """
    return write_tables(read_run(run_folder), formats)


def write_tables(run: Run, formats: Collection[str] = FORMATS) -> list[Table]:
    """The same for a run that is read already."""
    if unknown := set(formats) - set(FORMATS):
        raise ValueError(f"unknown format {', '.join(sorted(unknown))}; a report is written as {', '.join(FORMATS)}")
    tables = [*finetune_tables(run.rows, **run.captions), *stack_tables(run.rows)]
    for suffix in formats:
        with replacing(run.folder / f"tables.{suffix}") as scratch:
            scratch.write_text(_written(tables, suffix), encoding="utf-8")
    return tables


def _written(tables: Sequence[Table], suffix: str) -> str:
    if suffix == "csv":
        return to_csv(*tables)
    return "\n".join(map({"md": to_markdown, "tex": to_latex}[suffix], tables))
