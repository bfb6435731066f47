"""What every judge is: a question and its answer in, a verdict out. Knows texts only, no model and no table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from caa.data.behaviors import Question


@dataclass(frozen=True)
class Verdict:
    """What a judge says of one answer."""

    score: float | None
    """In [0, 10], 10 for an answer that fully shows the behavior; None where the judge cannot tell."""
    reason: str = ""
    """Why there is no score, or what a judge that explains itself has to say."""

    def __post_init__(self) -> None:
        if self.score is not None and not 0 <= self.score <= 10:
            raise ValueError(f"a judge's score lies between 0 and 10, this one is {self.score}")


@runtime_checkable
class Judge(Protocol):
    """Whoever can say how strongly an answer shows a behavior: a function, a classifier, a language model."""

    def __call__(self, question: Question, answer: str) -> Verdict: ...


@runtime_checkable
class BatchJudge(Judge, Protocol):
    """A judge that is faster on many answers at once."""

    def judge_all(self, questions: Sequence[Question], answers: Sequence[str]) -> list[Verdict]: ...


def judge_all(judge: Judge, questions: Sequence[Question], answers: Sequence[str]) -> list[Verdict]:
    """One verdict for each question with its answer: all at once where the judge has a `judge_all`, else one by one.

    A judge that asks a server has requests overlap then, and one that asks a local model fills its batches.
    """
    if isinstance(judge, BatchJudge):
        return judge.judge_all(questions, answers)
    return [judge(question, answer) for question, answer in zip(questions, answers, strict=True)]
