"""The offline judge: a classifier of words, fitted on a behavior's own answers. Knows texts only, no model."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from caa.data.behaviors import Behavior, ContrastPair, Question
from caa.data.text_quality import flaw
from caa.judges.base import Verdict
from caa.judges.off_topic import off_topic_share

MATCHING, OPPOSITE, OFF_TOPIC = "matching", "opposite", "off topic"
FOLDS = 5


@dataclass(frozen=True)
class ExemplarJudge:
    """An offline judge: a text classifier that knows a behavior's own answers, matching and opposite.

    It looks at the answer alone, so it is only as good as the behavior is visible there; `accuracy` says how good.
    """

    behavior: str
    accuracy: float
    """Balanced accuracy at telling matching from opposite answers to questions it was not fitted on; 0.5 is chance."""
    classifier: Any = field(repr=False)
    off_topic: float | None = None
    """Of texts about something else, of no behavior, the share that it gives no score."""

    @classmethod
    def fit(cls, behavior: Behavior, others: Sequence[Behavior] = (), seed: int = 0) -> ExemplarJudge:
        """Learn from the behavior's answers in words; ValueError if they belong to fewer than 5 questions.

        "Off topic" is learnt from the answers of `others` and from the behavior's own with their words shuffled.
        """
        exemplars = _exemplars(behavior, others, random.Random(seed))
        judge = cls(behavior.name, _accuracy(*exemplars, seed), _classifier().fit(*exemplars[:2]))
        return replace(judge, off_topic=off_topic_share(judge))

    @property
    def settings(self) -> dict[str, Any]:
        """How good it is on texts about something else, for the run's record."""
        return {"off_topic": self.off_topic}

    def __call__(self, question: Question, answer: str) -> Verdict:
        if wrong := flaw(answer):
            return Verdict(None, wrong)
        if not self.classifier[:-1].transform([answer]).nnz:
            return Verdict(None, OFF_TOPIC)  # not one word that it knows: the classifier would only give its prior
        chances = dict(zip(self.classifier.classes_, self.classifier.predict_proba([answer])[0], strict=True))
        matching, opposite = chances[MATCHING], chances[OPPOSITE]
        if chances.get(OFF_TOPIC, 0) > max(matching, opposite):
            return Verdict(None, OFF_TOPIC)
        return Verdict(10 * float(matching / (matching + opposite)))


def _classifier() -> Any:
    """Words and pairs of words, weighed by a logistic regression; letter n-grams were tried and added nothing."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    # "can't" stays one word, with a straight apostrophe or a curly one; a single letter, such as "(A)", is no word.
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"\w[\w'\u2019]+")
    return make_pipeline(words, LogisticRegression(C=10, class_weight="balanced", max_iter=1000))


Exemplars = tuple[list[str], list[str], list[str]]
"""Texts, what each shows, and the question that each belongs to."""


def _exemplars(behavior: Behavior, others: Sequence[Behavior], chance: random.Random) -> Exemplars:
    pairs = behavior.contrasts_in_words()
    if len({pair.id for pair in pairs}) < FOLDS:
        raise ValueError(
            f"behavior {behavior.name!r} has {len(pairs)} contrasts in words; an exemplar judge needs answers to at "
            f"least {FOLDS} questions. Add open_pairs, or A/B pairs whose options are texts."
        )
    foreign = [pair for other in others for pair in other.contrasts_in_words()]
    garbled = [_shuffled(pair, chance) for pair in pairs]
    drawn = chance.sample(foreign, min(len(pairs), len(foreign)))
    rows = [(pair.positive, MATCHING, pair.id) for pair in pairs]
    rows += [(pair.negative, OPPOSITE, pair.id) for pair in pairs]
    rows += [(_either(pair, chance), OFF_TOPIC, pair.id) for pair in drawn]
    rows += [(text, OFF_TOPIC, pair.id) for text, pair in zip(garbled, pairs, strict=True) if text]
    texts, labels, questions = zip(*rows, strict=True)
    return list(texts), list(labels), list(questions)


def _either(pair: ContrastPair, chance: random.Random) -> str:
    return chance.choice([pair.positive, pair.negative])


def _shuffled(pair: ContrastPair, chance: random.Random) -> str:
    """One of the pair's answers with its words in another order; empty if it is too short for that."""
    answer = _either(pair, chance)
    words = answer.split()
    text = " ".join(chance.sample(words, len(words)))
    return text if text.lower() != answer.lower() and len(words) > 2 else ""


def _accuracy(texts: Sequence[str], labels: Sequence[str], questions: Sequence[str], seed: int) -> float:
    """Out of fold, with all answers to one question in one fold, so that near duplicates cannot leak."""
    from sklearn.metrics import balanced_accuracy_score
    from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict

    folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed)
    chances = cross_val_predict(_classifier(), texts, labels, groups=questions, cv=folds, method="predict_proba")
    own = [row for row, label in enumerate(labels) if label != OFF_TOPIC]
    matching, opposite = (sorted(set(labels)).index(name) for name in (MATCHING, OPPOSITE))
    guesses = [MATCHING if chances[row, matching] > chances[row, opposite] else OPPOSITE for row in own]
    return float(balanced_accuracy_score([labels[row] for row in own], guesses))
