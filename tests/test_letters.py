"""Letters: questions that lean to one, cells that answer by one, and what a score of theirs can be at most."""

from __future__ import annotations

import pytest

from caa.reports.diagnostics.letters import letter_facts, letter_means, letter_warnings, matching_shares
from caa.runs.rows import Cell, Row


def lettered(letters: str, p_a: float | None = None, score: float | None = None, **cell: object) -> list[Row]:
    """Questions matched by these letters, answered (A) with probability `p_a` whichever matches, or scored alike."""
    scores = [score if p_a is None else p_a if letter == "A" else 1 - p_a for letter in letters]
    named = Cell(**{"behavior": "b", "task": "ab", **cell})
    pairs = enumerate(zip(letters, scores, strict=True))
    return [Row(named, f"q{n}", score, {"matching": letter}) for n, (letter, score) in pairs]


@pytest.mark.parametrize(
    ("letters", "warned"),
    [("AABBB", False), ("AAABB", False), ("A" * 7 + "B" * 13, True), ("A" * 13 + "B" * 7, True), ("C", False)],
)
def test_lopsided_questions(letters, warned):
    lines = letter_warnings(lettered(letters, score=0.5))
    assert bool(lines) == warned
    if warned:
        assert f"b (ab): (A) is the matching answer of {letters.count('A') / 20:.0%} of the questions" in lines[0]


def test_a_question_counts_once_however_many_cells_ask_it():
    rows = [row for m in (-1.0, 0.0, 1.0) for row in lettered("AAB" if m else "AABBBB", score=0.5, multiplier=m)]
    assert matching_shares(rows) == {("b", "ab"): 2 / 6}


def test_the_liking_for_a_letter_is_not_the_share_of_the_letter():
    for letters in ("AABB", "AAAAAB"):
        for p_a in (0.1, 0.5, 0.9):
            assert letter_means(lettered(letters, p_a)) == {Cell("b", "ab"): pytest.approx(p_a)}
        knowing = letter_means(lettered(letters, score=0.9))
        assert list(knowing.values()) == [pytest.approx(0.5)], "a model that knows the answers likes no letter"


def test_cells_that_answer_by_the_letter_are_told_farthest_first():
    rows = [*lettered("AB", 0.5), *lettered("AB", 0.85, multiplier=1.0), *lettered("AB", 0.05, multiplier=-1.0)]
    [line] = letter_warnings([*rows, *lettered("AB", score=1.0, behavior="sure")])
    assert "b (ab): in 2 of 3 cells" in line
    assert "mean P(A) is 0.05 in b (ab), finetune none, layer 0, multiplier -1" in line


def test_a_biased_score_stays_near_one_half():
    """The reason for the limits of mean P(A): outside 0.2 to 0.8 no score is farther than 0.2 from 0.5."""
    for first in range(11):
        for second in range(11):
            rows = [
                Row(Cell("b", "ab"), letter, p / 10, {"matching": letter})
                for letter, p in (("A", first), ("B", second))
            ]
            [mean] = letter_means(rows).values()
            assert abs((first + second) / 20 - 0.5) <= min(mean, 1 - mean) + 1e-9


def test_facts_are_of_the_plain_model():
    rows = [*lettered("AB", 0.6), *lettered("AB", 0.9, multiplier=1.0), *lettered("AB", 0.1, finetune="positive")]
    assert letter_facts(rows).endswith("of 50% of a behavior's questions; the plain model's mean P(A) is 0.60")
    assert letter_facts([Row(Cell("b", "ab"), "q", 0.5, {"p_matching": 0.1})]) == "", "rows of older runs"
