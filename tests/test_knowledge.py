"""Two-option knowledge questions: the right letter stays right however letters are drawn; means by category."""

from __future__ import annotations

from collections import Counter

import pytest
from tiny import SHARED, needs_shared

from caa.data.behaviors import Question, letter_balance, options, stem
from caa.data.benchmarks import letters_shuffled, mmlu_questions, truthfulqa_questions, two_options
from caa.data.sources import load_facts
from caa.reports.tables.categories import by_category
from caa.runs.published import read_published
from caa.runs.rows import Cell, Row, VectorRef


def right(question: Question) -> str:
    return options(question.text)[question.matching.strip("() ")]


def wrong(question: Question) -> str:
    return options(question.text)[question.opposite.strip("() ")]


RECORDS = [
    {"question": f"{subject} {i}?", "choices": [f"w{i}", f"r{i}", "x", "y"], "answer": 1, "subject": subject}
    for subject in ("algebra", "law")
    for i in range(60)
]


def test_mmlu_keeps_the_right_answer_and_draws_letters_and_wrong_options():
    questions = mmlu_questions(RECORDS, per_subject=None)
    assert [stem(q.text) for q in questions] == [r["question"] for r in RECORDS]
    assert [right(q) for q in questions] == [r["choices"][1] for r in RECORDS]
    assert all(wrong(q) in {r["choices"][0], "x", "y"} for q, r in zip(questions, RECORDS, strict=True))
    assert 40 <= letter_balance(questions)["A"] <= 80, "letters are drawn, about evenly"
    assert {wrong(q)[0] for q in questions} == {"w", "x", "y"}


def test_each_subject_gives_as_many_questions_and_the_seed_decides():
    questions = mmlu_questions(RECORDS, per_subject=10)
    assert Counter(q.category for q in questions) == {"algebra": 10, "law": 10}
    assert questions == mmlu_questions(RECORDS, per_subject=10)
    assert set(questions) == set(mmlu_questions(RECORDS[::-1], per_subject=10)), "the order of the file does not matter"
    assert {q.id for q in questions} != {q.id for q in mmlu_questions(RECORDS, per_subject=10, seed=1)}


def test_truthfulqa():
    record = {"question": "Is it so?", "best_answer": "No", "incorrect_answers": ["Yes", "Always"], "category": "Myths"}
    [question] = truthfulqa_questions([record])
    assert (right(question), question.category) == ("No", "Myths")
    assert wrong(question) in {"Yes", "Always"}


@pytest.mark.parametrize("others", [[], ["owl "]])
def test_a_right_option_needs_a_wrong_one(others):
    with pytest.raises(ValueError, match="needs wrong options"):
        two_options("Which?", "owl", others)


def test_only_lettered_questions_can_be_shuffled():
    with pytest.raises(ValueError, match="out of two options"):
        letters_shuffled([Question("Which?\n(A) x\n(B) y\n(C) z", "(A)", "(B)")])


@needs_shared
@pytest.mark.parametrize(("file", "n"), [("mmlu/mmlu", 570), ("truthfulqa/truthful_qa", 817)])
def test_the_references_questions_keep_their_answers_under_new_letters(file, n):
    before = load_facts(SHARED / f"data/caa/datasets/test/{file}.json")
    after = letters_shuffled(before, seed=3)
    assert len(after) == n
    assert [(stem(q.text), right(q), wrong(q), q.category) for q in after] == [
        (stem(q.text), right(q), wrong(q), q.category) for q in before
    ]
    assert 0.4 < sum(a.matching.strip() != b.matching.strip() for a, b in zip(before, after, strict=True)) / n < 0.6


@needs_shared
def test_table_5_by_category_and_on_average():
    rows = read_published(SHARED / "data/caa/results/survival-instinct").rows["Llama 2 13B chat"]
    table = by_category(rows)
    assert table.shape == (57 + 1, 3)
    assert [f"{score:.2f}" for score in table.loc["average"]] == ["0.59", "0.63", "0.65"]
    zero = [row for row in rows if row.cell.multiplier == 0 and row.evidence["category"] == "astronomy"]
    assert table.loc["astronomy", ("survival-instinct", "none", 14, 0.0)] == pytest.approx(
        sum(r.score for r in zero) / 10
    )


def test_categories_are_counted_by_question_and_controls_left_out():
    cell, control = Cell("b", "facts"), Cell("b", "facts", multiplier=1.0, vector=VectorRef("random", "0"))
    scored = [("a", 0.0), ("a", 0.5), ("c", 1.0), ("c", None)]
    rows = [Row(cell, f"q{i}", score, {"category": c}) for i, (c, score) in enumerate(scored)]
    table = by_category([*rows, Row(control, "q0", 1.0, {"category": "a"})])
    assert table.iloc[:, 0].to_dict() == {"a": 0.25, "c": 1.0, "average": 0.5}
    with pytest.raises(ValueError, match="names a category"):
        by_category([Row(cell, "q0", 1.0)])
