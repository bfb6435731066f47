"""Multipliers to relative doses and back: how large a push is beside the residual stream that it is added to.

A dose is multiplier * ||vector|| / ||stream||, with the sign of the multiplier. Unlike a multiplier it compares between
layers, behaviors and models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from caa.extraction.reader import ReadConfig, Text, read
from caa.vectors.vector import SteeringVector


def stream_norms(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[list[int]],
    layers: Sequence[int] | None = None,
    *,
    batch_size: int = 16,
) -> dict[int, float]:
    """layer -> mean Euclidean norm of the residual stream at the last token of the prompts, which are ids.

    The model is read as it is: its adapters, and any steering that is on, are part of it.
    """
    if not prompts:
        raise ValueError("no prompts, so there is no stream to measure; give at least one, as `render` makes them")
    total: dict[int, float] = {}
    texts = map(Text.at_its_end, prompts)
    for batch in read(model, tokenizer, texts, layers, ReadConfig(batch_size=batch_size)):
        for layer, resid in batch.residuals.items():
            total[layer] = total.get(layer, 0.0) + resid.double().norm(dim=-1).sum().item()
    return {layer: summed / len(prompts) for layer, summed in total.items()}


def dose(vector: SteeringVector, layer: int, multiplier: float, norms: Mapping[int, float]) -> float:
    """The relative dose of a multiplier; `norms` come from `stream_norms`.

    >>> import torch
    >>> v = SteeringVector({13: torch.tensor([3.0, 4.0])})
    >>> dose(v, 13, -2.0, {13: 40.0})
    -0.25
    """
    return multiplier * _ratio(vector, layer, norms)


def multiplier_of(vector: SteeringVector, layer: int, dose: float, norms: Mapping[int, float]) -> float:
    """The multiplier that gives a relative dose; ValueError for a vector of zeros, which gives none.

    >>> import torch
    >>> v = SteeringVector({13: torch.tensor([3.0, 4.0])})
    >>> multiplier_of(v, 13, -0.25, {13: 40.0})
    -2.0
    """
    ratio = _ratio(vector, layer, norms)
    if not ratio:
        raise ValueError(f"the vector is zero at layer {layer}, so no multiplier gives a dose of {dose:g}")
    return dose / ratio


def in_doses(vector: SteeringVector, norms: Mapping[int, float]) -> SteeringVector:
    """The vector at the length of the stream, at the layers that both have: its multipliers are relative doses.

    >>> import torch
    >>> v = in_doses(SteeringVector({13: torch.tensor([3.0, 4.0])}), {13: 40.0})
    >>> v.at(13), dose(v, 13, 0.1, {13: 40.0})
    (tensor([24., 32.]), 0.1)
    """
    layers = [layer for layer in vector.layers if layer in norms]
    scaled = {layer: vector.at(layer) * multiplier_of(vector, layer, 1.0, norms) for layer in layers}
    return SteeringVector(scaled, vector.source.then("rescaled to the norm of the stream: multipliers are doses"))


def conversion(vector: SteeringVector, layer: int, multipliers: Sequence[float], norms: Mapping[int, float]) -> str:
    """One line to stand under a table of multipliers.

    >>> import torch
    >>> v = SteeringVector({13: torch.tensor([3.0, 4.0])})
    >>> conversion(v, 13, [-1.0, 0.0, 2.0], {13: 40.0})
    'relative dose at layer 13 (vector 5, stream 40): -1 = -0.12, 0 = 0, +2 = +0.25'
    """
    doses = ((m, dose(vector, layer, m, norms)) for m in multipliers)
    pairs = ", ".join(f"{m:+g} = {d:+.2g}" if m else "0 = 0" for m, d in doses)
    return f"relative dose at layer {layer} (vector {vector.norms()[layer]:.3g}, stream {norms[layer]:.3g}): {pairs}"


def _ratio(vector: SteeringVector, layer: int, norms: Mapping[int, float]) -> float:
    if layer not in norms:
        raise KeyError(f"the stream was not measured at layer {layer}, only at {sorted(norms)}; measure it there too")
    return float(vector.at(layer).norm()) / norms[layer]
