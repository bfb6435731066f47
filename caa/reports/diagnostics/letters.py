"""Rows of A/B questions in, warnings out of scores that a liking for a letter may have made."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from statistics import fmean

from caa.reports.naming import cell_name
from caa.runs.rows import Cell, Row

BALANCED = (0.4, 0.6)
"""Share of a behavior's questions that (A) matches. Outside, a model that says one letter to everything is scored more
than 0.1 off 0.5: as much as chance alone gives 1 in 20 models over 100 questions."""
EVEN = (0.2, 0.8)
"""Mean P(A) of a cell. At 0.8 its score cannot leave 0.3 to 0.7, whatever the behavior: the mean of two numbers in
[0, 1], P(A) after either kind of question, is P(A), and half their difference is what the score is off 0.5."""

MOVED = 0.1
"""Of mean P(A), from that of the plain model: more is told where the score moves less than that."""

_Questions = tuple[str, str]
"""(behavior, task)."""


def matching_shares(rows: Iterable[Row]) -> dict[_Questions, float]:
    """(behavior, task) -> share of its questions that (A) matches, of those whose rows say A or B."""
    letters: dict[_Questions, dict[str, str]] = {}
    for row in rows:
        if letter := _matching_letter(row):
            letters.setdefault((row.cell.behavior, row.cell.task), {})[row.question] = letter
    return {
        questions: fmean(letter == "A" for letter in by_question.values()) for questions, by_question in letters.items()
    }


def uneven_letters(rows: Iterable[Row]) -> dict[tuple[str, str], str]:
    """(behavior, question) -> matching letter, of the behaviors that one letter matches more often than the other.

    Only of those with questions of both letters, and with a letter for every question.
    """
    letters: dict[str, dict[str, str]] = {}
    for row in rows:
        letters.setdefault(row.cell.behavior, {})[row.question] = _matching_letter(row)
    uneven: dict[tuple[str, str], str] = {}
    for behavior, by_question in letters.items():
        counts = Counter(by_question.values())
        if counts.keys() == {"A", "B"} and counts["A"] != counts["B"]:
            uneven |= {(behavior, question): letter for question, letter in by_question.items()}
    return uneven


def balanced_means(rows: Iterable[Row]) -> dict[Cell, float]:
    """Cell -> the mean of its mean scores over the questions that (A) matches and those that (B) matches.

    Cells that lack one of the two kinds are left out.
    """
    return {cell: (a + b) / 2 for cell, (a, b) in _means_by_letter(rows).items()}


def letter_means(rows: Iterable[Row]) -> dict[Cell, float]:
    """Cell -> mean P(A) / (P(A) + P(B)), questions that (A) matches weighing as much as those that (B) does.

    So weighed, a model that knows every answer and likes no letter is at 0.5. Cells that lack one of the two kinds are
    left out.

    >>> says = lambda letter, score: Row(Cell("b", "ab"), letter, score, {"matching": letter})
    >>> letter_means([says("A", 1.0), says("B", 0.5)])[Cell("b", "ab")]
    0.75
    """
    return {cell: (a + 1 - b) / 2 for cell, (a, b) in _means_by_letter(rows).items()}


def _means_by_letter(rows: Iterable[Row]) -> dict[Cell, tuple[float, float]]:
    """Cell -> mean score of the questions that (A) matches and of those that (B) matches."""
    scores: dict[Cell, dict[str, list[float]]] = {}
    for row in rows:
        letter = _matching_letter(row)
        if letter and row.score is not None:
            scores.setdefault(row.cell, {}).setdefault(letter, []).append(row.score)
    both = {cell: by_letter for cell, by_letter in scores.items() if len(by_letter) == 2}
    return {cell: (fmean(by_letter["A"]), fmean(by_letter["B"])) for cell, by_letter in both.items()}


def _matching_letter(row: Row) -> str:
    """A or B; empty for a row that does not say, or says another letter."""
    letter = row.evidence.get("matching")
    return str(letter) if letter in ("A", "B") else ""


def letter_warnings(rows: Sequence[Row]) -> list[str]:
    """One readable line for each behavior whose questions, or whose cells, lean to one letter."""
    lines = [
        f"{behavior} ({task}): (A) is the matching answer of {share:.0%} of the questions. A liking for a letter moves "
        "these scores as the behavior does."
        for (behavior, task), share in matching_shares(rows).items()
        if not BALANCED[0] <= share <= BALANCED[1]
    ]
    means: dict[_Questions, dict[Cell, float]] = {}
    for cell, mean in letter_means(rows).items():
        means.setdefault((cell.behavior, cell.task), {})[cell] = mean
    balanced = balanced_means(rows)
    for (behavior, task), by_cell in means.items():
        lines += [*_one_sided(behavior, task, by_cell), *_moved(behavior, task, by_cell, balanced)]
    return lines


def _one_sided(behavior: str, task: str, means: Mapping[Cell, float]) -> list[str]:
    outside = {cell: mean for cell, mean in means.items() if not EVEN[0] <= mean <= EVEN[1]}
    if not outside:
        return []
    farthest = max(outside, key=lambda cell: abs(outside[cell] - 0.5))
    return [
        f"{behavior} ({task}): in {len(outside)} of {len(means)} cells the model prefers one letter whichever matches; "
        f"mean P(A) is {outside[farthest]:.2f} in {cell_name(farthest)}. Such a score says more about letters than "
        "about the behavior."
    ]


def _moved(behavior: str, task: str, means: Mapping[Cell, float], scores: Mapping[Cell, float]) -> list[str]:
    """One line if steering or a finetune moves the letter more than the behavior."""
    moves: dict[Cell, tuple[float, float]] = {}
    for cell, mean in means.items():
        plain = replace(cell.baseline(), finetune=None)
        if plain in means and abs(mean - means[plain]) > max(MOVED, abs(scores[cell] - scores[plain])):
            moves[cell] = mean - means[plain], scores[cell] - scores[plain]
    if not moves:
        return []
    farthest = max(moves, key=lambda cell: abs(moves[cell][0]))
    letter, score = moves[farthest]
    return [
        f"{behavior} ({task}): in {len(moves)} of {len(means)} cells the letter moves more than the behavior; mean "
        f"P(A) by {letter:+.2f} and the letter-balanced score by {score:+.2f} in {cell_name(farthest)}."
    ]


def letter_facts(rows: Sequence[Row]) -> str:
    """How often (A) matches, and the plain model's liking for it; empty if no row says its letter."""
    shares = matching_shares(rows).values()
    plain = [mean for cell, mean in letter_means(rows).items() if _is_plain(cell)]
    liking = f"; the plain model's mean P(A) is {_span(plain, '.2f')}" if plain else ""
    return f"(A) is the matching answer of {_span(shares, '.0%')} of a behavior's questions{liking}" if shares else ""


def _is_plain(cell: Cell) -> bool:
    return cell.finetune is None and not cell.multiplier and not cell.system_prompt


def _span(values: Iterable[float], form: str) -> str:
    """
    >>> _span([0.5, 0.25], ".0%"), _span([0.5], ".2f")
    ('25% to 50%', '0.50')
    """
    ends = dict.fromkeys(format(end(values), form) for end in (min, max))
    return " to ".join(ends)
