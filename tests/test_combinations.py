"""What prompting, finetuning and steering do, alone and stacked, against differences by hand."""

from __future__ import annotations

import pytest

from caa.reports.tables import to_markdown
from caa.reports.tables.combinations import combination_tables
from caa.runs.rows import Cell, Row, VectorRef

EFFECTS = {"prompt": 0.1, "finetune": 0.2, "steering": 0.05}


def rows(behavior: str = "myopia", questions: int = 30) -> list[Row]:
    """Effects that add up, and one question that is always 0.01 higher than the one before."""
    found = []
    for prompt in ("", "positive", "negative"):
        for finetune in (None, "positive", "negative"):
            for multiplier in (-1.0, 0.0, 1.0):
                cell = Cell(behavior, "ab", finetune, 3, multiplier, prompt)
                sign = {"": 0, None: 0, "positive": 1, "negative": -1}
                moved = 0.1 * sign[prompt] + 0.2 * sign[finetune] + 0.05 * multiplier
                found += [Row(cell, f"q{n}", 0.4 + 0.001 * n + moved) for n in range(questions)]
    return found


@pytest.mark.parametrize(("place", "sign"), [(0, 1), (1, -1)])
def test_each_way_and_each_stack_is_compared_with_the_plain_model(place, sign):
    table = combination_tables(rows())[place]
    (line,) = table.lines
    assert table.columns[0] == ("alone", "prompt")
    for (group, name), entry in zip(table.columns, line.entries, strict=True):
        ways = name.split(" + ")
        assert group == ("alone", "two", "all")[len(ways) - 1]
        assert entry.estimate.mean == pytest.approx(sign * sum(EFFECTS[way] for way in ways))
        assert entry.mark == "sure"
    assert len(table.columns) == 7


def test_what_was_not_asked_is_empty_and_without_prompts_there_is_no_table():
    some = [row for row in rows() if not (row.cell.system_prompt and row.cell.finetune is not None)]
    (line,) = combination_tables(some)[0].lines
    names = [name for _, name in combination_tables(some)[0].columns]
    there = {name for name, entry in zip(names, line.entries, strict=True) if entry}
    assert there == {"prompt", "finetune", "steering", "prompt + steering", "finetune + steering"}
    assert not combination_tables([row for row in rows() if not row.cell.system_prompt])


def test_random_directions_are_no_steering_and_chance_is_not_marked():
    control = [Row(Cell("myopia", "ab", None, 3, 9.0, "", VectorRef("random", "0")), "q0", 0.9)]
    assert combination_tables([*rows(), *control])[0].title == combination_tables(rows())[0].title
    noise = [Row(row.cell, row.question, 0.5 + (0.1 if hash_of(row) else -0.1)) for row in rows(questions=6)]
    assert any(entry.mark == "" for table in combination_tables(noise) for entry in table.entries)


def hash_of(row: Row) -> bool:
    return sum(map(ord, f"{row.cell}{row.question}")) % 2 == 0


def test_it_is_written_like_every_table():
    assert "prompt + finetune + steering" in to_markdown(combination_tables(rows())[0])
