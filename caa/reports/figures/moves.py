"""What finetunes do to the residual stream in, one picture of it beside what steering does out."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from caa.reports.figures.plot import COLORS, MARKERS, Figure, legend, panels

if TYPE_CHECKING:
    import pandas as pd

STEERED = "steered"
"""How the names of those moves begin that steering makes."""


def moves(records: Iterable[Mapping[str, Any]], width: int, layer: int, model: str) -> Figure:
    """How far each finetune moves the stream at the last prompt token, along the vector and across it; and how alike
    the vector is when it is read again in that finetune.

    Args:
        records: of one finetune and behavior each: "behavior", "finetune", "size" (of the move beside the stream's
            length), "cosine" (with the behavior's vector), "shared" (how much of it all prompts share), "reread" (the
            cosine of the vector read again). A finetune whose name begins with `STEERED` is steering itself.
        width: of the stream, for the wedge in which 95 % of all random directions lie.
        layer: whose block output was read.
        model: for the title.
    """
    import pandas as pd

    data = pd.DataFrame(list(records))
    picture, [plane, again] = panels(11.0, 4.2, columns=2)
    _plane(plane, data, 1.96 / math.sqrt(width))
    _reread(again, data[~data.finetune.str.startswith(STEERED)])
    picture.suptitle(f"{model}, layer {layer}: what each finetune does to the stream at the last prompt token")
    return Figure("moves", picture, data)


def _plane(axes: Any, data: pd.DataFrame, chance: float) -> None:
    """Along the vector to the right, across it upwards."""
    for n, (name, part) in enumerate(data.groupby("finetune", sort=False)):
        across = part["size"] * (1 - part.cosine**2).clip(lower=0) ** 0.5
        steered = str(name).startswith(STEERED)
        color, marker = ("black", "x") if steered else (COLORS[n % len(COLORS)], MARKERS[n % len(MARKERS)])
        axes.scatter(part["size"] * part.cosine, across, s=26, c=color, marker=marker, alpha=0.8, label=str(name))
    top = 1.1 * float(data["size"].max())
    slope = chance / math.sqrt(1 - chance**2)
    axes.fill_betweenx([0, top], [0, -slope * top], [0, slope * top], color="gray", alpha=0.2, linewidth=0)
    axes.annotate("95 % of random\ndirections", (0, top), ha="center", va="top", fontsize=7)
    axes.axvline(0, color="gray", linewidth=0.8)
    axes.set(xlabel="along the vector, share of the stream's length", ylabel="across it")
    axes.set(xlim=(-top, top), ylim=(-0.02 * top, top), aspect="equal")
    legend(axes, "finetune")


def _reread(axes: Any, data: pd.DataFrame) -> None:
    """One column of points for each finetune, one point for each behavior."""
    names = list(dict.fromkeys(data.finetune))
    for n, name in enumerate(names):
        cosines = data[data.finetune == name].reread
        axes.scatter([n] * len(cosines), cosines, s=26, color=COLORS[n % len(COLORS)], marker=MARKERS[n % len(MARKERS)])
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right")
    axes.set(ylabel="cosine with the base's vector", title="the vector read again in the finetune")
    axes.axhline(1, color="gray", linewidth=0.8, linestyle=":")
