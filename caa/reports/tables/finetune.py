"""Rows in, tables out: behaviors (or layers) down, finetune x multiplier across, as in Table 4 of the CAA paper."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING

from caa.reports.diagnostics.letters import balanced_means
from caa.reports.diagnostics.warnings import run_warnings
from caa.reports.naming import cell_fields, cell_name, finetune_name, usual_first
from caa.reports.statistics import means_by_cell
from caa.reports.tables.effects import balanced_tables, effect_tables
from caa.reports.tables.headlines import headlines
from caa.reports.tables.layout import Table
from caa.reports.tables.pivot import table_of_rows
from caa.reports.tables.text_damage import loop_notes
from caa.runs.rows import Cell, Row, coverage_by_behavior, require_one, require_rows

if TYPE_CHECKING:
    import pandas as pd

_TASKS = {
    "ab": "A/B questions: mean probability of the matching answer, p(match) / (p(A) + p(B))",
    "open": "Open-ended questions: mean score, 0 to 10",
    "facts": "Facts: mean probability of the correct one of two options",
    "pairwise": "Compared with the unsteered answer: 10 where the steered one shows more of the behavior, 5 for a tie",
}


def summarize(rows: Iterable[Row]) -> pd.DataFrame:
    """One line per cell: the cell's fields, then mean, low, high (95 % bootstrap), n, unjudged, coverage, balanced.

    "balanced" is the letter-balanced mean, nan where the questions have no letters.
    """
    import pandas as pd

    rows = list(rows)
    balanced = balanced_means(rows)
    records = []
    for cell, mean in means_by_cell(rows).items():
        more = {"coverage": mean.coverage, "balanced": balanced.get(cell, math.nan)}
        records.append({**cell_fields(cell), **asdict(mean), **more})
    return pd.DataFrame(records)


def finetune_tables(
    rows: Iterable[Row],
    *,
    model: str = "",
    judge_accuracy: Mapping[str, float] | None = None,
    off_topic: Mapping[str, float] | None = None,
    doses: Mapping[str, Mapping[str, float]] | None = None,
    finetunes: Mapping[str, Mapping[str, str]] | None = None,
) -> list[Table]:
    """One table for each task, layer and system prompt: behaviors down, finetune x multiplier (or setting) across.

    Named settings stand beside the multipliers where there is one layer, and in a table of their own elsewhere.
    Below each stand what steering does (changes from multiplier 0, steerability) and the interaction (what finetuning
    changes about it).

    Args:
        rows: of any number of cells. Cells of random vectors become one control line below their behavior, cells of any
            other vector than the behavior's own a line of its own.
        model: what the caption says was steered.
        judge_accuracy: behavior -> cross-validated accuracy of the judge in [0, 1], for the caption of open questions.
        off_topic: behavior -> share of texts about something else that the judge gives no score, likewise.
        doses: behavior -> layer (as text) -> relative dose of multiplier 1, for the caption.
        finetunes: behavior -> finetune -> how it was made, in words, for the caption.
    """
    captions = _Captions(model, judge_accuracy or {}, off_topic or {}, doses or {}, finetunes or {})
    rows_of: dict[tuple[str, int | None, str], list[Row]] = {}
    for row in require_rows(rows):
        rows_of.setdefault((row.cell.task, row.cell.layer, row.cell.system_prompt), []).append(row)
    _settings_beside_layers(rows_of)
    tasks = usual_first((task for task, _, _ in rows_of), _TASKS)
    order = sorted(rows_of, key=lambda place: (tasks.index(place[0]), place[1] is None, place[1] or 0, place[2]))
    return [_finetune_table(rows_of[place], captions) for place in order]


def _settings_beside_layers(rows_of: dict[tuple[str, int | None, str], list[Row]]) -> None:
    """Move the rows of named settings to those of the only layer of their task and system prompt."""
    for task, layer, prompt in list(rows_of):
        layers = [other for t, other, p in rows_of if (t, p) == (task, prompt) and other is not None]
        if layer is None and len(layers) == 1:
            rows_of[task, layers[0], prompt] += rows_of.pop((task, None, prompt))


def sweep_table(rows: Iterable[Row]) -> Table:
    """Layers down, multipliers across, for one behavior, task and system prompt: to choose a layer by."""
    rows = require_rows(row for row in rows if row.cell.layer is not None)
    for name in ("behavior", "task", "system_prompt"):
        require_one(rows, name)
    cell = rows[0].cell
    title = f"{cell.behavior}, every layer. {_TASKS.get(cell.task, cell.task)}"
    return table_of_rows(rows, title, "layer", ["Layer L is the output of block L, counted from 0."])


@dataclass(frozen=True)
class _Captions:
    """What the rows do not say and a caption should."""

    model: str = ""
    judge_accuracy: Mapping[str, float] = field(default_factory=dict)
    """Behavior -> share in [0, 1]."""
    off_topic: Mapping[str, float] = field(default_factory=dict)
    """Behavior -> share in [0, 1]."""
    doses: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Behavior -> layer (as text) -> relative dose of multiplier 1."""
    finetunes: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Behavior -> finetune -> how it was made, in words."""

    def notes(self, rows: Sequence[Row]) -> list[str]:
        cell = rows[0].cell
        model = f"Model: {self.model}. " if self.model else ""
        layer = f"Layer {cell.layer} is the output of block {cell.layer}, counted from 0."
        named = "0: the unsteered model. What each setting does is in run.json."
        settings = [named] if cell.layer is not None and any(row.cell.setting for row in rows) else []
        return [
            f"{model}{named if cell.layer is None else layer}",
            *settings,
            *self._dose(str(cell.layer)),
            *self._made(rows),
            *(self._judge(rows) if cell.task == "open" else []),
        ]

    def _made(self, rows: Sequence[Row]) -> list[str]:
        """How the finetunes were made that are columns here, those of several behaviors together where they agree."""
        made: dict[str, dict[str, None]] = {}
        for cell in sorted({row.cell for row in rows}):
            words = self.finetunes.get(cell.behavior, {}).get(cell.finetune or "")
            if words:
                made.setdefault(finetune_name(cell.finetune), {})[words] = None
        listed = "; ".join(f"{name}: {' / '.join(words)}" for name, words in made.items())
        return [f"Finetunes: {listed}."] if made else []

    def _dose(self, layer: str) -> list[str]:
        known = {behavior: by_layer[layer] for behavior, by_layer in self.doses.items() if layer in by_layer}
        listed = ", ".join(f"{behavior} {dose:.2f}" for behavior, dose in known.items())
        dose = "norm of what is added over that of the residual stream at the last prompt token"
        return [f"Relative dose of multiplier 1 ({dose}): {listed}."] if known else []

    def _judge(self, rows: Iterable[Row]) -> list[str]:
        """How good it is, and how many of these answers it could read: the one says little without the other."""
        known = {
            "Accuracy of the judge, on answers that it was not fitted on": self.judge_accuracy,
            "Share of texts about something else that the judge gives no score": self.off_topic,
            "Coverage, the share of the answers here that the judge gave a score": coverage_by_behavior(rows),
        }
        listed = {name: ", ".join(f"{b} {share:.2f}" for b, share in shares.items()) for name, shares in known.items()}
        return [f"{name}: {shares}." for name, shares in listed.items() if shares]

    def of_judges(self, rows: Sequence[Row]) -> tuple[Mapping[str, float], Mapping[str, float]]:
        """Accuracies and shares of off-topic texts, where judged answers are shown."""
        return (self.judge_accuracy, self.off_topic) if rows[0].cell.task == "open" else ({}, {})


def _finetune_table(rows: list[Row], captions: _Captions) -> Table:
    cell = rows[0].cell
    prompt = f", system prompt {cell.system_prompt!r}" if cell.system_prompt else ""
    notes = [*captions.notes(rows), *_mass_note(rows), *loop_notes(rows)]
    place = "named settings" if cell.layer is None else f"layer {cell.layer}"
    title = f"{_TASKS.get(cell.task, cell.task)}; {place}{prompt}"
    warnings = run_warnings(rows, *captions.of_judges(rows))
    below = *effect_tables(rows, "behavior"), *balanced_tables(rows, "behavior")
    table = table_of_rows(rows, title, "behavior", notes)
    return replace(table, warnings=tuple(warnings), below=below, headlines=headlines(rows))


def _mass_note(rows: Iterable[Row]) -> list[str]:
    """How much probability the two answers had at all: where it is little, the model wanted to say something else."""
    masses: dict[Cell, list[float]] = {}
    for row in rows:
        if {"p_matching", "p_opposite"} <= row.evidence.keys():
            masses.setdefault(row.cell, []).append(row.evidence["p_matching"] + row.evidence["p_opposite"])
    if not masses:
        return []
    means = {cell: sum(values) / len(values) for cell, values in masses.items()}
    least = min(means, key=lambda cell: means[cell])
    average = sum(means.values()) / len(means)
    return [
        f"The two answers together have a probability of {average:.2f} on average; "
        f"the least is {means[least]:.2f}, in {cell_name(least)}."
    ]
