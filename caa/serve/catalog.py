"""What a server offers by name: the base, finetunes, steered adapters, and vectors with which a request may steer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from caa.callables import from_record
from caa.extraction.norms import multiplier_of
from caa.steering.gates import Gate
from caa.steering.intervention import Intervention, Setting
from caa.steering.operators import OPERATORS, Operator, Targeted, add
from caa.steering.scopes import SCOPES, Scope
from caa.suggestions import did_you_mean
from caa.vectors.vector import SteeringVector


class UnknownModelError(ValueError):
    """There is no model of this name."""


@dataclass(frozen=True)
class Served:
    """One model by name: a finetune, or none, under a setting, or none."""

    name: str
    finetune: str | None = None
    setting: Setting = ()


@dataclass(frozen=True)
class DoseLimit:
    """How far a request may push, in all, beside the length of the residual stream."""

    most: float = 1.0
    beyond: Literal["refuse", "clamp"] = "refuse"


_STRICT: dict[str, Any] = {"extra": "forbid", "allow_inf_nan": False}
"""What clients send is held to the fields that there are."""


@dataclass(frozen=True)
class Probe:
    """What decides for a text whether an edit is made: the projection on a vector where its prompt ends."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

    vector: str
    """One of the names that /v1/models tells."""
    layer: int | None = None
    """A block before the one that is edited; may be left out where the vector has only one."""
    above: float | None = None
    below: float | None = None


@dataclass(frozen=True)
class Push:
    """One edit of the residual stream that a request asks for."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

    vector: str
    """One of the names that /v1/models tells."""
    layer: int | None = None
    """The block whose output is edited, counted from 0; may be left out where the vector has only one."""
    multiplier: float | None = None
    dose: float | None = None
    """In place of a multiplier: the push beside the length of the residual stream."""
    operator: str | dict[str, Any] = "add"
    """A name, or a name and its numbers: {"name": "clamp", "value": 3.0}."""
    scope: str | dict[str, Any] = "after_prompt"
    """A name, or a name and its numbers: {"name": "steps", "n": 5}."""
    gate: Probe | None = None
    """None edits whatever the prompt is."""


class Catalog:
    """Names in, finetunes and settings out. Asked by any thread: it does not touch the model."""

    def __init__(
        self,
        models: Sequence[Served],
        vectors: Mapping[str, SteeringVector],
        norms: Mapping[int, float],
        limit: DoseLimit = DoseLimit(),
    ) -> None:
        """`norms` is the length of the stream by layer. ValueError for two models of one name."""
        self.models = {model.name: model for model in models}
        if len(self.models) < len(models):
            names = [model.name for model in models]
            raise ValueError(f"two models would have one name: {max(names, key=names.count)!r}; give one another")
        self.vectors, self.norms, self.limit = dict(vectors), dict(norms), limit

    def model(self, name: str) -> Served:
        """UnknownModelError, with the names there are, for another one."""
        if name not in self.models:
            known = list(self.models)
            raise UnknownModelError(f"there is no model {name!r}{did_you_mean(name, known)}; there are {known}")
        return self.models[name]

    def setting(self, pushes: Sequence[Push]) -> tuple[Setting, list[dict[str, Any]]]:
        """The interventions, and what is said of each in the answer. ValueError for what cannot be or goes too far."""
        wanted = tuple(map(self._intervention, pushes))
        doses = [self.dose(intervention) for intervention in wanted]
        given = self._within_limit(wanted, sum(map(abs, doses)))
        notes = []
        for push, before, after in zip(pushes, wanted, given, strict=True):
            note = asdict(push) | {"layer": after.layer, "multiplier": after.multiplier, "dose": self.dose(after)}
            if after is not before:
                note |= {"clamped": {"multiplier": before.multiplier, "dose": self.dose(before)}}
            notes.append(note)
        return given, notes

    def dose(self, intervention: Intervention) -> float:
        """How long a change it makes at most, beside the stream, with the sign of its multiplier: that of a residual of
        the stream's length which lies along the direction, against it or across it."""
        norm, multiplier = self.norms[intervention.layer], float(intervention.strengths[0])
        change = _largest_change(intervention.operator, intervention.direction, multiplier, norm)
        return math.copysign(change / norm, multiplier)

    def _within_limit(self, wanted: Setting, total: float) -> Setting:
        most = self.limit.most
        if total <= most * (1 + 1e-6):
            return wanted
        clamped = tuple(replace(edit, multiplier=float(edit.strengths[0]) * most / total) for edit in wanted)
        if self.limit.beyond == "refuse" or sum(abs(self.dose(edit)) for edit in clamped) > most * (1 + 1e-3):
            raise ValueError(
                f"this steering is a dose of {total:.3g} in all, the push beside the length of the residual stream, "
                f"and the server takes at most {most:g}: ask for less"
            )
        return clamped

    def _intervention(self, push: Push) -> Intervention:
        vector, layer = self._direction(push)
        operator, scope = _operator(push.operator), _scope(push.scope)
        if (push.multiplier is None) == (push.dose is None):
            raise ValueError(f"say how far to push along {push.vector!r}: a multiplier or a dose, one of the two")
        multiplier = push.multiplier
        if push.dose is not None:
            if operator is not add:
                raise ValueError("a dose is what `add` pushes; other operators take a multiplier")
            multiplier = multiplier_of(vector, layer, push.dose, self.norms)
        gate = self._gate(push.gate) if push.gate else None
        return Intervention(vector, layer, multiplier or 0.0, operator, scope, gate=gate)

    def _gate(self, probe: Probe) -> Gate:
        vector, layer = self._direction(probe)
        return Gate(vector, layer, probe.above, probe.below)

    def _direction(self, named: Push | Probe) -> tuple[SteeringVector, int]:
        """The vector and the layer that are meant."""
        known = list(self.vectors)
        if named.vector not in known:
            raise ValueError(
                f"there is no vector {named.vector!r}{did_you_mean(named.vector, known)}; there are {known}"
            )
        vector = self.vectors[named.vector]
        layer = vector.layers[0] if named.layer is None and len(vector.layers) == 1 else named.layer
        if layer not in vector.layers:
            fault = "no layer is given" if layer is None else f"it has no layer {layer}"
            raise ValueError(f"{fault} for the vector {named.vector!r}; its layers are {vector.layers}")
        return vector, layer


def _operator(record: str | Mapping[str, Any]) -> Operator:
    operator: Operator = _callable(record, OPERATORS, "operator")
    _largest_change(operator, torch.tensor([1.0, 0.0]), 1.0, 1.0)
    return operator


def _scope(record: str | Mapping[str, Any]) -> Scope:
    """One that says the same of every text; ValueError for lists of places that belong to several."""
    scope: Scope = _callable(record, SCOPES, "scope")
    for rows in (2, 3):
        scope(torch.arange(4).expand(rows, 4), torch.full((rows, 1), 2))
    return scope


def _callable(record: str | Mapping[str, Any], known: Mapping[str, Any], kind: str) -> Any:
    try:
        function = from_record(record, known, kind)
        hash(function)
    except (TypeError, KeyError) as error:
        raise ValueError(f"{dict(record) if isinstance(record, Mapping) else record} is no {kind} ({error})") from error
    if isinstance(function, type):
        raise ValueError(f'the {kind} {record!r} has numbers of its own: {{"name": "{record}", ...}}')
    return function


def _largest_change(operator: Operator, direction: Tensor, multiplier: float, norm: float) -> float:
    """Of three residuals of this length: along the direction, against it and across it. All count as targeted."""
    while isinstance(operator, Targeted):
        operator = operator.operator
    unit = direction / direction.norm().clamp(min=1e-30)
    across = torch.zeros_like(unit)
    across[int(unit.abs().argmin())] = 1.0
    across = across - (across @ unit) * unit
    resid = norm * torch.stack([unit, -unit, across / across.norm().clamp(min=1e-30)])[:, None]
    edited = operator(resid, direction, torch.full((3, 1), multiplier))
    return float((edited - resid).norm(dim=-1).max())
