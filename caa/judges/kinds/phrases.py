"""Kind "phrases": which of a behavior's phrases stand in an answer. Reads words, understands nothing, and shows it.

The phrases are in the behavior's file: "phrases": {"positive": ["cannot help", "apolog*"], "negative": [...]}.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from caa.data.behaviors import Behavior, Question
from caa.data.text_quality import flaw
from caa.judges.base import Judge, Verdict
from caa.judges.config import JudgeConfig
from caa.judges.off_topic import OFF_TOPIC

NONE_OF_THEM = "none of its phrases"
"""The reason where a judge of two sides has no score."""
_NEGATION = re.compile(r"(?:\b(?:not|no|never|without|hardly|neither|nor)|n't)(?:\s+[\w']+){0,2}\s*\Z")
"""At the end of what stands before a phrase: a negation with at most two words behind it."""


def make(config: JudgeConfig, behavior: Behavior, folder: str | Path, others: Sequence[Behavior]) -> Judge:
    """It needs no settings, no folder and no other behaviors."""
    return PhraseJudge.of(behavior)


def problems(config: JudgeConfig, behavior: Behavior) -> Iterator[str]:
    """No phrases that show the behavior."""
    if not behavior.phrases.get("positive"):
        yield (
            f'behavior {behavior.name!r} has no phrases: add "phrases": {{"positive": ["cannot help", "apolog*"], '
            '"negative": [...]}} to its file, or choose another judge'
        )


@dataclass(frozen=True)
class PhraseJudge:
    """Scores an answer by the different phrases in it: 10 x positive / (positive + negative).

    Without any phrase there is no score; but where no negative phrases are given, their absence is all that there is to
    see, and an answer without a positive one has 0. Capitals and kinds of apostrophe do not matter. A phrase stands for
    nothing but itself: "apology" is not "apologies". A star at its end takes any ending: "apolog*". A phrase behind a
    negation ("not very happy") does not count, on either side.

    >>> judge = PhraseJudge("joy", ("happ*", "glad"), ("sad",))
    >>> [judge(Question("?"), text).score for text in ("Happily, and sad.", "I am glad.", "I am not glad.")]
    [5.0, 10.0, None]
    >>> judge(Question("?"), "Happily, and sad.").reason
    'positive: happ*; negative: sad'
    """

    behavior: str
    positive: tuple[str, ...]
    negative: tuple[str, ...] = ()
    accuracy: float | None = None
    """Balanced: the share of the behavior's own answers that score on their side; one without a score is wrong."""
    off_topic: float | None = None
    """Of texts about something else, the share that it is right about: no score, or 0 where absence is a score."""
    _patterns: dict[str, re.Pattern[str]] = field(init=False, repr=False, compare=False, default_factory=dict)

    def __post_init__(self) -> None:
        if not self.positive:
            raise ValueError(f"a judge of phrases needs phrases that show {self.behavior!r}")
        if both := sorted(set(self.positive) & set(self.negative)):
            raise ValueError(f"the phrase {both[0]!r} stands for {self.behavior!r} and against it")
        self._patterns.update({phrase: _pattern(phrase) for phrase in (*self.positive, *self.negative)})

    @classmethod
    def of(cls, behavior: Behavior) -> PhraseJudge:
        """The judge of a behavior with phrases, measured on its own answers and on texts about something else."""
        phrases = behavior.phrases.get("positive", ()), behavior.phrases.get("negative", ())
        judge = cls(behavior.name, *phrases)
        return cls(behavior.name, *phrases, judge._own_accuracy(behavior), judge._right_off_topic())

    @property
    def settings(self) -> dict[str, Any]:
        """What a verdict depends on besides the answer, for the run's record."""
        return {"off_topic": self.off_topic, "positive": list(self.positive), "negative": list(self.negative)}

    def __call__(self, question: Question, answer: str) -> Verdict:
        if wrong := flaw(answer):
            return Verdict(None, wrong)
        positive, negative = self.in_text(answer, self.positive), self.in_text(answer, self.negative)
        sides = {"positive": positive, "negative": negative}
        reason = "; ".join(f"{side}: {', '.join(phrases)}" for side, phrases in sides.items() if phrases)
        if not reason:
            return Verdict(None if self.negative else 0.0, NONE_OF_THEM)
        return Verdict(10 * len(positive) / (len(positive) + len(negative)), reason)

    def in_text(self, text: str, phrases: Sequence[str]) -> list[str]:
        """Those of the phrases that stand in the text at least once without a negation in front."""
        plain = text.lower().replace("\u2019", "'")
        return [phrase for phrase in phrases if any(map(_affirmed, self._patterns[phrase].finditer(plain)))]

    def _own_accuracy(self, behavior: Behavior) -> float | None:
        pairs = behavior.contrasts_in_words()
        if not pairs:
            return None
        right = 0
        for pair in pairs:
            positive, negative = (self(Question("?"), answer).score for answer in pair.answers)
            right += (positive is not None and positive > 5) + (negative is not None and negative < 5)
        return right / (2 * len(pairs))

    def _right_off_topic(self) -> float:
        scores = [self(Question("?"), text).score for text in OFF_TOPIC]
        return sum(score is None if self.negative else score == 0 for score in scores) / len(scores)


def _pattern(phrase: str) -> re.Pattern[str]:
    """The phrase as whole words, any white space between them; a star at its end takes any ending."""
    words = phrase.lower().replace("\u2019", "'").removesuffix("*").split()
    if not words:
        raise ValueError(f"{phrase!r} is no phrase; give one or more words, with a star at the end for any ending")
    ending = r"\w*" if phrase.endswith("*") else ""
    return re.compile(r"(?<![\w'])" + r"\s+".join(map(re.escape, words)) + ending + r"(?!\w)")


def _affirmed(match: re.Match[str]) -> bool:
    return not _NEGATION.search(match.string[max(0, match.start() - 40) : match.start()])
