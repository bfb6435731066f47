"""Two answers to one question in, which of them shows more of the behavior out (two-alternative forced choice)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from caa.data.behaviors import Behavior, Question
from caa.data.text_quality import flaw
from caa.judges.base import Verdict
from caa.judges.clients.protocol import Asker, Reply
from caa.judges.prompts import comparison_prompt, read_choice
from caa.judges.rating import UNPARSABLE
from caa.judges.scales import LEAST_MASS, expected_choice
from caa.runs.rows import Row

TASK = "pairwise"
"""The task of the rows that `against_unsteered` makes."""


@dataclass(frozen=True)
class Comparison:
    """How an answer compares with another."""

    preference: float | None
    """In [0, 1], 1 for an answer that shows more of the behavior than the other, 0.5 for neither; None if unknown."""
    first_bias: float | None = None
    """In [-1, 1]: how much more an answer is preferred when it is shown first. Known if both orders were asked."""
    reason: str = ""


@dataclass(frozen=True)
class PairwiseJudge:
    """Compares answers by a behavior's rubric; as a `Judge` it compares with a given answer to each question.

    Models prefer the first or the second place, whatever stands there. So each pair is asked about in both orders and
    the mean is taken, or in one order, by turns, at half the price.
    """

    behavior: Behavior
    ask: Asker
    against: Mapping[str, str]
    """`Question.id` -> the answer that others are compared with."""
    both_orders: bool = True
    reply: Literal["written", "expected"] = "expected"
    """The choice that the model writes, or the probability of its choice."""

    def __post_init__(self) -> None:
        comparison_prompt(self.behavior, Question("?"), "", "")  # complains of a behavior without a rubric

    @property
    def settings(self) -> dict[str, Any]:
        """What a verdict depends on besides the two answers. No key."""
        return {"reply": self.reply, "both_orders": self.both_orders, **self.ask.settings}

    def __call__(self, question: Question, answer: str) -> Verdict:
        return self.judge_all([question], [answer])[0]

    def judge_all(self, questions: Sequence[Question], answers: Sequence[str]) -> list[Verdict]:
        """10 for an answer that shows more of the behavior than the one it is compared with, 5 for a tie."""
        others = [self._other(question) for question in questions]
        return [_verdict(comparison) for comparison in self.compare_all(questions, answers, others)]

    def compare_all(
        self, questions: Sequence[Question], answers: Sequence[str], others: Sequence[str]
    ) -> list[Comparison]:
        """One comparison for each question, its answer and the other; equal answers are a tie that nobody is asked."""
        triples = list(zip(questions, answers, others, strict=True))
        comparisons = {i: known for i, (_, *pair) in enumerate(triples) if (known := _known(*pair))}
        open_pairs = [i for i in range(len(triples)) if i not in comparisons]
        orders = {i: (False, True) if self.both_orders else (bool(n % 2),) for n, i in enumerate(open_pairs)}
        places = [(i, swapped) for i in open_pairs for swapped in orders[i]]
        replies = self.ask([self._prompt(*triples[i], swapped) for i, swapped in places])
        preferences = dict(zip(places, map(self._second, replies), strict=True))
        for i in open_pairs:
            comparisons[i] = _combined({swapped: preferences[i, swapped] for swapped in orders[i]})
        return [comparisons[i] for i in range(len(triples))]

    def _other(self, question: Question) -> str:
        if question.id not in self.against:
            raise KeyError(
                f"there is no answer to compare with for {question.text[:60]!r}; `against` holds "
                f"{len(self.against)} answers by Question.id"
            )
        return self.against[question.id]

    def _prompt(self, question: Question, answer: str, other: str, swapped: bool) -> str:
        """The other answer first, and the answer second; `swapped`, the other way round."""
        return comparison_prompt(self.behavior, question, *((answer, other) if swapped else (other, answer)))

    def _second(self, reply: Reply) -> float | str:
        """How strongly the second of the two is preferred, in [0, 1], or why that is not known."""
        if reply.refused:
            return f"refused: {reply.refused}"
        if self.reply == "written":
            choice = read_choice(reply.text)
            return f"{UNPARSABLE} {reply.text[:80]!r}" if choice is None else float(choice - 1)
        second, mass = expected_choice(reply.first or {})
        return f"{UNPARSABLE} {reply.text[:80]!r}" if second is None or mass < LEAST_MASS else second


def _known(answer: str, other: str) -> Comparison | None:
    """What needs no asking: equal answers, and degenerate ones."""
    if wrong := flaw(answer) or flaw(other):
        return Comparison(None, reason=wrong)
    return Comparison(0.5, reason="the same answer") if answer == other else None


def _combined(preferences: Mapping[bool, float | str]) -> Comparison:
    """Swapped or not -> how strongly the second place was preferred, or why not.

    >>> _combined({False: 1.0, True: 0.25})  # preferred in both places, less so when it stands first
    Comparison(preference=0.875, first_bias=-0.25, reason='')
    """
    if reasons := [value for value in preferences.values() if isinstance(value, str)]:
        return Comparison(None, reason=reasons[0])
    preferred = {swapped: 1 - float(value) if swapped else float(value) for swapped, value in preferences.items()}
    bias = preferred[True] - preferred[False] if len(preferred) == 2 else None
    return Comparison(sum(preferred.values()) / len(preferred), bias)


def _verdict(comparison: Comparison) -> Verdict:
    preference = comparison.preference
    return Verdict(None if preference is None else 10 * preference, comparison.reason)


def against_unsteered(
    rows: Iterable[Row], behavior: Behavior, ask: Asker, reply: Literal["written", "expected"] = "expected"
) -> list[Row]:
    """Compare every open answer of a run with the one that the same finetune gave unsteered to the same question.

    Rows of task "pairwise", score in [0, 10] (5 is a tie), with both texts and the order bias as evidence; rows whose
    unsteered answer is not there are left out.
    """
    answered = [row for row in rows if row.cell.task == "open" and row.cell.behavior == behavior.name]
    plain = {(row.cell.baseline(), row.question): row.evidence["text"] for row in answered if not row.cell.multiplier}
    steered = [r for r in answered if r.cell.multiplier and (r.cell.baseline(), r.question) in plain]
    questions = [Question(row.evidence["asked"]) for row in steered]
    texts = [row.evidence["text"] for row in steered]
    others = [plain[row.cell.baseline(), row.question] for row in steered]
    judge = PairwiseJudge(behavior, ask, {}, reply=reply)
    comparisons = judge.compare_all(questions, texts, others)
    return [_row(*parts) for parts in zip(steered, others, comparisons, strict=True)]


def _row(row: Row, other: str, comparison: Comparison) -> Row:
    about = {"other": other, "first_bias": comparison.first_bias, "reason": comparison.reason}
    cell = replace(row.cell, task=TASK)
    return Row(cell, row.question, _verdict(comparison).score, row.evidence | about)
