"""Cells and numbers as people read them."""

from __future__ import annotations

from caa.runs.rows import Cell

SCORES = {"ab": "mean p(matching answer)", "open": "mean score, 0 to 10", "facts": "mean p(correct answer)"}
"""What the axis of a figure says of a task's scores."""


def signed(multiplier: float) -> str:
    """
    >>> [signed(m) for m in (-1.0, 0.0, -0.0, 1.0, 0.5)]
    ['-1', '0', '0', '+1', '+0.5']
    """
    return f"{multiplier:+g}" if multiplier else "0"


def describe(cell: Cell) -> str:
    """
    >>> describe(Cell("refusal", "open", "negative", layer=13, multiplier=1.0))
    'refusal (open), finetune negative, layer 13, multiplier +1'
    """
    prompt = f", system prompt {cell.system_prompt}" if cell.system_prompt else ""
    vector = f", vector {cell.vector}" if cell.vector != "caa" else ""
    where = f"layer {cell.layer}, multiplier {signed(cell.multiplier)}"
    return f"{cell.behavior} ({cell.task}), finetune {cell.finetune}, {where}{prompt}{vector}"


def most(task: str) -> float:
    """The highest score of a task; the lowest is 0."""
    return 10.0 if task == "open" else 1.0
