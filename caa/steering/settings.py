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
    shared: dict[tuple[Any, ...], Intervention] = {}
    multipliers: dict[tuple[Any, ...], list[float]] = {}
    for place, setting in enumerate(settings):
        for order, edit in enumerate(setting):
            key = (order, id(edit.vector), edit.layer, edit.operator, edit.where, edit.source_layer)
            shared.setdefault(key, edit)
            multipliers.setdefault(key, [0.0] * len(settings))[place] = _multiplier(edit)
    in_order = sorted(shared, key=lambda key: key[0])
    return [replace(shared[key], multiplier=multipliers[key]) for key in in_order]


def _multiplier(intervention: Intervention) -> float:
    """Its only one, in float64; ValueError where it has several or belongs to certain prompts."""
    if not isinstance(intervention.vector, SteeringVector):
        raise ValueError("a recording belongs to the prompts that it was made of; use it with wrapper.steer(...)")
    strengths = intervention.strengths
    if strengths.numel() != 1:
        raise ValueError(f"a setting has one multiplier for each intervention, this one has {strengths.numel()}")
    return float(torch.as_tensor(intervention.multiplier, dtype=torch.float64))


def leaves_prompt(setting: Setting, length: int) -> bool:
    """Whether no token before the last one of a prompt of `length` tokens is edited.

    >>> from caa.steering.scopes import everywhere
    >>> vector = SteeringVector({0: torch.ones(2)})
    >>> leaves_prompt((Intervention(vector, 0),), 5), leaves_prompt((Intervention(vector, 0, where=everywhere),), 5)
    (True, False)
    """
    positions, last = torch.arange(length - 1)[None], torch.tensor([[length - 1]])
    return not any(bool(intervention.where(positions, last).any()) for intervention in setting)
