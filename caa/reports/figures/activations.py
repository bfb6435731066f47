"""Activations and projections of two sides in; pictures of how well the sides separate out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from caa.reports.figures.plot import (
    COLORS,
    LAYER,
    MARKERS,
    RED_TO_BLUE,
    Figure,
    heat,
    legend,
    lines,
    panels,
    tidy,
    whole_steps,
)

if TYPE_CHECKING:
    import pandas as pd

SIDES = ("positive", "negative")


def pair_accuracy_by_layer(accuracies: Mapping[str, Mapping[int, float]], behavior: str) -> Figure:
    """Share of pairs that a direction puts in the right order, by layer: one line for each kind of direction.

    Args:
        accuracies: kind ("held-out", "random-direction") -> layer -> share in [0, 1].
        behavior: whose pairs they are.
    """
    data = tidy(accuracies, "direction", "layer", "accuracy")
    picture, [axes] = panels(6.4, 3.2)
    lines(axes, data, "layer", "accuracy", "direction")
    axes.axhline(0.5, color="gray", linewidth=0.8, linestyle=":")
    axes.set(
        xlabel=LAYER, ylabel="share of pairs in order", ylim=(0, 1.05), title=f"{behavior}: pairs in the right order"
    )
    whole_steps(axes)
    legend(axes, "direction")
    return Figure(f"pair_accuracy-{behavior}", picture, data)


def pca_scatter(
    positive: Any, negative: Any, marks: Sequence[str], behavior: str, layer: int, marked_by: str = "letter"
) -> Figure:
    """All activations of one layer on their first two principal components: colored by side, marked by letter or truth.

    Args:
        positive: [pair, d_model]
        negative: [pair, d_model]
        marks: one for each text, the positive side first and then the negative: its letter, or whether it is true.
        behavior: whose pairs they are.
        layer: which was read.
        marked_by: what the marks are.
    """
    import numpy as np
    import pandas as pd
    from sklearn.decomposition import PCA

    activations = np.concatenate([np.asarray(positive), np.asarray(negative)])
    pca = PCA(2).fit(activations)
    components = pca.transform(activations)
    sides = [SIDES[0]] * len(positive) + [SIDES[1]] * len(negative)
    columns = {"component 1": components[:, 0], "component 2": components[:, 1], "side": sides, marked_by: marks}
    data = pd.DataFrame(columns)
    picture, [axes] = panels(5.6, 4.0)
    _scatter(axes, data, marked_by)
    axes.set_title(f"{behavior}, layer {layer}: activations on two components")
    first, second = pca.explained_variance_ratio_
    axes.set(xlabel=f"component 1 ({first:.0%} of variance)", ylabel=f"component 2 ({second:.0%} of variance)")
    legend(axes, f"side, {marked_by}")
    return Figure(f"pca-{behavior}-layer_{layer}", picture, data)


def _scatter(axes: Any, data: pd.DataFrame, marked_by: str) -> None:
    """One cloud for each side and mark: the side is the color, the mark the shape of the points."""
    marks = sorted(set(data[marked_by]))
    for (side, mark), part in data.groupby(["side", marked_by]):
        color, shape = COLORS[SIDES.index(str(side))], MARKERS[marks.index(str(mark)) % len(MARKERS)]
        points, label = (part["component 1"], part["component 2"]), f"{side} {mark}".strip()
        axes.scatter(*points, s=14, c=color, marker=shape, alpha=0.6, linewidths=0, label=label)


def projection_statistics(positive: Mapping[int, Any], negative: Mapping[int, Any]) -> pd.DataFrame:
    """For each layer and side: mean, spread (standard deviation) and peak (excess kurtosis: 0 for a normal
    distribution, above it for a sharper peak) of the projections, and the distance of the two means in pooled spreads.
    """
    import numpy as np
    import pandas as pd
    from scipy.stats import kurtosis

    records = []
    for layer in positive:
        sides = [np.asarray(side[layer], float) for side in (positive, negative)]
        pooled = float(np.sqrt(np.mean([values.var() for values in sides])))
        distance = float(sides[0].mean() - sides[1].mean()) / pooled if pooled else float("nan")
        for side, values in zip(SIDES, sides, strict=True):
            statistics = {"mean": float(values.mean()), "spread": float(values.std()), "peak": float(kurtosis(values))}
            records.append({"layer": layer, "side": side, **statistics, "distance": distance})
    return pd.DataFrame(records)


def projection_histograms(positive: Mapping[int, Any], negative: Mapping[int, Any], behavior: str) -> Figure:
    """Histograms of the projections on each layer's direction, both sides; above each the distance of their means.

    The data are the numbers of `projection_statistics`.
    """
    data = projection_statistics(positive, negative)
    columns = min(4, len(positive))
    rows = -(-len(positive) // columns)
    picture, panel_of = panels(2.3 * columns + 0.6, 1.8 * rows + 0.7, rows, columns)
    for axes, layer in zip(panel_of, positive, strict=False):
        _histogram(axes, positive[layer], negative[layer])
        distance = data[data.layer == layer].distance.iloc[0]
        axes.set_title(f"layer {layer}, {distance:.1f} spreads apart", fontsize=8)
    for axes in panel_of[len(positive) :]:
        axes.set_axis_off()
    picture.suptitle(f"{behavior}: projections on each layer's vector")
    picture.supxlabel("projection, units of the residual stream")
    picture.supylabel("texts")
    picture.legend(*panel_of[0].get_legend_handles_labels(), loc="outside right upper", frameon=False)
    return Figure(f"projections-{behavior}", picture, data)


def _histogram(axes: Any, positive: Any, negative: Any) -> None:
    """Both sides over the same bins; one is hatched, for who does not see the colors."""
    import numpy as np

    sides = [np.asarray(side, float) for side in (positive, negative)]
    bins = np.linspace(min(map(np.min, sides)), max(map(np.max, sides)), 25)
    for values, name, color, hatch in zip(sides, SIDES, COLORS[:2], ("", "////"), strict=True):
        axes.hist(values, bins, color=color, alpha=0.6, label=name, hatch=hatch, edgecolor="white")


def position_heat(
    values: Any, layers: Sequence[int], positions: Sequence[Any], title: str, name: str, across: str = "position"
) -> Figure:
    """What is projected on each layer's direction, layer x position: blue where the first side has more of it.

    Args:
        values: [layer, position], such as differences of mean projections.
        layers: their numbers.
        positions: their labels: numbers relative to the answer's first token, or the tokens themselves.
        title: what is compared.
        name: of the files.
        across: what the positions are.
    """
    import numpy as np
    import pandas as pd

    values = np.asarray(values, float)
    limit = float(np.nanmax(np.abs(values))) or 1.0
    picture, [axes] = panels(2.4 + 0.36 * min(len(positions), 30), 1.6 + 0.3 * min(len(layers), 30))
    image = heat(axes, values[::-1], positions, list(layers)[::-1], color=RED_TO_BLUE, limits=(-limit, limit))
    axes.set(xlabel=across, ylabel="layer", title=title)
    picture.colorbar(image, ax=axes, label="difference of projections")
    records = [
        {"layer": layer, "place": place, "position": position, "difference": float(values[i, place])}
        for i, layer in enumerate(layers)
        for place, position in enumerate(positions)
    ]
    return Figure(name, picture, pd.DataFrame(records))
