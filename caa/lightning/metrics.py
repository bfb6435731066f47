"""What processes add up: directions and probabilities in, sums out that do not depend on who computed what."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torchmetrics import Metric

GRID = 2.0**-32


def on_grid(numbers: Tensor) -> Tensor:
    """The nearest multiples of 2**-32, in float64: their sums are exact as long as they stay below 2**21.

    An exact sum does not depend on the order of its terms, nor on how many processes share them. What is lost, at most
    1.2e-10 of each term, is below float32's own rounding of any term larger than 0.004. Sums beyond 2**21 (two million)
    are rounded like any float64.

    >>> terms = on_grid(torch.rand(1000, generator=torch.Generator().manual_seed(0)))
    >>> sum(terms.tolist()) == sum(terms.flip(0).tolist()) == sum(terms[::2].tolist()) + sum(terms[1::2].tolist())
    True
    """
    return (numbers.double() / GRID).round() * GRID


def choice_score(
    p_matching: Float[Tensor, " question"], p_opposite: Float[Tensor, " question"]
) -> Float[Tensor, " question"]:
    """p(matching) / (p(matching) + p(opposite)) for each question, in [0, 1] (Rimsky et al. 2024).

    >>> choice_score(torch.tensor([0.6, 0.1]), torch.tensor([0.2, 0.1]))
    tensor([0.7500, 0.5000])
    """
    return p_matching / (p_matching + p_opposite)


class RunningMean(Metric):
    """Mean of directions [layer, d_model], each of which stands for a number of pairs: {"mean": float64, "n": pairs}.

    The sum is exact (see `on_grid`), so any number of processes gives the same mean, bit for bit.

    >>> mean = RunningMean(layers=1, width=2)
    >>> mean.update(torch.tensor([[1.0, 0.0]]), n=1)
    >>> mean.update(torch.tensor([[2.5, 3.0]]), n=2)
    >>> {name: value.tolist() for name, value in mean.compute().items()}
    {'mean': [[2.0, 2.0]], 'n': 3}
    """

    total: Tensor
    n: Tensor
    full_state_update = False
    higher_is_better = None

    def __init__(self, layers: int, width: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("total", torch.zeros(layers, width, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("n", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, directions: Float[Tensor, "layer d_model"], n: int) -> None:
        self.total += on_grid(n * directions.double())
        self.n += n

    def compute(self) -> dict[str, Tensor]:
        return {"mean": self.total / self.n, "n": self.n}


class ChoiceTable(Metric):
    """The probabilities of a grid: float64 [setting, question, 2], NaN where nothing was asked.

    Each entry is written by the one process that asked, and the others add a zero to it: nothing is rounded, whoever
    asked what. RuntimeError if something was asked twice, for its probabilities would have been added.

    >>> table = ChoiceTable(settings=1, questions=2)
    >>> table.update([1], torch.tensor([[[0.75, 0.25]]]))
    >>> table.compute().tolist()
    [[[nan, nan], [0.75, 0.25]]]
    """

    p: Tensor
    times: Tensor
    full_state_update = False
    higher_is_better = None

    def __init__(self, settings: int, questions: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("p", torch.zeros(settings, questions, 2, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("times", torch.zeros(questions, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, places: Sequence[int], p: Float[Tensor, "setting question 2"]) -> None:
        """`places` says which questions these are."""
        where = torch.tensor(places, dtype=torch.int64, device=self.p.device)
        self.p.index_add_(1, where, p.to(self.p))
        self.times.index_add_(0, where, torch.ones_like(where))

    def compute(self) -> Float[Tensor, "setting question 2"]:
        if (self.times > 1).any():
            raise RuntimeError(f"{int((self.times > 1).sum())} questions were asked twice, and their answers added up")
        return self.p.masked_fill(self.times[:, None] == 0, torch.nan)
