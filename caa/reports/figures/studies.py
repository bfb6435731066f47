"""Findings of studies in, pictures out: effect against damage, robustness by prompt, elicitation by dose."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from caa.reports.figures.plot import COLORS, LAYER, Figure, panels

if TYPE_CHECKING:
    import pandas as pd


def effect_against_damage(records: Iterable[Mapping[str, Any]], behavior: str, bound: float) -> Figure:
    """What each candidate does by what it breaks; the front, the choice, the budget, and the choice held out.

    Args:
        records: for each candidate a mapping with "layer", "dose", "gain", "spent" (share of the damage budget), "part"
            ("screened", "asked", "front" or "chosen"); for the choice on held-out questions one whose part is
            "held out", with "low" and "high" of its interval.
        behavior: whose vector it is.
        bound: what one random direction in twenty reaches; nan if that was not measured.
    """
    import pandas as pd

    data = pd.DataFrame(list(records))
    picture, [axes] = panels(6.0, 4.6)
    axes.axhspan(0, bound, color="gray", alpha=0.15, linewidth=0, label="random directions: 19 in 20")
    axes.axvline(1, color="gray", linestyle="--", linewidth=1, label="the damage budget")
    front = data[data.part.isin(["front", "chosen"])].sort_values("spent")
    axes.plot(front.spent, front.gain, color="black", linewidth=1, label="Pareto front")
    _candidates(axes, data)
    _held_out(axes, data)
    _budget_axis(axes, data)
    axes.set(xlabel="damage, as a share of the budget (linear up to 1)", ylabel="effect")
    axes.set_title(f"{behavior}: effect against damage by layer and dose")
    picture.legend(*axes.get_legend_handles_labels(), frameon=False, loc="outside lower center", ncols=3)
    return Figure(f"effect_against_damage-{behavior}", picture, data)


def _budget_axis(axes: Any, data: pd.DataFrame) -> None:
    """Linear up to the budget, logarithmic beyond it, in plain numbers."""
    most = data.spent[data.spent < float("inf")].max()
    ticks = [0, 0.25, 0.5, 0.75, 1, *(tick for tick in (2, 5, 10, 20, 50, 100) if tick < most * 1.5)]
    axes.set_xscale("symlog", linthresh=1)
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_xlim(left=-0.03)


def _candidates(axes: Any, data: pd.DataFrame) -> None:
    """Filled where open questions were asked, with the dose beside those on the front; hollow after the screen."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.ticker import MaxNLocator

    tried = data[data.part != "held out"]
    colors = ScalarMappable(Normalize(tried.layer.min(), tried.layer.max()), "viridis")
    screened, asked_openly = tried[tried.part == "screened"], tried[tried.part != "screened"]
    edges = colors.to_rgba(screened.layer.to_numpy())
    axes.scatter(
        screened.spent, screened.gain, s=22, facecolors="none", edgecolors=edges, label="divergence known only"
    )
    axes.scatter(
        asked_openly.spent,
        asked_openly.gain,
        c=colors.to_rgba(asked_openly.layer.to_numpy()),
        s=26,
        label="texts known",
    )
    axes.figure.colorbar(colors, ax=axes, label=LAYER, ticks=MaxNLocator(integer=True), pad=0.02)
    for _, trial in tried[tried.part.isin(["front", "chosen"])].iterrows():
        place = trial.spent, trial.gain
        axes.annotate(f"{trial.dose:+g}", place, textcoords="offset points", xytext=(5, -9), fontsize=7)


def _held_out(axes: Any, data: pd.DataFrame) -> None:
    """The choice, and what it does on questions that it was not chosen on."""
    chosen, held_out = data[data.part == "chosen"], data[data.part == "held out"]
    axes.scatter(chosen.spent, chosen.gain, marker="*", s=150, color=COLORS[1], zorder=3, label="chosen")
    for _, trial in held_out.iterrows():
        ends = [[trial.gain - trial.low], [trial.high - trial.gain]]
        axes.errorbar(trial.spent, trial.gain, yerr=ends, fmt="D", color=COLORS[1], capsize=3, label="held out, 95 %")
