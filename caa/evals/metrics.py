"""Running sums of scores: exact in float64, and added up over processes by torchmetrics. Knows numbers only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torchmetrics import Metric


def choice_score(
    p_matching: Float[Tensor, " question"], p_opposite: Float[Tensor, " question"]
) -> Float[Tensor, " question"]:
    """p(matching) / (p(matching) + p(opposite)) for each question, in [0, 1] (Rimsky et al. 2024).

    >>> choice_score(torch.tensor([0.6, 0.1]), torch.tensor([0.2, 0.1]))
    tensor([0.7500, 0.5000])
    """
    return p_matching / (p_matching + p_opposite)


class ChoiceMetric(Metric):
    """Means over two-answer questions: {"score": in [0, 1], "mass": p(matching) + p(opposite), "n": questions}.

    >>> metric = ChoiceMetric()
    >>> metric.update(torch.tensor([0.6, 0.1]), torch.tensor([0.2, 0.1]))
    >>> {name: round(value.item(), 6) for name, value in metric.compute().items()}
    {'score': 0.625, 'mass': 0.5, 'n': 2.0}
    """

    score: Tensor
    mass: Tensor
    n: Tensor
    full_state_update = False
    higher_is_better = None

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        _add_sums(self, "score", "mass", "n")

    def update(self, p_matching: Float[Tensor, " question"], p_opposite: Float[Tensor, " question"]) -> None:
        matching, opposite = p_matching.double(), p_opposite.double()
        self.score += choice_score(matching, opposite).sum()
        self.mass += (matching + opposite).sum()
        self.n += matching.numel()

    def compute(self) -> dict[str, Tensor]:
        return {"score": self.score / self.n, "mass": self.mass / self.n, "n": self.n}


def judged_mean(scores: Sequence[float | None]) -> float:
    """The mean of those scores that a judge could give; NaN if there are none.

    >>> judged_mean([10.0, None, 5.0])
    7.5
    """
    given = [score for score in scores if score is not None]
    return sum(given) / len(given) if given else float("nan")


class JudgedMetric(Metric):
    """Over judged answers: {"score": mean in [0, 10], "n": answers judged, "unjudged": answers no judge could score}.

    >>> metric = JudgedMetric()
    >>> metric.update([10.0, None, 5.0])
    >>> {name: value.item() for name, value in metric.compute().items()}
    {'score': 7.5, 'n': 2.0, 'unjudged': 1.0}
    """

    score: Tensor
    n: Tensor
    unjudged: Tensor
    full_state_update = False
    higher_is_better = None

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        _add_sums(self, "score", "n", "unjudged")

    def update(self, scores: Sequence[float | None]) -> None:
        given = [score for score in scores if score is not None]
        self.score += sum(given)
        self.n += len(given)
        self.unjudged += len(scores) - len(given)

    def compute(self) -> dict[str, Tensor]:
        return {"score": self.score / self.n, "n": self.n, "unjudged": self.unjudged}


def _add_sums(metric: Metric, *names: str) -> None:
    for name in names:
        metric.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
