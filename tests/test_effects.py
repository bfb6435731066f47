"""Steering's effect, its slope, its wrong-way share and the interaction: planted ones are found, chance is not."""

from __future__ import annotations

import csv
import io
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console
from scipy import stats

from caa.reports.tables import finetune_tables, to_csv, to_latex, to_markdown, to_terminal
from caa.reports.tables.effects import effect_matrix, interactions, steering_effects
from caa.runs.rows import OWN, Cell, Row, VectorRef, scores_by_cell

BASE = {None: 0.4, "positive": 0.6}


def noisy(finetune: str | None, multiplier: float, effect: float, seed: int, n: int = 40, **cell) -> list[Row]:
    """Scores of n questions that differ a lot from each other, and little from themselves under another multiplier."""
    easy = np.random.default_rng(9).uniform(-0.2, 0.2, n)
    noise = np.random.default_rng([seed, int(multiplier * 10) + 50, len(finetune or "none")]).normal(0, 0.02, n)
    own = Cell(cell.pop("behavior", "refusal"), "ab", finetune, 13, float(multiplier), **cell)
    scores = BASE[finetune] + easy + multiplier * effect + noise
    return [Row(own, f"q{i}", float(score)) for i, score in enumerate(scores)]


def grid(effects: dict[str | None, float], seed: int = 0, **cell) -> list[Row]:
    return [row for f, effect in effects.items() for m in (-1, 0, 1) for row in noisy(f, m, effect, seed, **cell)]


def entries(found, quantity: str) -> dict[tuple[str | None, float], object]:
    return {(e.cell.finetune, e.column): e for e in found if e.quantity == quantity}


def test_planted_effects_slopes_and_interactions_are_found():
    scores = scores_by_cell(grid({None: 0.1, "positive": 0.25}))
    found = steering_effects(scores)
    effect, slope = entries(found, "effect"), entries(found, "slope")
    for finetune, planted in ((None, 0.1), ("positive", 0.25)):
        for multiplier in (-1, 1):
            estimate = effect[finetune, multiplier].estimate
            assert estimate.mean == pytest.approx(multiplier * planted, abs=0.015)
            assert estimate.low < multiplier * planted < estimate.high
            assert estimate.half_width < 0.02, "pairing takes out what the questions differ in (±0.2)"
        assert slope[finetune, "per unit"].estimate.mean == pytest.approx(planted, abs=0.01)
    change = entries(interactions(scores), "effect change")
    assert change["positive", -1].estimate.mean == pytest.approx(-0.15, abs=0.02)
    assert change["positive", 1].estimate.mean == pytest.approx(0.15, abs=0.02)
    assert entries(interactions(scores), "slope change")["positive", "per unit"].estimate.mean == pytest.approx(
        0.15, abs=0.01
    )
    assert all(e.p < 0.001 for e in change.values())


def by_hand(rows: list[Row], finetune: str, multiplier: float) -> float:
    score = {(r.cell.finetune, r.cell.multiplier, r.question): r.score for r in rows}
    questions = sorted({r.question for r in rows})
    changes = [
        (score[finetune, multiplier, q] - score[finetune, 0, q]) - (score[None, multiplier, q] - score[None, 0, q])
        for q in questions
    ]
    return sum(changes) / len(changes)


def test_the_interaction_is_the_difference_of_differences():
    rows = grid({None: 0.1, "positive": -0.05}, seed=3)
    change = entries(interactions(scores_by_cell(rows)), "effect change")
    for multiplier in (-1.0, 1.0):
        assert change["positive", multiplier].estimate.mean == pytest.approx(by_hand(rows, "positive", multiplier))


def test_no_interaction_is_reported_where_both_only_add_up():
    [table] = finetune_tables([r for s in range(8) for r in grid({None: 0.1, "positive": 0.1}, s, behavior=f"b{s}")])
    steering, interaction = table.below
    assert all(entry.mark == "sure" for entry in steering.entries if entry.p is not None)
    assert sum(entry.mark == "sure" for entry in interaction.entries) <= 1, "24 tests of nothing, corrected"


def test_p_values_are_corrected_over_their_table():
    rows = grid({None: 0.1, "positive": 0.102}, behavior="a") + grid({None: 0.1, "positive": 0.1}, 1, behavior="b")
    raw = {(e.cell, e.quantity): e.p for e in interactions(scores_by_cell(rows))}
    shown = {(e.cell, e.quantity): e.p for e in finetune_tables(rows)[0].below[1].entries}
    assert shown.keys() == raw.keys()
    found = [shown[key] for key in raw]
    assert found == pytest.approx(stats.false_discovery_control(list(raw.values())))
    assert found != pytest.approx(list(raw.values())), "there was nothing to correct"


def test_a_random_direction_stays_inside_its_interval_and_a_shuffled_one_too():
    """A direction that means nothing pushes each question its own way: 0 lies in about 95 % of the intervals."""
    rows, rng = grid({None: 0.1}), np.random.default_rng(4)
    for seed in range(60):
        pushes = rng.normal(0, 0.1, 40)
        cell = Cell("refusal", "ab", None, 13, 1.0, vector=VectorRef("random" if seed % 2 else "other", str(seed)))
        rows += [Row(cell, f"q{i}", r.score + pushes[i]) for i, r in enumerate(noisy(None, 0, 0, 0))]
    found = [e for e in steering_effects(scores_by_cell(rows)) if e.quantity == "effect" and e.cell.vector != OWN]
    inside = [e.estimate.low <= 0 <= e.estimate.high for e in found]
    assert len(inside) == 60
    assert 51 <= sum(inside) <= 59


@pytest.mark.parametrize("flipped", [0, 6, 20])
def test_questions_whose_sign_is_flipped_are_the_wrong_way_share(flipped):
    rows = grid({None: 0.2})
    at_zero = {row.question: row.score for row in rows if not row.cell.multiplier}

    def flip(row: Row) -> Row:
        inside = int(row.question[1:]) < flipped
        return replace(row, score=2 * at_zero[row.question] - row.score) if inside else row

    scores = scores_by_cell(map(flip, rows))
    share = entries(steering_effects(scores), "wrong way")[None, "wrong way"]
    assert share.estimate.mean == flipped / 40
    assert share.text == f"{flipped / 40:.0%}"
    [table] = finetune_tables(map(flip, rows))
    assert [entry.text for entry in table.below[0].entries][-1] == share.text


def test_what_the_judge_could_not_tell_is_left_out_of_each_comparison_and_counted():
    rows = [replace(r, score=None) if r.question == "q0" and not r.cell.multiplier else r for r in grid(BASE)]
    found = [*steering_effects(scores_by_cell(rows)), *interactions(scores_by_cell(rows))]
    assert {(e.estimate.n, e.estimate.unjudged) for e in found} == {(39, 1)}


def test_without_multiplier_0_there_are_slopes_and_without_finetunes_no_interaction():
    rows = [row for row in grid({None: 0.1}) if row.cell.multiplier]
    [steering] = finetune_tables(rows)[0].below
    assert [column for _, column in steering.columns] == ["per unit", "wrong way"]
    assert not finetune_tables([r for r in grid({None: 0.1}) if not r.cell.multiplier])[0].below


def test_cells_that_were_asked_other_questions_are_not_compared():
    rows = [replace(row, question=f"{row.cell.multiplier}{row.question}") for row in grid({None: 0.1})]
    assert not finetune_tables(rows)[0].below


def test_controls_compare_to_the_unsteered_model_and_share_a_line():
    rows = grid({None: 0.1})
    for seed in (0, 1):
        rows += [
            r for m in (-1, 1) for r in noisy(None, m, 0.05 * seed, seed + 7, vector=VectorRef("random", str(seed)))
        ]
    steering = finetune_tables(rows)[0].below[0]
    assert [line.name for line in steering.lines] == ["refusal", "random x2"]
    control = steering.lines[1].entries
    assert [entry.column for entry in control] == [-1.0, 1.0, "per unit", "wrong way"]
    assert control[2].estimate.mean == pytest.approx(0.025, abs=0.01)
    assert control[2].p is None, "a range over two seeds is no test"


@pytest.fixture(scope="module")
def small():
    """Eight questions that move alike, so that every number can be said by heart."""
    scores = {(None, 0): 0.5, (None, 1): 0.6, ("negative", 0): 0.3, ("negative", 1): 0.25}
    cells = {Cell("refusal", "ab", f, 13, float(m)): score for (f, m), score in scores.items()}
    [table] = finetune_tables([Row(cell, f"q{i}", score) for cell, score in cells.items() for i in range(8)])
    return table


def test_markdown_to_the_letter(small):
    lines = to_markdown(small).splitlines()
    start = lines.index("#### What steering does: change from multiplier 0, question by question")
    assert [line for line in lines[start:] if line.startswith("| ")] == [
        "| behavior | none +1 | none per unit | none wrong way "
        "| negative +1 | negative per unit | negative wrong way |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
        "| refusal | **+0.10** ±.00 | **+0.10** ±.00 | 0% ±0% | **-0.05** ±.00 | **-0.05** ±.00 | 100% ±0% |",
        "| behavior | negative +1 | negative per unit |",
        "| --- | ---: | ---: |",
        "| refusal | **-0.15** ±.00 | **-0.15** ±.00 |",
    ]
    bold = "- **bold**: differs from 0, also after correction over the {} tests of this table"
    assert sum(line.startswith((bold.format(4), bold.format(2))) for line in lines) == 2


def test_latex_to_the_letter(small):
    below = to_latex(small).split(r"\begin{table*}")[2].splitlines()
    assert below[3:9] == [
        r" & \multicolumn{3}{c}{none} & \multicolumn{3}{c}{negative} \\",
        r"\cmidrule(lr){2-4}\cmidrule(lr){5-7}",
        r"behavior & $+1$ & per unit & wrong way & $+1$ & per unit & wrong way \\",
        r"\midrule",
        r"refusal & \textbf{+0.10} & \textbf{+0.10} & 0\% & \textbf{$-$0.05} & \textbf{$-$0.05} & 100\% \\",
        r" & {\scriptsize $\pm$.00} & {\scriptsize $\pm$.00} & {\scriptsize $\pm$0\%} & {\scriptsize $\pm$.00} "
        r"& {\scriptsize $\pm$.00} & {\scriptsize $\pm$0\%} \\",
    ]


def test_terminal_shows_the_tables_below_and_fits(small):
    console = Console(width=80, file=io.StringIO())
    console.print(to_terminal(small))
    text = console.file.getvalue()
    assert max(map(len, text.splitlines())) <= 80
    order = [text.index(part) for part in ("0.25▼", "What steering does", "+0.10*", "Interaction:", "-0.15*")]
    assert order == sorted(order)


def test_csv_holds_all_three_kinds_of_numbers(small):
    lines = list(csv.DictReader(io.StringIO(to_csv(small))))
    kinds = [(line["quantity"], line["finetune"], line["multiplier"], line["mean"]) for line in lines]
    assert ("effect", "negative", "1.0", "-0.05") in kinds
    assert ("slope", "none", "", "0.1") in kinds
    assert ("wrong way", "negative", "", "1.0") in kinds
    assert ("effect change", "negative", "1.0", "-0.15") in kinds
    assert {line["p"] for line in lines if line["quantity"] == "effect"} == {"0.0078125"}, "2 of 2 ** 8 patterns"


def test_a_matrix_has_vectors_down_and_behaviors_across():
    rows = grid({None: 0.2}, behavior="a") + grid({None: 0.1}, behavior="b")
    rows += [r for m in (-1, 1) for r in noisy(None, m, -0.15, 5, behavior="a", vector=VectorRef("other", "b"))]
    rows += [r for m in (-1, 1) for r in noisy(None, m, 0.3, 6, behavior="a", vector=VectorRef("random", "0"))]
    matrix = effect_matrix(rows)
    assert list(matrix.index) == list(matrix.columns) == ["a", "b"]
    assert matrix.round(1).to_numpy()[:, 0].tolist() == [0.2, pytest.approx(-0.15, abs=0.06)]
    assert matrix.loc["b", "b"] == pytest.approx(0.1, abs=0.01)
    assert np.isnan(matrix.loc["a", "b"]), "not asked"
    with pytest.raises(ValueError, match="of one task"):
        effect_matrix(rows + grid({"positive": 0.1}))
