"""The nouns of a printed table: entries, lines, a table. Numbers in, short texts out; no format is known here."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Literal

from caa.reports.naming import setting_name, signed
from caa.reports.statistics import Estimate
from caa.runs.rows import Cell

Mark = Literal["", "highest", "lowest", "sure"]
"""Highest and lowest of a line of scores; or, of differences, sure to differ from 0."""
Quantity = Literal[
    "score", "effect", "slope", "wrong way", "effect change", "slope change", "perplexity", "loops", "divergence"
]
"""A mean score; steering's effect (change from multiplier 0), the slope over multipliers, the share of questions that
move the wrong way; how much a finetune changes effect and slope; and the damage: how much answers surprise the
unsteered model, the share of them that loop, how far the next token moves."""
SHARES: Collection[Quantity] = ("wrong way", "loops")
SIGNED: Collection[Quantity] = ("effect", "slope", "effect change", "slope change")
Stub = Literal["behavior", "layer", "finetune"]
"""What the lines of a table are."""
Column = tuple[str, float | str]
"""(finetune, multiplier), (finetune, named setting), or (finetune, "per 0.3") for what is about all multipliers. Of a
turned table the behavior stands in the finetune's place."""

MISSING = "-"
"""What stands where nothing was measured."""


@dataclass(frozen=True)
class Headline:
    """What happened to one behavior, or to all of a table on average, in one sentence."""

    behavior: str
    """Empty for the sentence over all behaviors."""
    text: str
    doubtful: bool = False
    """Whether a random direction moves a score as much as the vector does, in a cell that the sentence names."""


@dataclass(frozen=True)
class Entry:
    """One number of a table, with where it came from."""

    cell: Cell
    estimate: Estimate
    mark: Mark = ""
    quantity: Quantity = "score"
    p: float | None = None
    """How likely so large a difference is by chance, corrected over its table; None for what is no difference."""
    balanced: bool = False
    """Whether questions that (A) matches weigh as much as those that (B) matches, however many there are of each."""
    step: float = 1.0
    """Of a slope: how much of the multiplier its printed number is for, such as the largest; `estimate` is for 1."""

    @property
    def column(self) -> float | str:
        """The multiplier, or what stands in its place above a column that is about all of them."""
        if self.quantity == "wrong way":
            return "wrong way"
        if self.quantity.startswith("slope"):
            return per_step(self.step)
        return setting_name(self.cell.setting) if self.cell.setting else self.cell.multiplier

    @property
    def text(self) -> str:
        """The mean with two decimals, differences with their sign, shares in percent; "?" if there was no score."""
        mean = self.estimate.mean * self.step
        if not self.estimate.n:
            return "?"
        if self.quantity in SHARES:
            return f"{mean:.0%}"
        rounded = round(mean, 2) or 0.0  # or 0.0: not "-0.00"
        return f"{rounded:+.2f}" if self.quantity in SIGNED and rounded else f"{rounded:.2f}"

    @property
    def spread(self) -> str:
        """Half the width of the interval, ±.05 or ±1.5; empty where there is none."""
        half = self.estimate.half_width * self.step
        if math.isnan(half):
            return ""
        if self.quantity in SHARES:
            return f"±{half:.0%}"
        return f"±{half:.1f}" if half >= 0.995 else f"±{half:.2f}".replace("0.", ".")

    @property
    def unread(self) -> str:
        """Why this number is neither marked nor ranked nor tested; empty if it may be."""
        estimate = self.estimate
        if estimate.enough_scores:
            return ""
        kind = "answers have a score" if self.quantity == "score" else "questions have scores on all sides"
        return f"{estimate.n} of {estimate.n + estimate.unjudged} {kind}"

    @property
    def unjudged(self) -> str:
        """How many answers the judge could not tell, in percent; empty for none. Never rounded to 0."""
        share = self.estimate.share_unjudged
        return f"{max(1, round(100 * share))}%?" if share else ""


def per_step(step: float) -> str:
    """The heading of slopes.

    >>> per_step(1.0), per_step(0.3)
    ('per unit', 'per 0.3')
    """
    return "per unit" if step == 1 else f"per {step:g}"


@dataclass(frozen=True)
class Line:
    """One row of a table: a behavior, a control below it, or a layer."""

    name: str
    entries: tuple[Entry | None, ...]
    """One for each column of the table, None where nothing was measured."""
    control: bool = False
    """Whether this line belongs to the one above it."""


@dataclass(frozen=True)
class Table:
    """A finetune x multiplier table, ready to be written in any format."""

    title: str
    stub: Stub
    """What the lines are."""
    columns: tuple[Column, ...]
    """Columns of one finetune stand together."""
    lines: tuple[Line, ...]
    notes: tuple[str, ...] = ()
    bold: str = ""
    """What an entry marked "sure" says; empty in a table that marks highest and lowest."""
    warnings: tuple[str, ...] = ()
    """What a reader has to know before believing these numbers."""
    compared: str = ""
    """Among the numbers of each what the highest and lowest are, if not of each line."""
    below: tuple[Table, ...] = ()
    """Tables that are printed with this one, under it: what steering does, what finetuning changes about it."""
    headlines: tuple[Headline, ...] = ()
    """What happened, in sentences; where there are several behaviors, the first is over all of them."""

    def __post_init__(self) -> None:
        for line in self.lines:
            if len(line.entries) != len(self.columns):
                raise ValueError(f"{line.name!r} has {len(line.entries)} entries for {len(self.columns)} columns")

    @property
    def groups(self) -> list[tuple[str, list[str]]]:
        """The two levels of the header: each finetune with its multipliers, as text."""
        headers: dict[str, list[str]] = {}
        for finetune, column in self.columns:
            headers.setdefault(finetune, []).append(column if isinstance(column, str) else signed(column))
        return list(headers.items())

    def only(self, finetune: str) -> Table:
        """The columns of one finetune; marks still compare all of them."""
        kept = [i for i, (name, _) in enumerate(self.columns) if name == finetune]
        lines = tuple(replace(line, entries=tuple(line.entries[i] for i in kept)) for line in self.lines)
        return replace(self, columns=tuple(self.columns[i] for i in kept), lines=lines)

    @property
    def entries(self) -> list[Entry]:
        """All entries there are, line by line, without those of the tables below."""
        return [entry for line in self.lines for entry in line.entries if entry is not None]

    @property
    def marks(self) -> str:
        """What the highest and lowest entries are the highest and lowest of."""
        return f"each {self.compared or self.stub}"

    @property
    def remarks(self) -> list[str]:
        """What stands below it, line by line: notes, then warnings."""
        return [*self.notes, *(f"Warning: {warning}" for warning in self.warnings)]


def marked(entries: tuple[Entry | None, ...]) -> tuple[Entry | None, ...]:
    """The same entries with the highest and the lowest score marked, ties too; none where their intervals overlap.

    What counts is the mean as printed: two numbers that look alike are marked alike. Entries with too few scores are
    neither marked nor compared with.
    """
    scores = [entry for entry in entries if entry and not entry.unread and entry.quantity == "score"]
    printed = {entry.text for entry in scores}
    if len(printed) < 2 or _overlap([entry.estimate for entry in scores]):
        return entries
    marks: dict[str, Mark] = {max(printed, key=float): "highest", min(printed, key=float): "lowest"}
    return tuple(entry and replace(entry, mark="" if entry.unread else marks.get(entry.text, "")) for entry in entries)


def _overlap(estimates: Collection[Estimate]) -> bool:
    """Whether the intervals of the lowest and the highest mean overlap; of a single score none is known.

    >>> _overlap([Estimate(0.5, 0.4, 0.6, 9), Estimate(0.6, 0.5, 0.7, 9)])
    True
    """
    lowest, highest = (end(estimates, key=lambda estimate: estimate.mean) for end in (min, max))
    return lowest.high > highest.low
