"""Checks of a direction: each must see what it is there to see, and be at chance where there is nothing."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from tiny import tiny_model, tiny_tokenizer

from caa import ContrastPair, SteeringVector
from caa.extraction.extract import read_pairs, read_texts
from caa.vectors.activations import PairActivations
from caa.vectors.checks import (
    check_direction,
    held_out_accuracy,
    letter_direction,
    pair_accuracy,
    shuffle_labels,
    split_half_cosine,
    split_half_cosine_by_text,
    stability,
)
from caa.vectors.methods import mean_difference, pca
from caa.vectors.vector import Provenance

WIDTH = 16


def pairs(n: int, signal: float, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """n pairs whose sides differ by `signal` along the first axis and by noise elsewhere."""
    generator = torch.Generator().manual_seed(seed)
    shared, *noise = (torch.randn(n, WIDTH, generator=generator) for _ in range(3))
    shift = signal * torch.eye(WIDTH)[0]
    return 5 * shared + noise[0] + shift, 5 * shared + noise[1]


def test_a_real_direction_passes_and_chance_does_not():
    real, nothing = check_direction(*pairs(200, 4.0)), check_direction(*pairs(200, 0.0))
    assert real["held-out accuracy"] > 0.97
    assert real["split-half cosine"] > 0.95
    assert 0.4 < nothing["held-out accuracy"] < 0.6
    assert abs(nothing["split-half cosine"]) < 0.3
    for found in (real, nothing):
        assert 0.4 < found["shuffled-label accuracy"] < 0.6
    assert 0.5 < real["random-direction accuracy"] < real["held-out accuracy"]
    assert "letter cosine" not in real


def test_held_out_means_held_out():
    """A method that memorizes its pairs is perfect on them and at chance on others."""
    positive, negative = pairs(30, 0.0, seed=3)
    wide = torch.cat([positive, 50 * torch.eye(30)], 1), torch.cat([negative, torch.zeros(30, 30)], 1)
    seen: list[int] = []

    def memorizing(p: torch.Tensor, n: torch.Tensor) -> torch.Tensor:
        seen.append(len(p))
        direction = mean_difference(p, n)
        direction[:WIDTH] = 0
        return direction

    assert pair_accuracy(memorizing(*wide), *wide) == 1.0
    assert held_out_accuracy(*wide, memorizing) == 0.5, "all ties: it knows nothing of the pairs left out"
    assert seen[1:] == [24] * 5


def test_a_letter_in_the_direction_shows():
    positive, negative = pairs(40, 2.0)
    axis = 3 * torch.eye(WIDTH)[1]
    for share, low, high in ((20, -0.2, 0.2), (36, 0.6, 1.0)):
        letters = ["A"] * share + ["B"] * (40 - share)
        signs = torch.tensor([1.0 if name == "A" else -1.0 for name in letters])[:, None]
        sides = positive + signs * axis, negative - signs * axis
        assert low < check_direction(*sides, mean_difference, letters)["letter cosine"] < high
        assert abs(check_direction(*sides, letters=letters)["letter cosine"]) < 0.2
        by_letter = {name: [p - n for p, n, own in zip(*sides, letters, strict=True) if own == name] for name in "AB"}
        means = [sum(differences) / len(differences) for differences in by_letter.values()]
        torch.testing.assert_close(letter_direction(*sides, letters), (means[0] - means[1]) / 2)
    for letters in ([""] * 40, ["A"] * 40):
        with pytest.raises(ValueError, match="no letter to tell"):
            letter_direction(positive, negative, letters)


@pytest.mark.parametrize("share", [20, 30, 36])
def test_the_letter_is_not_taken_for_the_behavior_where_letters_are_uneven(share):
    """Planted: all pairs hold the same behavior, and the letter's axis is at right angles to it."""
    behavior, axis = 6 * torch.eye(WIDTH)[0], torch.eye(WIDTH)[1]
    letters = ["A"] * share + ["B"] * (40 - share)
    signs = torch.tensor([1.0 if name == "A" else -1.0 for name in letters])[:, None]
    positive, negative = behavior + signs * axis, torch.zeros(40, WIDTH)
    torch.testing.assert_close(letter_direction(positive, negative, letters), axis)
    expected = torch.cosine_similarity(mean_difference(positive, negative), axis, dim=0).item()
    found = check_direction(positive, negative, mean_difference, letters)["letter cosine"]
    assert found == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("n", "share"), [(200, 100), (200, 30), (41, 20), (40, 9)])
def test_halves_hold_each_letter_as_often(n, share):
    """Planted: 200 pairs hold exactly the same behavior and a letter ten times as large. Their halves agree."""
    behavior, axis = torch.eye(WIDTH)[0], 10 * torch.eye(WIDTH)[1]
    order = torch.randperm(n, generator=torch.Generator().manual_seed(1)).tolist()
    letters = ["A" if row < share else "B" for row in order]
    signs = torch.tensor([1.0 if name == "A" else -1.0 for name in letters])[:, None]
    positive, negative = behavior + signs * axis, -signs * axis
    counts: list[float] = []

    def noting(p: torch.Tensor, n: torch.Tensor) -> torch.Tensor:
        counts.append(float((p - n)[:, 1].sign().sum()))
        return mean_difference(p, n)

    cosine = split_half_cosine(positive, negative, noting, letters=letters)
    assert max(abs(one - other) for one, other in zip(counts[::2], counts[1::2], strict=True)) <= 2, "one pair apart"
    if n == 200:
        assert cosine > 0.999
        assert check_direction(positive, negative, letters=letters)["split-half cosine"] == pytest.approx(cosine)


def test_no_pair_is_in_both_halves_and_a_few_hold_their_share_of_each_letter():
    positive, negative = pairs(100, 1.0)
    letters = ["A"] * 30 + ["B"] * 70
    positive[:, 0] = torch.arange(100.0)
    rows: list[list[float]] = []

    def noting(p: torch.Tensor, n: torch.Tensor) -> torch.Tensor:
        rows.append(p[:, 0].tolist())
        return mean_difference(p, n)

    split_half_cosine(positive, negative, noting, n=10, letters=letters)
    for first, second in zip(rows[::2], rows[1::2], strict=True):
        assert len({*first, *second}) == 20
        assert [sum(row < 30 for row in half) for half in (first, second)] == [3, 3]


def test_a_letter_alone_is_at_chance():
    """Pairs that differ by their letter and in nothing else: folds of unequal letters would be right too rarely."""
    letters = ["A"] * 20 + ["B"] * 20
    signs = torch.tensor([1.0] * 20 + [-1.0] * 20)[:, None]
    sides = signs * torch.eye(WIDTH)[:1], -signs * torch.eye(WIDTH)[:1]
    assert held_out_accuracy(*sides, letters=letters) == 0.5
    assert held_out_accuracy(*sides) < 0.5


def test_halves_are_disjoint_and_as_large_as_asked():
    positive, negative = pairs(20, 1.0)
    sizes: list[int] = []
    rows: list[set] = []

    def noting(p: torch.Tensor, n: torch.Tensor) -> torch.Tensor:
        sizes.append(len(p))
        rows.append({tuple(row) for row in p.tolist()})
        return pca(p, n)

    split_half_cosine(positive, negative, noting, n=7)
    assert set(sizes) == {7}
    assert not any(rows[i] & rows[i + 1] for i in range(0, len(rows), 2))
    with pytest.raises(ValueError, match="two disjoint sets of 11"):
        split_half_cosine(positive, negative, n=11)
    with pytest.raises(ValueError, match="two disjoint sets of 0 pairs cannot be drawn from 1"):
        split_half_cosine(positive[:1], negative[:1])


def test_more_pairs_agree_more():
    found = stability(*pairs(400, 0.6), [5, 40, 200])
    assert list(found) == [5, 40, 200]
    assert found[5] < found[40] < found[200]


def test_swapped_labels_are_the_same_pairs():
    positive, negative = pairs(11, 1.0)
    first, second = shuffle_labels(positive, negative, seed=2)
    torch.testing.assert_close(first + second, positive + negative)
    assert (first != positive).all(1).sum() == 5


def test_checks_stay_with_the_vector(tmp_path):
    model, tokenizer = tiny_model(), tiny_tokenizer()
    questions = [ContrastPair(f"Is it {word}?", *(("(A)", "(B)") if n % 2 else ("(B)", "(A)"))) for n, word in
                 enumerate(("so", "not so", "here", "there", "now", "then"))]  # fmt: skip
    readings = read_pairs(model, tokenizer, questions, [1, 2], behavior="b")
    vector = readings.vector(pca).checked(readings.checks(pca))
    loaded = SteeringVector.load(vector.save(tmp_path / "v.safetensors"))
    assert loaded.source == vector.source
    assert loaded.source.checks["layer 2: held-out accuracy"] == readings.checks(pca)[2]["held-out accuracy"]
    assert len(loaded.source.checks) == 10
    assert -1 <= loaded.source.checks["layer 1: letter cosine"] <= 1
    texts = read_texts(model, tokenizer, ["Love"], ["Hate", "Spite"], [1])
    with pytest.raises(ValueError, match="not paired"):
        texts.checks()
    with pytest.raises(ValueError, match="at least 4; these are 3"):
        readings.subset([0, 1, 2]).checks()


def test_a_file_from_before_there_were_checks(tmp_path):
    old = {"model": "m", "behavior": "b", "method": "mean difference", "n_pairs": 3, "history": ["unit norm"]}
    metadata = {"format": "caa.vector.v1", "source": json.dumps(old)}
    save_file({"layer.1": torch.ones(3)}, tmp_path / "old.safetensors", metadata=metadata)
    source = SteeringVector.load(tmp_path / "old.safetensors").source
    assert source == Provenance("m", "", "b", "mean difference", 3, history=("unit norm",))
    assert source.checks == {}


def test_each_draw_of_halves_that_share_no_answer_is_another():
    halves: list[list[float]] = []

    def noting(positive: torch.Tensor, negative: torch.Tensor) -> torch.Tensor:
        halves.append(positive[:, 0].tolist())
        return positive[0]

    numbers = torch.arange(20.0)[:, None]
    split_half_cosine_by_text(numbers, torch.zeros(20, 1), [str(n) for n in range(20)], noting)
    assert len(set(map(tuple, halves))) == len(halves) > 2
    assert all(sorted(one + other) == list(range(20)) for one, other in zip(halves[::2], halves[1::2], strict=True))


def test_halves_that_share_no_answer_show_what_is_the_template():
    """Four templates, each with a direction of its own beside a weak common one: halves agree, templates do not."""
    generator = torch.Generator().manual_seed(0)
    common, templates = torch.zeros(64), torch.randn(4, 64, generator=generator)
    common[0] = 3.0
    sides = torch.stack([common + templates[n % 4] for n in range(40)])
    texts = [f"template {n % 4}" for n in range(40)]
    by_text = split_half_cosine_by_text(sides, torch.zeros(40, 64), texts)
    assert split_half_cosine(sides, torch.zeros(40, 64)) > 0.8
    assert by_text < 0.5
    distinct = [str(n) for n in range(40)]
    assert split_half_cosine_by_text(sides, torch.zeros(40, 64), distinct) > 0.8, "each answer once: the usual halves"
    activations = PairActivations({3: sides}, {3: torch.zeros(40, 64)}, letters=("",) * 40, answers=tuple(texts))
    assert activations.checks()[3]["split-half cosine by text"] == by_text
    assert "split-half cosine by text" in activations.subset(range(20)).checks()[3]
    changes: list[dict] = [{"answers": tuple(distinct)}, {"answers": ("same",) * 40}, {"letters": ("A", "B") * 20}]
    for others in (replace(activations, **change) for change in changes):
        assert "split-half cosine by text" not in others.checks()[3], "the same halves as those of the pairs"
    with pytest.raises(ValueError, match="1 distinct ones of 40 for 40 pairs"):
        split_half_cosine_by_text(sides, torch.zeros(40, 64), ["same"] * 40)
