"""Rows of a sweep over layers in, the layer at which steering moves scores most out."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from itertools import product

from caa.reports.naming import signed
from caa.reports.statistics import means_by_cell
from caa.runs.rows import OWN, Row, VectorRef, require_one, require_rows

_Means = Mapping[tuple[int, str, float], float]
"""(layer, behavior, multiplier) -> mean score."""


def best_layer(rows: Iterable[Row]) -> int:
    """The layer at which steering moves the score most: mean(+m) - mean(-m), averaged over the behaviors.

    m is the largest multiplier that was tried both ways. Only rows without a finetune count. Where other vectors were
    asked too (those of other behaviors, random ones), the mean size of what they do is taken off: a layer at which any
    vector moves any score is a poor one. Of equal layers the smallest is taken. Give it the rows of validation
    questions, or the layer is chosen on the test. ValueError if no multiplier has both signs, or a layer lacks a
    behavior that another layer has.
    """
    rows = require_rows(rows)
    own = [row for row in rows if row.cell.vector == OWN and row.cell.finetune is None]
    for field in ("task", "system_prompt"):
        require_one(own, field)
    means = {
        (c.layer, c.behavior, c.multiplier): estimate.mean
        for c, estimate in means_by_cell(own).items()
        if estimate.enough_scores and c.layer is not None
    }
    top = _largest_both_ways({multiplier for _, _, multiplier in means})
    layers = sorted({layer for layer, _, _ in means})
    behaviors = {behavior for _, behavior, _ in means}
    _require_all(means, layers, behaviors, top)
    control = _control_effects(rows, top)

    def effect(layer: int) -> float:
        effects = (means[layer, b, top] - means[layer, b, -top] - control.get((layer, b), 0) for b in behaviors)
        return round(sum(effects), 9)  # rounded: 0.9 - 0.7 and 0.4 - 0.2 are equal

    return max(layers, key=effect)  # the first of equals, and the layers are sorted


def _require_all(means: _Means, layers: Iterable[int], behaviors: Collection[str], top: float) -> None:
    """ValueError for the first layer, behavior and multiplier that was not asked."""
    for layer, behavior, multiplier in product(layers, sorted(behaviors), (-top, top)):
        if (layer, behavior, multiplier) not in means:
            place = f"at layer {layer}, multiplier {signed(multiplier)}"
            raise ValueError(
                f"{behavior!r} was not asked {place}, or its judge could read too few of the answers; finish the "
                "sweep, or choose by A/B questions"
            )


def _control_effects(rows: Iterable[Row], top: float) -> dict[tuple[int, str], float]:
    """(layer, behavior) -> mean size of what vectors other than the behavior's own do to its score."""
    means: dict[tuple[int, str, VectorRef], dict[float, float]] = {}
    for cell, estimate in means_by_cell(row for row in rows if row.cell.vector != OWN).items():
        if cell.finetune is not None or cell.layer is None:
            continue
        if abs(cell.multiplier) == top and estimate.enough_scores:
            means.setdefault((cell.layer, cell.behavior, cell.vector), {})[cell.multiplier] = estimate.mean
    sizes: dict[tuple[int, str], list[float]] = {}
    for (layer, behavior, _), by_sign in means.items():
        if len(by_sign) == 2:
            sizes.setdefault((layer, behavior), []).append(abs(by_sign[top] - by_sign[-top]))
    return {key: sum(values) / len(values) for key, values in sizes.items()}


def _largest_both_ways(multipliers: Collection[float]) -> float:
    both = [multiplier for multiplier in multipliers if multiplier > 0 and -multiplier in multipliers]
    if not both:
        available = ", ".join(map(signed, sorted(multipliers))) or "none"
        raise ValueError(
            f"a layer is chosen by the same multiplier with both signs; there are {available}. Sweep -1 and 1."
        )
    return max(both)
