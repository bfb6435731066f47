"""Damage to texts beside the effect: texts whose measures can be counted by hand."""

from __future__ import annotations

import pytest

from caa.reports.tables.text_damage import text_damage
from caa.runs.rows import Cell, Row


def test_damage_stands_beside_the_effect():
    sound = [f"I would wait {i} days for the {w}." for i, w in enumerate(["bus", "boat", "train", "mail"])]
    broken = ["wait wait wait wait wait wait"] * 4
    rows = [
        Row(Cell("patience", "open", multiplier=m), f"q{i}", score, {"text": text})
        for m, score, texts in ((0.0, 2.0, sound), (2.0, 9.0, broken))
        for i, text in enumerate(texts)
    ]
    frame = text_damage([*rows, Row(Cell("patience", "ab"), "q0", 0.5)]).set_index("multiplier")
    assert frame.score.tolist() == [2.0, 9.0]
    assert frame.degenerate.tolist() == [0.0, 1.0]
    assert frame.repeated.tolist() == [0.0, 2 / 3]
    assert frame.words.tolist() == [9.0, 6.0]
    assert frame.distinct_2[0.0] > frame.distinct_2[2.0] == 1 / 20
    assert frame.distinct_1[2.0] == 1 / 24
    assert frame.compression[0.0] < frame.compression[2.0]
    with pytest.raises(ValueError, match="no texts"):
        text_damage([Row(Cell("patience", "ab"), "q0", 0.5)])
