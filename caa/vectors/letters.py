"""Letters: pairs answered by (A) or (B) hold a letter beside the behavior. How much of it, and what is left without.

Of one A/B pair nearly everything that its sides differ in is the letter. With as many pairs of either letter they
cancel; with one more of the one, a weak behavior's vector turns into the letter. So each letter's mean is taken first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from math import sqrt

import torch
from jaxtyping import Float
from torch import Tensor

ROUNDING = 4.0
"""How many times a dtype's epsilon a pair's difference is off by, beside its length: 3.5 in SmolLM2 in bfloat16."""
NOTICEABLE = 0.05
"""A share of the vector that is worth a warning."""


def letter_weights(letters: Sequence[str]) -> dict[str, float]:
    """What one pair counts for, by the letter of its positive answer, when all letters count alike; 1 over all pairs.

    Pairs without a letter ("") keep their share.

    >>> letter_weights(list("AAAB"))
    {'A': 0.16666666666666666, 'B': 0.5}
    >>> letter_weights(["A", "", "", ""])
    {'A': 0.25, '': 0.25}
    """
    counts = Counter(letters)
    lettered = len(letters) - counts[""]
    shares = {
        name: (lettered / (len(counts) - ("" in counts)) if name else counts[""]) for name in dict.fromkeys(letters)
    }
    return {name: share / len(letters) / counts[name] for name, share in shares.items()}


def letter_counts(checks: Mapping[str, float]) -> dict[str, int]:
    """How many pairs each letter has, as `extract` keeps it among a vector's checks.

    >>> letter_counts({"pairs (A)": 60.0, "pairs (B)": 99.0, "layer 2: letter norm": 1.0})
    {'A': 60, 'B': 99}
    """
    return {name[7:-1]: int(number) for name, number in checks.items() if name.startswith("pairs (")}


def even(letters: Sequence[str]) -> bool:
    """Whether weighing letters equally changes nothing.

    >>> even(list("ABAB")), even(list("AAB")), even(["", ""])
    (True, False, True)
    """
    return len({count for name, count in Counter(letters).items() if name}) < 2


def both_letters(letters: Sequence[str]) -> bool:
    """Whether pairs answered by (A) can be compared with pairs answered by (B)."""
    return {"A", "B"} <= set(letters)


class LetterSums:
    """Sums of the differences of pairs by the letter of the positive answer, in float64. No pair is kept.

    >>> sums = LetterSums(list("AAB"))
    >>> sums.update([2, 0, 1], {0: torch.tensor([[[-2.0], [0.0]], [[4.0], [0.0]], [[4.0], [0.0]]])})
    >>> sums.directions(balanced=True), sums.directions(balanced=False)
    ({0: tensor([1.])}, {0: tensor([2.])})
    """

    def __init__(self, letters: Sequence[str]) -> None:
        """Of all pairs, in the order in which they are numbered."""
        self.letters = tuple(letters)
        self.names = list(dict.fromkeys(letters))
        self.sums: dict[int, Float[Tensor, "letter d_model"]] = {}
        self.squares: dict[int, Float[Tensor, ""]] = {}
        self._groups = torch.tensor([self.names.index(name) for name in letters])

    def update(self, rows: Sequence[int], sides: Mapping[int, Float[Tensor, "pair side d_model"]]) -> None:
        """layer -> both sides of the pairs of these numbers, the positive one first."""
        for layer, resid in sides.items():
            differences = resid[:, 0].double() - resid[:, 1].double()
            if layer not in self.sums:
                self.sums[layer] = differences.new_zeros(len(self.names), differences.shape[-1])
                self.squares[layer] = differences.new_zeros(())
            self.sums[layer].index_add_(0, self._groups[rows].to(differences.device), differences)
            self.squares[layer] += differences.square().sum()

    def weights(self, balanced: bool) -> dict[str, float]:
        """What one pair of each letter counts for."""
        return letter_weights(self.letters) if balanced else dict.fromkeys(self.names, 1 / len(self.letters))

    def directions(self, balanced: bool) -> dict[int, Float[Tensor, " d_model"]]:
        """layer -> float32 [d_model]: the mean over each letter's mean difference, or the mean over all pairs."""
        weights = torch.tensor(list(self.weights(balanced).values()), dtype=torch.float64)
        return {layer: (weights.to(sums.device) @ sums).float() for layer, sums in self.sums.items()}

    def letter(self, layer: int) -> Float[Tensor, " d_model"]:
        """Half of what pairs answered by (A) have more than pairs answered by (B): float64 [d_model]."""
        counts = Counter(self.letters)
        mean_a, mean_b = (self.sums[layer][self.names.index(name)] / counts[name] for name in "AB")
        return (mean_a - mean_b) / 2

    def rounding(self, layer: int, epsilon: float, balanced: bool) -> float:
        """About how long the sum of all pairs' rounding is in a vector that a network of this epsilon gave.

        Each pair's is taken to be by chance, `ROUNDING` epsilons of the pairs' root mean square length.
        """
        weights = self.weights(balanced)
        squared_weights = sum(weights[name] ** 2 for name in self.letters)
        return ROUNDING * epsilon * sqrt(float(self.squares[layer]) / len(self.letters) * squared_weights)

    def checks(
        self, directions: Mapping[int, Float[Tensor, " d_model"]], epsilon: float, balanced: bool
    ) -> dict[int, dict[str, float]]:
        """layer -> what of a vector is the letter, and what is rounding.

        - "letter cosine": of the vector with the letter alone, from (B) to (A);
        - "letter norm": the length of the letter alone, beside which the vector's is what the behavior has;
        - "rounding share": the length of the rounding beside the vector's.

        The first two only where both letters occur. Rounded to 4 digits: batches show in the fifth.
        """
        checks: dict[int, dict[str, float]] = {}
        for layer, direction in directions.items():
            length = max(float(direction.norm()), torch.finfo(torch.float32).tiny)
            numbers = {"rounding share": self.rounding(layer, epsilon, balanced) / length}
            if both_letters(self.letters):
                letter = self.letter(layer).to(direction.device)
                cosine = torch.cosine_similarity(direction.double(), letter, dim=0)
                numbers |= {"letter cosine": float(cosine), "letter norm": float(letter.norm())}
            checks[layer] = {name: _short(number) for name, number in numbers.items()}
        return checks


def warnings_of(letters: Sequence[str], checks: Mapping[int, Mapping[str, float]], dtype: str) -> list[str]:
    """In words, what of `LetterSums.checks` should keep one from believing in a vector."""
    counts = {name: number for name, number in Counter(letters).items() if name}
    warnings = []
    if len(counts) == 1 and 1 < len(letters) == sum(counts.values()):
        (only,) = counts
        warnings.append(
            f"All {len(letters)} positive answers are ({only}), so the vector is that letter as much as the behavior: "
            "give pairs of both letters."
        )
    turned = [layer for layer, numbers in checks.items() if abs(numbers.get("letter cosine", 0)) > 0.5]
    if turned and not even(letters):
        shown = ", ".join(f"{layer} ({checks[layer]['letter cosine']:+.2f})" for layer in turned)
        uneven = " and ".join(f"{number} ({name})" for name, number in sorted(counts.items()))
        warnings.append(
            f"The vector is mostly a letter at layers {shown}, its cosine with the letter: of the positive answers "
            f"there are {uneven}. With `balanced_mean` each letter counts alike."
        )
    rounded = [layer for layer, numbers in checks.items() if numbers["rounding share"] > NOTICEABLE]
    if rounded:
        worst = max(rounded, key=lambda layer: checks[layer]["rounding share"])
        share = checks[worst]["rounding share"]
        amount = "less than its rounding" if share > 1 else f"about {share:.0%} rounding"
        warnings.append(
            f"What the answers have beside their letters is {amount} in {dtype} (layer {worst}; {len(rounded)} of "
            f"{len(checks)} layers are above {NOTICEABLE:.0%}): read more pairs, or in float32, or another token."
        )
    return warnings


def _short(number: float) -> float:
    return float(f"{round(number, 6):.4g}")
