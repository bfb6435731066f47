"""A planted effect carried through the whole pipe, from model to table: its sign is right, and chance is not found."""

from __future__ import annotations

import pytest
from tiny import tiny_model, tiny_tokenizer

from caa import Behavior, EvalGrid, Question, SteeringVector, SteeringWrapper
from caa.reports.tables import finetune_tables
from caa.runs.rows import read_rows
from caa.vectors.vector import Provenance

FLIPPED, ASKED = 6, 24


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Steered along lm_head[A] - lm_head[B] behind the last block; the matching answer of 6 in 24 questions is (B)."""
    model, tokenizer, out = tiny_model(), tiny_tokenizer(), tmp_path_factory.mktemp("planted")
    a, b = (model.lm_head.weight[tokenizer.convert_tokens_to_ids(name)].detach().float() for name in "AB")
    vector = SteeringVector({3: a - b}, Provenance(behavior="letters"))
    questions = [Question(f"Case {i}?", *(("(B)", "(A)") if i < FLIPPED else ("(A)", "(B)"))) for i in range(ASKED)]
    grid = EvalGrid(Behavior("letters", ab_questions=tuple(questions)), vector, [3], tasks=("ab",), random_controls=8)
    grid.run(SteeringWrapper(model), tokenizer, out, progress=False)
    [table] = finetune_tables(read_rows(out / "rows.jsonl"))
    return table


def entry(table, line: int, column: float | str):
    return next(e for e in table.below[0].lines[line].entries if e.column == column)


def test_the_planted_effect_has_the_right_sign_and_is_sure(table):
    down, up, slope = (entry(table, 0, column) for column in (-1.0, 1.0, "per unit"))
    assert down.estimate.high < 0 < up.estimate.low
    assert slope.estimate.low > 0
    assert {down.mark, up.mark, slope.mark} == {"sure"}


def test_the_flipped_questions_are_the_ones_that_move_the_wrong_way(table):
    assert entry(table, 0, "wrong way").estimate.mean == FLIPPED / ASKED


def test_random_directions_go_either_way(table):
    """Eight of them together: the range of their effects holds 0, and none comes near the planted one."""
    assert table.below[0].lines[1].name == "random x8"
    for column in (-1.0, 1.0, "per unit"):
        chance, planted = entry(table, 1, column).estimate, entry(table, 0, column).estimate
        assert chance.low < 0 < chance.high
        assert max(abs(chance.low), abs(chance.high)) < abs(planted.mean)
