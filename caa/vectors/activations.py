"""PairActivations: what was read of two sides, layer by layer, from which any method makes a vector. Knows no model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor

from caa.vectors.checks import check_direction, split_half_cosine_by_text
from caa.vectors.letters import even
from caa.vectors.methods import Method, balanced_mean, direction_of, mean_difference, name_of
from caa.vectors.vector import Provenance, SteeringVector, described


def method_name(method: Method, letters: Sequence[str]) -> str:
    """As a provenance says it: where letters are even, a balanced mean is the mean difference."""
    return name_of(mean_difference if method is balanced_mean and even(letters) else method)


@dataclass(frozen=True, eq=False, repr=False)
class PairActivations:
    """What a network had in its stream for the positive and for the negative texts.

    Held on the CPU in float32: 4 bytes x 2 sides x pairs x layers x d_model (1000 pairs, 32 layers of 4096: 1 GB).
    """

    positive: Mapping[int, Tensor]
    """layer -> float32 [pair, d_model]"""
    negative: Mapping[int, Tensor]
    source: Provenance = field(default_factory=Provenance)
    """Where the activations came from; its method is empty until a vector is made."""
    letters: tuple[str, ...] = ()
    """The letter of each pair's positive answer, "" where it is none; empty for texts that are no pairs."""
    answers: tuple[str, ...] = ()
    """Each pair's positive answer, by which wordings are told apart; empty where nobody said."""

    def __post_init__(self) -> None:
        if self.positive.keys() != self.negative.keys():
            raise ValueError(f"two sides, but of layers {list(self.positive)} and {list(self.negative)}")

    def __repr__(self) -> str:
        """On one line, without numbers.

        >>> sides = {2: torch.zeros(7, 3)}, {2: torch.zeros(5, 3)}
        >>> PairActivations(*sides, Provenance("gpt2", behavior="waiting"))
        <PairActivations 'waiting': layers 2, width 3, model 'gpt2', 7 positive and 5 negative texts>
        """
        positive, negative = self.at(self.layers[0])
        about = described(self.source, self.layers, positive.shape[1])
        return f"<{type(self).__name__} {about}, {len(positive)} positive and {len(negative)} negative texts>"

    @property
    def layers(self) -> list[int]:
        return sorted(self.positive)

    @property
    def paired(self) -> bool:
        """Whether row i of one side belongs to row i of the other."""
        return bool(self.letters)

    def at(self, layer: int) -> tuple[Float[Tensor, "positive d_model"], Float[Tensor, "negative d_model"]]:
        """Both sides of one layer; KeyError, with the layers there are, if it was not read."""
        if layer not in self.positive:
            raise KeyError(f"layer {layer} was not read; these are activations of layers {self.layers}")
        return self.positive[layer], self.negative[layer]

    def stacked(self) -> dict[int, Float[Tensor, "pair side d_model"]]:
        """layer -> both sides of each pair, the positive one first."""
        return {layer: torch.stack(self.at(layer), dim=1) for layer in self.layers}

    def vector(self, method: Method = balanced_mean) -> SteeringVector:
        """The direction that the method finds at each layer."""
        directions = {layer: direction_of(method, *self.at(layer), self.letters) for layer in self.layers}
        return SteeringVector(directions, replace(self.source, method=method_name(method, self.letters)))

    def subset(self, rows: Sequence[int]) -> PairActivations:
        """The activations of these pairs only, in this order."""
        if not self.paired:
            raise ValueError("these texts are not paired, so there are no pairs to choose")
        chosen = torch.as_tensor(rows)
        positive, negative = (
            {layer: values[chosen] for layer, values in side.items()} for side in (self.positive, self.negative)
        )
        source = replace(self.source, n_pairs=len(chosen), data_hash="")
        letters, answers = (
            tuple(texts[row] for row in chosen.tolist()) if texts else () for texts in (self.letters, self.answers)
        )
        return PairActivations(positive, negative, source, letters, answers)

    def checks(self, method: Method = balanced_mean) -> dict[int, dict[str, float]]:
        """layer -> what `check_direction` finds, for `SteeringVector.checked`; ValueError for texts without pairs.

        Where answers in words come back, "split-half cosine by text" is between halves that share none of them.
        """
        if not self.paired:
            raise ValueError("checks leave pairs out and swap them, and these texts are not paired")
        checks = {layer: check_direction(*self.at(layer), method, self.letters) for layer in self.layers}
        if self._words_come_back:
            for layer, of_layer in checks.items():
                by_text = split_half_cosine_by_text(*self.at(layer), self.answers, method)
                of_layer["split-half cosine by text"] = by_text
        return checks

    @property
    def _words_come_back(self) -> bool:
        """Whether some answers are the same, not all, and none is a letter, of which there are two in any case."""
        return not any(self.letters) and 1 < len(set(self.answers)) < len(self.answers)
