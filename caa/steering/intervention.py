"""Intervention: one edit of the residual stream, as data; setting: what is edited at once. Knows no model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from caa.callables import name_of
from caa.models.sites import BLOCK_OUTPUT, Site, check_site
from caa.steering.gates import Gate
from caa.steering.operators import Clamp, Operator, ablate, add
from caa.steering.patching import Recording
from caa.steering.scopes import Scope, after_prompt, prompts_of
from caa.vectors.vector import Provenance, SteeringVector


@dataclass(frozen=True, eq=False)
class Intervention:
    """One edit: which direction, at which layer, how strongly, how, and on which tokens."""

    vector: SteeringVector | Recording
    """One direction for all tokens, or a recorded run with one for each."""
    layer: int
    """The block whose output, or other site, is edited, counted from 0."""
    multiplier: float | Sequence[float] | Tensor = 1.0
    """One for the whole batch, one for each prompt in it, or a coefficient for each token, [row or 1, position]."""
    operator: Operator = add
    where: Scope = after_prompt
    source_layer: int | None = None
    """The vector's layer to take the direction from, if it is not `layer`."""
    gate: Gate | None = None
    """What decides for each row whether it is steered at all; None steers every row."""
    site: Site | None = None
    """Where in the block it acts; None is the place that the vector was read at."""

    def __post_init__(self) -> None:
        try:
            strengths = self.strengths
        except OverflowError:
            strengths = torch.full((1,), math.inf)
        if strengths.ndim > 2 or not strengths.numel() or not strengths.isfinite().all():
            shown = str(self.multiplier)[:60]
            raise ValueError(
                f"a multiplier is one finite number, a list of them or [row or 1, position], this is {shown}"
            )
        if self.gate is not None and self.gate.layer >= self.layer:
            raise ValueError(
                f"a gate is read before the layer that it is for: it is at layer {self.gate.layer}, and layer "
                f"{self.layer} is steered. Targeted chooses tokens at the layer itself."
            )
        check_site(self.place)

    @property
    def place(self) -> Site:
        """The site where it acts."""
        return self.site or cast(Site, self.vector.source.site)

    @property
    def last_plain_block(self) -> int:
        """The last block whose output it can be made at, or has not changed yet: -1 where even block 0 is inside."""
        return self.layer if self.place == BLOCK_OUTPUT else self.layer - 1

    @property
    def direction(self) -> Tensor:
        """float32 [d_model]; of a recording [row, position, d_model]"""
        return self.vector.at(self.layer if self.source_layer is None else self.source_layer)

    @property
    def strengths(self) -> Tensor:
        """float32 [1] or [prompt], or [1 or row, position]"""
        given = torch.as_tensor(self.multiplier, dtype=torch.float32)
        return given if given.ndim else given[None]

    @property
    def suits_any_prompt(self) -> bool:
        """Whether no multiplier, place or recorded token of it belongs to a certain text."""
        recorded = len(self.vector.lengths) if isinstance(self.vector, Recording) else 1
        return self.strengths.numel() == recorded == prompts_of(self.where) == 1

    def __str__(self) -> str:
        """As it stands above a text or a column: "sycophancy x -1, layer 13", and then what is not as usual."""
        strengths = "/".join(f"{m:+g}" if m else "0" for m in self.strengths.flatten().tolist())
        push = f"{self.vector.source.behavior or 'vector'} x {strengths}, layer {self.layer}"
        unusual = [name_of(part) for part in (self.operator, self.where) if part not in (add, after_prompt)]
        read_at = self.vector.source.site
        other = f" (read at the {read_at})" if read_at != self.place else ""
        place = [f"at the {self.place}{other}"] if other or self.place != BLOCK_OUTPUT else []
        return ", ".join([push, *place, *unusual, *([str(self.gate)] if self.gate else [])])


def spread_over_layers(
    vector: SteeringVector,
    layers: Sequence[int],
    multiplier: float | Sequence[float],
    *,
    split: bool = True,
    operator: Operator = add,
    where: Scope = after_prompt,
) -> tuple[Intervention, ...]:
    """One vector at several layers, each with its own direction.

        wrapper.steer(*spread_over_layers(vector, [12, 13, 14], 3.0))

    With `split` the layers share the multiplier, without it each gets all of it. Operators whose multiplier is a share
    (ablate, clamp, replace) want `split=False`.

    >>> v = SteeringVector({0: torch.ones(2), 1: torch.ones(2)})
    >>> [str(intervention) for intervention in spread_over_layers(v, [0, 1], 3.0)]
    ['vector x +1.5, layer 0', 'vector x +1.5, layer 1']
    """
    if not layers or len(set(layers)) < len(layers):
        raise ValueError(f"a vector is spread over one or more layers, each once; these are {list(layers)}")
    strengths = torch.as_tensor(multiplier, dtype=torch.float64) / (len(layers) if split else 1)
    return tuple(Intervention(vector, layer, strengths.tolist(), operator, where) for layer in layers)


def erase_subspace(
    directions: Float[Tensor, "k d_model"], layer: int, share: float = 1.0, *, where: Scope = after_prompt
) -> tuple[Intervention, ...]:
    """Take the span of k directions out of the stream: `ablate` of an orthonormal basis, one direction after the other.

        wrapper.steer(*erase_subspace(subspace(*activations.at(13), k=3), layer=13))

    Directions that follow from the others, to float32 rounding, add nothing. ValueError if all are zero.

    >>> span = torch.tensor([[1.0, 0.0, 0.0], [1.0, 1.0, 0.0]])
    >>> [str(intervention) for intervention in erase_subspace(span, 13)]
    ['direction 1 of 2 x +1, layer 13, ablate', 'direction 2 of 2 x +1, layer 13, ablate']
    """
    _, sizes, axes = torch.linalg.svd(functional.normalize(directions.double(), dim=1), full_matrices=False)
    basis = axes[sizes > sizes[0] * len(directions) * torch.finfo(torch.float32).eps].float()
    if not len(basis):
        raise ValueError(f"{len(directions)} directions of zeros span nothing that could be erased")
    return _along(basis, layer, share, [ablate] * len(basis), where)


def clamp_subspace(
    directions: Float[Tensor, "k d_model"],
    layer: int,
    values: Sequence[float],
    share: float = 1.0,
    *,
    where: Scope = after_prompt,
) -> tuple[Intervention, ...]:
    """Set each token's projections on k orthonormal directions, as `subspace` gives them, to these values.

    ValueError for directions that are not orthonormal, where setting one projection would move another.
    """
    gram = directions.double() @ directions.double().T
    if (gram - torch.eye(len(directions), dtype=torch.float64)).abs().max() > 1e-4:
        raise ValueError("clamp_subspace needs orthonormal directions, such as those of caa.vectors.methods.subspace")
    if len(values) != len(directions):
        raise ValueError(f"each of {len(directions)} directions has one value, these are {list(values)}")
    return _along(directions, layer, share, [Clamp(float(value)) for value in values], where)


def _along(
    basis: Float[Tensor, "k d_model"], layer: int, share: float, operators: Sequence[Operator], where: Scope
) -> tuple[Intervention, ...]:
    names = [f"direction {number + 1} of {len(basis)}" for number in range(len(basis))]
    vectors = [SteeringVector({layer: row}, Provenance(behavior=n)) for n, row in zip(names, basis, strict=True)]
    return tuple(Intervention(v, layer, share, op, where) for v, op in zip(vectors, operators, strict=True))


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
            key = (
                order,
                id(edit.vector),
                edit.layer,
                edit.operator,
                edit.where,
                edit.source_layer,
                id(edit.gate),
                edit.place,
            )
            shared.setdefault(key, edit)
            multipliers.setdefault(key, [0.0] * len(settings))[place] = _multiplier(edit)
    in_order = sorted(shared, key=lambda key: key[0])
    return [replace(shared[key], multiplier=multipliers[key]) for key in in_order]


def check_suits_any_prompt(interventions: Sequence[Intervention]) -> None:
    """ValueError for what stays on and was made for certain prompts, where these are asked in another order."""
    for intervention in interventions:
        if not intervention.suits_any_prompt:
            raise ValueError(
                "texts are asked in an order of their own, so what stays on has one multiplier, one list of places and "
                f"one recorded text for all: {intervention}"
            )


def _multiplier(intervention: Intervention) -> float:
    """Its only one, in float64; ValueError where it has several or belongs to certain prompts."""
    if not isinstance(intervention.vector, SteeringVector):
        raise ValueError("a recording belongs to the prompts that it was made of; use it with wrapper.steer(...)")
    if prompts_of(intervention.where) > 1:
        raise ValueError(f"places of {prompts_of(intervention.where)} prompts are no setting, which any prompt may get")
    if isinstance(intervention.multiplier, float):
        return intervention.multiplier
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
    always = (intervention for intervention in setting if intervention.gate is None)
    return not any(bool(intervention.where(positions, last).any()) for intervention in always)
