"""The contract between measuring and reporting: cells, rows, and a jsonl file that survives a killed job. No torch."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from caa.data.behaviors import letter
from caa.files import append_lines

TASKS = ("ab", "open", "facts")
"""What a grid asks: see `Cell.task`."""


@dataclass(frozen=True, order=True)
class Cell:
    """One setting under which questions are asked: one entry of a finetune x multiplier table."""

    behavior: str
    task: str
    """"ab" (letter probabilities), "open" (judged text) or "facts" (two-option knowledge)."""
    finetune: str = "none"
    """"none", "positive", "negative", or the name of any adapter."""
    layer: int = 0
    """The block whose output is steered, counted from 0."""
    multiplier: float = 0.0
    system_prompt: str = ""
    """"", "positive" or "negative"."""
    vector: str = "caa"
    """Which direction is added: "caa" (the behavior's own), or a control such as "random-0"."""


@dataclass(frozen=True)
class Row:
    """One question asked in one cell."""

    cell: Cell
    question: str
    """`Question.id`."""
    score: float | None
    """In [0, 1] for "ab" and "facts", in [0, 10] for "open"; None where the judge could not tell."""
    evidence: dict[str, Any] = field(default_factory=dict)
    """Everything needed to recompute the score: `choice_evidence`, or the text and what was said of it."""

    @property
    def key(self) -> tuple[Cell, str]:
        return self.cell, self.question

    def to_json(self) -> str:
        return json.dumps({**asdict(self.cell), "question": self.question, "score": self.score, **self.evidence})

    @classmethod
    def from_json(cls, line: str | bytes) -> Row:
        record = json.loads(line)
        cell = Cell(**{name: record.pop(name) for name in Cell.__dataclass_fields__})
        return cls(cell, record.pop("question"), record.pop("score"), record)


def choice_evidence(p_matching: float, p_opposite: float, matching: str | None, category: str = "") -> dict[str, Any]:
    """What the row of a two-answer question keeps: both probabilities; the matching letter and the category, if any.

    >>> choice_evidence(0.7, 0.2, "(A)", "true claim")
    {'p_matching': 0.7, 'p_opposite': 0.2, 'matching': 'A', 'category': 'true claim'}
    >>> choice_evidence(0.7, 0.2, "Yes, gladly")
    {'p_matching': 0.7, 'p_opposite': 0.2}
    """
    known = {"matching": letter(matching or ""), "category": category}
    return {"p_matching": p_matching, "p_opposite": p_opposite} | {
        name: value for name, value in known.items() if value
    }


def read_rows(path: str | Path) -> list[Row]:
    """All rows of a file, one for each question in each cell; none if there is no file.

    Of several with one key, as jobs leave behind that did not know of each other, the first counts: such a file only
    grows, and what was read of it once stays true.

    A last line without its newline is what a killed job leaves behind: it is left out here and cut off by the next
    `append_rows`. A broken line anywhere else is an error, for then something else has happened to the file.
    """
    if not Path(path).exists():
        return []
    whole, _, _torn = Path(path).read_bytes().rpartition(b"\n")
    rows: dict[tuple[Cell, str], Row] = {}
    for row in _parse(path, whole.split(b"\n") if whole else ()):
        rows.setdefault(row.key, row)
    return list(rows.values())


def _parse(path: str | Path, lines: Iterable[bytes]) -> Iterator[Row]:
    for number, line in enumerate(lines, start=1):
        try:
            yield Row.from_json(line)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{path}, line {number} is not a row ({error}): {line[:80]!r}. "
                "Delete that line and run the job again: it asks only what is missing."
            ) from error


def append_rows(path: str | Path, rows: Iterable[Row]) -> int:
    """Append rows, on the disk when this returns, so that a job killed right afterwards loses nothing; how many."""
    return append_lines(path, [row.to_json() for row in rows])
