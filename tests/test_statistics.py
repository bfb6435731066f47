"""Means and intervals: known answers, another method's answer, and how often the truth lies inside."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from caa.reports.statistics import (
    Estimate,
    _some_flips,
    balanced_interval,
    corrected,
    mean_interval,
    median_interval,
    p_value,
    paired_difference,
    slopes,
)


def test_the_interval_is_near_the_one_of_normal_theory():
    scores = np.random.default_rng(0).normal(5, 2, 400)
    low, high = stats.t.interval(0.95, 399, scores.mean(), stats.sem(scores))
    estimate = mean_interval(scores.tolist())
    assert estimate.mean == pytest.approx(scores.mean())
    assert (estimate.low, estimate.high) == pytest.approx((low, high), abs=0.03)


def test_the_balanced_interval_is_near_the_one_of_normal_theory():
    rng = np.random.default_rng(0)
    groups = [rng.normal(5, 2, 400), rng.normal(1, 1, 100)]
    mean, error = np.mean([group.mean() for group in groups]), np.hypot(*map(stats.sem, groups)) / 2
    estimate = balanced_interval([group.tolist() for group in groups])
    assert estimate.mean == pytest.approx(mean)
    assert (estimate.low, estimate.high) == pytest.approx(stats.norm.interval(0.95, mean, error), abs=error / 10)


def test_the_truth_lies_inside_about_as_often_as_promised():
    draws = np.random.default_rng(1).random((100, 30))
    inside = [(e := mean_interval(draw.tolist(), confidence=0.8)).low <= 0.5 <= e.high for draw in draws]
    assert 0.68 <= np.mean(inside) <= 0.9


def test_a_higher_confidence_is_a_wider_interval_and_a_seed_repeats():
    scores = [0.0, 0.2, 0.9, 1.0, 0.4]
    assert mean_interval(scores, 0.99).half_width > mean_interval(scores, 0.8).half_width > 0
    assert mean_interval(scores, seed=3) == mean_interval(scores, seed=3)


def test_none_and_nan_are_left_out_and_counted():
    assert mean_interval([1.0, None, math.nan, 1.0]) == Estimate(1.0, 1.0, 1.0, n=2, unjudged=2)
    assert mean_interval([1.0, None, math.nan, 1.0]).share_unjudged == 0.5


@pytest.mark.parametrize("scores", [[], [None, None]])
def test_without_scores_nothing_is_known(scores):
    estimate = mean_interval(scores)
    assert estimate.n == 0
    assert estimate.unjudged == len(scores)
    assert all(map(math.isnan, (estimate.mean, estimate.low, estimate.high)))


def test_one_score_has_a_mean_and_no_interval():
    estimate = mean_interval([0.7])
    assert (estimate.mean, estimate.n) == (0.7, 1)
    assert math.isnan(estimate.low)
    assert math.isnan(estimate.half_width)


@pytest.mark.parametrize("confidence", [0, 1, 95])
def test_a_confidence_is_a_share(confidence):
    with pytest.raises(ValueError, match="between 0 and 1"):
        mean_interval([0.0, 1.0], confidence)


def test_pairing_takes_out_what_the_questions_differ_in():
    easy = {f"q{i}": i / 50 for i in range(50)}
    harder = {name: score - 0.1 - 0.01 * (i % 2) for i, (name, score) in enumerate(easy.items())}
    difference = paired_difference(easy, harder)
    assert difference.mean == pytest.approx(0.105)
    assert difference.low > 0.1
    assert difference.half_width < mean_interval(easy.values()).half_width / 10


def test_only_shared_questions_are_paired_whatever_their_order():
    difference = paired_difference({"a": 1.0, "b": 0.0, "c": None}, {"d": 0.3, "c": 1.0, "b": 0.5, "a": 0.5})
    assert (difference.mean, difference.n, difference.unjudged) == (0.0, 2, 1)


def test_nothing_shared_is_an_error():
    with pytest.raises(ValueError, match="share no question"):
        paired_difference({"a": 1.0}, {"b": 1.0})


@pytest.mark.parametrize("n", [6, 13])
def test_all_sign_patterns_give_scipys_exact_p_value(n):
    values = np.random.default_rng(n).normal(0.4, 1, n)
    expected = stats.permutation_test((values,), np.mean, permutation_type="samples", n_resamples=np.inf).pvalue
    assert p_value(values.tolist()) == pytest.approx(expected)


def test_random_sign_patterns_come_near_the_t_test_and_are_never_0():
    values = np.random.default_rng(5).normal(0.25, 1, 80)
    assert p_value(values.tolist()) == pytest.approx(stats.ttest_1samp(values, 0).pvalue, abs=0.01)
    assert p_value([1.0] * 80) == 1 / 10_000
    assert math.isnan(p_value([None, math.nan]))


def test_p_values_of_nothing_are_uniform():
    draws = np.random.default_rng(6).normal(0, 1, (100, 20))
    assert stats.kstest([p_value(draw.tolist()) for draw in draws], "uniform").pvalue > 0.01


def test_a_median_of_few_lies_between_the_least_and_the_largest():
    assert median_interval([3.0, 1.0, 2.0]) == Estimate(2.0, 1.0, 3.0, 3)


def test_drawn_signs_are_fair():
    sums = _some_flips(np.ones(800), 0)
    assert abs(sums.mean()) < 4 * 800**0.5 / len(sums) ** 0.5
    assert sums.var() == pytest.approx(800, rel=0.1)


def test_a_slope_is_least_squares():
    rng = np.random.default_rng(7)
    multipliers = [-1.0, -0.5, 0.0, 2.0]
    scores = {m: {f"q{i}": float(rng.normal()) for i in range(5)} for m in multipliers}
    for question, slope in slopes(scores).items():
        assert slope == pytest.approx(np.polyfit(multipliers, [scores[m][question] for m in multipliers], 1)[0])
    with pytest.raises(ValueError, match="two multipliers"):
        slopes({1.0: {"q0": 0.5}})


def test_a_correction_is_at_least_as_strict_and_passes_what_is_not_known():
    found = corrected([0.01, math.nan, 0.03, 0.04])
    assert math.isnan(found[1])
    assert [found[i] for i in (0, 2, 3)] == pytest.approx([0.03, 0.04, 0.04])
    assert corrected([]) == []


def test_what_is_drawn_does_not_depend_on_who_was_asked_first():
    draw = np.random.default_rng(3)
    values = [*draw.normal(0.3, 1, 40).tolist(), None]
    turned = [*reversed(values)]
    assert mean_interval(turned) == mean_interval(values)
    assert p_value(turned) == p_value(values)
    halves = [values[:20], values[20:]]
    assert balanced_interval([half[::-1] for half in halves]) == balanced_interval(halves)
