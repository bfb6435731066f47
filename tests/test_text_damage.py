"""Damage to texts beside the effect: texts whose measures can be counted by hand."""

from __future__ import annotations

import pytest

from caa.data.text_quality import flaw, loop, repeated_share
from caa.reports.tables import finetune_tables
from caa.reports.tables.text_damage import loop_notes, text_damage
from caa.runs.rows import Cell, Row, VectorRef


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


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("no no no no no no no", "words"),
        ("I would wait. " + "=-" * 15, "characters"),
        ("My list is ready. " + "\u2500\u2581" * 20, "characters"),
        ("First we walk, then " + "my dear old friend of the sea, " * 3 + "my dear", "characters"),
        ("Title\n1. Buy bread\n2. Buy milk\n3. Buy bread\n4. Buy milk\n5. Buy bread\n6. Buy milk", "lines"),
        ("Yes!!! Ha ha ha!", None),
        ("One - two - three, said the man, and one - two - three, said his son.", None),
        ("1. Buy bread\n2. Buy milk\n3. Call Ann\n4. Sleep", None),
        ("", None),
    ],
)
def test_loops_are_looked_for_in_words_characters_and_lines(text, kind):
    assert loop(text) == kind
    assert (flaw(text) == "repetition") == (kind is not None)


def test_a_loop_over_lines_needs_no_equal_numbers():
    assert repeated_share("1. Buy bread\n2. Buy milk\n3. Buy bread\n4. Buy milk") < 0.5, "words alone miss it"
    assert loop("1. Buy bread\n2. Buy milk\n3. Buy bread\n4. Buy milk") == "lines"


def test_each_control_is_told_with_its_loops():
    sound = [f"I would wait {i} days for the {w}." for i, w in enumerate(["bus", "boat", "train", "mail"])]
    cells = {VectorRef("random", "0"): 3, VectorRef("random", "1"): 0, VectorRef(): 1}
    rows = []
    for vector, loops in cells.items():
        texts = ["no no no no no no no"] * loops + sound[loops:]
        cell = Cell("patience", "open", multiplier=0.5, vector=vector)
        rows += [Row(cell, f"q{i}", 5.0, {"text": text}) for i, text in enumerate(texts)]
    [note] = loop_notes(rows)
    assert "none +0.5 random-0 3 of 4, none +0.5 1 of 4; none in the other cells" in note
    [table] = finetune_tables(rows)
    assert note in table.notes
    assert not loop_notes([row for row in rows if row.cell.vector.name == "1"])


def test_perplexity_never_stands_without_loops():
    rows = [Row(Cell("b", "open"), f"q{i}", 5.0, {"text": text}) for i, text in enumerate(("no " * 9, "I wait."))]
    frame = text_damage(rows, {row.key: perplexity for row, perplexity in zip(rows, (2.0, 8.0), strict=True)})
    assert frame[["answers", "loops", "perplexity", "coverage"]].to_numpy().tolist() == [[2, 0.5, 4.0, 1.0]]
