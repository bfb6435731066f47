"""What happened, in sentences: each number against the slow definition, and chance that does as much said aloud."""

from __future__ import annotations

import csv
import io
import random
import re
from statistics import fmean

import pytest

from caa.reports.diagnostics.warnings import run_warnings
from caa.reports.tables import finetune_tables, to_csv, to_latex, to_markdown, to_terminal
from caa.reports.tables.headlines import headlines
from caa.runs.rows import OWN, Cell, Row, VectorRef

RANDOM = VectorRef("random", "0")
NOISE = [random.Random(n).uniform(-0.03, 0.03) for n in range(40)]


def rows_of(behavior: str, moves: dict[tuple[str | None, float, VectorRef], float], task: str = "ab") -> list[Row]:
    """40 questions in each cell, at 0.5 plus what is planted plus noise that differs from cell to cell."""
    rows = []
    for place, ((finetune, multiplier, vector), move) in enumerate(moves.items()):
        cell = Cell(behavior, task, finetune, 3, multiplier, vector=vector)
        rows += [Row(cell, f"q{n}", 0.5 + move + NOISE[(n * (place + 3)) % 40]) for n in range(40)]
    return rows


PLANTED = {
    (None, 0.0, OWN): 0.0,
    (None, 0.3, OWN): 0.2,
    (None, -0.3, OWN): -0.15,
    ("sft", 0.0, OWN): 0.1,
    ("sft", 0.3, OWN): 0.3,
    (None, 0.3, RANDOM): 0.03,
    (None, -0.3, RANDOM): -0.05,
}


def numbers(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"by ([+-]?[\d.]+)", text)]


def test_a_sentence_says_what_steering_the_finetune_both_and_chance_move():
    rows = rows_of("b", PLANTED)
    mean = {(r.cell.finetune, r.cell.multiplier, r.cell.vector): 0.0 for r in rows}
    for key in mean:
        mean[key] = fmean(r.score for r in rows if (r.cell.finetune, r.cell.multiplier, r.cell.vector) == key)
    [headline] = headlines(rows)
    places = [(None, 0.3, OWN), (None, -0.3, OWN), ("sft", 0.0, OWN), ("sft", 0.3, OWN), (None, -0.3, RANDOM)]
    assert numbers(headline.text) == [round(mean[place] - mean[None, 0.0, OWN], 2) for place in places]
    assert headline.text.startswith(f"Steering moves b from {mean[None, 0.0, OWN]:.2f} by +0.")
    assert headline.text.endswith(f"to {mean[None, 0.3, RANDOM] - mean[None, 0.0, OWN]:+.2f}.")
    assert (headline.behavior, headline.doubtful) == ("b", False)
    assert not [line for line in run_warnings(rows, {}) if "random direction" in line]


def test_intervals_are_those_of_the_table_below():
    [table] = finetune_tables(rows_of("b", PLANTED))
    effects = {(e.cell.finetune, e.cell.multiplier): e.estimate for e in table.below[0].entries if e.cell.vector == OWN}
    estimate = effects[None, 0.3]
    assert f"{estimate.mean:+.2f} ({estimate.low:+.2f} to {estimate.high:+.2f}) at +0.3" in table.headlines[0].text


@pytest.mark.parametrize(("moved", "rival"), [(0.4, True), (-0.4, True), (0.2, True), (0.1, False), (0.0, False)])
def test_a_random_direction_that_moves_as_much_changes_the_sentence_and_is_a_warning(moved, rival):
    rows = rows_of("b", {**PLANTED, (None, 0.3, RANDOM): moved, (None, -0.3, RANDOM): 0.0})
    [table] = finetune_tables(rows)
    [headline] = table.headlines
    assert (f"at +0.3, not clearly more than random-0 does ({moved:+.2f})" in headline.text) == rival
    assert headline.doubtful == rival
    warned = [
        line for line in table.warnings if "a random direction of the same length moves the score as much" in line
    ]
    assert len(warned) == rival
    for text in warned:
        assert f"random-0 by {moved:+.2f} where the vector moves it by" in text
        written = list(csv.DictReader(io.StringIO(to_csv(table))))
        assert [line["note"] for line in written if line["quantity"] == "headline"] == [headline.text]
        assert text in [line["note"] for line in written if line["quantity"] == "warning"]


def test_a_larger_move_that_may_be_chance_hides_no_smaller_one_that_is_not():
    rows = rows_of("b", {**PLANTED, (None, 0.3, OWN): 0.1, (None, 0.3, RANDOM): 0.1})
    erratic = Cell("b", "ab", None, 3, 0.3, vector=VectorRef("random", "1"))
    rows += [Row(erratic, f"q{n}", 1.0 if n < 25 else 0.0) for n in range(40)]  # +0.12, and 0.08 of standard error
    [headline] = headlines(rows)
    assert "at +0.3, not clearly more than random-0 does (+0.1" in headline.text


def test_a_random_direction_that_moves_facts_is_no_warning():
    rows = rows_of("b", {**PLANTED, (None, 0.3, RANDOM): 0.4}, task="facts")
    assert not [line for line in run_warnings(rows, {}) if "random direction" in line]


def test_several_behaviors_have_a_sentence_over_all_in_front():
    halves = {place: move / 2 for place, move in PLANTED.items()} | {(None, 0.3, RANDOM): -0.45}
    rows = [*rows_of("b", PLANTED), *rows_of("c", halves)]
    over_all, first, second = headlines(rows)
    assert [one.behavior for one in (over_all, first, second)] == ["", "b", "c"]
    assert over_all.text.startswith("Steering moves the 2 behaviors on average by +0.")
    assert numbers(over_all.text)[0] == pytest.approx(
        fmean([numbers(first.text)[0], numbers(second.text)[0]]), abs=0.011
    )
    assert ", where a random direction moves c as much" in over_all.text
    assert [one.doubtful for one in (over_all, first, second)] == [True, False, True]


def test_nothing_to_compare_is_no_sentence_and_finetunes_alone_are_one():
    assert headlines(rows_of("b", {(None, 0.0, OWN): 0.0})) == ()
    [headline] = headlines(rows_of("b", {(None, 0.0, OWN): 0.0, ("sft", 0.0, OWN): 0.1}))
    assert headline.text.startswith("The finetune sft moves b from 0.")
    [headline] = headlines(rows_of("b", {(None, 0.0, OWN): 0.0, (None, 1.0, OWN): 0.001}))
    assert "no random direction was asked to compare with" in headline.text


def test_too_few_scores_are_not_told():
    rows = rows_of("b", PLANTED)
    unread = [Row(r.cell, r.question, None) if r.cell.multiplier == 0.3 and n % 3 else r for n, r in enumerate(rows)]
    [headline] = headlines(unread)
    assert "at +0.3" not in headline.text
    assert "at -0.3" in headline.text


def test_every_format_says_it_in_front_of_the_table():
    [table] = finetune_tables(rows_of("b", PLANTED))
    start = "Steering moves b from"
    for text in (to_markdown(table), to_latex(table)):
        assert start in text
    assert to_markdown(table).index(start) < to_markdown(table).index("| behavior |")
    from rich.console import Console

    console = Console(file=io.StringIO(), width=200)
    console.print(to_terminal(table))
    shown = console.file.getvalue()
    assert shown.index(start) < shown.index("±")


def test_slopes_are_told_for_the_largest_multiplier():
    [table] = finetune_tables(rows_of("b", PLANTED))
    [slope] = [
        e for e in table.below[0].entries if e.quantity == "slope" and not e.cell.finetune and e.cell.vector == OWN
    ]
    assert slope.column == "per 0.3"
    assert slope.estimate.mean == pytest.approx(0.35 / 0.6, abs=0.05)
    assert float(slope.text) == pytest.approx(0.35 / 2, abs=0.011)
    assert "per 0.3: how much a question's score rises per 0.3 of the multiplier" in " ".join(table.below[0].notes)
