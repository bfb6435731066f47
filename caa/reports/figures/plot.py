"""What all figures share: a picture with its numbers, saved together; fonts, colors, heat maps and lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from caa.files import replacing
from caa.untrusted import plain_frame

if TYPE_CHECKING:
    import pandas as pd

# Okabe and Ito's colors, which color-blind readers tell apart; each line also has a marker of its own.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "os^Dv<>"
RED_TO_BLUE = "RdBu"
"""Red is negative, blue is positive, white is 0."""
LAYER = "layer (output of block, counted from 0)"
_STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.hashsalt": "caa",
    "figure.dpi": 120,
}


@dataclass(frozen=True)
class Figure:
    """One picture and the numbers that it shows."""

    name: str
    """The files' name, without a suffix."""
    picture: Any
    """A `matplotlib.figure.Figure`."""
    data: pd.DataFrame

    def __post_init__(self) -> None:
        from matplotlib.text import Text

        for text in self.picture.findobj(Text):
            text.set_parse_math(False)  # what a model writes is data: "$x$" is no formula, and "$x_{$" no error

    def save(self, folder: str | Path) -> list[Path]:
        """Write <name>.png, <name>.svg and <name>.csv into the folder, each whole or not at all; their paths."""
        paths = [Path(folder) / f"{self.name}.{suffix}" for suffix in ("png", "svg", "csv")]
        for path in paths:
            with replacing(path) as scratch:
                self._write(scratch)
        return paths

    def _write(self, path: Path) -> None:
        from matplotlib import rc_context

        if path.suffix == ".csv":
            plain_frame(self.data).to_csv(path, index=False, lineterminator="\n")
            return
        with rc_context(_STYLE):
            metadata = {"Date": None} if path.suffix == ".svg" else None  # the same numbers, the same file
            self.picture.savefig(path, bbox_inches="tight", facecolor="white", metadata=metadata)


def panels(width: float, height: float, rows: int = 1, columns: int = 1) -> tuple[Any, list[Any]]:
    """A picture of this size in inches, and its axes row by row. No pyplot: nothing global is touched."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure as Picture

    with rc_context(_STYLE):
        picture = Picture(figsize=(width, height), layout="constrained")
        return picture, list(picture.subplots(rows, columns, squeeze=False).flat)


def heat(
    axes: Any, values: Any, across: Sequence[Any], down: Sequence[Any], *, color: str, limits: tuple[float, float]
) -> Any:
    """A heat map of values [down, across] with a label for each row and column; what a color bar is made of.

    Long axes get a label for every few rows, so that labels never touch.
    """
    image = axes.imshow(values, cmap=color, vmin=limits[0], vmax=limits[1], aspect="auto")
    step_across, step_down = -(-len(across) // 30), -(-len(down) // 30)
    turned = max(len(str(label)) for label in across) > 4
    axes.set_xticks(range(0, len(across), step_across), across[::step_across], rotation=45 if turned else 0)
    for label in axes.get_xticklabels():
        label.set_horizontalalignment("right" if turned else "center")
    axes.set_yticks(range(0, len(down), step_down), down[::step_down])
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    return image


def numbers(axes: Any, image: Any, texts: Sequence[Sequence[str]], size: float = 8) -> None:
    """A text in each cell of a heat map, dark on light cells and light on dark ones."""
    backgrounds = image.to_rgba(image.get_array()).tolist()  # transparent where there is no value
    for i, line in enumerate(texts):
        for j, text in enumerate(line):
            axes.text(j, i, text, ha="center", va="center", fontsize=size, color=ink(backgrounds[i][j]))


def ink(background: Sequence[float]) -> str:
    """For a color of red, green, blue and perhaps how opaque it is on white paper, each from 0 to 1.

    >>> ink((1.0, 1.0, 1.0)), ink((0.0, 0.0, 0.3)), ink((0.0, 0.0, 0.0, 0.0))
    ('black', 'white', 'black')
    """
    red, green, blue, opaque = (*background, 1.0)[:4]
    return "black" if opaque * (0.299 * red + 0.587 * green + 0.114 * blue) + 1 - opaque > 0.5 else "white"


def lines(axes: Any, data: pd.DataFrame, x: str, y: str, by: str, *, low: str = "", high: str = "") -> None:
    """One line with markers for each value of `by`, in order of appearance, with a band from low to high if named."""
    for n, (name, part) in enumerate(data.groupby(by, sort=False)):
        part = part.sort_values(x)
        color, cycle = COLORS[n % len(COLORS)], n // len(COLORS)
        marker, style = MARKERS[(n + cycle) % len(MARKERS)], ("-", "--", ":")[cycle % 3]
        axes.plot(part[x], part[y], color=color, label=str(name), markersize=4, marker=marker, linestyle=style)
        if low:
            axes.fill_between(part[x], part[low], part[high], color=color, alpha=0.15, linewidth=0)


def angle_axis(axes: Any, least: float) -> None:
    """A y axis of cosines, spaced by the angle, from the least up to 1: near 1 lines lie apart that would be one."""
    import numpy as np

    def angle(cosine: Any) -> Any:
        return -np.arccos(np.clip(cosine, -1, 1))

    axes.set_yscale("function", functions=(angle, lambda turned: np.cos(np.clip(-turned, 0, np.pi))))
    bottom = float(np.cos(min(np.arccos(np.clip(least, -1, 1)) * 1.08 + 0.01, np.pi)))
    ticks = [tick for tick in (1, 0.999, 0.99, 0.97, 0.94, 0.9, 0.8, 0.7, 0.5, 0.25, 0, -0.5, -1) if tick >= bottom]
    spaced = ticks[:1]
    for tick in ticks[1:]:  # where the axis is long those near 1 would touch
        if angle(spaced[-1]) - angle(tick) > 0.06 * -angle(bottom):
            spaced.append(tick)
    axes.set_yticks(spaced, [f"{tick:g}" for tick in spaced])
    axes.minorticks_off()
    axes.set_ylim(bottom, 1)


def place_labels(axes: Any, labels: Sequence[tuple[float, float, str]], size: float = 7) -> None:
    """A text beside each point, where it covers neither a point nor another text; a point's texts stand in one.

    Call it last: where things lie is known once all is drawn.

    Args:
        axes: of the points; those of all scatter plots are kept clear.
        labels: x, y and text of each.
        size: of the font, in points.
    """
    from adjustText import adjust_text
    from numpy import isfinite, ma, nan

    at: dict[tuple[float, float], dict[str, None]] = {}
    for x, y, text in labels:
        at.setdefault((x, y), {})[text] = None
    texts = [axes.text(*place, ", ".join(names), fontsize=size) for place, names in at.items()]
    if not texts:
        return
    offsets = [ma.filled(scatter.get_offsets(), nan) for scatter in axes.collections]
    dots = [dot for places in offsets for dot in places if isfinite(dot).all()]
    xs, ys = ([dot[axis] for dot in dots] for axis in (0, 1))
    # By steps and not by seconds, which would give another picture on a slower machine.
    adjust_text(texts, xs, ys, ax=axes, expand=(1.3, 1.6), force_static=(0.5, 0.8), force_text=(0.3, 0.5), iter_lim=500)


def whole_steps(axes: Any) -> None:
    """Ticks of the x axis at whole numbers: there is no layer 1.5."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def legend(axes: Any, title: str) -> None:
    """Beside the axes, where it covers no line."""
    axes.legend(title=title, frameon=False, loc="upper left", bbox_to_anchor=(1.01, 1.0), borderaxespad=0.0)


def tidy(matrix: Mapping[Any, Mapping[Any, float]], down: str, across: str, value: str) -> pd.DataFrame:
    """Row -> column -> number as one line for each number.

    >>> tidy({"a": {1: 0.5}}, "behavior", "layer", "cosine").to_dict("records")
    [{'behavior': 'a', 'layer': 1, 'cosine': 0.5}]
    """
    import pandas as pd

    records = [{down: i, across: j, value: number} for i, line in matrix.items() for j, number in line.items()]
    return pd.DataFrame(records, columns=[down, across, value])
