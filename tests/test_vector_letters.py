"""Vectors without the letter: what is planted beside a letter is found, however uneven the letters are."""

from __future__ import annotations

import logging

import pytest
import torch
from tiny import tiny_model, tiny_tokenizer

from caa import ContrastPair, extract
from caa.extraction.extract import read_pairs
from caa.vectors.checks import check_direction, split_half_cosine
from caa.vectors.letters import LetterSums, warnings_of
from caa.vectors.methods import balanced_mean, mean_difference, pca

WIDTH = 16
BEHAVIOR, LETTER = torch.eye(WIDTH)[0] * 0.05, torch.eye(WIDTH)[1]


def planted(letters: str, noise: float = 0.01) -> tuple[torch.Tensor, torch.Tensor]:
    """A behavior of .05 in every pair, beside a letter of 1 that is turned round in the pairs answered by (B)."""
    generator = torch.Generator().manual_seed(0)
    signs = torch.tensor([{"A": 1.0, "B": -1.0}.get(name, 0.0) for name in letters])[:, None]
    drawn = torch.randn(2, len(letters), WIDTH, generator=generator) * noise
    return drawn[0] + (BEHAVIOR + signs * LETTER) / 2, drawn[1] - (BEHAVIOR + signs * LETTER) / 2


def cosine(first, second) -> float:
    return torch.cosine_similarity(first, second, dim=0).item()


def streamed(letters, sides, batch=7) -> LetterSums:
    """In an order by chance, a few pairs at a time, as a reader gives them."""
    sums, both = LetterSums(list(letters)), torch.stack(sides, dim=1)
    for rows in torch.randperm(len(letters), generator=torch.Generator().manual_seed(1)).split(batch):
        sums.update(rows.tolist(), {3: both[rows]})
    return sums


@pytest.mark.parametrize("letters", ["A" * 60 + "B" * 99, "A" * 99 + "B" * 101, "A" * 5 + "B" * 150, "AB" * 40])
def test_a_weak_behavior_is_found_beside_a_letter_in_uneven_pairs(letters):
    sides = planted(letters)
    sums = streamed(letters, sides)
    (found,) = sums.directions(balanced=True).values()
    assert cosine(found, BEHAVIOR) > 0.95
    torch.testing.assert_close(found, balanced_mean(*sides, letters=letters))
    (plain,) = sums.directions(balanced=False).values()
    torch.testing.assert_close(plain, mean_difference(*sides))
    if letters.startswith("AB"):
        torch.testing.assert_close(found, plain)
    else:
        assert cosine(plain, BEHAVIOR) < (0.99 if len(letters) == 200 else 0.3), "here the plain mean is a letter"
    numbers = sums.checks({3: found}, torch.finfo(torch.float32).eps, True)[3]
    assert abs(numbers["letter cosine"]) < 0.4
    assert numbers["letter norm"] == pytest.approx(1, abs=0.02)
    assert numbers["rounding share"] < 1e-4
    assert warnings_of(letters, {3: numbers}, "float32") == []


def test_a_mean_that_turned_into_a_letter_is_warned_of():
    letters = "A" * 60 + "B" * 99
    sums = streamed(letters, planted(letters))
    checks = sums.checks(sums.directions(balanced=False), 1e-7, False)
    assert checks[3]["letter cosine"] < -0.9
    (warning,) = warnings_of(letters, checks, "float32")
    assert "mostly a letter at layers 3 (-0.9" in warning
    assert "there are 60 (A) and 99 (B)." in warning
    assert "All 7 positive answers are (B)" in warnings_of("B" * 7, {}, "float32")[0]


@pytest.mark.parametrize(("behavior", "words"), [(0.0, "less than its rounding"), (0.1, "% rounding in bfloat16")])
def test_what_is_left_beside_the_letter_is_compared_with_its_rounding(behavior, words):
    """The estimate is of the order of what rounding does: pairs are rounded as a network in bfloat16 rounds them."""
    letters = "AB" * 100
    positive, negative = planted(letters, noise=0.0)
    exact = [side + sign * BEHAVIOR * (behavior / 0.05 - 1) / 2 for side, sign in ((positive, 1), (negative, -1))]
    generator = torch.Generator().manual_seed(2)
    coarse = [side + torch.randn(side.shape, generator=generator) * 2**-8 * 2.5 / WIDTH**0.5 for side in exact]
    sums = streamed(letters, coarse)
    (found,) = sums.directions(balanced=True).values()
    truth = BEHAVIOR * behavior / 0.05
    error = (found - truth).norm().item()
    assert 0.3 < error / sums.rounding(3, 2**-7, True) < 3
    checks = sums.checks({3: found}, 2**-7, True)
    warnings = warnings_of(letters, checks, "bfloat16")
    if behavior:
        assert checks[3]["rounding share"] < 0.5
    assert not warnings or words in warnings[0] or not behavior


def test_halves_of_uneven_pairs_agree_about_the_behavior_and_not_the_letter():
    letters = "A" * 60 + "B" * 100
    sides = planted(letters, noise=0.15)
    assert split_half_cosine(*sides, mean_difference, letters=letters) > 0.6, "the letter agrees with itself"
    assert abs(split_half_cosine(*sides, letters=letters)) < 0.5
    assert abs(check_direction(*planted(letters), letters=letters)["letter cosine"]) < 0.2


PAIRS = [
    ContrastPair(f"Is it {word}?\n (A) Yes\n (B) No", *(("(A)", "(B)") if n % 3 else ("(B)", "(A)")))
    for n, word in enumerate(("so", "not so", "here", "there", "now", "then", "late"))
]


def test_extract_weighs_letters_alike_and_keeps_what_it_saw(caplog):
    model, tokenizer = tiny_model(), tiny_tokenizer()
    read = read_pairs(model, tokenizer, PAIRS, [2])
    vector = extract(model, tokenizer, PAIRS, [2], batch_size=3)
    torch.testing.assert_close(vector.at(2), balanced_mean(*read.at(2), letters=read.letters), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(read.vector().at(2), vector.at(2), atol=1e-5, rtol=1e-4)
    checks = vector.source.checks
    assert vector.source.method == "balanced mean"
    assert (checks["pairs (A)"], checks["pairs (B)"]) == (4, 3)
    assert checks["layer 2: letter cosine"] == pytest.approx(read.checks()[2]["letter cosine"], abs=1e-3)
    assert checks["layer 2: letter norm"] > 0
    caplog.set_level(logging.WARNING)
    plain = extract(model, tokenizer, PAIRS, [2], method=mean_difference)
    torch.testing.assert_close(plain.at(2), mean_difference(*read.at(2)), atol=1e-5, rtol=1e-4)
    assert (plain.source.method, plain.at(2).equal(vector.at(2))) == ("mean difference", False)
    even = extract(model, tokenizer, PAIRS[:2], [2])
    assert even.source.method == "mean difference"
    assert "layer 2: letter norm" in extract(model, tokenizer, PAIRS, [2], method=pca).source.checks
    in_words = [ContrastPair("Is it so?", "Yes", "No"), ContrastPair("Was it?", "True", "False")]
    assert set(extract(model, tokenizer, in_words, [2]).source.checks) == {"layer 2: rounding share"}


def test_extract_in_half_precision_says_how_much_is_rounding():
    model = tiny_model().bfloat16()
    share = extract(model, tiny_tokenizer(), PAIRS, [2]).source.checks["layer 2: rounding share"]
    assert 0.001 < share < 1
