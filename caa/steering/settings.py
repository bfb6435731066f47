"""Setting: what is done to a model at once; many settings of one model as one steering with a multiplier for each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import torch

from caa.steering.intervention import Intervention
from caa.vectors.vector import SteeringVector

Setting = tuple[Intervention, ...]
"""What is done to the model at once, with one multiplier each; () is the unsteered model."""


def sweep(vector: SteeringVector, layers: Sequence[int], multipliers: Sequence[float]) -> list[Setting]:
    """One setting for each layer and multiplier, in the order of `itertools.product(layers, multipliers)`."""
    return [(Intervention(vector, layer, multiplier),) for layer, multiplier in product(layers, multipliers)]


def together(settings: Sequence[Setting]) -> list[Intervention]:
    """All settings as one: what they share is one intervention, whose multipliers are one for each setting.

    >>> vector = SteeringVector({0: torch.ones(2)})
    >>> (both,) = together([(Intervention(vector, 0, -1.0),), (), (Intervention(vector, 0, 2.0),)])
    >>> both.multiplier
    [-1.0, 0.0, 2.0]
    """
    found: dict[tuple[Any, ...], tuple[Intervention, list[float]]] = {}
    for place, setting in enumerate(settings):
        for order, each in enumerate(setting):
            key = (order, id(each.vector), each.layer, each.operator, each.where, each.source_layer)
            _, multipliers = found.setdefault(key, (each, [0.0] * len(settings)))
            multipliers[place] = _single(each)
    in_order = sorted(found.items(), key=lambda item: item[0][0])
    return [replace(each, multiplier=multipliers) for _, (each, multipliers) in in_order]


def _single(intervention: Intervention) -> float:
    if not isinstance(intervention.vector, SteeringVector):
        raise ValueError("a recording belongs to the prompts that it was made of; use it with wrapper.steer(...)")
    strengths = intervention.strengths
    if strengths.numel() != 1:
        raise ValueError(f"a setting has one multiplier for each intervention, this one has {strengths.numel()}")
    return float(torch.as_tensor(intervention.multiplier, dtype=torch.float64))
