"""Findings of studies in, pictures out: effect against damage, robustness by prompt, elicitation by dose."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from caa.reports.figures.plot import COLORS, LAYER, Figure, legend, panels, place_labels
from caa.reports.statistics import mean_interval

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
    doses = [f"{dose:+g}" for dose in front.dose]
    place_labels(axes, list(zip(front.spent.tolist(), front.gain.tolist(), doses, strict=True)))
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
    """Filled where open questions were asked, hollow after the screen."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.ticker import MaxNLocator

    tried = data[data.part != "held out"]
    colors = ScalarMappable(Normalize(tried.layer.min(), tried.layer.max()), "viridis")
    screened, asked_openly = tried[tried.part == "screened"], tried[tried.part != "screened"]
    if len(screened):
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
    layers = tried.layer.unique()
    ticks = layers if len(layers) < 9 else MaxNLocator(integer=True)
    axes.figure.colorbar(colors, ax=axes, label=LAYER, ticks=ticks, pad=0.02)


def _held_out(axes: Any, data: pd.DataFrame) -> None:
    """The choice, and what it does on questions that it was not chosen on."""
    chosen, held_out = data[data.part == "chosen"], data[data.part == "held out"]
    axes.scatter(chosen.spent, chosen.gain, marker="*", s=150, color=COLORS[1], zorder=3, label="chosen")
    for _, trial in held_out.iterrows():
        ends = [[trial.gain - trial.low], [trial.high - trial.gain]]
        axes.errorbar(trial.spent, trial.gain, yerr=ends, fmt="D", color=COLORS[1], capsize=3, label="held out, 95 %")


def robustness_by_prompt(records: Iterable[Mapping[str, Any]], behavior: str) -> Figure:
    """The effect on every prompt, family by family, one panel for each finetune; black is the mean with its interval.

    Args:
        records: for each prompt a mapping with "finetune", "family", "gain" and "wrong" (steered the wrong way).
        behavior: whose vector it is.
    """
    import pandas as pd

    data = pd.DataFrame(list(records))
    finetunes, families = list(dict.fromkeys(data.finetune)), list(dict.fromkeys(data.family))
    picture, all_axes = panels(1.6 + 3.2 * len(finetunes), 1.2 + 0.36 * len(families), columns=len(finetunes))
    for axes, finetune in zip(all_axes, finetunes, strict=True):
        of_finetune = data[data.finetune == finetune]
        for line, family in enumerate(families):
            _family(axes, line, of_finetune[of_finetune.family == family])
        axes.axvline(0, color="gray", linewidth=0.8)
        axes.set(title=finetune, xlabel="effect on a prompt", ylim=(len(families) - 0.5, -0.5))
        axes.set_xlim(data.gain.min() - 0.05, data.gain.max() + 0.05)
        axes.set_yticks(range(len(families)), families if axes is all_axes[0] else [""] * len(families))
    picture.suptitle(f"{behavior}: effect prompt by prompt (orange: the wrong way)", fontsize=10)
    return Figure(f"robustness-{behavior}", picture, data)


def _family(axes: Any, line: int, prompts: pd.DataFrame) -> None:
    """A point for each prompt, spread out a little so that none hides another."""
    heights = [line + 0.24 * ((number * 0.618) % 1 - 0.5) for number in range(len(prompts))]
    colors = [COLORS[1] if wrong else COLORS[0] for wrong in prompts.wrong]
    axes.scatter(prompts.gain, heights, s=9, c=colors, alpha=0.6, linewidths=0)
    estimate = mean_interval(prompts.gain)
    if estimate.n > 1:
        ends = [[estimate.mean - estimate.low], [estimate.high - estimate.mean]]
        axes.errorbar(estimate.mean, line + 0.3, xerr=ends, fmt="|", color="black", capsize=2, markersize=7)


def elicitation_curve(records: Iterable[Mapping[str, Any]], behavior: str) -> Figure:
    """The share of prompts that show a behavior by each dose, a color for each finetune; dashed: random directions.

    Args:
        records: mappings with "finetune", "vector" ("own" or "random"), "dose", "share", and "low" and "high": the 95 %
            interval of the vector's share, the least and the most of random directions.
        behavior: whose vector it is.
    """
    import pandas as pd

    data = pd.DataFrame(list(records))
    picture, [axes] = panels(6.4, 3.6)
    for number, finetune in enumerate(dict.fromkeys(data.finetune)):
        color = COLORS[number % len(COLORS)]
        for vector, style, label in (("own", "-", finetune), ("random", "--", f"{finetune}, random")):
            line = data[(data.finetune == finetune) & (data.vector == vector)]
            if len(line):
                axes.plot(line.dose, line.share, color=color, linestyle=style, label=label)
                axes.fill_between(line.dose, line.low, line.high, color=color, alpha=0.12, linewidth=0)
    axes.axhline(0.5, color="gray", linewidth=0.8)
    axes.set(ylim=(-0.02, 1.02), xlabel="dose: norm added / norm of the residual stream, with its sign")
    axes.set(ylabel="share of prompts that show it\nby this dose", title=f"{behavior}: what it takes to bring it out")
    legend(axes, "finetune")
    return Figure(f"elicitation-{behavior}", picture, data)
