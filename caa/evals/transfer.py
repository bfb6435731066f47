"""A vector used where it was not found, or at many doses: questions in, rows and numbers for figures out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from statistics import fmean
from typing import Any

from caa.data.behaviors import Behavior, Question
from caa.data.chat import ChatFormat
from caa.data.text_quality import loop
from caa.evals.damage import perplexities
from caa.evals.tasks import answer_open, score_choices
from caa.extraction.norms import multiplier_of, stream_norms
from caa.runs.rows import OWN, Cell, Row, VectorRef, choice_evidence
from caa.steering.intervention import Intervention
from caa.steering.wrapper import SteeringWrapper
from caa.vectors.vector import SteeringVector


def sweep_rows(
    wrapper: SteeringWrapper,
    chat: ChatFormat | Any,
    behavior: Behavior,
    vector: SteeringVector,
    layers: Sequence[int],
    multipliers: Sequence[float],
    *,
    source_layer: int | None = None,
    ref: VectorRef = OWN,
    finetune: str | None = None,
    batch_size: int = 16,
) -> list[Row]:
    """Ask the behavior's A/B questions at every layer and multiplier; rows whose cells say `ref` for the vector.

    With `source_layer` every layer is steered by the direction of that one layer (Figure 8 of Rimsky et al. 2024); a
    vector found in another model makes a transfer between models (Figure 10). The unsteered model is asked once.
    """
    questions = behavior.require("ab_questions")
    places = list(product(layers, filter(None, multipliers)))
    settings = [(Intervention(vector, layer, m, source_layer=source_layer),) for layer, m in places]
    settings_and_base = [*settings, *([()] if 0 in multipliers else [])]
    scores = score_choices(wrapper, chat, questions, settings_and_base, batch_size=batch_size)
    rows = []
    for score, (question, setting) in zip(scores, product(questions, range(len(settings_and_base))), strict=True):
        here = [places[setting]] if setting < len(places) else [(layer, 0.0) for layer in layers]
        evidence = choice_evidence(score.p_matching, score.p_opposite, question.matching, question.category)
        for layer, multiplier in here:
            cell = Cell(behavior.name, "ab", finetune, layer, float(multiplier), vector=ref)
            rows.append(Row(cell, question.id, score.score, evidence))
    return rows


@dataclass(frozen=True)
class Response:
    """What one dose does and what it breaks."""

    dose: float
    """Length of the push beside that of the residual stream, with the sign of the multiplier."""
    multiplier: float
    scores: tuple[float, ...]
    """One for each A/B question."""
    perplexity: float
    """Of the steered open-ended answers, for the unsteered model: the geometric mean over the answers."""
    loops: int
    """How many of these answers go round in a loop, which lowers the perplexity and is no virtue."""
    answers: int
    """How many there are."""


def dose_response(
    wrapper: SteeringWrapper,
    chat: ChatFormat | Any,
    behavior: Behavior,
    vector: SteeringVector,
    layer: int,
    doses: Sequence[float],
    *,
    open_questions: Sequence[Question] = (),
    max_new_tokens: int = 48,
    batch_size: int = 16,
) -> list[Response]:
    """Effect on the A/B questions and damage to open-ended answers at each relative dose.

    `open_questions` are the behavior's if not given. Doses are beside the stream's mean length at the last tokens of
    the A/B questions.
    """
    chat = ChatFormat.of(chat)
    questions, answered = behavior.require("ab_questions"), open_questions or behavior.require("open_questions")
    prompts = [chat.encode(question.text) for question in questions]
    norms: Mapping[int, float] = stream_norms(wrapper.model, chat.tokenizer, prompts, [layer], batch_size=batch_size)
    multipliers = [multiplier_of(vector, layer, dose, norms) for dose in doses]
    settings = [(Intervention(vector, layer, m),) if m else () for m in multipliers]
    choices = score_choices(wrapper, chat, questions, settings, batch_size=batch_size)
    texts = answer_open(wrapper, chat, answered, settings, max_new_tokens=max_new_tokens)
    repeated = [question.text for question, _ in product(answered, settings)]
    surprises = perplexities(wrapper, chat, repeated, texts, batch_size=batch_size)
    count = len(settings)
    return [
        Response(
            dose,
            multipliers[n],
            tuple(choice.score for choice in choices[n::count]),
            _geometric_mean(surprises[n::count]),
            sum(loop(text) is not None for text in texts[n::count]),
            len(answered),
        )
        for n, dose in enumerate(doses)
    ]


def _geometric_mean(values: Sequence[float]) -> float:
    """Over those that are numbers; nan for none.

    >>> _geometric_mean([1.0, 4.0, math.nan])
    2.0
    """
    logs = [math.log(value) for value in values if not math.isnan(value)]
    return math.exp(fmean(logs)) if logs else math.nan
