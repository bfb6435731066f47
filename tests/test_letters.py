"""Letters: questions that lean to one, cells that answer by one, and what a score of theirs can be at most."""

from __future__ import annotations

import pytest

from caa.reports.diagnostics.letters import (
    letter_facts,
    letter_means,
    letter_warnings,
    matching_shares,
    uneven_letters,
)
from caa.reports.statistics import balanced_interval, mean_interval
from caa.reports.tables import finetune_tables, summarize, to_csv
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
    line, moved = letter_warnings([*rows, *lettered("AB", score=1.0, behavior="sure")])
    assert "b (ab): in 2 of 3 cells" in line
    assert "mean P(A) is 0.05 in b (ab), finetune none, layer 0, multiplier -1" in line
    assert "in 2 of 3 cells the letter moves more than the behavior; mean P(A) by -0.45" in moved


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


# Scores that weigh letters alike, and letters that move.


def steered(letters: str, shift: float, liking: float) -> list[Row]:
    """Steering at 1 that raises the matching answer by `shift` and (A) by `liking`, from one half each."""
    moved = [0.5 + shift + (liking if letter == "A" else -liking) for letter in letters]
    cell = Cell("b", "ab", multiplier=1.0)
    rows = [
        Row(cell, f"q{n}", score, {"matching": letters[n], "p_matching": score, "p_opposite": 1 - score})
        for n, score in enumerate(moved)
    ]
    return [*rows, *(Row(cell.baseline(), row.question, 0.5, row.evidence) for row in rows)]


def test_a_pure_letter_vector_has_a_plain_effect_and_no_balanced_one():
    [table] = finetune_tables(steered("A" * 75 + "B" * 25, shift=0.0, liking=0.3))
    plain = {entry.quantity: entry for entry in table.below[0].entries}
    assert plain["effect"].estimate.mean == pytest.approx(0.15)
    assert plain["effect"].mark == "sure"
    scores, effects = table.below[1:]
    assert scores.title == "Letter-balanced"
    assert [entry.estimate.mean for entry in scores.entries] == [pytest.approx(0.5)] * 2
    balanced = {entry.quantity: entry for entry in effects.entries}
    assert balanced["effect"].estimate.mean == pytest.approx(0)
    assert balanced["effect"].mark == ""
    assert balanced["wrong way"].estimate.mean == pytest.approx(0.5)
    assert "mean P(A) by +0.30 and the letter-balanced score by +0.00" in " ".join(table.warnings)


def test_balanced_numbers_are_those_of_as_many_questions_of_each_letter():
    """The slow definition: repeat the questions until there are as many of each letter."""
    for letters in ("AAAB", "ABBBBB"):
        [table] = finetune_tables(steered(letters, shift=0.1, liking=0.25))
        [_, effects] = table.below[1:]
        effect = next(entry for entry in effects.entries if entry.quantity == "effect")
        rows = steered(letters, shift=0.1, liking=0.25)
        weights = {letter: 1 / letters.count(letter) for letter in "AB"}
        changes = [(row.score - 0.5) * weights[row.evidence["matching"]] for row in rows if row.cell.multiplier]
        assert effect.estimate.mean == pytest.approx(sum(changes) / 2)


def test_even_letters_need_no_second_table():
    [table] = finetune_tables(steered("AABB", shift=0.1, liking=0.3))
    assert not any("Letter-balanced" in below.title for below in table.below)
    assert uneven_letters(steered("AAB", 0.1, 0.1)) == {("b", "q0"): "A", ("b", "q1"): "A", ("b", "q2"): "B"}
    assert not uneven_letters([Row(Cell("b", "ab"), "q", 0.5, {})])


def test_a_letter_that_moves_less_than_the_behavior_is_not_warned_of():
    moved = "the letter moves more than the behavior"
    assert moved not in " ".join(letter_warnings(steered("AB" * 9, shift=0.3, liking=0.15)))
    assert moved not in " ".join(letter_warnings(steered("AB" * 9, shift=0.0, liking=0.05)))
    assert moved in " ".join(letter_warnings(steered("AB" * 9, shift=0.1, liking=0.25)))


def test_balanced_intervals_cover_as_plain_ones_do():
    plain, balanced = mean_interval([0.0, 1.0] * 50), balanced_interval([[0.0, 1.0] * 25] * 2)
    assert balanced.mean == plain.mean
    assert balanced.half_width == pytest.approx(plain.half_width, rel=0.1)


def test_summaries_and_csv_say_which_numbers_are_balanced():
    rows = steered("AAAB", shift=0.0, liking=0.2)
    assert summarize(rows)["balanced"].tolist() == [pytest.approx(0.5)] * 2
    assert summarize(rows)["mean"].tolist()[0] == pytest.approx(0.6)
    lines = to_csv(*finetune_tables(rows)).splitlines()
    header = lines[0].split(",")
    flags = {
        line.split(",")[header.index("balanced")]
        for line in lines[1:]
        if not {"warning", "headline"} & {*line.split(",")}
    }
    assert flags == {"True", "False"}
    assert any("warning" in line and "the letter moves" in line for line in lines)
