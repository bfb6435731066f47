"""What one process asks, and where its answers belong: settings of a grid in, rows out. Knows no Trainer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch

from caa.data.behaviors import Question
from caa.data.chat import ChatFormat
from caa.runs.rows import Cell, Row, choice_evidence
from caa.steering.intervention import Setting
from caa.steering.wrapper import SteeringWrapper

Item = TypeVar("Item")


def answers_by_setting(
    ask: Callable[..., Any],
    wrapper: SteeringWrapper,
    chat: ChatFormat,
    questions: Sequence[Question],
    settings: Sequence[Setting],
    **sizes: int,
) -> list[list[Any]]:
    """What `ask`, which is `score_choices` or `answer_open`, answers: [setting][question]. Nothing else calls them."""
    answers = ask(wrapper, chat, questions, settings, **sizes)
    return [answers[place :: len(settings)] for place in range(len(settings))]


def scored(cell: Cell, question: Question, p: Sequence[float]) -> Row:
    """The row of an A/B question whose matching and opposite answer have these probabilities."""
    evidence = choice_evidence(p[0], p[1], question.matching, question.category)
    return Row(cell, question.id, p[0] / (p[0] + p[1]), evidence)


def gathered(mine: list[Item]) -> list[Item]:
    """The rows, or whatever else there is a list of, of all processes, in every process."""
    if not torch.distributed.is_initialized():
        return mine
    everyone: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(everyone, mine)
    return [item for items in everyone for item in items]
