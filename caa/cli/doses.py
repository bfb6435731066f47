"""Doses as people type them: a push beside the length of the residual stream, made multipliers and said aloud."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from caa.cli.console import say
from caa.data.chat import ChatFormat
from caa.extraction.doses import prompt_profiles, to_doses
from caa.extraction.norms import OF_DOSE_1, StreamProfile, multiplier_of, peaks
from caa.steering.wrapper import SteeringWrapper
from caa.vectors.vector import SteeringVector


def profiles_of(
    wrapper: SteeringWrapper, chat: ChatFormat | Any, layers: Sequence[int], prompts: Sequence[str]
) -> dict[int, StreamProfile]:
    """Of the stream of the model without a finetune, at the last tokens of the prompts."""
    with wrapper.finetune(None):
        return prompt_profiles(wrapper.model, chat, prompts, layers)


def multiplier_for(
    wrapper: SteeringWrapper, chat: ChatFormat | Any, vector: SteeringVector, layer: int, dose: float, prompt: str
) -> float:
    """The multiplier that gives a dose at one layer, to three digits, said aloud."""
    profiles = profiles_of(wrapper, chat, [layer], [prompt])
    multiplier = float(f"{multiplier_of(vector, layer, dose, {layer: profiles[layer].norm}):.3g}")
    say(f"multiplier {multiplier:g}: a dose of {dose:g}, the push beside the residual stream at layer {layer}")
    say_peaks(profiles)
    return multiplier


def vector_in_doses(
    wrapper: SteeringWrapper,
    chat: ChatFormat | Any,
    vector: SteeringVector,
    layers: Sequence[int],
    prompts: Sequence[str],
) -> SteeringVector:
    """The vector at the length of the stream at each layer, so that its multipliers are doses; said aloud."""
    profiles = profiles_of(wrapper, chat, layers, prompts)
    scaled = to_doses(vector, profiles)
    factors = (f"{layer}: {scaled.source.checks[f'layer {layer}: {OF_DOSE_1}']:.4g}" for layer in layers)
    say(f"doses stand in the rows; the multiplier of dose 1 is, by layer, {', '.join(factors)}")
    say_peaks(profiles)
    return scaled


def say_peaks(profiles: dict[int, StreamProfile]) -> None:
    """Where one coordinate makes up most of the stream."""
    for words in peaks(profiles):
        say(words)
