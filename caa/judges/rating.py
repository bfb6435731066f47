"""A judge that shows a language model a behavior's rubric and an answer, and takes a number from 0 to 10 from it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from caa.data.behaviors import Behavior, Question
from caa.data.text_quality import flaw
from caa.judges.base import Verdict
from caa.judges.clients.cache import request_key
from caa.judges.clients.protocol import Asker, Reply
from caa.judges.prompts import rating_prompt, read_score
from caa.judges.scales import LEAST_MASS, expected_score, may_begin_ten

UNPARSABLE = "unparsable reply"
"""What the reason of a verdict begins with, if the model said something that is no score."""


@dataclass(frozen=True)
class RatingJudge:
    """One behavior's judge. It does not ask about an answer that is empty, a string of letters or a repetition."""

    behavior: Behavior
    ask: Asker
    reply: Literal["written", "expected"] = "expected"
    """The number that the model writes, or the mean of 0 to 10 over the probabilities of its reply's first word."""

    def __post_init__(self) -> None:
        rating_prompt(self.behavior, Question("?"), "")  # complains of a behavior without a rubric

    @property
    def settings(self) -> dict[str, Any]:
        """What a verdict depends on besides question and answer, for the run's record. No key."""
        prompt = request_key(rating_prompt(self.behavior, Question("?"), ""))
        return {"reply": self.reply, "prompt": prompt, **self.ask.settings}

    def __call__(self, question: Question, answer: str) -> Verdict:
        return self.judge_all([question], [answer])[0]

    def judge_all(self, questions: Sequence[Question], answers: Sequence[str]) -> list[Verdict]:
        """One verdict for each question with its answer; sound answers are asked about together."""
        verdicts = {i: Verdict(None, wrong) for i, answer in enumerate(answers) if (wrong := flaw(answer))}
        pairs = enumerate(zip(questions, answers, strict=True))
        prompts = {i: rating_prompt(self.behavior, *pair) for i, pair in pairs if i not in verdicts}
        read = _written if self.reply == "written" else _expected
        for i, reply in zip(prompts, self.ask(list(prompts.values())), strict=True):
            verdicts[i] = Verdict(None, f"refused: {reply.refused}") if reply.refused else read(reply)
        return [verdicts[i] for i in range(len(answers))]


def rubric_problems(kind: str, behavior: Behavior) -> Iterator[str]:
    """A behavior without a rubric, which a judge of this kind is told."""
    if not behavior.rubric.strip():
        yield f'behavior {behavior.name!r} has no "rubric" that says to a judge of kind {kind} what to look for'


def _written(reply: Reply) -> Verdict:
    score = read_score(reply.text)
    return unparsable(reply) if score is None else Verdict(score)


def _expected(reply: Reply) -> Verdict:
    if reply.first is None:
        return unparsable(reply, "no probabilities came with it")
    if reply.after_one is None and may_begin_ten(reply.first):
        return unparsable(reply, "its 1 may begin a 10, and the server was not asked to go on: set prefill")
    score, mass = expected_score(reply.first, reply.after_one)
    if score is None or mass < LEAST_MASS:
        return unparsable(reply, f"numbers from 0 to 10 had a probability of {mass:.2g}")
    return Verdict(min(score, 10.0))


def unparsable(reply: Reply, why: str = "") -> Verdict:
    """No score, with the beginning of what was said instead."""
    return Verdict(None, f"{UNPARSABLE} {reply.text[:80]!r}{': ' if why else ''}{why}")
