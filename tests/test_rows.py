"""Rows on the disk: round trip, what a killed job leaves, what a damaged file says."""

from __future__ import annotations

import json
import tracemalloc
from dataclasses import replace

import pytest

from caa.reports.naming import cell_fields, finetune_name, merged_random, vector_name
from caa.runs.rows import Cell, Row, VectorRef, append_rows, read_rows

CELL = Cell("myopic_reward", "open", "positive", 13, -1.0, "", VectorRef("random", "0"))


def rows(n: int, text: str = "I would wait.") -> list[Row]:
    return [Row(CELL, f"question {i}", None if i % 3 == 0 else i / 7, {"text": text, "reason": ""}) for i in range(n)]


@pytest.mark.parametrize("text", ["I would wait.", 'two\nlines, "quotes"', "naïve — 你好 \u2028 \x85 🙂", "", "\ud800"])
def test_rows_come_back_as_they_were(tmp_path, text):
    path = tmp_path / "new" / "rows.jsonl"
    assert append_rows(path, rows(3, text)[:2]) == 2
    append_rows(path, rows(3, text)[2:])
    assert read_rows(path) == rows(3, text)


def test_no_file_is_no_rows(tmp_path):
    assert read_rows(tmp_path / "rows.jsonl") == []


@pytest.mark.parametrize("torn", [1, 20, 60])
def test_a_torn_last_line_is_left_out_and_then_replaced(tmp_path, torn):
    path = tmp_path / "rows.jsonl"
    append_rows(path, rows(3))
    path.write_bytes(path.read_bytes()[:-torn])
    assert read_rows(path) == rows(3)[:2]
    append_rows(path, rows(3)[2:])
    assert read_rows(path) == rows(3)


def test_a_file_that_is_nothing_but_a_torn_line(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"behavior": "myo')
    assert read_rows(path) == []
    append_rows(path, rows(1))
    assert read_rows(path) == rows(1)


@pytest.mark.parametrize("damage", [b"{}", b"3", b"[]", b'{"behavior": "x"', b"", b"\xff\x00"])
def test_damage_in_the_middle_names_the_line(tmp_path, damage):
    path = tmp_path / "rows.jsonl"
    append_rows(path, rows(3))
    lines = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join([lines[0], damage, *lines[2:]]))
    with pytest.raises(ValueError, match=r"rows\.jsonl, line 2 is not a row .* Delete that line and run the job again"):
        read_rows(path)


def test_appending_to_a_long_file_does_not_read_it(tmp_path):
    path = tmp_path / "rows.jsonl"
    line = rows(2)[1].to_json() + "\n"
    path.write_text(line * (2**24 // len(line)))
    size = path.stat().st_size
    tracemalloc.start()
    append_rows(path, rows(2)[1:])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**20
    assert path.stat().st_size == size + len(line)


def test_of_two_rows_with_one_key_the_first_counts(tmp_path):
    path, three = tmp_path / "rows.jsonl", rows(3)
    again = [replace(row, score=0.875) for row in three[1:]]
    other = replace(three[0], cell=replace(CELL, multiplier=1.0))
    append_rows(path, [*three, *again, other])
    assert read_rows(path) == [*three, other]


# What is ours is a kind, what is the user's is a name.

NAMES = ["caa", "own", "none", "random-0", "random x1", "base", "'caa'", "null", "sft"]


@pytest.mark.parametrize("name", NAMES)
def test_a_users_name_is_never_taken_for_one_of_ours(tmp_path, name):
    ours = [Cell("b", "ab", vector=ref) for ref in (VectorRef(), VectorRef("reread"), VectorRef("random", "0"))]
    cells = [*ours, Cell("b", "ab", name), Cell(name, "ab"), Cell("b", "ab", vector=VectorRef("other", name))]
    append_rows(tmp_path / "rows.jsonl", [Row(cell, "q", 0.5) for cell in cells])
    assert [row.cell for row in read_rows(tmp_path / "rows.jsonl")] == cells
    assert len({tuple(cell_fields(cell).values()) for cell in cells}) == len(cells), "shown distinguishably"


def test_all_names_are_shown_differently():
    refs = [VectorRef(), VectorRef("reread"), *(VectorRef("random", str(n)) for n in range(2)), merged_random(1)]
    refs += [VectorRef("other", name) for name in NAMES]
    assert len({vector_name(ref) for ref in refs}) == len(refs)
    finetunes = [None, *NAMES]
    assert len({finetune_name(finetune) for finetune in finetunes}) == len(finetunes)


def test_json_says_which_is_which():
    record = json.loads(Row(Cell("b", "ab"), "q", 0.5, {"matching": "A"}).to_json())
    assert record.pop("vector") == {"kind": "own", "name": ""}
    assert record.pop("finetune", "?") is None
    assert record == {
        "behavior": "b", "task": "ab", "layer": 0, "multiplier": 0.0, "system_prompt": "", "setting": "",
        "question": "q", "score": 0.5, "matching": "A",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("finetune", "vector", "meant"),
    [
        ("none", "caa", Cell("b", "ab")),
        ("sft", "own", Cell("b", "ab", "sft", vector=VectorRef("reread"))),
        ("positive", "random-12", Cell("b", "ab", "positive", vector=VectorRef("random", "12"))),
        ("none", "refusal", Cell("b", "ab", vector=VectorRef("other", "refusal"))),
        ("none", "caa layer 13", Cell("b", "ab", vector=VectorRef("other", "caa layer 13"))),
    ],
)
def test_rows_of_version_0_1_are_read_as_they_were_meant_beside_newer_ones(tmp_path, finetune, vector, meant):
    old = {"behavior": "b", "task": "ab", "finetune": finetune, "layer": 0, "multiplier": 0.0, "system_prompt": ""}
    (tmp_path / "rows.jsonl").write_text(json.dumps({**old, "vector": vector, "question": "q", "score": 1.0}) + "\n")
    new = Row(Cell("b", "ab", "none", vector=VectorRef("other", "caa")), "q", 0.5)
    append_rows(tmp_path / "rows.jsonl", [new])
    assert read_rows(tmp_path / "rows.jsonl") == [Row(meant, "q", 1.0), new]


def test_cells_have_an_order_in_which_the_base_comes_first():
    cells = [
        Cell(b, t, f, i, m)
        for b in "ab"
        for t in ("ab", "open")
        for f in (None, "", "none")
        for i in (1, 2)
        for m in (-1.0, 0.5)
    ]
    backwards = cells[::-1]
    assert sorted(backwards) == cells
    assert max(cells) == cells[-1]


def test_a_baseline_is_unsteered_and_nothing_else_changes():
    assert CELL.baseline() == Cell("myopic_reward", "open", "positive", 13, 0.0, "", VectorRef())


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        ("own", "x", "a vector of kind 'own' has no name"),
        ("reread", "x", "a vector of kind 'reread' has no name"),
        ("other", "", "a vector of kind 'other' has a name"),
        ("random", "", "a vector of kind 'random' has a name"),
    ],
)
def test_a_vector_that_cannot_be_is_refused(kind, name, message):
    with pytest.raises(ValueError, match=message):
        VectorRef(kind, name)
