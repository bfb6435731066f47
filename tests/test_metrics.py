"""Running means against plain means: in any batches, over processes, with and without a judge's verdict."""

from __future__ import annotations

import math

import pytest
import torch
from torchmetrics import Metric

from caa.evals.metrics import ChoiceMetric, JudgedMetric, choice_score, judged_mean

CHANCE = torch.Generator().manual_seed(0)
MATCHING, OPPOSITE = torch.rand(2, 100, generator=CHANCE)
SCORES = [None if i % 4 == 0 else i / 10 for i in range(100)]


@pytest.mark.parametrize("batch", [1, 7, 100])
def test_batches_do_not_matter(batch):
    metric = ChoiceMetric()
    for matching, opposite in zip(MATCHING.split(batch), OPPOSITE.split(batch), strict=True):
        metric.update(matching, opposite)
    found = metric.compute()
    torch.testing.assert_close(found["score"], choice_score(MATCHING.double(), OPPOSITE.double()).mean())
    torch.testing.assert_close(found["mass"], (MATCHING + OPPOSITE).double().mean(), rtol=1e-6, atol=0)
    assert found["n"] == 100
    assert abs(found["score"] - choice_score(OPPOSITE, MATCHING).mean()) > 1e-2, "or both sides would do"


def test_it_is_the_mean_of_ratios_and_not_the_ratio_of_means():
    metric = ChoiceMetric()
    metric.update(torch.tensor([0.9, 0.0]), torch.tensor([0.0, 0.1]))
    assert metric.compute()["score"] == 0.5


@pytest.mark.parametrize("batch", [1, 9, 100])
def test_the_unjudged_are_counted_and_not_scored(batch):
    metric = JudgedMetric()
    for start in range(0, 100, batch):
        metric.update(SCORES[start : start + batch])
    assert metric.compute()["score"].item() == pytest.approx(judged_mean(SCORES))
    assert metric.compute()["n"] == 75
    assert metric.compute()["unjudged"] == 25


def test_no_verdict_at_all_is_not_a_zero():
    metric = JudgedMetric()
    metric.update([None])
    assert math.isnan(metric.compute()["score"])
    assert math.isnan(judged_mean([None]))


def in_two_processes(metric: Metric, first: tuple, second: tuple) -> dict[str, torch.Tensor]:
    """What torchmetrics makes of two processes' states: gathers them and applies each one's reduction."""
    other = metric.clone()
    metric.update(*first)
    other.update(*second)
    for name, reduction in metric._reductions.items():
        setattr(metric, name, reduction(torch.stack([getattr(metric, name), getattr(other, name)])))
    metric._computed = None
    return metric.compute()


def test_two_processes_equal_one():
    whole = ChoiceMetric()
    whole.update(MATCHING, OPPOSITE)
    halves = in_two_processes(ChoiceMetric(), (MATCHING[:30], OPPOSITE[:30]), (MATCHING[30:], OPPOSITE[30:]))
    torch.testing.assert_close(halves, whole.compute())
    judged = JudgedMetric()
    judged.update(SCORES)
    torch.testing.assert_close(in_two_processes(JudgedMetric(), (SCORES[:30],), (SCORES[30:],)), judged.compute())


def test_sums_are_kept_in_float64():
    for metric in (ChoiceMetric(), JudgedMetric()):
        assert {state.dtype for state in metric.metric_state.values()} == {torch.float64}
