"""The choice of a layer: the planted one is chosen, gaps and controls choose none."""

from __future__ import annotations

import pytest

from caa.reports.layer_choice import best_layer
from caa.runs.rows import Cell, Row, VectorRef


def ab(finetune: str | None, multiplier: float, score: float, **cell) -> list[Row]:
    return [Row(Cell(task="ab", finetune=finetune, multiplier=float(multiplier), **cell), "q0", score)]


def sweep(effects: dict[tuple[str, int], float], top: float = 1.0, **cell) -> list[Row]:
    return [
        row
        for (behavior, layer), effect in effects.items()
        for m in (-top, 0.0, top)
        for row in ab(None, m, 0.5 + m / top * effect / 2, behavior=behavior, layer=layer, **cell)
    ]


def test_the_best_layer_moves_all_behaviors_most():
    effects = {("a", 1): 0.1, ("a", 2): 0.6, ("a", 3): 0.3, ("b", 1): 0.1, ("b", 2): -0.2, ("b", 3): 0.3}
    assert best_layer(sweep(effects)) == 3
    assert best_layer([row for row in sweep(effects) if row.cell.behavior == "a"]) == 2


def test_of_equal_layers_the_smaller_is_best_and_a_negative_effect_is_not_large():
    assert best_layer(sweep({("a", 5): 0.4, ("a", 4): 0.4, ("a", 6): -0.9})) == 4


def test_only_the_largest_multiplier_with_both_signs_counts():
    rows = sweep({("a", 1): 0.9, ("a", 2): 0.1}) + sweep({("a", 1): 0.1, ("a", 2): 0.5}, top=2.0)
    assert best_layer(rows + ab(None, 3.0, 1.0, behavior="a", layer=1)) == 2


def test_controls_and_finetunes_choose_no_layer():
    rows = sweep({("a", 1): 0.2, ("a", 2): 0.1}) + sweep({("a", 2): 0.9}, vector=VectorRef("random", "0"))
    assert best_layer(rows + ab("positive", 1.0, 1.0, behavior="a", layer=2)) == 1


def test_a_sweep_with_gaps_chooses_no_layer():
    with pytest.raises(ValueError, match="'b' was not asked at layer 2, multiplier -1"):
        best_layer(sweep({("a", 1): 0.2, ("a", 2): 0.1, ("b", 1): 0.1}))
    with pytest.raises(ValueError, match=r"there are 0, \+1\. Sweep -1 and 1"):
        best_layer([row for row in sweep({("a", 1): 0.2}) if row.cell.multiplier >= 0])
    with pytest.raises(ValueError, match="rows of one system_prompt"):
        best_layer(sweep({("a", 1): 0.2}) + sweep({("a", 1): 0.2}, system_prompt="positive"))
    with pytest.raises(ValueError, match="no rows"):
        best_layer([])


def test_a_layer_at_which_any_vector_moves_the_score_is_a_poor_one():
    own = sweep({("a", 1): 0.5, ("a", 2): 0.6})
    assert best_layer(own) == 2
    strange = [
        *ab(None, 1.0, 0.9, behavior="a", layer=2, vector=VectorRef("other", "b")),
        *ab(None, -1.0, 0.5, behavior="a", layer=2, vector=VectorRef("other", "b")),
        *ab(None, 1.0, 0.5, behavior="a", layer=2, vector=VectorRef("other", "c")),
        *ab(None, -1.0, 0.5, behavior="a", layer=2, vector=VectorRef("other", "c")),
    ]
    assert best_layer([*own, *strange]) == 1
    assert best_layer([*own, *strange[2:]]) == 2
