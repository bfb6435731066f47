"""Public knowledge benchmarks in, two-option questions out, letters drawn by a seed. Knows no model, fetches nothing.

MMLU and TruthfulQA with four options or more become questions with one right and one wrong option, as in Table 5 of the
CAA paper, so that steering's cost in knowledge is read like its effect: p(correct) / (p(A) + p(B)).
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from caa.data.behaviors import Question, letter, options, question_id, stem


def two_options(question: str, correct: str, wrong: Sequence[str], category: str = "", seed: int = 0) -> Question:
    """One right option and one of the wrong ones, drawn by the seed and the question's words, in either order.

    The same on every machine and in any order of questions. ValueError if there is no wrong option, or if one is right.

    >>> print(two_options("Which is a bird?", "owl", ["bat", "moth"], "zoology").text)
    Which is a bird?
    <BLANKLINE>
    Choices:
    (A) moth
    (B) owl
    """
    others = [option for option in wrong if option.strip() != correct.strip()]
    if len(others) < len(wrong) or not others:
        raise ValueError(f"{question[:60]!r} needs wrong options that differ from {correct!r}; it has {list(wrong)}")
    draw = random.Random(question_id(question, str(seed)))
    shown = [correct.strip(), draw.choice(others).strip()]
    draw.shuffle(shown)
    text = f"{question.strip()}\n\nChoices:\n(A) {shown[0]}\n(B) {shown[1]}"
    answers = ("(A)", "(B)") if shown[0] == correct.strip() else ("(B)", "(A)")
    return Question(text, *answers, category)


def letters_shuffled(questions: Iterable[Question], seed: int = 0) -> tuple[Question, ...]:
    """The same two-option questions with their letters drawn anew by the seed, whatever they were before.

    Ask under several seeds to tell knowledge from a liking for a letter. ValueError for a question without options A
    and B as its answers.
    """
    return tuple(_shuffled(question, seed) for question in questions)


def _shuffled(question: Question, seed: int) -> Question:
    shown, sides = options(question.text), [letter(answer) or "" for answer in question.answers]
    if sorted(sides) != ["A", "B"] or shown.keys() != {"A", "B"}:
        raise ValueError(f"this question is not answered by (A) or (B) out of two options: {question.text[:60]!r}")
    return two_options(stem(question.text), shown[sides[0]], [shown[sides[1]]], question.category, seed)


def mmlu_questions(
    records: Iterable[Mapping[str, Any]], per_subject: int | None = 10, seed: int = 0
) -> tuple[Question, ...]:
    """MMLU as the dataset "cais/mmlu" holds it: question, choices, answer (an index), subject.

    Args:
        records: rows of the dataset, e.g. `datasets.load_dataset("cais/mmlu", "all", split="test")`.
        per_subject: how many to take of every subject, the first ones by a draw of the seed; None for all.
        seed: of the drawn questions, wrong options and letters.
    """
    return _of_each_category([_from_mmlu(record, seed) for record in records], per_subject, seed)


def _from_mmlu(record: Mapping[str, Any], seed: int) -> Question:
    right = record["choices"][int(record["answer"])]
    wrong = [choice for choice in record["choices"] if choice.strip() != right.strip()]
    return two_options(record["question"], right, wrong, record["subject"], seed)


def truthfulqa_questions(
    records: Iterable[Mapping[str, Any]], per_category: int | None = None, seed: int = 0
) -> tuple[Question, ...]:
    """TruthfulQA as "truthfulqa/truthful_qa" (generation) holds it: question, best_answer, incorrect_answers, category.

    Args:
        records: rows of the dataset, e.g. `load_dataset("truthfulqa/truthful_qa", "generation", split="validation")`.
        per_category: how many to take of every category, drawn by the seed; None for all.
        seed: of the drawn questions, wrong options and letters.
    """
    questions = [
        two_options(r["question"], r["best_answer"], r["incorrect_answers"], r.get("category", ""), seed)
        for r in records
    ]
    return _of_each_category(questions, per_category, seed)


def _of_each_category(questions: Sequence[Question], limit: int | None, seed: int) -> tuple[Question, ...]:
    """The first `limit` of every category in an order that the seed draws, returned in the order given."""
    if limit is None:
        return tuple(questions)
    taken: dict[str, list[str]] = {}
    for question in sorted(questions, key=lambda q: question_id(q.id, str(seed))):
        names = taken.setdefault(question.category, [])
        names += [question.id] if len(names) < limit else []
    kept = {name for names in taken.values() for name in names}
    return tuple(question for question in questions if question.id in kept)
