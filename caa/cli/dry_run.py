"""Grids in, what they would ask out: cells, questions, rows and forward passes. Loads no model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from math import ceil
from pathlib import Path
from typing import Any

import torch

from caa.data.behaviors import Behavior, Question
from caa.evals.grid import EvalGrid
from caa.experiment import Experiment
from caa.judges.base import Verdict
from caa.models.slots import MOST_ROWS
from caa.preflight import model_config
from caa.runs.rows import Row, read_rows
from caa.vectors.vector import SteeringVector


@dataclass(frozen=True)
class Work:
    """What one task of one behavior takes."""

    behavior: str
    task: str
    questions: int
    cells: int
    rows: int
    present: int
    """Rows that the run's folder holds already."""
    passes: int
    """Forward passes, about: those of full batches; of an open answer, one for each of its tokens."""


def nobody(question: Question, answer: str) -> Verdict:
    """The judge of a dry run, who judges nothing."""
    return Verdict(None, f"not judged: {question.id}")


def grid_work(grid: EvalGrid, rows: Sequence[Row] = ()) -> Iterator[Work]:
    """Task by task; `rows` are those that are there."""
    keys = {row.key for row in rows}
    for task in grid.tasks:
        questions = grid.questions(task)
        cells = [cell for cell in grid.cells() if cell.task == task]
        present = sum((cell, question.id) in keys for cell in cells for question in questions)
        passes = sum(_passes(grid, *place, task) for place in product(grid.finetunes, grid.system_prompts))
        yield Work(grid.behavior.name, task, len(questions), len(cells), len(cells) * len(questions), present, passes)


def _passes(grid: EvalGrid, finetune: Any, prompt: str, task: str) -> int:
    """A two-answer question is read once for all settings; an open answer is a row of a batch under each of them."""
    questions = len(grid.questions(task))
    if task != "open":
        return ceil(questions / grid.batch_size)
    answers = questions * len(grid.cases(finetune, prompt, task))
    return ceil(answers / (grid.answers_at_once or MOST_ROWS)) * grid.max_new_tokens


def experiment_work(experiment: Experiment, behaviors: Sequence[Behavior]) -> Iterator[Work]:
    """Vectors, the choice of a layer, finetunes, then what is asked."""
    depth = model_config(experiment.model).num_hidden_layers
    stand_ins = {b.name: SteeringVector({n: torch.ones(1) for n in range(depth)}) for b in behaviors}
    for behavior in behaviors:
        pairs = len(behavior.pairs)
        yield Work(behavior.name, "read the vector", pairs, 0, 0, 0, ceil(pairs / experiment.batch_size))
    if experiment.layer is None:
        chosen_by = read_rows(experiment.out / "validation" / "rows.jsonl")
        for behavior in behaviors:
            for work in grid_work(experiment.validation_grid(behavior, stand_ins), chosen_by):
                yield Work(work.behavior, "choose the layer", *list(vars(work).values())[2:])
    rows = read_rows(experiment.out / "rows.jsonl")
    finetunes: list[str] = [finetune for finetune in experiment.finetunes if finetune != "none"]
    for behavior in behaviors:
        reread = dict.fromkeys(finetunes, stand_ins[behavior.name]) if experiment.reread else {}
        layer = experiment.layer or 0
        yield from grid_work(experiment.grid(behavior, stand_ins, layer, reread, nobody), rows)


def print_work(works: Sequence[Work], note: str, out: Path) -> None:
    """One line for each task, over all behaviors, and what would be added."""
    from rich import box
    from rich.table import Table

    from caa.cli.console import say, show

    table = Table("task", box=box.SIMPLE_HEAD)
    lines: list[dict[str, Any]] = []
    for column in _COLUMNS:
        table.add_column(column, justify="right")
    for task in dict.fromkeys(work.task for work in works):
        of_task = [work for work in works if work.task == task]
        sums = [sum(getattr(work, name) for work in of_task) for name in _SUMMED]
        numbers = [len(of_task), *sums]
        table.add_row(task, *(f"{number:,}" for number in numbers))
        lines.append({"task": task, **dict(zip(_COLUMNS, numbers, strict=True))})
    show(table, lines)
    missing = sum(work.rows - work.present for work in works)
    text = f"{missing:,} rows would be added to {out}. {note}No model was loaded, nothing was asked."
    say(text)


_COLUMNS = ("behaviors", "questions", "cells", "rows", "there already", "forward passes, about")
_SUMMED = ("questions", "cells", "rows", "present", "passes")
