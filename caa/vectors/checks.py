"""Is it the right direction? Activations of contrast pairs in, numbers out, each beside what chance would give."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from statistics import mean

import torch
from jaxtyping import Float
from torch import Tensor

from caa.vectors.methods import Method, balanced_mean, direction_of, random_direction

Side = Float[Tensor, "pair d_model"]
FOLDS, DRAWS = 5, 8


def check_direction(
    positive: Side, negative: Side, method: Method = balanced_mean, letters: Sequence[str] = (), seed: int = 0
) -> dict[str, float]:
    """What one would want to know of a method's direction at one layer before believing in it.

    - "split-half cosine": between the directions of two halves of the pairs, in which each letter is as frequent;
    - "held-out accuracy": pairs whose positive side projects higher on a direction found without them;
    - "shuffled-label accuracy": the same with the sides of half the pairs swapped, so about 0.5, or something leaks;
    - "random-direction accuracy": the same of directions by chance; where it is high, almost any direction would do;
    - "letter cosine": with the direction from the answers (B) to the answers (A), whatever they say. Where it is far
      from 0 the vector is partly a letter. Only for `letters`, those of the positive answers, of which both occur.

    ValueError for fewer than 4 pairs.
    """
    if len(positive) < 4:
        raise ValueError(f"checks leave pairs out, and need at least 4; these are {len(positive)}")
    held_out = partial(held_out_accuracy, seed=seed, letters=letters)
    chance = [held_out(positive, negative, partial(random_direction, seed=draw)) for draw in range(DRAWS)]
    shuffled = [held_out_accuracy(*shuffle_labels(positive, negative, draw), method, seed) for draw in range(DRAWS)]
    checks = {
        "split-half cosine": split_half_cosine(positive, negative, method, seed=seed, letters=letters),
        "held-out accuracy": held_out(positive, negative, method),
        "shuffled-label accuracy": mean(shuffled),
        "random-direction accuracy": mean(chance),
    }
    if {"A", "B"} <= set(letters):
        direction = direction_of(method, positive, negative, letters)
        checks["letter cosine"] = _cosine(direction, letter_direction(positive, negative, letters))
    return checks


def pair_accuracy(direction: Float[Tensor, " d_model"], positive: Side, negative: Side) -> float:
    """The share of pairs whose positive side projects higher on the direction; a tie is half.

    >>> pair_accuracy(torch.tensor([1.0, 0.0]), torch.tensor([[2.0, 0.0], [0.0, 5.0]]), torch.tensor([[1.0, 0.0]] * 2))
    0.5
    """
    difference = (positive - negative).double() @ direction.double()
    return float(((difference.sign() + 1) / 2).mean())


def held_out_accuracy(
    positive: Side, negative: Side, method: Method = balanced_mean, seed: int = 0, letters: Sequence[str] = ()
) -> float:
    """`pair_accuracy` on pairs that the direction was found without, by 5-fold cross-validation over the pairs.

    With `letters`, those of the positive answers, every fold gets its share of each: a letter that is rarer among the
    pairs left in is more frequent among those left out, and would push the accuracy below chance.

    >>> generator = torch.Generator().manual_seed(0)
    >>> noise = torch.randn(20, 3, generator=generator)
    >>> held_out_accuracy(noise + torch.tensor([9.0, 0.0, 0.0]), noise)
    1.0
    """
    order = _by_letter(_shuffled(len(positive), seed), letters)
    right = 0.0
    for fold in range(min(FOLDS, len(order))):
        out = order[fold::FOLDS]
        kept = torch.tensor([row for row in order.tolist() if row not in set(out.tolist())])
        direction = direction_of(method, positive[kept], negative[kept], _chosen(letters, kept))
        right += pair_accuracy(direction, positive[out], negative[out]) * len(out)
    return right / len(order)


def split_half_cosine(
    positive: Side,
    negative: Side,
    method: Method = balanced_mean,
    n: int | None = None,
    seed: int = 0,
    letters: Sequence[str] = (),
) -> float:
    """The mean cosine between the directions of two disjoint sets of n pairs (default: half of all), over 8 draws.

    With `letters`, those of the positive answers, both sets get each letter as often as the number of pairs allows: one
    with more (A) than the other differs from it by that letter, which would hide how well they agree on the behavior.

    >>> split_half_cosine(torch.tensor([[1.0, 0.0]] * 6), torch.zeros(6, 2))
    1.0
    """
    n = len(positive) // 2 if n is None else n
    if not 1 <= n <= len(positive) // 2:
        raise ValueError(f"two disjoint sets of {n} pairs cannot be drawn from {len(positive)} pairs")
    cosines = []
    for draw in range(DRAWS):
        chosen = _evenly(_by_letter(_shuffled(len(positive), seed + draw), letters), 2 * n)
        halves = chosen[::2], chosen[1::2]
        first, second = (
            direction_of(method, positive[half], negative[half], _chosen(letters, half)) for half in halves
        )
        cosines.append(_cosine(first, second))
    return mean(cosines)


def _chosen(letters: Sequence[str], rows: Tensor) -> list[str]:
    return [letters[row] for row in rows.tolist()] if letters else []


def _evenly(order: Tensor, n: int) -> Tensor:
    """n of them at even distances, so that those that stand together get their share."""
    return order[torch.arange(n) * len(order) // n]


def _by_letter(order: Tensor, letters: Sequence[str]) -> Tensor:
    """The same rows, those of one letter together, else in their order."""
    return torch.tensor(sorted(order.tolist(), key=lambda row: letters[row])) if letters else order


def shuffle_labels(positive: Side, negative: Side, seed: int = 0) -> tuple[Side, Side]:
    """The same pairs, with the sides of half of them swapped: a contrast that is there by chance only.

    >>> first, second = shuffle_labels(torch.ones(4, 1), torch.zeros(4, 1))
    >>> first.sum().item(), second.sum().item()
    (2.0, 2.0)
    """
    swapped = torch.zeros(len(positive), 1, dtype=torch.bool, device=positive.device)
    swapped[_shuffled(len(positive), seed)[: len(positive) // 2]] = True
    return torch.where(swapped, negative, positive), torch.where(swapped, positive, negative)


def letter_direction(positive: Side, negative: Side, letters: Sequence[str]) -> Float[Tensor, " d_model"]:
    """Half of what the pairs answered by (A) have more than those answered by (B): the letter without the behavior.

    A pair answered by (A) holds behavior + letter, one answered by (B) behavior - letter: half the difference of the
    two means is the letter, however uneven the letters are. `letters` are those of the positive answers; pairs with
    other letters are left out. ValueError unless both letters occur.

    >>> behavior, letter = torch.tensor([5.0, 0.0]), torch.tensor([0.0, 2.0])
    >>> letter_direction(torch.stack([behavior + letter] * 3 + [behavior - letter]), torch.zeros(4, 2), list("AAAB"))
    tensor([0., 2.])
    """
    differences = (positive - negative).double()
    a, b = ([row for row, name in enumerate(letters) if name == wanted] for wanted in ("A", "B"))
    if not a or not b:
        raise ValueError("not both letters, A and B, are answers that show the behavior, so there is no letter to tell")
    return ((differences[a].mean(0) - differences[b].mean(0)) / 2).float()


def stability(
    positive: Side,
    negative: Side,
    sizes: Sequence[int],
    method: Method = balanced_mean,
    seed: int = 0,
    letters: Sequence[str] = (),
) -> dict[int, float]:
    """How many pairs are enough: n -> split-half cosine of n pairs. A size is at most half the number of pairs.

    >>> stability(torch.tensor([[1.0, 0.0]] * 6), torch.zeros(6, 2), [1, 3])
    {1: 1.0, 3: 1.0}
    """
    return {n: split_half_cosine(positive, negative, method, n, seed, letters) for n in sizes}


def _cosine(first: Tensor, second: Tensor) -> float:
    first, second = first.double(), second.double()
    norms = first.norm() * second.norm()
    return float(first @ second / norms) if norms else 0.0


def _shuffled(n: int, seed: int) -> Tensor:
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))


def split_half_cosine_by_text(
    positive: Side, negative: Side, texts: Sequence[str], method: Method = balanced_mean, seed: int = 0
) -> float:
    """`split_half_cosine` of halves that share no answer text, over 8 draws: does the direction outlive its wording?

    `texts` are the pairs' answers, one text for each pair. Pairs of one template agree with each other about the
    template, so halves that both hold it agree well whatever the direction is of. Half of the distinct texts, and
    not of the pairs, are on each side. ValueError for fewer than 2 distinct texts.

    >>> first, second = torch.tensor([[1.0, 0.0]] * 4), torch.tensor([[0.0, 1.0]] * 4)
    >>> sides = torch.cat([first, second]), torch.zeros(8, 2)
    >>> split_half_cosine(*sides) > 0.5, split_half_cosine_by_text(*sides, ["No."] * 4 + ["Never."] * 4)
    (True, 0.0)
    """
    distinct = list(dict.fromkeys(texts))
    if len(distinct) < 2 or len(texts) != len(positive):
        raise ValueError(
            f"halves that share no answer need 2 distinct answers and one for each pair; these are {len(distinct)} "
            f"distinct ones of {len(texts)} for {len(positive)} pairs"
        )
    cosines = []
    for draw in range(DRAWS):
        chosen = {distinct[place] for place in _shuffled(len(distinct), seed + draw)[: len(distinct) // 2].tolist()}
        first = torch.tensor([row for row, text in enumerate(texts) if text in chosen])
        second = torch.tensor([row for row, text in enumerate(texts) if text not in chosen])
        cosines.append(_cosine(method(positive[first], negative[first]), method(positive[second], negative[second])))
    return mean(cosines)
