"""Rows on the disk: round trip, what a killed job leaves, what a damaged file says."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace

import pytest

from caa.runs.rows import Cell, Row, append_rows, read_rows

CELL = Cell("myopic_reward", "open", "positive", 13, -1.0, "", "random-0")


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
