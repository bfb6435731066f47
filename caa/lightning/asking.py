"""What one process asks, and where its answers belong: settings of a grid in, rows out. Knows no Trainer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch

from caa.data.behaviors import Question
from caa.data.chat import ChatFormat
from caa.runs.rows import Cell, Row, choice_evidence
from caa.steering.intervention import Intervention
from caa.steering.settings import Setting
from caa.steering.wrapper import SteeringWrapper
from caa.vectors.vector import SteeringVector


@dataclass(frozen=True)
class Place:
    """One finetune under one setting, and where its answers belong in a table."""

    finetune: str | None
    setting: Setting
    cells: tuple[tuple[int, float], ...]
    """(layer, multiplier) of each cell: one, or every layer's for the unsteered model, which knows no layer."""


def places(
    vector: SteeringVector, layers: Sequence[int], finetunes: Sequence[str | None], multipliers: Sequence[float]
) -> Iterator[Place]:
    """All that is asked, finetune by finetune, and the unsteered model once and not for every layer."""
    for finetune, multiplier in product(finetunes, multipliers):
        if multiplier:
            for layer in layers:
                yield Place(finetune, (Intervention(vector, layer, multiplier),), ((layer, multiplier),))
        else:
            yield Place(finetune, (), tuple((layer, multiplier) for layer in layers))


def asked(
    ask: Callable[..., Any],
    wrapper: SteeringWrapper,
    chat: ChatFormat,
    questions: Sequence[Question],
    settings: Sequence[Setting],
    **how: Any,
) -> list[list[Any]]:
    """What `ask`, which is `score_choices` or `answer_open`, finds: [setting][question]. Nothing else calls them."""
    found = ask(wrapper, chat, questions, settings, batch_size=len(questions), **how)
    return [found[place :: len(settings)] for place in range(len(settings))]


def scored(cell: Cell, question: Question, p: Sequence[float]) -> Row:
    """The row of an A/B question whose matching and opposite answer have these probabilities."""
    evidence = choice_evidence(p[0], p[1], question.matching, question.category)
    return Row(cell, question.id, p[0] / (p[0] + p[1]), evidence)


def gathered(mine: list[Row]) -> list[Row]:
    """The rows of all processes, in every process."""
    if not torch.distributed.is_initialized():
        return mine
    everyone: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(everyone, mine)
    return [row for rows in everyone for row in rows]
