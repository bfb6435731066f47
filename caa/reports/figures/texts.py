"""Tokens with numbers, or the answers of several settings, in; colored or side-by-side text out, as a picture."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from caa.reports.figures.plot import RED_TO_BLUE, Figure, ink, panels
from caa.reports.pages.tokens import largest_size, token_html

__all__ = ["side_by_side", "token_colors", "token_html"]

_COLUMNS = 88
"""Characters in a line of colored text."""


def token_colors(tokens: Sequence[str], values: Sequence[float], title: str, name: str, unit: str = "cosine") -> Figure:
    """The text in lines of 88 characters, each token on red where its value is negative, on blue where positive.

    The same as a page: `token_html`.
    """
    import pandas as pd
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    pieces = list(_pieces(tokens))
    n_rows = pieces[-1][0] + 1 if pieces else 1
    picture, [axes] = panels(9.6, 1.1 + 0.27 * n_rows)
    axes.set(xlim=(0, _COLUMNS), ylim=(n_rows, 0), title=title)
    axes.set_axis_off()
    limit = largest_size(values)
    scale = ScalarMappable(Normalize(-limit, limit), RED_TO_BLUE)
    colors = _colors(values)
    for row, column, text, number in pieces:
        _draw(axes, row, column, text, colors[number])
    label = f"{unit} with the vector"
    picture.colorbar(scale, ax=axes, label=label, orientation="horizontal", aspect=60, fraction=0.04)
    return Figure(name, picture, pd.DataFrame({"place": range(len(tokens)), "token": tokens, unit: values}))


def _draw(axes: Any, row: int, column: int, text: str, color: Sequence[float]) -> None:
    from matplotlib.patches import Rectangle

    axes.add_patch(Rectangle((column, row + 0.05), len(text), 0.9, facecolor=color, linewidth=0))
    look: Any = {"ha": "center", "va": "center", "family": "DejaVu Sans Mono", "color": ink(color), "fontsize": 8}
    for n, character in enumerate(text):  # one by one: what is wide in one font is not in another
        axes.text(column + n + 0.5, row + 0.55, character, **look)


def _pieces(tokens: Sequence[str]) -> Iterator[tuple[int, int, str, int]]:
    """Row, column, text and number of each token's pieces: a token that reaches the end of a line is broken.

    >>> list(_pieces(["ab", "\\n", "c"]))
    [(0, 0, 'ab', 0), (1, 0, 'c', 2)]
    """
    row = column = 0
    for number, token in enumerate(tokens):
        for n, line in enumerate(token.split("\n")):
            if n:
                row, column = row + 1, 0
            while line:
                if column == _COLUMNS:
                    row, column = row + 1, 0
                piece, line = line[: _COLUMNS - column], line[_COLUMNS - column :]
                yield row, column, piece, number
                column += len(piece)


def _colors(values: Sequence[float]) -> list[tuple[float, ...]]:
    from matplotlib import colormaps

    limit, color_at = largest_size(values), colormaps[RED_TO_BLUE]
    return [color_at(0.5 + value / (2 * limit)) for value in values]


def side_by_side(texts: Mapping[str, Mapping[str, str]], title: str, name: str) -> Figure:
    """The answers of several settings to the same questions beside each other.

    Args:
        texts: question -> setting ("original", "plus", "minus") -> answer; the same settings for each question.
        title: above the picture.
        name: of the files.
    """
    import pandas as pd

    settings = list(next(iter(texts.values())))
    columns = ["question", *settings]
    cells = [[question, *(answers[setting] for setting in settings)] for question, answers in texts.items()]
    wrapped = [[_wrapped(text) for text in line] for line in cells]
    heights = [max(text.count("\n") + 1 for text in line) + 0.7 for line in wrapped]
    picture, [axes] = panels(2.6 * len(columns), 0.9 + 0.155 * sum(heights))
    axes.set(xlim=(0, len(columns)), ylim=(sum(heights) + 1.2, 0))
    axes.set_axis_off()
    axes.set_title(title)
    for column, heading in enumerate(columns):
        axes.text(column + 0.02, 0.1, heading, va="top", weight="bold", fontsize=8)
    top = 1.4
    for line, height in zip(wrapped, heights, strict=True):
        axes.axhline(top - 0.3, color="lightgray", linewidth=0.8)
        for column, text in enumerate(line):
            axes.text(column + 0.02, top, text, va="top", fontsize=7.5, family="DejaVu Sans Mono", linespacing=1.2)
        top += height
    return Figure(name, picture, pd.DataFrame(cells, columns=columns))


def _wrapped(text: str, width: int = 33, max_lines: int = 14) -> str:
    """In lines of `width` characters, at most so many; one that is longer is cut and says so."""
    lines = textwrap.wrap(" ".join(text.split()), width) or ["(nothing)"]
    return "\n".join(lines if len(lines) <= max_lines else [*lines[:max_lines], "..."])
