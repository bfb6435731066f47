"""Tokens with numbers, or texts of several settings, in; colored or side-by-side text out, as a picture and as HTML."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from caa.reports.figures.plot import RED_TO_BLUE, Figure, ink, panels

_COLUMNS = 88
"""Characters in a line of colored text."""


def token_html(tokens: Sequence[str], values: Sequence[float], title: str, unit: str = "cosine") -> str:
    """One page without scripts: each token on red where its value is negative, on blue where positive (Figure 6)."""
    from caa.reports.pages import page

    most = f"{_most(values):.3g}"
    return page("tokens.html").render(title=title, unit=unit, most=most, tokens=shaded(tokens, values))


def shaded(tokens: Sequence[str], values: Sequence[float]) -> list[tuple[str, str, str, int]]:
    """What the template `colored.html` draws: each token, its number, its side of 0, its share of the deepest color.

    >>> shaded(["good", " bad"], [0.5, -0.25])
    [('good', '+0.500', 'above', 100), (' bad', '-0.250', 'below', 50)]
    """
    most = _most(values)
    return [
        (token, f"{value:+.3f}", "below" if value < 0 else "above", round(100 * abs(value) / most))
        for token, value in zip(tokens, values, strict=True)
    ]


def token_colors(tokens: Sequence[str], values: Sequence[float], title: str, name: str, unit: str = "cosine") -> Figure:
    """The same as a picture: the text in lines of 88 characters, each token on its color."""
    import pandas as pd
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    places = list(_places(tokens))
    rows = places[-1][0] + 1 if places else 1
    picture, [axes] = panels(9.6, 1.1 + 0.27 * rows)
    axes.set(xlim=(0, _COLUMNS), ylim=(rows, 0), title=title)
    axes.set_axis_off()
    colors = _colors(values)
    for row, column, piece, token in places:
        _piece(axes, row, column, piece, colors[token])
    most = _most(values)
    bar = ScalarMappable(Normalize(-most, most), RED_TO_BLUE)
    picture.colorbar(bar, ax=axes, label=f"{unit} with the vector", orientation="horizontal", aspect=60, fraction=0.04)
    data = pd.DataFrame({"place": range(len(tokens)), "token": tokens, unit: values})
    return Figure(name, picture, data)


def _piece(axes: Any, row: int, column: int, text: str, color: Sequence[float]) -> None:
    from matplotlib.patches import Rectangle

    axes.add_patch(Rectangle((column, row + 0.05), len(text), 0.9, facecolor=color, linewidth=0))
    for n, character in enumerate(text):  # one by one: what is wide in one font is not in another
        at = (column + n + 0.5, row + 0.55)
        axes.text(*at, character, ha="center", va="center", family="DejaVu Sans Mono", color=ink(color), fontsize=8)


def _places(tokens: Sequence[str]) -> Iterator[tuple[int, int, str, int]]:
    """Row, column, text and number of each token's pieces: a token that reaches the end of a line is broken.

    >>> list(_places(["ab", "\\n", "c"]))
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


def _most(values: Sequence[float]) -> float:
    return max(map(abs, values), default=0.0) or 1.0


def _colors(values: Sequence[float]) -> list[tuple[float, ...]]:
    from matplotlib import colormaps

    most, shade = _most(values), colormaps[RED_TO_BLUE]
    return [shade(0.5 + value / (2 * most)) for value in values]


def side_by_side(texts: Mapping[str, Mapping[str, str]], title: str, name: str) -> Figure:
    """The answers of several settings to the same questions beside each other.

    Args:
        texts: question -> setting ("original", "plus", "minus") -> answer; the same settings for each question.
        title: above the picture.
        name: of the files.
    """
    import pandas as pd

    settings = list(next(iter(texts.values())))
    cells = [[question, *(answers[setting] for setting in settings)] for question, answers in texts.items()]
    wrapped = [[_wrapped(text) for text in line] for line in cells]
    heights = [max(text.count("\n") + 1 for text in line) + 0.7 for line in wrapped]
    picture, [axes] = panels(2.6 * (1 + len(settings)), 0.9 + 0.155 * sum(heights))
    axes.set(xlim=(0, 1 + len(settings)), ylim=(sum(heights) + 1.2, 0))
    axes.set_axis_off()
    axes.set_title(title)
    for column, heading in enumerate(["question", *settings]):
        axes.text(column + 0.02, 0.1, heading, va="top", weight="bold", fontsize=8)
    top = 1.4
    for line, height in zip(wrapped, heights, strict=True):
        axes.axhline(top - 0.3, color="lightgray", linewidth=0.8)
        for column, text in enumerate(line):
            axes.text(column + 0.02, top, text, va="top", fontsize=7.5, family="DejaVu Sans Mono", linespacing=1.2)
        top += height
    return Figure(name, picture, pd.DataFrame(cells, columns=["question", *settings]))


def _wrapped(text: str, width: int = 33, most: int = 14) -> str:
    """In lines of `width` characters, at most so many; one that is longer is cut and says so."""
    lines = textwrap.wrap(" ".join(text.split()), width) or ["(nothing)"]
    return "\n".join(lines if len(lines) <= most else [*lines[:most], "..."])
