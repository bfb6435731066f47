"""Directions in, their cosines out: between layers, between behaviors, between models; and the logit lens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from caa.reports.figures.plot import (
    LAYER,
    RED_TO_BLUE,
    Figure,
    angle_axis,
    heat,
    legend,
    lines,
    numbers,
    panels,
    tidy,
    whole_steps,
)

Direction = Any
"""[d_model]: a list of numbers or a numpy array."""


def cosines(directions: Mapping[Any, Direction]) -> dict[Any, dict[Any, float]]:
    """Name -> name -> cosine. ValueError for a direction of zeros, which points nowhere.

    >>> cosines({"a": [1.0, 0.0], "b": [3.0, 4.0]})["a"]
    {'a': 1.0, 'b': 0.6}
    """
    import numpy as np

    names = list(directions)
    stacked = np.array([np.asarray(directions[name], dtype=np.float64) for name in names])
    norms = np.linalg.norm(stacked, axis=1, keepdims=True)
    if not norms.all():
        raise ValueError(f"the direction {names[int(norms.argmin())]!r} is zero, so it has no cosine with another")
    matrix = (stacked / norms) @ (stacked / norms).T
    return {name: dict(zip(names, line, strict=True)) for name, line in zip(names, matrix.tolist(), strict=True)}


def inter_layer(directions: Mapping[int, Direction], behavior: str) -> Figure:
    """Cosine of one behavior's directions between all layers (Figure 7 of Rimsky et al. 2024)."""
    title, name = f"{behavior}: cosine between layers", f"inter_layer-{behavior}"
    figure = _matrix(cosines(directions), title, "layer", "other layer", name)
    figure.picture.axes[0].set(xlabel=LAYER, ylabel="layer")
    return figure


def between_behaviors(directions: Mapping[str, Direction], layer: int) -> Figure:
    """Cosine of all behaviors' directions at one layer."""
    title = f"cosine between behaviors, layer {layer}"
    return _matrix(cosines(directions), title, "behavior", "other behavior", f"between_behaviors-layer_{layer}")


def _matrix(matrix: Mapping[Any, Mapping[Any, float]], title: str, down: str, across: str, name: str) -> Figure:
    names, values = list(matrix), [list(line.values()) for line in matrix.values()]
    side = min(2.5 + 0.5 * len(names), 8.0)
    picture, [axes] = panels(side + 1.6, side)
    image = heat(axes, values, names, names, color=RED_TO_BLUE, limits=(-1.0, 1.0))
    if len(names) <= 12:
        numbers(axes, image, [[f"{value:.2f}" for value in line] for line in values])
    axes.set_title(title)
    picture.colorbar(image, ax=axes, label="cosine")
    return Figure(name, picture, tidy(matrix, down, across, "cosine"))


def cosine_by_layer(by_behavior: Mapping[str, Mapping[int, float]], between: str, name: str) -> Figure:
    """Cosine by layer of two models' directions for the same behavior, one line each (Figure 9).

    Args:
        by_behavior: behavior -> layer -> cosine.
        between: whose directions are compared, for the title: "tiny-base and tiny-chat".
        name: of the files.
    """
    return cosine_panels({"": by_behavior}, between, name)


def cosine_panels(panels_of: Mapping[str, Mapping[str, Mapping[int, float]]], between: str, name: str) -> Figure:
    """The same in several panels, such as one for each finetune, on one axis that is spaced by the angle.

    Args:
        panels_of: title of the panel -> behavior -> layer -> cosine.
        between: whose directions are compared, for the title.
        name: of the files.
    """
    import pandas as pd

    parts = [tidy(by_behavior, "behavior", "layer", "cosine") for by_behavior in panels_of.values()]
    titled = [
        part.assign(panel=title) if len(parts) > 1 else part for title, part in zip(panels_of, parts, strict=True)
    ]
    data = pd.concat(titled, ignore_index=True)
    picture, all_axes = panels(3.0 + 3.4 * len(parts), 3.4, columns=len(parts))
    for axes, part, title in zip(all_axes, parts, panels_of, strict=True):
        lines(axes, part, "layer", "cosine", "behavior")
        angle_axis(axes, data.cosine.min())
        axes.set(xlabel=LAYER, ylabel="cosine (spaced by the angle)", title=title)
        whole_steps(axes)
    picture.suptitle(f"cosine of the vectors of {between}", fontsize=10)
    legend(all_axes[-1], "behavior")
    return Figure(name, picture, data)


def logit_lens(tokens: Mapping[int, Sequence[tuple[str, float]]], behavior: str) -> Figure:
    """The tokens whose logits a direction raises most, layer by layer.

    Args:
        tokens: layer -> (token, logit above the mean of the vocabulary), highest first; as many for each layer.
        behavior: whose direction it is.
    """
    import pandas as pd

    values = [[logit for _, logit in line] for line in tokens.values()]
    limit = max(abs(logit) for line in values for logit in line)
    ranks = list(range(1, len(values[0]) + 1))
    picture, [axes] = panels(1.6 + 1.1 * len(ranks), 1.4 + 0.36 * len(values))
    image = heat(axes, values, ranks, list(tokens), color=RED_TO_BLUE, limits=(-limit, limit))
    numbers(axes, image, [[_visible(token) for token, _ in line] for line in tokens.values()])
    axes.set(xlabel="rank of the token", ylabel="layer", title=f"{behavior}: logit lens of the vector")
    picture.colorbar(image, ax=axes, label="logit above the mean")
    records = [
        {"layer": layer, "rank": rank, "token": token, "logit": logit}
        for layer, line in tokens.items()
        for rank, (token, logit) in enumerate(line, start=1)
    ]
    return Figure(f"logit_lens-{behavior}", picture, pd.DataFrame(records))


def _visible(token: str) -> str:
    r"""A token as one short piece: its spaces visible.

    >>> _visible(" the\n")
    '␣the⏎'
    """
    return token.replace(" ", "␣").replace("\n", "⏎")[:12]
