"""The published rows of Rimsky et al. (2024) in, its Tables 4 and 5 by name out, and their interactions."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace

from caa.reports.tables.finetune import finetune_tables
from caa.reports.tables.layout import Table
from caa.runs.rows import Row


@dataclass(frozen=True)
class Place:
    """Where a table of the paper stands among all that was published."""

    model: str
    task: str
    layer: int

    def rows(self, rows: Mapping[str, list[Row]]) -> list[Row]:
        return [
            row
            for row in rows.get(self.model, ())
            if (row.cell.task, row.cell.layer, row.cell.system_prompt) == (self.task, self.layer, "")
            and row.cell.vector.kind == "own"
        ]


PAPER = {"4": Place("Llama 2 7B chat", "open", 13), "5": Place("Llama 2 13B chat", "facts", 14)}
"""Number of the table -> finetunes against steering by open answers; MMLU under steering."""
LETTERS = Place("Llama 2 7B chat", "ab", 13)
"""What the finetunes and vectors of Table 4 do to A/B questions, which the paper has no table of."""


def paper_tables(rows: Mapping[str, list[Row]], numbers: Iterable[str]) -> dict[str, list[Table]]:
    """Model -> these tables of the paper, each named by its number.

    ValueError for one whose results are not among the rows.
    """
    made: dict[str, list[Table]] = {}
    for number in numbers:
        place = PAPER[number]
        chosen = place.rows(rows)
        if not chosen:
            raise ValueError(
                f"Table {number} is of {place.model}, {place.task}, layer {place.layer}, and no result file here says "
                "that; give the folder of all results, or --table all"
            )
        [table] = finetune_tables(chosen, model=place.model)
        made.setdefault(place.model, []).append(replace(table, title=f"Table {number}. {table.title}"))
    return made


def all_tables(rows: Mapping[str, list[Row]], layers: Collection[int] | None = None) -> dict[str, list[Table]]:
    """Model -> every table of its rows. ValueError for a layer that no row is of."""
    known = {row.cell.layer for of_model in rows.values() for row in of_model if row.cell.layer is not None}
    if unknown := sorted(set(layers or ()) - known):
        raise ValueError(
            f"there are no results of layer {', '.join(map(str, unknown))}; there are those of "
            f"{', '.join(map(str, sorted(known)))}"
        )
    made: dict[str, list[Table]] = {}
    for model, of_model in rows.items():
        chosen = [row for row in of_model if layers is None or row.cell.layer in layers]
        if chosen:
            made[model] = finetune_tables(chosen, model=model)
    return made


def interactions(rows: Mapping[str, list[Row]]) -> dict[str, Interactions]:
    """What finetuning does to steering: "letters" and "open answers", of the runs behind Table 4, where they are."""
    places = {"letters": LETTERS, "open answers": PAPER["4"]}
    tables = {name: finetune_tables(chosen) for name, place in places.items() if (chosen := place.rows(rows))}
    known = {name: interactions_of(table) for name, [table] in tables.items()}
    return {name: counts for name, counts in known.items() if counts}


@dataclass(frozen=True)
class Interactions:
    """How many finetunes change the slope of steering by more than chance, of those that a table has."""

    total: int
    weaker: tuple[str, ...] = ()
    """Behavior and finetune, where the finetune takes from what steering does."""
    stronger: tuple[str, ...] = ()
    """Where it adds to it."""

    def __str__(self) -> str:
        changed = len(self.weaker) + len(self.stronger)
        ways = [f"{len(names)} {way} ({', '.join(names)})" for names, way in self._ways() if names]
        return f"{changed} of {self.total} finetunes change by more than chance what steering does" + (
            f": {'; '.join(ways)}" if ways else ""
        )

    def _ways(self) -> tuple[tuple[tuple[str, ...], str], ...]:
        return (self.weaker, "weaker"), (self.stronger, "stronger")


def interactions_of(table: Table) -> Interactions | None:
    """What a table of scores says of finetuning and steering together; None if it has no finetune."""
    entries = [entry for below in table.below for entry in below.entries if not entry.balanced]
    slopes = [entry for entry in entries if entry.quantity == "slope" and entry.cell.vector.kind == "own"]
    base = {entry.cell.behavior: entry.estimate.mean for entry in slopes if entry.cell.finetune is None}
    changes = [entry for entry in entries if entry.quantity == "slope change" and entry.cell.vector.kind == "own"]
    names: dict[bool, list[str]] = {True: [], False: []}
    for entry in changes:
        if entry.mark == "sure":
            stronger = entry.estimate.mean * base[entry.cell.behavior] > 0
            names[stronger].append(f"{entry.cell.behavior} {entry.cell.finetune}")
    return Interactions(len(changes), tuple(names[False]), tuple(names[True])) if changes else None
