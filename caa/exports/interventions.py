"""Interventions in, the one vector that they add at each layer out, or the reason why a tool cannot add it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

from torch import Tensor

from caa.callables import name_of
from caa.models.sites import BLOCK_OUTPUT
from caa.steering.intervention import Intervention
from caa.steering.operators import add
from caa.steering.patching import Recording
from caa.steering.scopes import Scope
from caa.vectors.vector import Provenance, SteeringVector

KEEP = "Keep the steered adapter, or export to a target that steers by hooks of its own"


def check_interventions(
    interventions: Sequence[Intervention], scopes: Sequence[Scope], target: str, instead: str
) -> list[Intervention]:
    """Those that do something; ValueError, with the nearest alternative, for one that is more than such a push."""
    active = [intervention for intervention in interventions if intervention.strengths.any()]
    if not active:
        raise ValueError(
            "nothing is steered, so there is nothing to export; a LoRA alone is a plain PEFT adapter already"
        )
    for intervention in active:
        _check(intervention, scopes, target, instead)
    return active


def _check(intervention: Intervention, scopes: Sequence[Scope], target: str, instead: str) -> None:
    if isinstance(intervention.vector, Recording):
        raise ValueError(f"{target} adds one vector to every prompt; a recording belongs to the prompts it was made of")
    if intervention.operator is not add:
        operator = name_of(intervention.operator)
        raise ValueError(f"{target} adds a vector and cannot {operator} ({intervention}). {KEEP}.")
    if intervention.place != BLOCK_OUTPUT:
        raise ValueError(f"{target} adds to what a block writes, and this acts elsewhere ({intervention}). {KEEP}.")
    if intervention.gate is not None:
        raise ValueError(f"{target} steers every row, and a gate decides for each ({intervention}). {KEEP}.")
    if len(intervention.strengths) > 1:
        raise ValueError(
            f"{target} has one multiplier for all prompts, and this is one for each ({intervention}). Steer with one."
        )
    if intervention.where not in scopes:
        able, wanted = " or ".join(map(name_of, scopes)), name_of(intervention.where)
        raise ValueError(f"{target} steers {able}, and this adapter {wanted} ({intervention}). {instead}.")


def push_of(interventions: Sequence[Intervention]) -> SteeringVector:
    """What is added at each layer: the directions times their multipliers, each rounded once, as the hook does."""
    total: dict[int, Tensor] = {}
    for i in interventions:
        push = i.strengths * i.direction
        total[i.layer] = total[i.layer] + push if i.layer in total else push
    steps = tuple(
        f"{i}, source layer {i.source_layer}" if i.source_layer is not None else str(i) for i in interventions
    )
    return SteeringVector(total, reduce(Provenance.then, steps, _origin(interventions)))


def _origin(interventions: Sequence[Intervention]) -> Provenance:
    """The one vector's provenance; of several, what they share is not worth more than their names in the history."""
    first, *others = (i.vector.source for i in interventions)
    return first if all(other == first for other in others) else Provenance(method="sum of several vectors")
