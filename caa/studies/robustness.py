"""Does a setting hold for other prompts? Families of prompts in, effects prompt by prompt and what fails out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, pstdev
from typing import Any

from caa.data.behaviors import Question
from caa.data.chat import ChatFormat
from caa.evals.tasks import score_choices
from caa.reports.statistics import Estimate, mean_interval
from caa.steering.intervention import Intervention
from caa.steering.wrapper import SteeringWrapper

TOLERANCE = 0.01
"""A score that moves less than this against the dose has no room or is noise: it is not steered the wrong way."""


@dataclass(frozen=True)
class PromptEffect:
    """What steering does to one prompt."""

    family: str
    text: str
    unsteered: float
    """Probability of the matching answer."""
    steered: float
    gain: float
    """How far that moves the way of the dose."""

    @property
    def wrong(self) -> bool:
        """Whether it is steered the wrong way."""
        return self.gain < -TOLERANCE


@dataclass(frozen=True)
class Robustness:
    """One finetune under one setting, over many prompts."""

    finetune: str | None
    effects: tuple[PromptEffect, ...]

    @property
    def families(self) -> dict[str, Robustness]:
        """Family -> the same of its prompts alone."""
        by_family: dict[str, list[PromptEffect]] = {}
        for effect in self.effects:
            by_family.setdefault(effect.family, []).append(effect)
        return {family: Robustness(self.finetune, tuple(effects)) for family, effects in by_family.items()}

    @property
    def effect(self) -> Estimate:
        """The mean gain, with its 95 % interval over the prompts."""
        return mean_interval([effect.gain for effect in self.effects])

    @property
    def spread(self) -> float:
        """The standard deviation of the gain over the prompts."""
        return pstdev(effect.gain for effect in self.effects)

    @property
    def wrong(self) -> Estimate:
        """The share of prompts that are steered the wrong way, with its 95 % interval."""
        return mean_interval([float(effect.wrong) for effect in self.effects])

    @property
    def consistency(self) -> float:
        """`consistency_of` of the gains."""
        return consistency_of([effect.gain for effect in self.effects])

    @property
    def worst_first(self) -> list[PromptEffect]:
        """The prompts, those where steering fails first."""
        return sorted(self.effects, key=lambda effect: effect.gain)


def consistency_of(gains: Sequence[float]) -> float:
    """The mean gain over the root of the mean squared gain, from -1 to 1.

    1: all prompts move alike, the right way. 0: as far the wrong way as the right one, or nowhere. -1: all alike, the
    wrong way. It does not say how far they move.

    >>> consistency_of([0.5, 0.5]), consistency_of([0.5, -0.5]), round(consistency_of([0.8, 0.0]), 2)
    (1.0, 0.0, 0.71)
    """
    size = math.sqrt(fmean(gain**2 for gain in gains))
    return fmean(gains) / size if size else 0.0


def robustness(
    wrapper: SteeringWrapper,
    chat: ChatFormat | Any,
    families: Mapping[str, Sequence[Question]],
    *interventions: Intervention,
    finetunes: Sequence[str | None] = (None,),
    batch_size: int = 16,
) -> list[Robustness]:
    """The effect of a setting on every prompt of every family, for each finetune.

    Args:
        wrapper: the model, unsteered, with the finetunes loaded.
        chat: its `ChatFormat`, or its tokenizer.
        families: name -> A/B questions, such as `caa.studies.prompts.prompt_families` makes.
        interventions: the setting; the sign of the first one's multiplier says which way is right.
        finetunes: names of adapters, None for the base.
        batch_size: rows in one forward pass.
    """
    if not interventions:
        raise ValueError("no intervention, so there is no setting whose effect could hold or fail")
    sign = math.copysign(1, float(interventions[0].strengths.flatten()[0]))
    results = []
    for finetune in finetunes:
        effects: list[PromptEffect] = []
        with wrapper.finetune(finetune):
            for family, questions in families.items():
                settings = [(), tuple(interventions)]
                scores = [s.score for s in score_choices(wrapper, chat, questions, settings, batch_size=batch_size)]
                for question, before, after in zip(questions, scores[::2], scores[1::2], strict=True):
                    effects.append(PromptEffect(family, question.text, before, after, sign * (after - before)))
        results.append(Robustness(finetune, tuple(effects)))
    return results


def prompt_records(results: Sequence[Robustness]) -> list[dict[str, Any]]:
    """One for each prompt and finetune, those where steering fails first; as `robustness_by_prompt` draws them."""
    records: list[dict[str, Any]] = []
    for result in results:
        name = result.finetune or "base"
        records += [{"finetune": name, **asdict(effect), "wrong": effect.wrong} for effect in result.worst_first]
    return records
