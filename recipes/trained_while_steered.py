"""python recipes/trained_while_steered.py --out runs/trained-while-steered

What training while steered does to a model and to its steering: a behavior is taught while its vector pushes towards
it, pulls away, or does nothing; then the finetune is asked without the push, and steered. Several seeds (of the LoRA,
the examples and their order), so that the intervals are about training again, not about the questions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
from jsonargparse import auto_cli
from scipy.stats import t

from caa import Experiment
from caa.reports.figures.plot import COLORS, MARKERS, Figure, legend, panels
from caa.runs.rows import Cell, Row, read_rows, scores_by_cell
from caa.training.config import FinetuneConfig, Training

TRAINING = FinetuneConfig(
    rank=8, alpha=16, learning_rate=2e-3, max_steps=12, batch_size=8, gradient_accumulation=1, bf16=False
)
MEASURES = {"unsteered": "p(matching answer), unsteered", "effect": "steered: p at +m minus p at -m"}


def measured(rows: Sequence[Row], names: dict[str, float | None], multiplier: float) -> list[dict[str, Any]]:
    """For each behavior and finetune: its score without steering, and how far steering moves it."""
    scores = {cell: sum(s or 0 for s in by.values()) / len(by) for cell, by in scores_by_cell(rows).items()}
    unsteered = [cell for cell in scores if cell.multiplier == 0]
    return [
        {
            "behavior": cell.behavior,
            "push": names[cell.finetune or "none"],
            "unsteered": scores[cell],
            "effect": scores[at(cell, multiplier)] - scores[at(cell, -multiplier)],
        }
        for cell in unsteered
    ]


def at(cell: Cell, multiplier: float) -> Cell:
    return replace(cell, multiplier=multiplier)


def interval(values: pd.Series) -> tuple[float, float, float]:
    """Mean and half of Student's 95 % interval over the seeds, low and high."""
    half = float(t.ppf(0.975, len(values) - 1) * values.std() / math.sqrt(len(values))) if len(values) > 1 else math.nan
    return float(values.mean()), float(values.mean()) - half, float(values.mean()) + half


def picture(data: pd.DataFrame, title: str) -> Figure:
    """Two panels, a line for each behavior over the push in training; the base dashed, each seed a small dot."""
    drawn, axes_of = panels(9.6, 3.6, columns=2)
    records = []
    for axes, (measure, label) in zip(axes_of, MEASURES.items(), strict=True):
        for n, (behavior, part) in enumerate(data.groupby("behavior", sort=False)):
            color, taught = COLORS[n], part.dropna(subset="push")
            base = float(part[part.push.isna()][measure].mean())
            axes.axhline(base, color=color, linestyle="--", linewidth=0.8)
            for push, seeds in taught.groupby("push"):
                mean, low, high = interval(seeds[measure])
                record = {"behavior": behavior, "measure": measure, "push": push, "base": base, "seeds": len(seeds)}
                records.append(record | {"mean": mean, "low": low, "high": high})
            line = pd.DataFrame([r for r in records if (r["behavior"], r["measure"]) == (behavior, measure)])
            bars = [line["mean"] - line.low, line.high - line["mean"]]
            axes.errorbar(
                line.push, line["mean"], bars, color=color, marker=MARKERS[n], markersize=4, capsize=3, label=behavior
            )
            axes.scatter(taught.push, taught[measure], s=8, color=color, alpha=0.5)
        axes.axvline(0, color="gray", linewidth=0.6)
        axes.set(xlabel="multiplier of the vector while it was taught", ylabel=label)
    drawn.suptitle(f"{title}; bars: 95 % over seeds; dashed: no finetune")
    legend(axes_of[1], "behavior")
    return Figure("trained_while_steered", drawn, pd.DataFrame(records))


def run(
    out: Path,
    behaviors: tuple[str, ...] = ("myopic_reward", "refusal", "sycophancy"),
    model: str = "tiny-chat",
    layer: int = 2,
    multiplier: float = 0.3,
    seeds: int = 3,
    steps: int = 12,
    limit: int | None = None,
) -> None:
    """Train what is missing, ask, print the numbers and draw them.

    Args:
        out: the folder of the runs, one for each seed; a stopped run goes on.
        behaviors: taught one at a time.
        model: an embedded model, a folder, or a name on the Hub.
        layer: the layer that is steered, in training and afterwards.
        multiplier: of the push and the pull in training, and of steering afterwards.
        seeds: how often all is trained.
        steps: optimizer steps of each finetune.
        limit: ask only the first questions, as a trial.
    """
    pushes = {"pulled": -multiplier, "taught": 0.0, "pushed": multiplier}
    records = []
    for seed in range(seeds):
        experiment = Experiment(
            out / f"seed-{seed}",
            behaviors,
            model,
            layer,
            (-multiplier, 0, multiplier),
            finetunes=["none", *pushes],
            trainings={name: Training(steered=push) for name, push in pushes.items()},
            training=replace(TRAINING, seed=seed, max_steps=steps),
            tasks=["ab"],
            limit=limit,
            batch_size=64,
        )
        experiment.run()
        rows = read_rows(experiment.out / "rows.jsonl")
        names: dict[str, float | None] = {"none": None, **pushes}
        records += [{"seed": seed} | record for record in measured(rows, names, multiplier)]
    figure = picture(pd.DataFrame(records), f"{model}, layer {layer}: taught while steered")
    print(figure.data.round(3).to_string(index=False), *figure.save(out), sep="\n")


if __name__ == "__main__":
    auto_cli(run, as_positional=False)
