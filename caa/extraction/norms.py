"""Multipliers to relative doses and back: how large a push is beside the residual stream that it is added to.

A dose is multiplier * ||vector|| / ||stream||, with the sign of the multiplier. It says how large a push is where it is
added; what the blocks behind make of it differs from layer to layer, so equal doses are not equal effects.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from caa.extraction.reader import ReadConfig, Text, read
from caa.vectors.vector import SteeringVector

OF_DOSE_1 = "multiplier of dose 1"
"""Among a vector's checks, by layer: what of the vector as it was read makes a push as long as the stream."""
PEAKED = 0.5
"""A coordinate with a larger share of the stream's squared length than this is worth a word."""


@dataclass(frozen=True)
class StreamProfile:
    """How long the residual stream is at one layer, and whether that is one coordinate's doing."""

    norm: float
    """The mean Euclidean norm."""
    coordinate: int
    """The one that holds most of the squared length."""
    share: float
    """How much of the squared length that is, from 0 to 1."""

    @property
    def short_norm(self) -> float:
        """The norm to four digits, which other processors and batches give to the bit."""
        return float(f"{self.norm:.4g}")

    @property
    def norm_without(self) -> float:
        """About what the norm would be without that coordinate."""
        return float(self.norm * (1 - self.share) ** 0.5)


def stream_profiles(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[list[int]],
    layers: Sequence[int] | None = None,
    *,
    batch_size: int = 16,
) -> dict[int, StreamProfile]:
    """layer -> the length of the residual stream at the last token of the prompts, which are ids.

    The model is read as it is, with its adapters; ValueError if it is steered, or for no prompts.
    """
    if not prompts:
        raise ValueError("no prompts, so there is no stream to measure; give at least one, as `render` makes them")
    total: dict[int, float] = {}
    squares: dict[int, Float[Tensor, " d_model"]] = {}
    texts = map(Text.at_its_end, prompts)
    for batch in read(model, tokenizer, texts, layers, ReadConfig(batch_size=batch_size)):
        for layer, resid in batch.residuals.items():
            exact = resid.double()
            total[layer] = total.get(layer, 0.0) + exact.norm(dim=-1).sum().item()
            squares[layer] = squares.get(layer, 0) + exact.square().sum(0).cpu()
    return {layer: _profile(total[layer] / len(prompts), squares[layer]) for layer in total}


def _profile(norm: float, squares: Float[Tensor, " d_model"]) -> StreamProfile:
    """
    >>> import torch
    >>> _profile(5.0, torch.tensor([9.0, 16.0, 0.0]))
    StreamProfile(norm=5.0, coordinate=1, share=0.64)
    """
    return StreamProfile(norm, int(squares.argmax()), round(float(squares.max() / squares.sum()), 4))


def stream_norms(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[list[int]],
    layers: Sequence[int] | None = None,
    *,
    batch_size: int = 16,
) -> dict[int, float]:
    """layer -> the norm of `stream_profiles` alone."""
    profiles = stream_profiles(model, tokenizer, prompts, layers, batch_size=batch_size)
    return {layer: profile.norm for layer, profile in profiles.items()}


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
    factors = {layer: multiplier_of(vector, layer, 1.0, norms) for layer in layers}
    scaled = {layer: vector.at(layer) * factor for layer, factor in factors.items()}
    source = vector.source.then("rescaled to the norm of the stream: multipliers are doses")
    return SteeringVector(scaled, source).checked({layer: {OF_DOSE_1: factor} for layer, factor in factors.items()})


def in_recorded_doses(vector: SteeringVector, checks: Mapping[str, float]) -> SteeringVector:
    """The vector as `in_doses` made it, by the checks of that; as it is, if they are of a vector in multipliers.

    >>> import torch
    >>> v = SteeringVector({13: torch.tensor([3.0, 4.0])})
    >>> in_recorded_doses(v, in_doses(v, {13: 40.0}).source.checks).at(13)
    tensor([24., 32.])
    """
    factors = {layer: checks.get(f"layer {layer}: {OF_DOSE_1}") for layer in vector.layers}
    scaled = {layer: vector.at(layer) * (1.0 if factor is None else factor) for layer, factor in factors.items()}
    return SteeringVector(scaled, vector.source)


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


def peaks(profiles: Mapping[int, StreamProfile]) -> list[str]:
    """Words about each layer where one coordinate makes up most of the stream, so that a dose looks small.

    >>> peaks({9: StreamProfile(100.0, 7, 0.91), 10: StreamProfile(100.0, 7, 0.2)})
    ['layer 9: coordinate 7 has 91% of the squared norm of the stream; beside the rest a dose of 0.1 is one of 0.33']
    """
    return [
        f"layer {layer}: coordinate {profile.coordinate} has {profile.share:.0%} of the squared norm of the stream; "
        f"beside the rest a dose of 0.1 is one of {0.1 * profile.norm / profile.norm_without:.2g}"
        for layer, profile in profiles.items()
        if PEAKED < profile.share < 1
    ]


def _ratio(vector: SteeringVector, layer: int, norms: Mapping[int, float]) -> float:
    if layer not in norms:
        raise KeyError(f"the stream was not measured at layer {layer}, only at {sorted(norms)}; measure it there too")
    return float(vector.at(layer).norm()) / norms[layer]
