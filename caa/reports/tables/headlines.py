"""Rows of one table in, what happened in sentences out: what steering moves, what the finetunes, what chance does."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from caa.reports.diagnostics.controls import Rival, changes, rivals
from caa.reports.naming import finetune_name, setting_name, signed, signed_change, usual_first, vector_name
from caa.reports.statistics import Estimate, Scores, balanced_interval, mean_interval
from caa.reports.tables.layout import Headline
from caa.runs.rows import OWN, Cell, Row, scores_by_cell


def headlines(rows: Iterable[Row]) -> tuple[Headline, ...]:
    """A sentence for each behavior, and where there are several one over all of them in front.

    What steering moves at the largest multiplier of each sign, then each finetune alone and with the first of these
    ways to steer, then the random directions. In parentheses: 95 % intervals (bootstrap over questions); of several
    behaviors those of the mean of their means. Behaviors in which nothing can be compared are left out.

    Args:
        rows: of one table: one task, layer and system prompt.
    """
    scores = scores_by_cell(rows)
    steered, moved_by_chance = _strongest(scores), rivals(scores)
    named = dict.fromkeys(cell.finetune for cell in scores if cell.finetune is not None)
    finetunes = usual_first(named, ("positive", "negative"))
    behaviors = dict.fromkeys(cell.behavior for cell in scores)
    alone = [_Sentence(scores, moved_by_chance, (behavior,), steered, finetunes) for behavior in behaviors]
    sentences = [sentence for sentence in alone if sentence.clauses()]
    if len(sentences) > 1:
        everything = tuple(sentence.behaviors[0] for sentence in sentences)
        sentences.insert(0, _Sentence(scores, moved_by_chance, everything, steered, finetunes))
    return tuple(sentence.headline() for sentence in sentences)


def _strongest(scores: Iterable[Cell]) -> list[Cell]:
    """Of the base, for any behavior: steered by the largest multiplier of each sign, and by each named setting."""
    steered = [cell for cell in scores if cell.vector == OWN and cell.finetune is None and cell.multiplier]
    places = list(dict.fromkeys(replace(cell, behavior="") for cell in steered))
    by_multiplier = sorted((cell for cell in places if not cell.setting), key=lambda cell: -cell.multiplier)
    return [*by_multiplier[:1], *by_multiplier[1:][-1:], *(cell for cell in places if cell.setting)]


@dataclass(frozen=True)
class _Sentence:
    """What is said of one behavior, or of several on average."""

    scores: Mapping[Cell, Scores]
    rivals: Mapping[Cell, Rival]
    behaviors: tuple[str, ...]
    steered: Sequence[Cell]
    finetunes: Sequence[str]

    def headline(self) -> Headline:
        doubtful = any(self._rivals(cell) for cell in self.steered)
        text = "; ".join([*self.clauses(), *self._chance()])
        return Headline("" if self._several else self.behaviors[0], f"{text[0].upper()}{text[1:]}.", doubtful)

    def clauses(self) -> list[str]:
        """What moves the behavior, each with its own changes; empty if nothing can be compared."""
        causes = {"steering": list(self._steering()), **self._settings(), **self._finetuning()}
        clauses, verb = [], f" moves {self._subject}"
        for cause, changes_made in causes.items():
            if changes_made:
                clauses.append(f"{cause}{verb} by {', and by '.join(changes_made)}")
                verb = ""
        return clauses

    @property
    def _several(self) -> bool:
        return len(self.behaviors) > 1

    @property
    def _subject(self) -> str:
        """The behavior and where it stands unsteered; or how many there are."""
        if self._several:
            return f"the {len(self.behaviors)} behaviors on average"
        plain = next((cell for cell in self.scores if cell.behavior == self.behaviors[0]), None)
        base = replace(plain.baseline(), finetune=None) if plain else None
        known = [score for score in self.scores.get(base, {}).values() if score is not None] if base else []
        return f"{self.behaviors[0]} from {fmean(known):.2f}" if known else self.behaviors[0]

    def _steering(self) -> Iterator[str]:
        """Multiplier by multiplier."""
        for cell in self.steered:
            estimate = None if cell.setting else self._change(cell, cell.baseline())
            if estimate:
                yield f"{_with_interval(estimate)} at {signed(cell.multiplier)}{self._doubt(cell)}"

    def _settings(self) -> dict[str, list[str]]:
        known = {cell: self._change(cell, cell.baseline()) for cell in self.steered if cell.setting}
        return {f"the setting {setting_name(cell.setting)}": [_with_interval(e)] for cell, e in known.items() if e}

    def _finetuning(self) -> dict[str, list[str]]:
        """Each finetune alone, and together with the first way to steer."""
        base = replace(next(iter(self.scores)).baseline(), finetune=None)
        made = {}
        for finetune in self.finetunes:
            if alone := self._change(replace(base, finetune=finetune), base):
                text = _with_interval(alone)
                for cell in self.steered[:1]:
                    both = self._change(replace(cell, finetune=finetune), base)
                    by = setting_name(cell.setting) if cell.setting else signed(cell.multiplier)
                    text += f", together with {by} by {_with_interval(both)}" if both else ""
                made[f"the finetune {finetune_name(finetune)}"] = [text]
        return made

    def _change(self, cell: Cell, base: Cell) -> Estimate | None:
        """The mean of cell - base over questions, behaviors weighing alike; None unless each can be compared."""
        both = [(replace(cell, behavior=behavior), replace(base, behavior=behavior)) for behavior in self.behaviors]
        groups = [list(changes(self.scores, *places).values()) for places in both]
        if not all(groups):
            return None
        return balanced_interval(groups) if self._several else mean_interval(groups[0])

    def _rivals(self, cell: Cell) -> dict[str, Rival]:
        """Behavior -> what moves it as much."""
        cells = {behavior: replace(cell, behavior=behavior) for behavior in self.behaviors}
        return {behavior: self.rivals[cell] for behavior, cell in cells.items() if cell in self.rivals}

    def _doubt(self, cell: Cell) -> str:
        known = self._rivals(cell)
        if known and self._several:
            return f", where a random direction moves {', '.join(known)} as much"
        for rival in known.values():
            return f", not clearly more than {vector_name(rival.cell.vector)} does ({signed_change(rival.moved)})"
        return ""

    def _chance(self) -> list[str]:
        """How far random directions move the base, at the multipliers that are named; that none was asked."""
        sizes = {abs(cell.multiplier) for cell in self.steered if not cell.setting}
        moves: dict[Cell, float] = {}
        for cell in self.scores:
            if cell.vector.kind == "random" and cell.finetune is None and abs(cell.multiplier) in sizes:
                values = changes(self.scores, cell).values() if cell.behavior in self.behaviors else ()
                moves |= {cell: fmean(values)} if values else {}
        if not moves:
            return ["no random direction was asked to compare with"] if sizes else []
        count = len({cell.vector for cell in moves})
        name, verb = ("a random direction", "moves") if count == 1 else (f"{count} random directions", "move")
        ends = " to ".join(dict.fromkeys(signed_change(end(moves.values())) for end in (min, max)))
        return [f"{name} of the same length {f'{verb} single behaviors ' if self._several else ''}by {ends}"]


def _with_interval(estimate: Estimate) -> str:
    """A change and the ends of its interval, where that is known, and whether that leaves room for none.

    >>> _with_interval(Estimate(0.25, 0.2, 0.3, 9)), _with_interval(Estimate(0.02, -0.1, 0.1, 9))
    ('+0.25 (+0.20 to +0.30)', '+0.02 (-0.10 to +0.10: perhaps not at all)')
    """
    mean, low, high = (signed_change(value) for value in (estimate.mean, estimate.low, estimate.high))
    if math.isnan(estimate.low):
        return mean
    doubt = "" if low[0] == "+" or high[0] == "-" or mean == "0.00" else ": perhaps not at all"
    return f"{mean} ({low} to {high}{doubt})"
