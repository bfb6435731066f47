"""Scores in, means with bootstrap intervals out. Pure functions; None is a score that the judge could not give."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

# 5,000 resamples place the ends of a 95 % interval to about 4 % of a standard error: finer than two printed decimals.
RESAMPLES = 5_000


@dataclass(frozen=True)
class Estimate:
    """A mean over questions and its interval, in the unit of the scores."""

    mean: float
    """nan if there is no score at all."""
    low: float
    """Lower end of the interval; nan for fewer than two scores, which say nothing about spread."""
    high: float
    n: int
    """Scores that the mean was taken over."""
    unjudged: int = 0
    """Scores left out because the judge could not tell."""

    @property
    def half_width(self) -> float:
        """Half the width of the interval: what stands behind the +- of a table."""
        return (self.high - self.low) / 2

    @property
    def share_unjudged(self) -> float:
        """In [0, 1]; 0 where nothing was asked."""
        return self.unjudged / max(self.n + self.unjudged, 1)


def mean_interval(values: Iterable[float | None], confidence: float = 0.95, seed: int = 0) -> Estimate:
    """The mean of one score per question, with a percentile bootstrap interval over the questions.

    None and nan are left out and counted in `unjudged`. The percentile method needs no normality and stays inside the
    range of the scores, which matters for probabilities near 0 and 1 (Efron and Tibshirani 1993, chapter 13).

    >>> mean_interval([2.0, 2.0, None])
    Estimate(mean=2.0, low=2.0, high=2.0, n=2, unjudged=1)
    >>> estimate = mean_interval([0.0, 1.0] * 50)
    >>> estimate.mean, round(estimate.low, 1), round(estimate.high, 1)
    (0.5, 0.4, 0.6)
    """
    if not 0 < confidence < 1:
        raise ValueError(f"a confidence lies between 0 and 1, this is {confidence}; 0.95 is the usual one")
    asked = list(values)
    scores = [float(value) for value in asked if value is not None and not math.isnan(value)]
    mean = math.fsum(scores) / len(scores) if scores else math.nan
    low, high = _ends(scores, confidence, seed)
    return Estimate(mean, low, high, len(scores), len(asked) - len(scores))


def _ends(scores: list[float], confidence: float, seed: int) -> tuple[float, float]:
    if len(scores) < 2:
        return math.nan, math.nan
    if min(scores) == max(scores):
        return scores[0], scores[0]
    import numpy as np
    from scipy.stats import bootstrap

    interval = bootstrap(
        (scores,), np.mean, n_resamples=RESAMPLES, confidence_level=confidence, method="percentile", rng=seed
    ).confidence_interval
    return float(interval.low), float(interval.high)


def paired_difference(
    first: Mapping[str, float | None], second: Mapping[str, float | None], confidence: float = 0.95, seed: int = 0
) -> Estimate:
    """The mean of first - second over the questions that both were asked (question id -> score), with its interval.

    Pairing takes out what the questions differ in, so this interval is narrower than the two apart would suggest. A
    question that either side has no score for counts as `unjudged`. ValueError if they share no question.

    >>> paired_difference({"q1": 0.9, "q2": 0.4, "q3": None}, {"q1": 0.7, "q2": 0.2, "q3": 0.5, "q4": 0.0})
    Estimate(mean=0.2, low=0.2, high=0.2, n=2, unjudged=1)
    """
    shared = [question for question in first if question in second]
    if not shared:
        raise ValueError(
            f"the two sides share no question (the first has {len(first)}, the second {len(second)}), so there is "
            "nothing to pair. Compare cells that were asked the same questions."
        )
    differences = [_difference(first[question], second[question]) for question in shared]
    return mean_interval(differences, confidence, seed)


def _difference(first: float | None, second: float | None) -> float | None:
    # Rounded to where floats stop telling the truth, so that equal differences are equal: 0.9 - 0.7 is not 0.4 - 0.2.
    return None if first is None or second is None else round(first - second, 12)
