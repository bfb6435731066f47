"""Collapse: found in the two published finetunes that collapsed, in hand-made ones, and in no sound text."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from tiny import SHARED, needs_shared

from caa.data.text_quality import degenerate_share, flaw, repeated_share
from caa.reports.diagnostics.collapse import collapse_warnings, fray_warnings
from caa.runs.rows import Cell, Row

PUBLISHED = SHARED / "data/caa/results/open_ended_scores"
FINETUNES = {"_pos_": "positive", "_neg_": "negative"}


def answers(*texts: str, **cell) -> list[Row]:
    return [Row(Cell("refusal", "open", **cell), f"q{i}", 5.0, {"text": text}) for i, text in enumerate(texts)]


def published(path: Path) -> list[Row]:
    multiplier = float(re.search(r"multiplier=(-?[\d.]+)_", path.name)[1])
    finetune = next((name for sign, name in FINETUNES.items() if sign in path.name), "none")
    cell = Cell(path.parent.name, "open", finetune, 13, multiplier)
    records = json.loads(path.read_text(encoding="utf-8"))
    return [Row(cell, r["question"], r.get("score"), {"text": r["model_output"]}) for r in records]


@pytest.fixture(scope="module")
def published_rows() -> list[Row]:
    paths = sorted(PUBLISHED.glob("*/*.json"))
    assert len(paths) == 45, "five behaviors x three finetunes x three multipliers"
    return [row for path in paths for row in published(path)]


@needs_shared
def test_of_the_published_finetunes_exactly_two_have_collapsed(published_rows):
    found = [warning.split(", layer")[0] for warning in collapse_warnings(published_rows)]
    assert sorted(found) == [
        *["survival-instinct (open), finetune negative"] * 3,
        *["sycophancy (open), finetune positive"] * 3,
    ]


@needs_shared
def test_of_the_published_finetunes_one_more_frays(published_rows):
    found = [warning.split(", layer")[0] for warning in fray_warnings(published_rows)]
    assert found == ["hallucination (open), finetune negative"] * 3


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "empty"),
        (" \n", "empty"),
        ("B", "letter string"),
        ("(A)", "letter string"),
        ("BBBBABAB, B, A\nBB andB", "letter string"),
        ("a" * 60, "repetition"),
        ("ha" * 30, "repetition"),
        ("!!!!!!!!!!!!", "repetition"),
        ("no no no no no no no", "repetition"),
        ("I would rather wait. " * 3, "repetition"),
        ("I would rather wait. " * 2, None),
        ("(A) I would rather wait.", None),
        ("No.", None),
        ("All AI systems, above all ALBA, are a BAD idea.", None),
        ("我更愿意等待因为以后会更好", None),
    ],
)
def test_what_is_wrong_with_a_text(text, expected):
    assert flaw(text) == expected


def test_repetition_is_counted_in_words_not_in_letters():
    assert repeated_share("one two three four one two three four") == pytest.approx(0.2)
    assert repeated_share("short text") == 0


def test_a_warning_names_the_cell_and_the_numbers():
    texts = ["BBBBBB"] * 4 + ["(A)", "I would wait."]
    [warning] = collapse_warnings(answers(*texts, finetune="negative", layer=13, multiplier=-1.0))
    assert warning == (
        "refusal (open), finetune negative, layer 13, multiplier -1 has collapsed: 5 of 6 answers are degenerate "
        "(letter string: 5), 3 of 6 are distinct, e.g. 'BBBBBB'. Its scores do not measure the behavior."
    )


def test_one_answer_to_every_question_is_a_collapse_though_each_is_sound():
    [warning] = collapse_warnings(answers(*["I cannot help with that."] * 20))
    assert "0 of 20 answers are degenerate, 1 of 20 are distinct" in warning
    assert not collapse_warnings(answers(*[f"I cannot help with {i % 3}." for i in range(20)]))


@pytest.mark.parametrize(("bad", "warned"), [(0, False), (4, False), (5, True), (10, True)])
def test_half_of_the_texts_decide(bad, warned):
    texts = ["AB" * (4 + i) for i in range(bad)] + [f"I would wait {i} days." for i in range(10 - bad)]
    assert bool(collapse_warnings(answers(*texts))) == warned
    assert degenerate_share(texts) == bad / 10


def test_cells_are_judged_apart():
    rows = answers(*["B"] * 6, multiplier=1.0) + answers(*[f"I see {i}." for i in range(20)])
    assert len(collapse_warnings(rows)) == 1


def test_too_few_texts_and_rows_without_text_say_nothing():
    assert not collapse_warnings(answers("B", "B", "B", "B"))
    assert not collapse_warnings([Row(Cell("refusal", "ab"), f"q{i}", 0.5, {"mass": 1.0}) for i in range(9)])


def test_texts_that_run_into_letters_fray_but_have_not_collapsed():
    tail = " ABBBBABABBBB"
    rows = answers(*[f"We walked to town number {i} in the rain.{tail if i < 4 else ''}" for i in range(10)])
    assert not collapse_warnings(rows)
    [warning] = fray_warnings(rows)
    assert "4 of 10 answers run into a letter string" in warning
    assert not fray_warnings(rows[3:])
    assert not fray_warnings(answers(*["BBBBBBBBBB"] * 10)), "a collapsed cell is reported as such, once"
