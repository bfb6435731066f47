"""One vector on one model: candidates and questions in; gains by question, divergences and judged answers out."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from caa.data.behaviors import Question, letter
from caa.data.chat import ChatFormat
from caa.data.text_quality import loop
from caa.evals.damage import divergences, perplexities
from caa.evals.tasks import answer_open, score_choices
from caa.extraction.doses import prompt_profiles, to_doses
from caa.judges.base import Judge, judge_all
from caa.models.blocks import decoder
from caa.models.hooks import listening
from caa.reports.statistics import Estimate, balanced_interval, mean_interval
from caa.steering.intervention import Intervention, Setting
from caa.steering.operators import Operator, add
from caa.steering.scopes import Scope, after_prompt
from caa.steering.wrapper import SteeringWrapper
from caa.studies.candidates import Candidate, Damage
from caa.vectors.vector import SteeringVector


@dataclass(frozen=True)
class Answer:
    """What one open answer is worth."""

    perplexity: float
    """For the unsteered model; nan for an empty answer."""
    loops: bool
    score: float | None = None
    """The judge's, from 0 to 1; None without a judge, and where it could not tell."""


@dataclass(frozen=True, eq=False)
class Steered:
    """A model and the vector that it is steered by, and how both are asked."""

    wrapper: SteeringWrapper
    chat: ChatFormat
    vector: SteeringVector
    """At the length of the residual stream, so that its multipliers are doses."""
    operator: Operator = add
    where: Scope = after_prompt
    judge: Judge | None = None
    max_new_tokens: int = 48
    batch_size: int = 16

    def setting(self, candidate: Candidate, vector: SteeringVector | None = None) -> Setting:
        """What is done to the model, by the vector or by another one at its place."""
        chosen = self.vector if vector is None else vector
        return (Intervention(chosen, candidate.layer, candidate.dose, self.operator, self.where),)

    def scores(self, questions: Sequence[Question], settings: Sequence[Setting]) -> list[list[float]]:
        """Of each setting, the probability of the matching answer to each A/B question."""
        choices = score_choices(self.wrapper, self.chat, questions, settings, batch_size=self.batch_size)
        return by_setting([choice.score for choice in choices], len(settings))

    def divergences(self, prompts: Sequence[str], settings: Sequence[Setting]) -> list[float]:
        """Of each setting, the mean over the neutral prompts."""
        moved = divergences(self.wrapper, self.chat, prompts, settings, batch_size=self.batch_size)
        return [fmean(values) for values in by_setting(moved, len(settings))]

    def answers(self, questions: Sequence[Question], settings: Sequence[Setting]) -> list[list[Answer]]:
        """Of each setting, its answers to the open questions."""
        texts = answer_open(self.wrapper, self.chat, questions, settings, max_new_tokens=self.max_new_tokens)
        repeated = [question for question in questions for _ in settings]
        prompts = [question.text for question in repeated]
        surprises = perplexities(self.wrapper, self.chat, prompts, texts, batch_size=self.batch_size)
        verdicts = [] if self.judge is None else judge_all(self.judge, repeated, texts)
        scores = [None if verdict.score is None else verdict.score / 10 for verdict in verdicts] or [None] * len(texts)
        answers = [
            Answer(surprise, loop(text) is not None, score)
            for surprise, text, score in zip(surprises, texts, scores, strict=True)
        ]
        return by_setting(answers, len(settings))


def vector_in_doses(
    wrapper: SteeringWrapper,
    chat: ChatFormat,
    vector: SteeringVector,
    layers: Iterable[int],
    questions: Sequence[Question],
) -> SteeringVector:
    """The vector at the length of the stream at the last token of the questions."""
    profiles = prompt_profiles(wrapper.model, chat, [question.text for question in questions], sorted(layers))
    return to_doses(vector, profiles)


def by_setting(values: Sequence[Any], settings: int) -> list[list[Any]]:
    """What stands in the order of `product(questions, settings)`, setting by setting.

    >>> by_setting([1, 2, 3, 4, 5, 6], settings=2)
    [[1, 3, 5], [2, 4, 6]]
    """
    return [list(values[place::settings]) for place in range(settings)]


def gains_by_letter(
    questions: Sequence[Question], steered: Sequence[float], unsteered: Sequence[float], sign: float
) -> list[list[float]]:
    """How much each score rises (for a negative sign, falls) by steering, by the letter of the matching answer.

    >>> two = [Question("Q?", "(A)", "(B)"), Question("S?", "(B)", "(A)")]
    >>> gains_by_letter(two, [0.75, 0.5], [0.5, 0.25], sign=-1.0)
    [[-0.25], [-0.25]]
    """
    groups: dict[str | None, list[float]] = {}
    for question, score, before in zip(questions, steered, unsteered, strict=True):
        groups.setdefault(letter(question.matching or ""), []).append(math.copysign(1, sign) * (score - before))
    return list(groups.values())


def balanced_gain(
    questions: Sequence[Question], steered: Sequence[float], unsteered: Sequence[float], sign: float
) -> Estimate:
    """The mean of `gains_by_letter`, both letters weighing alike, with its interval.

    >>> three = [Question("Q?", "(A)", "(B)"), Question("R?", "(A)", "(B)"), Question("S?", "(B)", "(A)")]
    >>> balanced_gain(three, [0.75, 0.75, 0.5], [0.5, 0.5, 0.5], sign=1.0).mean
    0.125
    """
    return balanced_interval(gains_by_letter(questions, steered, unsteered, sign))


def judged_gain(steered: Sequence[Answer], unsteered: Sequence[Answer], sign: float) -> Estimate:
    """How much the judge's score rises (for a negative sign, falls) by steering, in shares of its scale.

    >>> judged_gain([Answer(1.0, False, 0.75)], [Answer(1.0, False, 0.25)], sign=-1.0).mean
    -0.5
    """
    pairs = [(answer.score, before.score) for answer, before in zip(steered, unsteered, strict=True)]
    known = [None if a is None or b is None else math.copysign(1, sign) * (a - b) for a, b in pairs]
    return mean_interval(known)


def text_damage(divergence: float, steered: Sequence[Answer], unsteered: Sequence[Answer]) -> Damage:
    """Of answers to the same questions; nan perplexity if nothing was written.

    >>> text_damage(0.1, [Answer(6.0, True), Answer(6.0, False)], [Answer(2.0, False), Answer(2.0, False)])
    Damage(divergence=0.1, perplexity=3.0, loops=0.5)
    """
    ratio = round(_geometric_mean(steered) / _geometric_mean(unsteered), 9)
    loops = fmean(answer.loops for answer in steered) - fmean(answer.loops for answer in unsteered)
    return Damage(divergence, ratio, round(loops, 9))


def _geometric_mean(answers: Sequence[Answer]) -> float:
    logs = [math.log(answer.perplexity) for answer in answers if not math.isnan(answer.perplexity)]
    return math.exp(fmean(logs)) if logs else math.nan


@dataclass
class TokenCount:
    """Tokens that have gone into a model, pads among them."""

    tokens: int = 0

    def add(self, arguments: Any) -> None:
        """The arguments of one call of its decoder."""
        ids = arguments.get("input_ids")
        shape = arguments["inputs_embeds"].shape[:2] if ids is None else ids.shape
        self.tokens += math.prod(shape)


@contextmanager
def counted(wrapper: SteeringWrapper) -> Iterator[TokenCount]:
    """Counts what goes into the model meanwhile."""
    count = TokenCount()
    handle = listening(decoder(wrapper.model), count.add)
    try:
        yield count
    finally:
        handle.remove()
