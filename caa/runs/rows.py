"""The contract between measuring and reporting: cells, rows, and a jsonl file that survives a killed job. No torch."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import total_ordering
from pathlib import Path
from typing import Any, Literal, get_args

from caa.data.behaviors import letter
from caa.files import append_lines, read_lines
from caa.untrusted import check_fields, is_finite, parse_json

TASKS = ("ab", "open", "facts")
"""What a grid asks: see `Cell.task`."""
QUESTIONS = {"ab": "ab_questions", "open": "open_questions"}
"""Task -> the field of a `Behavior` that holds its questions; those of "facts" belong to no behavior."""


VectorKind = Literal["own", "reread", "other", "random"]


@dataclass(frozen=True, order=True)
class VectorRef:
    """Which direction a cell adds. What is built in is a kind, what a user named is a name, so neither is the other.

    ValueError for a kind that there is not, a name where the kind says all, and none where it does not.
    """

    kind: VectorKind = "own"
    """"own" (the behavior's), "reread" (the same, read again in the cell's finetune), "other" or "random"."""
    name: str = ""
    """The other vector's name, or the random direction's seed."""

    def __post_init__(self) -> None:
        if self.kind not in get_args(VectorKind):
            raise ValueError(f"there is no kind of vector {self.kind!r}; there are {', '.join(get_args(VectorKind))}")
        if (self.kind in ("other", "random")) != bool(self.name):
            needed = "no name" if self.name else "a name"
            raise ValueError(f"a vector of kind {self.kind!r} has {needed}: {self.kind!r}, {self.name!r}")


OWN = VectorRef()


@total_ordering
@dataclass(frozen=True)
class Cell:
    """One condition under which questions are asked: one entry of a finetune x multiplier table.

    Cells are ordered by their fields, the base before all finetunes.

    >>> sorted([Cell("b", "ab", "none"), Cell("b", "ab", None, multiplier=1.0), Cell("b", "ab")])[2].finetune
    'none'
    """

    behavior: str
    task: str
    """"ab" (letter probabilities), "open" (judged text) or "facts" (two-option knowledge)."""
    finetune: str | None = None
    """The name of an adapter; None for the base."""
    layer: int | None = 0
    """The block whose output is steered, counted from 0; None beside named settings, which say their own."""
    multiplier: float = 0.0
    """1 under a named setting, 0 in the unsteered model."""
    system_prompt: str = ""
    """"", "positive" or "negative"."""
    vector: VectorRef = OWN
    setting: str = ""
    """The name of a whole setting; "" for one vector at one layer, or for the unsteered model."""

    def __lt__(self, other: Cell) -> bool:
        return self._sort_key() < other._sort_key()

    def _sort_key(self) -> tuple[Any, ...]:
        finetune = (self.finetune is not None, self.finetune or "")
        layer = -1 if self.layer is None else self.layer
        place = layer, self.multiplier, self.system_prompt, self.vector, self.setting
        return (self.behavior, self.task, *finetune, *place)

    def baseline(self) -> Cell:
        """The unsteered cell that this one is compared with."""
        return replace(self, multiplier=0.0, vector=OWN, setting="")


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
        """A row as `to_json` wrote it, or as version 0.1 did, whose vectors are texts and whose base is "none".

        ValueError for a field that is missing, of another type, or beyond what it can be.
        """
        record = _checked(parse_json(line, "it"))
        *places, finetune, vector = (record.pop(name) for name in (*_PLACES, "finetune", "vector"))
        if isinstance(vector, str):
            vector, finetune = vector_of_0_1(vector), None if finetune == "none" else finetune
        else:
            vector = VectorRef(vector["kind"], vector["name"])
        setting = record.pop("setting", "")  # versions before 0.2 knew no named settings
        cell = Cell(**dict(zip(_PLACES, places, strict=True)), finetune=finetune, vector=vector, setting=setting)
        return cls(cell, record.pop("question"), record.pop("score"), record)


_PLACES = ("behavior", "task", "layer", "multiplier", "system_prompt")
_FIELDS: dict[str, tuple[type, ...]] = {
    "behavior": (str,),
    "task": (str,),
    "finetune": (str, type(None)),
    "layer": (int, type(None)),
    "multiplier": (float, int),
    "system_prompt": (str,),
    "vector": (dict, str),
    "question": (str,),
    "score": (float, int, type(None)),
}
_EVIDENCE = ("text", "asked", "reason", "matching", "category", "setting")
"""Fields that are texts, or nothing, where a row has them."""
_MOST = {"ab": 1.0, "open": 10.0, "facts": 1.0, "truthfulqa": 1.0}
"""Task -> its highest score; the lowest is 0. Those of other harnesses may have any."""
_ROUNDING = 1e-9


def _checked(record: Any) -> dict[str, Any]:
    """What a line holds, if it can be a row; one look at each field, for files have many lines."""
    if not isinstance(record, dict):
        raise ValueError(f"a row is an object with named values, this is a {type(record).__name__}")
    for name, kinds in _FIELDS.items():
        if type(record[name]) not in kinds:
            expected = " or ".join("null" if kind is type(None) else kind.__name__ for kind in kinds)
            raise ValueError(f"{name} should be {expected}, and is {str(record[name])[:60]!r}")
    for name in _EVIDENCE:
        if type(record.get(name)) not in (str, type(None)):
            raise ValueError(f"{name} should be a text, and is {str(record[name])[:60]!r}")
    if type(record["vector"]) is dict:
        check_fields(record["vector"], {"kind": str, "name": str}, "its vector")
    _check_ranges(record)
    return record


def _check_ranges(record: Mapping[str, Any]) -> None:
    score, layer, task = record["score"], record["layer"], record["task"]
    if score is not None and not is_finite(score):
        raise ValueError(f"a score is a finite number or null, this is {score}")
    if score is not None and task in _MOST and not -_ROUNDING <= score <= _MOST[task] + _ROUNDING:
        raise ValueError(f"a score of the task {task!r} is from 0 to {_MOST[task]:g}, this is {score}")
    if not is_finite(record["multiplier"]):
        raise ValueError(f"a multiplier is a finite number, this is {record['multiplier']}")
    if layer is not None and layer < 0:
        raise ValueError(f"layers are counted from 0, this is {layer}")
    if record["system_prompt"] not in ("", "positive", "negative"):
        raise ValueError(f"a system prompt is positive, negative or empty, this is {record['system_prompt'][:60]!r}")
    for name in ("p_matching", "p_opposite"):
        if name in record and not (is_finite(record[name]) and 0 <= record[name] <= 1.001):
            raise ValueError(f"{name} is a probability, this is {str(record[name])[:60]}")


def vector_of_0_1(name: str) -> VectorRef:
    """What a vector's name meant in rows of version 0.1.

    >>> vector_of_0_1("caa"), vector_of_0_1("random-3")
    (VectorRef(kind='own', name=''), VectorRef(kind='random', name='3'))
    """
    if name in ("caa", "own"):
        return VectorRef("own" if name == "caa" else "reread")
    if random := re.fullmatch(r"random-(\d+)", name):
        return VectorRef("random", random[1])
    return VectorRef("other", name)


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


def read_rows(path: str | Path, check: Callable[[Row], None] = lambda row: None) -> list[Row]:
    """All rows of a file, one for each question in each cell; none if there is no file.

    Of several with one key, as jobs leave behind that did not know of each other, the first counts: such a file only
    grows, and what was read of it once stays true.

    A last line that a killed job left without its newline is left out; ValueError, with its number, for a broken line
    anywhere else, and for one of which `check` raises it.
    """

    def checked(line: bytes) -> Row:
        row = Row.from_json(line)
        check(row)
        return row

    rows: dict[tuple[Cell, str], Row] = {}
    for row in read_lines(path, checked, "a row"):
        rows.setdefault(row.key, row)
    return list(rows.values())


def append_rows(path: str | Path, rows: Iterable[Row]) -> int:
    """Append rows, on the disk when this returns, so that a job killed right afterwards loses nothing; how many."""
    return append_lines(path, [row.to_json() for row in rows])


# By cell.

TEXT = "text"
"""Where a row's evidence keeps the model's answer. Rows of A/B questions and of facts have none."""


def scores_by_cell(rows: Iterable[Row]) -> dict[Cell, dict[str, float | None]]:
    """Cell -> question -> score, in order of appearance."""
    scores: dict[Cell, dict[str, float | None]] = {}
    for row in rows:
        scores.setdefault(row.cell, {})[row.question] = row.score
    return scores


def coverage_by_behavior(rows: Iterable[Row]) -> dict[str, float]:
    """Behavior -> the share of its rows that have a score, in [0, 1]."""
    scored: dict[str, list[bool]] = {}
    for row in rows:
        scored.setdefault(row.cell.behavior, []).append(row.score is not None)
    return {behavior: sum(flags) / len(flags) for behavior, flags in scored.items()}


def texts_by_cell(rows: Iterable[Row]) -> dict[Cell, list[str]]:
    """Cell -> the answers written in it; cells without any are left out."""
    texts: dict[Cell, list[str]] = {}
    for row in rows:
        if TEXT in row.evidence:
            texts.setdefault(row.cell, []).append(str(row.evidence[TEXT]))
    return texts


def require_rows(rows: Iterable[Row]) -> list[Row]:
    """The rows as a list; ValueError if there are none."""
    listed = list(rows)
    if not listed:
        raise ValueError("there are no rows to make a table of. Run the grid first: it writes them to rows.jsonl.")
    return listed


def require_one(rows: Iterable[Row], field: str) -> None:
    """ValueError if the rows' cells differ in this field."""
    values = sorted({str(getattr(row.cell, field)) for row in rows})
    if len(values) > 1:
        raise ValueError(
            f"this needs the rows of one {field}, these are of {', '.join(map(repr, values))}: select first"
        )
