"""Rows with random directions in, steered cells out that such a direction moves as much as the behavior's vector."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev

from caa.reports.naming import finetune_name, highest_score, signed_change, steering_name, vector_name
from caa.reports.statistics import LEAST_COVERAGE, Scores, differences
from caa.runs.rows import OWN, Cell, Row, scores_by_cell

VISIBLE = 0.02
"""Of a scale: what moves a score by less is no rival, whatever the vector does."""


@dataclass(frozen=True)
class Rival:
    """A random direction of the vector's length that moves a score as much as the vector does."""

    cell: Cell
    """Of the random direction, at the vector's multiplier or at its opposite: neither sign of it means anything."""
    moved: float
    """Mean change from the unsteered cell, in the unit of the score."""
    own: float
    """Mean change that the vector makes, on the same questions."""


def rivals(scores: Mapping[Cell, Scores]) -> dict[Cell, Rival]:
    """Cell steered by a behavior's own vector -> the random direction that moves its score as much.

    As much: what the vector moves more, question by question, is not above 0 by two standard errors, and the random
    direction itself moves the score by two of them and by `VISIBLE`. Cells without such a direction are left out.
    """
    controls: dict[Cell, list[Cell]] = {}
    for cell in scores:
        if cell.vector.kind == "random" and cell.task != "facts":  # knowledge is what a vector should leave alone
            for multiplier in (cell.multiplier, -cell.multiplier):
                controls.setdefault(replace(cell, vector=OWN, multiplier=multiplier), []).append(cell)
    by_cell = {cell: strongest_rival(scores, cell, controls[cell]) for cell in scores if cell in controls}
    return {cell: rival for cell, rival in by_cell.items() if rival}


def strongest_rival(scores: Mapping[Cell, Scores], cell: Cell, controls: Sequence[Cell]) -> Rival | None:
    """Of the controls that move the score as much as the cell's vector does, the one that moves it most."""
    known = [rival for rival in (as_rival(scores, cell, control) for control in controls) if rival]
    return max(known, key=lambda rival: abs(rival.moved), default=None)


def as_rival(scores: Mapping[Cell, Scores], cell: Cell, control: Cell) -> Rival | None:
    """The control, if it moves the score, and as much as the cell's own vector does."""
    own, moved = changes(scores, cell), changes(scores, control)
    if not own or not moved:
        return None
    size, own_size = fmean(moved.values()), fmean(own.values())
    signs = math.copysign(1, own_size), math.copysign(1, size)
    ahead = [signs[0] * own[name] - signs[1] * value for name, value in moved.items() if name in own]
    noticed = abs(size) >= VISIBLE * highest_score(cell.task) and sure([signs[1] * value for value in moved.values()])
    return Rival(control, size, own_size) if noticed and ahead and not sure(ahead) else None


def changes(scores: Mapping[Cell, Scores], cell: Cell, base: Cell | None = None) -> dict[str, float]:
    """Question -> its score in a cell minus that in another, the unsteered one if none is given.

    Empty where there is nothing to compare, or where too few answers have a score.
    """
    here, there = scores.get(cell, {}), scores.get(base or cell.baseline(), {})
    if here.keys().isdisjoint(there):
        return {}
    both = differences(here, there)
    known = {question: change for question, change in both.items() if change is not None}
    return known if len(known) >= LEAST_COVERAGE * len(both) else {}


def sure(values: Sequence[float]) -> bool:
    """Whether a mean is above 0 by two standard errors.

    >>> sure([0.1, 0.2, 0.3]), sure([-0.1, 0.0, 0.3]), sure([0.5])
    (True, False, False)
    """
    return len(values) > 1 and fmean(values) > max(2 * stdev(values) / math.sqrt(len(values)), 0.0)


def control_warnings(rows: Iterable[Row]) -> list[str]:
    """One readable line for each behavior and task in which a random direction moves scores as much as the vector."""
    scores = scores_by_cell(rows)
    by_task: dict[tuple[str, str], dict[Cell, Rival]] = {}
    for cell, rival in rivals(scores).items():
        by_task.setdefault((cell.behavior, cell.task), {})[cell] = rival
    return [_warning(place, by_cell, scores) for place, by_cell in by_task.items()]


def _warning(place: tuple[str, str], by_cell: Mapping[Cell, Rival], scores: Mapping[Cell, Scores]) -> str:
    compared = {replace(c, vector=OWN, multiplier=abs(c.multiplier)) for c in scores if c.vector.kind == "random"}
    steered = [c for c in scores if c.vector == OWN and c.multiplier and (c.behavior, c.task) == place]
    total = sum(replace(cell, multiplier=abs(cell.multiplier)) in compared for cell in steered)
    worst = max(by_cell, key=lambda cell: abs(by_cell[cell].moved) - abs(by_cell[cell].own))
    rival = by_cell[worst]
    return (
        f"{place[0]} ({place[1]}): in {len(by_cell)} of {total} steered cells a random direction of the same length "
        f"moves the score as much as the vector; {vector_name(rival.cell.vector)} by {signed_change(rival.moved)} "
        f"where the vector moves it by {signed_change(rival.own)}, in finetune {finetune_name(worst.finetune)}, "
        f"{steering_name(worst)}. What steering does there is not shown to be the vector's doing."
    )
