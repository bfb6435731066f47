"""Kind "sentiment": how glad or how sad an answer sounds, by the word list of VADER (Hutto and Gilbert 2014).

Needs vaderSentiment, which brings its words along and downloads nothing: pip install 'caa[sentiment]'.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from statistics import fmean
from typing import Any

from caa.data.behaviors import Behavior, Question
from caa.data.text_quality import flaw
from caa.judges.base import Judge, Verdict
from caa.judges.config import JudgeConfig
from caa.judges.off_topic import off_topic_share

NO_FEELING = "no word of feeling"


def make(config: JudgeConfig, behavior: Behavior, folder: str | Path, others: Sequence[Behavior]) -> Judge:
    """Turned so that the behavior's matching answers score high."""
    return SentimentJudge.fit(behavior)


def problems(config: JudgeConfig, behavior: Behavior) -> Iterator[str]:
    """No library, or no answers to see which side is the glad one."""
    if not find_spec("vaderSentiment"):
        yield "a judge of sentiment needs vaderSentiment: pip install 'caa[sentiment]'"
    if not behavior.contrasts_in_words():
        yield f"behavior {behavior.name!r} has no answers in words, so nothing says which side sounds glad"


@dataclass(frozen=True)
class SentimentJudge:
    """Scores an answer by VADER's compound of its words: 0, 5 and 10 for -1, 0 and 1; no score without such a word."""

    behavior: str
    sign: float
    """1 where the matching answers sound gladder than the opposite ones, else -1."""
    accuracy: float
    """Balanced: the share of the behavior's own answers that score on their side; one without a score is wrong."""
    analyzer: Any = field(repr=False, compare=False)
    off_topic: float | None = None
    """Of texts about something else, the share without a score."""

    @classmethod
    def fit(cls, behavior: Behavior) -> SentimentJudge:
        """Only the sign is fitted."""
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

        analyzer = SentimentIntensityAnalyzer()
        pairs = behavior.contrasts_in_words()
        compounds = [[analyzer.polarity_scores(answer)["compound"] for answer in pair.answers] for pair in pairs]
        sign = 1.0 if fmean(positive - negative for positive, negative in compounds) >= 0 else -1.0
        right = [(sign * positive > 0) + (sign * negative < 0) for positive, negative in compounds]
        judge = cls(behavior.name, sign, fmean(right) / 2, analyzer)
        return cls(behavior.name, sign, judge.accuracy, analyzer, off_topic_share(judge))

    @property
    def settings(self) -> dict[str, Any]:
        """What a verdict depends on besides the answer, for the run's record."""
        return {"off_topic": self.off_topic, "sign": self.sign}

    def __call__(self, question: Question, answer: str) -> Verdict:
        if wrong := flaw(answer):
            return Verdict(None, wrong)
        scores = self.analyzer.polarity_scores(answer)
        if not scores["pos"] and not scores["neg"]:
            return Verdict(None, NO_FEELING)
        return Verdict(5 + 5 * self.sign * scores["compound"])
