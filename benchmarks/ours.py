"""What caa itself offers for the jobs that are measured, called as a user calls it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.subjects import Subject
from caa import Question, SteeringWrapper
from caa.evals.tasks import answer_open, score_choices
from caa.steering.intervention import Setting


def all_at_once(subject: Subject, questions: Sequence[Question], settings: Sequence[Setting]) -> Tensor:
    """Every question under every setting, in one call: float64 [question, setting, 2]."""
    scores = score_choices(SteeringWrapper(subject.model), subject.tokenizer, questions, settings)
    pairs = [(score.p_matching, score.p_opposite) for score in scores]
    return torch.tensor(pairs, dtype=torch.float64).view(len(questions), len(settings), 2)


def texts(
    wrapper: SteeringWrapper, tokenizer: Any, questions: Sequence[Question], settings: Sequence[Setting], length: int
) -> list[str]:
    """Greedy answers in the order of `itertools.product(questions, settings)`."""
    return answer_open(wrapper, tokenizer, questions, settings, max_new_tokens=length)
