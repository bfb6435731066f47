"""What may be chosen, what it breaks and what may be broken: candidates, damage, a budget, fronts. Knows no model."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")
DOSES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.6)
"""Tried where nobody says which."""


@dataclass(frozen=True, order=True)
class Candidate:
    """One place and one strength that a vector may be added at."""

    layer: int
    """The block whose output is steered, counted from 0."""
    dose: float
    """Length of the push beside that of the residual stream, negative for less of the behavior."""

    def __str__(self) -> str:
        return f"layer {self.layer}, dose {self.dose:+g}"


@dataclass(frozen=True)
class Damage:
    """What a setting breaks beside what it does."""

    divergence: float
    """KL(unsteered || steered) of the next token behind neutral prompts, in nats, mean over the prompts."""
    perplexity: float | None = None
    """Of steered answers for the unsteered model, times that of its own; None where no answer was asked for."""
    loops: float | None = None
    """The share of steered answers that go round in a loop, minus that of the unsteered ones; None as above."""


@dataclass(frozen=True)
class Budget:
    """The damage that may be done. What reaches one of the three has spent the budget."""

    divergence: float = 0.5
    """Nats."""
    perplexity: float = 2.0
    """Times that of unsteered answers; more than 1."""
    loops: float = 0.1
    """Share of answers, beyond that of unsteered ones."""

    def __post_init__(self) -> None:
        if self.divergence <= 0 or self.perplexity <= 1 or self.loops <= 0:
            raise ValueError(
                f"a budget allows some damage: divergence and loops above 0, perplexity above 1, not {self}"
            )

    def spent(self, damage: Damage) -> float:
        """The share of the budget that is gone, by the worst of the three: 0 for none, 1 for all of it.

        >>> Budget(perplexity=3.0).spent(Damage(divergence=0.1, perplexity=2.0, loops=0.0))
        0.5
        """
        shares = [0.0, damage.divergence / self.divergence]
        if damage.perplexity is not None:
            shares.append((damage.perplexity - 1) / (self.perplexity - 1))
        if damage.loops is not None:
            shares.append(damage.loops / self.loops)
        return math.inf if any(map(math.isnan, shares)) else max(shares)


USUAL = Budget()
"""What may be broken where nobody says otherwise."""


def pareto_front(items: Sequence[T], gain: Callable[[T], float], cost: Callable[[T], float]) -> list[T]:
    """Those that no other beats: none gains as much for less, or more for as much. By growing cost.

    >>> pareto_front([(1, 1), (2, 3), (3, 2), (0, 4)], gain=lambda p: p[0], cost=lambda p: p[1])
    [(1, 1), (3, 2)]
    """
    front: list[T] = []
    for item in sorted(items, key=lambda item: (cost(item), -gain(item))):
        if not front or gain(item) > gain(front[-1]):
            front.append(item)
    return front


FINALISTS = 3
"""So few are asked all questions; with fewer left, halving stops."""


def schedule(candidates: int, questions: int, keep: float) -> list[tuple[int, int]]:
    """Successive halving: (candidates left, questions that each has been asked by then), round by round.

    Half as many candidates are asked twice as many questions, until the last few have been asked all. With `keep` 1 all
    are asked everything: the full grid.

    >>> schedule(36, 25, keep=1 / 3), schedule(36, 25, keep=1), schedule(2, 25, keep=1 / 3)
    ([(12, 7), (6, 13), (3, 25)], [(36, 25)], [(2, 25)])
    """
    if not 0 < keep <= 1:
        raise ValueError(f"the share of candidates to keep lies above 0 and at most at 1, this is {keep}")
    if keep == 1:
        return [(candidates, questions)]
    counts = [max(math.ceil(round(candidates * keep, 9)), min(candidates, FINALISTS))]
    while counts[-1] > FINALISTS:
        counts.append(math.ceil(counts[-1] / 2))
    steps = [2 ** (len(counts) - 1 - number) for number in range(len(counts))]
    return [(count, math.ceil(questions / step)) for count, step in zip(counts, steps, strict=True)]
