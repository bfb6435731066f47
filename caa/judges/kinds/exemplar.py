"""Kind "exemplar": the offline classifier of a behavior's own answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from caa.data.behaviors import Behavior
from caa.judges.base import Judge
from caa.judges.config import JudgeConfig
from caa.judges.exemplar import FOLDS, ExemplarJudge


def make(config: JudgeConfig, behavior: Behavior, folder: str | Path, others: Sequence[Behavior]) -> Judge:
    """`others` teach it what is off topic."""
    return ExemplarJudge.fit(behavior, others)


def problems(config: JudgeConfig, behavior: Behavior) -> Iterator[str]:
    """Too few answers in words."""
    if len({pair.id for pair in behavior.contrasts_in_words()}) < FOLDS:
        yield (
            f"behavior {behavior.name!r} has too few answers in words for the exemplar judge, which needs them to "
            f"{FOLDS} questions: add open_pairs, choose another judge, or leave the task open out"
        )
