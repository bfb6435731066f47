"""A judge by closeness: answers as vectors, compared with a behavior's own answers, matching and opposite. No torch."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from caa.callables import name_of
from caa.data.behaviors import Behavior, Question
from caa.data.text_quality import flaw
from caa.judges.base import Verdict
from caa.judges.exemplar import FOLDS

Embed = Callable[[Sequence[str]], ndarray]
"""Texts -> their vectors, [text, d]."""
Measure = Callable[
    [Float[ndarray, "text d"], Float[ndarray, "pair d"], Float[ndarray, "pair d"]], Float[ndarray, " text"]
]
"""Answers, matching exemplars, opposite exemplars -> how far each answer lies to the matching side."""


def exemplar_cosines(
    answers: Float[ndarray, "text d"], matching: Float[ndarray, "pair d"], opposite: Float[ndarray, "pair d"]
) -> Float[ndarray, " text"]:
    """The mean cosine to the matching exemplars minus that to the opposite ones, in [-2, 2].

    >>> exemplar_cosines(np.array([[2.0, 0.0], [1.0, 1.0]]), np.array([[1.0, 0.0]]), np.array([[0.0, 3.0]]))
    array([1., 0.])
    """
    cosines: ndarray = _unit(answers) @ (_unit(matching).mean(0) - _unit(opposite).mean(0))
    return cosines


def difference_cosine(
    answers: Float[ndarray, "text d"], matching: Float[ndarray, "pair d"], opposite: Float[ndarray, "pair d"]
) -> Float[ndarray, " text"]:
    """The cosine between an answer, seen from the middle of all exemplars, and the mean difference of the pairs.

    >>> difference_cosine(np.array([[5.0, 1.0], [0.0, 1.0]]), np.array([[2.0, 1.0]]), np.array([[0.0, 1.0]]))
    array([ 1., -1.])
    """
    middle = np.concatenate([matching, opposite]).mean(0)
    cosines: ndarray = _unit(answers - middle) @ _unit((matching - opposite).mean(0))
    return cosines


def _unit(vectors: ndarray) -> ndarray:
    unit: ndarray = vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
    return unit


@dataclass(frozen=True, eq=False)
class EmbeddingJudge:
    """Scores an answer by where it lies between a behavior's opposite exemplars (0) and its matching ones (10).

    The ends of the scale are the mean measures of exemplars that were held out; what lies beyond an end is put there.
    """

    behavior: str
    accuracy: float
    """Balanced accuracy at telling held-out exemplars apart, at the middle of the scale; 0.5 is chance."""
    control: float
    """The same with matching and opposite answers swapped in every second pair, by chance: what no knowledge gives."""
    ends: tuple[float, float]
    """The measures that are 0 and 10."""
    measure: Measure
    embed: Embed = field(repr=False)
    matching: Float[ndarray, "pair d"] = field(repr=False)
    opposite: Float[ndarray, "pair d"] = field(repr=False)

    @classmethod
    def fit(
        cls, behavior: Behavior, embed: Embed, measure: Measure = difference_cosine, seed: int = 0
    ) -> EmbeddingJudge:
        """Embed the behavior's answers in words; ValueError if they are too few, or this embedding cannot tell them.

        `seed` decides the folds that are held out and the pairs that the control swaps.
        """
        pairs = behavior.contrasts_in_words()
        questions = [pair.id for pair in pairs]
        if len(set(questions)) < FOLDS:
            raise ValueError(
                f"an embedding judge needs answers to {FOLDS} questions; {behavior.name!r} has {len(pairs)}"
            )
        vectors = np.asarray(embed([answer for pair in pairs for answer in pair.answers]), dtype=np.float64)
        matching, opposite = vectors[::2], vectors[1::2]
        low, high, accuracy = _held_out(matching, opposite, questions, measure, seed)
        if low >= high:
            raise ValueError(
                f"to this embedding, matching answers of {behavior.name!r} are no closer to each other than to the "
                f"opposite ones (held-out accuracy {accuracy:.2f}). Take another embedding, or another judge."
            )
        swapped = _swapped(matching, opposite, random.Random(seed))
        control = _held_out(*swapped, questions, measure, seed)[2]
        return cls(behavior.name, accuracy, control, (low, high), measure, embed, matching, opposite)

    @property
    def settings(self) -> dict[str, Any]:
        """What a verdict depends on besides the answer, for the run's record."""
        embedding = getattr(self.embed, "settings", None)
        quality = {"accuracy": self.accuracy, "control": self.control, "ends": list(self.ends)}
        return {"measure": name_of(self.measure), "embedding": embedding} | quality

    def __call__(self, question: Question, answer: str) -> Verdict:
        return self.judge_all([question], [answer])[0]

    def judge_all(self, questions: Sequence[Question], answers: Sequence[str]) -> list[Verdict]:
        """One verdict for each answer; sound answers are embedded together, whatever the questions."""
        verdicts = {i: Verdict(None, wrong) for i, answer in enumerate(answers) if (wrong := flaw(answer))}
        sound = [i for i in range(len(answers)) if i not in verdicts]
        if sound:
            vectors = np.asarray(self.embed([answers[i] for i in sound]), dtype=np.float64)
            measured = self.measure(vectors, self.matching, self.opposite)
            low, high = self.ends
            scores = np.clip(10 * (measured - low) / (high - low), 0, 10).tolist()
            verdicts |= {i: Verdict(score) for i, score in zip(sound, scores, strict=True)}
        return [verdicts[i] for i in range(len(answers))]


def _held_out(
    matching: ndarray, opposite: ndarray, questions: Sequence[str], measure: Measure, seed: int
) -> tuple[float, float, float]:
    """Mean measure of held-out opposite and matching exemplars, and the balanced accuracy at the point between them."""
    from sklearn.model_selection import GroupKFold

    measured = np.zeros((2, len(matching)))
    for kept, held in GroupKFold(FOLDS, shuffle=True, random_state=seed).split(matching, groups=questions):
        exemplars = matching[kept], opposite[kept]
        measured[:, held] = measure(opposite[held], *exemplars), measure(matching[held], *exemplars)
    low, high = measured.mean(1).tolist()
    middle = (low + high) / 2
    return low, high, float(((measured[0] < middle).mean() + (measured[1] > middle).mean()) / 2)


def _swapped(matching: ndarray, opposite: ndarray, chance: random.Random) -> tuple[ndarray, ndarray]:
    """The same answers with the two sides of half of the pairs exchanged."""
    swap = np.zeros(len(matching), dtype=bool)
    swap[chance.sample(range(len(matching)), len(matching) // 2)] = True
    return np.where(swap[:, None], opposite, matching), np.where(swap[:, None], matching, opposite)
