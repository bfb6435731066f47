"""A judge that could not read most answers: nothing is marked, ranked or tested, and every format says why."""

from __future__ import annotations

import json
from io import StringIO

import pytest
from rich.console import Console

from caa.reports.layer_choice import best_layer
from caa.reports.pages.appendix import write_appendix
from caa.reports.pages.html import write_html
from caa.reports.statistics import LEAST_COVERAGE, mean_interval
from caa.reports.tables import effect_matrix, to_terminal, write_report
from caa.runs.rows import Cell, Row, append_rows

WHY = "fewer than 50%"
FEWEST = "10 of 90"


def judged(read: int, of: int = 90, behavior: str = "refusal", layer: int = 1) -> list[Row]:
    """Steering that works perfectly, as far as the first `read` answers of each cell say."""
    rows = []
    for finetune in (None, "positive"):
        for multiplier in (-1.0, 0.0, 1.0):
            cell = Cell(behavior, "open", finetune, layer, multiplier)
            evidence = {"text": "words", "asked": "?", "reason": ""}
            rows += [Row(cell, f"q{n}", 5.0 + 5 * multiplier if n < read else None, evidence) for n in range(of)]
    return rows


def folder(tmp_path, rows):
    append_rows(tmp_path / "rows.jsonl", rows)
    judge = {"judge": {"accuracy": 0.9, "off_topic": 0.25}}
    record = {"version": 2, "settings": {"behaviors": {"refusal": {"open": judge}}}, "notes": {"model": "m"}}
    (tmp_path / "run.json").write_text(json.dumps(record))
    return tmp_path


def in_terminal(tables) -> str:
    console = Console(file=StringIO(), width=300)
    for table in tables:
        console.print(to_terminal(table))
    return console.file.getvalue()


def test_a_run_whose_judge_read_10_of_90_marks_nothing_and_says_why_in_all_formats(tmp_path):
    run = folder(tmp_path, judged(10))
    tables = write_report(run)
    entries = [entry for table in tables for part in (table, *table.below) for entry in part.entries]
    assert len(entries) > 12, "scores, effects and interaction"
    assert not any(entry.mark for entry in entries)
    assert all(entry.p is None for entry in entries)
    texts = {"terminal": in_terminal(tables), "page": write_html(run).read_text(encoding="utf-8")}
    texts |= {"appendix": write_appendix(run).read_text(encoding="utf-8")}
    texts |= {suffix: (run / f"tables.{suffix}").read_text(encoding="utf-8") for suffix in ("md", "csv", "tex")}
    for name, text in texts.items():
        assert WHY in text.replace("\\%", "%"), name
        assert FEWEST in text, name
    assert "**0.00**" not in texts["md"]
    assert "Coverage, the share of the answers here that the judge gave a score: refusal 0.11" in texts["md"]
    assert "The judge of refusal gives 75% of texts about something else a score" in texts["terminal"]
    assert "coverage" in texts["csv"].splitlines()[0]


@pytest.mark.parametrize(("read", "marked"), [(44, False), (45, True), (90, True)])
def test_half_of_the_answers_decide(tmp_path, read, marked):
    [table] = write_report(folder(tmp_path, judged(read)))
    assert {bool(entry.mark) for entry in table.entries if entry.cell.multiplier} == {marked}
    assert any(entry.mark == "sure" for entry in table.below[0].entries) == marked
    assert (WHY in " ".join(table.remarks)) != marked
    assert LEAST_COVERAGE == 0.5


def test_an_unread_cell_is_no_rival_of_those_that_were_read(tmp_path):
    rows = [row for row in judged(90) if row.cell.multiplier < 1] + [
        row for row in judged(10) if row.cell.multiplier == 1
    ]
    [table] = write_report(folder(tmp_path, rows))
    marks = {(entry.cell.finetune, entry.cell.multiplier): entry.mark for entry in table.entries}
    assert marks[None, 0.0] == "highest"
    assert marks[None, 1.0] == ""


def test_pairs_with_a_score_on_both_sides_are_what_counts(tmp_path):
    """Two cells of 60 % each, read in other answers, share too few questions for a test."""
    rows = [row for row in judged(54) if row.cell.multiplier == 0]
    rows += [
        Row(cell, f"q{n}", 9.0 if n >= 36 else None, {"text": "words"})
        for cell in {row.cell for row in judged(1) if row.cell.multiplier == 1}
        for n in range(90)
    ]
    [table] = write_report(folder(tmp_path, rows))
    assert any(entry.mark for entry in table.entries)
    effects = [entry for entry in table.below[0].entries if entry.quantity == "effect"]
    assert [(entry.estimate.n, entry.p) for entry in effects] == [(18, None)] * 2


def test_a_layer_that_no_judge_could_read_is_not_chosen():
    rows = judged(90, layer=2)
    assert best_layer(rows) == 2
    assert best_layer([*judged(10, layer=1), *rows]) == 2, "of equal ones the first, had it been read"
    half = [row for row in judged(90, layer=1) if row.cell.multiplier <= 0]
    half += [row for row in judged(10, layer=1) if row.cell.multiplier > 0]
    with pytest.raises(ValueError, match="could read too few"):
        best_layer([*rows, *half])


def test_a_matrix_leaves_out_what_was_not_read():
    rows = [row for row in judged(10) if row.cell.finetune is None]
    assert effect_matrix(rows).isna().all().all()


def test_nothing_asked_is_nothing_read():
    assert mean_interval([]).coverage == 0
    assert not mean_interval([]).enough_scores
