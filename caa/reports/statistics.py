"""Scores per question in; means with intervals, slopes and p-values out. None: the judge could not tell."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from caa.runs.rows import Cell, Row

# 5,000 resamples place the ends of a 95 % interval to about 4 % of a standard error: finer than two printed decimals.
RESAMPLES = 5_000
# The smallest p-value is 1 / 10,000: below 5 % also after the correction over a table of 500 numbers.
SIGN_FLIPS = 9_999

# With fewer, those that a judge could read are a choice of its own, and their mean says little about the others.
LEAST_COVERAGE = 0.5

Scores = Mapping[str, float | None]
"""Question id -> its score, None where the judge could not tell."""


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

    @property
    def coverage(self) -> float:
        """The share of what was asked that has a score, in [0, 1]; 0 where nothing was asked.

        >>> mean_interval([1.0, None, None, None]).coverage
        0.25
        """
        return self.n / max(self.n + self.unjudged, 1)

    @property
    def enough_scores(self) -> bool:
        """Whether the mean may be compared: at least `LEAST_COVERAGE` of what was asked has a score."""
        return self.n > 0 and self.coverage >= LEAST_COVERAGE


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
    values = list(values)
    scores = _known(values)
    mean = math.fsum(scores) / len(scores) if scores else math.nan
    low, high = _ends(tuple(scores), confidence, seed)
    return Estimate(mean, low, high, len(scores), len(values) - len(scores))


def balanced_interval(groups: Sequence[Sequence[float | None]], confidence: float = 0.95, seed: int = 0) -> Estimate:
    """The mean of the groups' means, in which each group weighs alike, with a bootstrap interval within the groups.

    Of the questions that (A) matches and those that (B) matches it is the letter-balanced score: a liking for a letter
    raises the one mean as much as it lowers the other. nan, of 0 scores, if a group has none.

    >>> balanced_interval([[1.0, 1.0, 1.0], [0.0]])
    Estimate(mean=0.5, low=0.5, high=0.5, n=4, unjudged=0)
    """
    known = [_known(group) for group in groups]
    total = sum(map(len, groups))
    if not known or not all(known):
        return Estimate(math.nan, math.nan, math.nan, 0, total)
    n = sum(map(len, known))
    mean = math.fsum(math.fsum(group) / len(group) for group in known) / len(known)
    low, high = _balanced_ends(known, confidence, seed) if n > len(known) else (math.nan, math.nan)
    return Estimate(mean, low, high, n, total - n)


def _known(values: Iterable[float | None]) -> list[float]:
    """The scores in the order of their size: what is drawn from them does not depend on who was asked first."""
    return sorted(float(value) for value in values if value is not None and not math.isnan(value))


def _balanced_ends(groups: Sequence[Sequence[float]], confidence: float, seed: int) -> tuple[float, float]:
    import numpy as np

    rng, parts = np.random.default_rng(seed), 10  # in parts, as above
    means = []
    for _ in range(parts):
        drawn = [rng.choice(np.array(group), (RESAMPLES // parts, len(group))).mean(1) for group in groups]
        means.append(np.mean(drawn, axis=0))
    low, high = np.quantile(np.concatenate(means), [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def balanced_values(groups: Sequence[Sequence[float | None]]) -> list[float]:
    """The scores of all groups, weighed so that their mean is the mean of the groups' means: for a test of it.

    >>> balanced_values([[1.0, 1.0, 1.0], [3.0]])
    [0.6666666666666666, 0.6666666666666666, 0.6666666666666666, 6.0]
    """
    known = [_known(group) for group in groups]
    n = sum(map(len, known))
    return [value * n / (len(known) * len(group)) for group in known for value in group]


@lru_cache(maxsize=512)  # the sentences of a report say again what its tables say
def _ends(scores: tuple[float, ...], confidence: float, seed: int) -> tuple[float, float]:
    if len(scores) < 2:
        return math.nan, math.nan
    if min(scores) == max(scores):
        return scores[0], scores[0]
    import numpy as np
    from scipy.stats import bootstrap

    interval = bootstrap(
        (scores,),
        np.mean,
        n_resamples=RESAMPLES,
        batch=500,  # 5,000 resamples of 14,000 questions at once would take a gigabyte
        confidence_level=confidence,
        method="percentile",
        rng=seed,
    ).confidence_interval
    return float(interval.low), float(interval.high)


def paired_difference(first: Scores, second: Scores, confidence: float = 0.95, seed: int = 0) -> Estimate:
    """The mean of first - second over the questions that both were asked, with its interval.

    Pairing takes out what the questions differ in, so this interval is narrower than the two apart would suggest. A
    question that either side has no score for counts as `unjudged`. ValueError if they share no question.

    >>> paired_difference({"q1": 0.9, "q2": 0.4, "q3": None}, {"q1": 0.7, "q2": 0.2, "q3": 0.5, "q4": 0.0})
    Estimate(mean=0.2, low=0.2, high=0.2, n=2, unjudged=1)
    """
    return mean_interval(differences(first, second).values(), confidence, seed)


def differences(first: Scores, second: Scores) -> dict[str, float | None]:
    """first - second for each question that both were asked. ValueError if they share none.

    >>> differences({"q1": 0.9, "q2": 0.4}, {"q2": 0.1, "q1": None})
    {'q1': None, 'q2': 0.3}
    """
    shared = [question for question in first if question in second]
    if not shared:
        raise ValueError(
            f"the two sides share no question (the first has {len(first)}, the second {len(second)}), so there is "
            "nothing to pair. Compare cells that were asked the same questions."
        )
    return {question: _difference(first[question], second[question]) for question in shared}


def _difference(first: float | None, second: float | None) -> float | None:
    # Rounded to where floats stop telling the truth, so that equal differences are equal: 0.9 - 0.7 is not 0.4 - 0.2.
    return None if first is None or second is None else round(first - second, 12)


def slopes(scores: Mapping[float, Scores]) -> dict[str, float | None]:
    """Steerability: for each question, how much its score rises per unit of the multiplier (least squares).

    As in Tan et al. 2024, "Analyzing the Generalization and Reliability of Steering Vectors". The questions are those
    asked under every multiplier; None for one that lacks a score under any. ValueError for fewer than two multipliers.

    >>> slopes({-1.0: {"q1": 0.2, "q2": 0.9}, 0.0: {"q1": 0.5, "q2": 0.9}, 1.0: {"q1": 0.8, "q2": None}})
    {'q1': 0.3, 'q2': None}
    """
    if len(scores) < 2:
        raise ValueError(f"a slope needs scores under two multipliers or more, these are under {list(scores)}")
    center = math.fsum(scores) / len(scores)
    spread = math.fsum((multiplier - center) ** 2 for multiplier in scores)
    weights = {multiplier: (multiplier - center) / spread for multiplier in scores}
    first, *others = scores.values()
    questions = [question for question in first if all(question in other for other in others)]
    return {
        question: _weighted_sum(list(weights.values()), [by_question[question] for by_question in scores.values()])
        for question in questions
    }


def _weighted_sum(weights: Sequence[float], scores: Sequence[float | None]) -> float | None:
    known = [score for score in scores if score is not None]
    if len(known) < len(scores):
        return None
    return round(math.fsum(weight * score for weight, score in zip(weights, known, strict=True)), 12)


def wrong_way(slopes: Scores) -> dict[str, float | None]:
    """1.0 for each question that moves against the multiplier ("anti-steerable", Tan et al. 2024), else 0.0.

    >>> wrong_way({"q1": 0.3, "q2": -0.1, "q3": 0.0, "q4": None})
    {'q1': 0.0, 'q2': 1.0, 'q3': 0.0, 'q4': None}
    """
    return {question: None if slope is None else float(slope < 0) for question, slope in slopes.items()}


def median_interval(values: Sequence[float], confidence: float = 0.95) -> Estimate:
    """The median (of an even number, the upper one) with an interval between order statistics; inf may be among them.

    That at most so many of n draws lie below the median is a matter of coins (Conover 1999, section 3.2), whatever the
    distribution is.

    >>> median_interval([1.0, 1.0, 2.0, 2.0, 3.0, 3.0, math.inf, math.inf])
    Estimate(mean=3.0, low=1.0, high=inf, n=8, unjudged=0)
    """
    from scipy.stats import binom

    ordered, n = sorted(values), len(values)
    low = int(binom.ppf((1 - confidence) / 2, n, 0.5))
    return Estimate(ordered[n // 2], ordered[max(low - 1, 0)], ordered[min(n - low, n - 1)], n)


def prediction_bound(values: Sequence[float], confidence: float = 0.95) -> float:
    """What a further draw of the same kind exceeds in 1 - `confidence` of cases, if such draws are normal.

    mean + t * sd * sqrt(1 + 1 / n), t of n - 1 degrees of freedom: few draws know their spread badly, and the bound
    says so. inf for fewer than two, which know none.

    >>> round(prediction_bound([-1.0, 0.0, 1.0]), 2), prediction_bound([0.5])
    (3.37, inf)
    """
    if len(values) < 2:
        return math.inf
    from scipy.stats import t

    n, mean = len(values), math.fsum(values) / len(values)
    spread = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    return float(mean + t.ppf(confidence, n - 1) * spread * math.sqrt(1 + 1 / n))


def p_value(values: Iterable[float | None], seed: int = 0) -> float:
    """How often differences this far from 0, or farther, come about if their signs are mere chance. Two-sided.

    The sign-flip permutation test of the mean (Fisher 1935): all sign patterns where there are at most 10,000, else
    a random 9,999 and the observed one (Phipson and Smyth 2010, so that no p-value is 0). nan without any value.

    >>> p_value([1.0, 2.0, 3.0]), p_value([0.0, None, 0.0])
    (0.25, 1.0)
    """
    import numpy as np

    # Not scipy.stats.permutation_test: on 570 questions it takes 2.8 s for what one matrix product does in 0.02 s.
    kept = np.array(_known(values))
    if not len(kept):
        return math.nan
    exact = len(kept) <= math.log2(SIGN_FLIPS + 1)
    flipped = np.abs(_all_flips(kept) if exact else _some_flips(kept, seed))
    as_far = int((flipped >= abs(kept.sum()) * (1 - 1e-12)).sum())
    return as_far / len(flipped) if exact else (as_far + 1) / (len(flipped) + 1)


def _all_flips(values: Any) -> Any:
    """The sum under every pattern of signs, [2 ** n]."""
    import numpy as np

    n = len(values)
    return (1 - 2 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1)) @ values


def _some_flips(values: Any, seed: int) -> Any:
    """The sum under random signs, [SIGN_FLIPS]; in parts, for 14,000 questions would not fit into memory at once."""
    import numpy as np

    rng, parts = np.random.default_rng(seed), 9
    shape = (SIGN_FLIPS // parts, len(values))
    draws = (np.unpackbits(rng.integers(0, 256, (shape[0], -(-shape[1] // 8)), np.uint8), axis=1) for _ in range(parts))
    return np.concatenate([values.sum() - 2 * (bits[:, : shape[1]] @ values) for bits in draws])


def corrected(p_values: Sequence[float]) -> list[float]:
    """p-values of many cells, corrected so that of those below 5 % at most 5 % are expected to be false discoveries.

    Benjamini and Hochberg 1995, by scipy; it also holds where cells share a baseline (positive dependence, Benjamini
    and Yekutieli 2001). nan stays nan and does not count.

    >>> corrected([0.01, 0.04, math.nan, 0.5])
    [0.03, 0.06, nan, 0.5]
    """
    from scipy.stats import false_discovery_control

    known = [p for p in p_values if not math.isnan(p)]
    adjusted = iter(false_discovery_control(known) if known else [])
    return [p if math.isnan(p) else float(next(adjusted)) for p in p_values]


def means_by_cell(rows: Iterable[Row]) -> dict[Cell, Estimate]:
    """Cell -> its mean over questions with a 95 % interval, in order of appearance."""
    scores: dict[Cell, list[float | None]] = {}
    for row in rows:
        scores.setdefault(row.cell, []).append(row.score)
    return {cell: mean_interval(values) for cell, values in scores.items()}
