"""Rows of a sweep in, curves with intervals out: by layer, by multiplier, by dose, by kind of question."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from caa.reports.figures.plot import COLORS, LAYER, Figure, legend, lines, panels, place_labels, whole_steps
from caa.reports.naming import SCORES, cell_fields, signed
from caa.reports.statistics import mean_interval, means_by_cell, paired_difference
from caa.runs.rows import OWN, Cell, Row, scores_by_cell

if TYPE_CHECKING:
    import pandas as pd


def effect_by_layer(rows: Iterable[Row], behavior: str) -> Figure:
    """Mean score by layer, one line for each multiplier with its 95 % interval; the unsteered model is dashed.

    Only the behavior's own vector without a finetune; ValueError if there are no such rows of just one task.
    """
    import pandas as pd

    own = [row for row in rows if _only_own_vector(row.cell) and row.cell.behavior == behavior]
    task = _one_task(own)
    means = {cell: estimate for cell, estimate in means_by_cell(own).items() if estimate.n}
    data = pd.DataFrame([{**cell_fields(cell), **asdict(estimate)} for cell, estimate in means.items()])
    data["steering"] = [f"x {signed(multiplier)}" for multiplier in data.multiplier]
    data = data.sort_values(["multiplier", "layer"], ignore_index=True)
    picture, [axes] = panels(6.4, 3.4)
    lines(axes, data[data.multiplier != 0], "layer", "mean", "steering", low="low", high="high")
    _unsteered_line(axes, data[data.multiplier == 0])
    axes.set(xlabel=LAYER, ylabel=SCORES.get(task, "mean score"), title=f"{behavior}: effect by layer and multiplier")
    whole_steps(axes)
    legend(axes, "multiplier")
    return Figure(f"effect_by_layer-{behavior}", picture, data)


def _unsteered_line(axes: Any, data: pd.DataFrame) -> None:
    """The same at all layers: one line across, with its interval."""
    for _, unsteered in data.iloc[:1].iterrows():
        axes.axhline(unsteered["mean"], color="black", linestyle="--", linewidth=1, label="unsteered")
        axes.axhspan(unsteered["low"], unsteered["high"], color="black", alpha=0.08, linewidth=0)


def _only_own_vector(cell: Cell) -> bool:
    return cell.vector == OWN and cell.finetune is None and not cell.system_prompt and cell.layer is not None


def _one_task(rows: list[Row]) -> str:
    tasks = {row.cell.task for row in rows}
    if len(tasks) != 1:
        raise ValueError(f"a curve is of the rows of one task, these are of {sorted(tasks) or 'none'}: select first")
    return tasks.pop()


def two_sided_effects(rows: Iterable[Row]) -> pd.DataFrame:
    """How far a vector moves the questions: score at +m minus score at -m, by behavior, vector and layer.

    m is the largest multiplier with both signs; one line each with mean, low and high over the questions. ValueError
    if no multiplier has both signs.
    """
    import pandas as pd

    scores = scores_by_cell(rows)
    opposites = {cell: replace(cell, multiplier=-cell.multiplier) for cell in scores}
    top = max((cell.multiplier for cell, opposite in opposites.items() if opposite in scores), default=0.0)
    if top <= 0:
        raise ValueError("an effect needs one multiplier with both signs, such as -1 and 1; these rows have none")
    records = [
        {**cell_fields(cell), **asdict(paired_difference(scores[cell], scores[opposite]))}
        for cell, opposite in opposites.items()
        if cell.multiplier == top and opposite in scores
    ]
    return pd.DataFrame(records)


def transfer(rows: Iterable[Row], by: str, title: str, name: str) -> Figure:
    """The effect of each vector by the layer that it is added at: of one layer's vector at all (Figure 8), or of
    another model's vector beside the model's own (Figure 10).

    Args:
        rows: of one task, at least two multipliers of one size, several layers.
        by: what the lines are: "behavior" or "vector".
        title: above the picture.
        name: of the files.
    """
    rows = list(rows)
    task, data = _one_task(rows), two_sided_effects(rows)
    picture, [axes] = panels(6.4, 3.4)
    lines(axes, data, "layer", "mean", by, low="low", high="high")
    axes.axhline(0, color="gray", linewidth=0.8)
    top = data.multiplier.max()
    unit = SCORES.get(task, "mean score")
    axes.set(xlabel=LAYER, ylabel=f"{unit}\nat {signed(top)} minus at {signed(-top)}", title=title)
    whole_steps(axes)
    legend(axes, by)
    return Figure(name, picture, data)


def effect_by_category(rows: Iterable[Row], behavior: str) -> Figure:
    """Mean score by multiplier, split by the kind of question: true and false claims, subjects of facts.

    Takes the rows whose evidence says a category; ValueError if none does.
    """
    import pandas as pd

    own = [row for row in rows if _only_own_vector(row.cell) and row.cell.behavior == behavior]
    own = [row for row in own if row.evidence.get("category")]
    task = _one_task(own)
    layer = min(row.cell.layer for row in own if row.cell.layer is not None)
    scores: dict[tuple[str, float], list[float | None]] = {}
    for row in own:
        if row.cell.layer == layer:
            scores.setdefault((row.evidence["category"], row.cell.multiplier), []).append(row.score)
    records = [
        {"category": category, "multiplier": multiplier, **asdict(mean_interval(values))}
        for (category, multiplier), values in scores.items()
    ]
    data = pd.DataFrame(records).sort_values(["category", "multiplier"], ignore_index=True)
    picture, [axes] = panels(6.4, 3.4)
    low, high = ("low", "high") if data.category.nunique() <= 4 else ("", "")  # more bands would hide each other
    lines(axes, data, "multiplier", "mean", "category", low=low, high=high)
    axes.set(xlabel="multiplier of the vector", ylabel=SCORES.get(task, "mean score"))
    axes.set_title(f"{behavior} at layer {layer}: effect by kind of question")
    legend(axes, "kind")
    return Figure(f"effect_by_category-{behavior}", picture, data)


def dose_response(responses: Iterable[Mapping[str, float]], behavior: str, layer: int) -> Figure:
    """Effect, and below it the damage that it is bought with, on one axis of relative doses.

    Args:
        responses: for each dose a mapping with "dose" (norm of what is added over that of the residual stream, with
            its sign), "mean", "low", "high" (of the score, with its 95 % interval) and "perplexity" (of the steered
            answers, for the unsteered model); with "loops" (how many of the answers go round) it stands at each point,
            with "direction" ("own", or the name of a random one) there is a line for each.
        behavior: whose vector it is.
        layer: where it is added.
    """
    import pandas as pd

    data = pd.DataFrame([{"direction": "own"} | response for response in map(dict, responses)])
    data = data.sort_values(["direction", "dose"], ignore_index=True)
    picture, [effect, damage] = panels(6.6, 4.6, rows=2)
    effect.set(ylabel=SCORES["ab"], title=f"{behavior} at layer {layer}: effect and damage by dose")
    loops: list[tuple[float, float, str]] = []
    for direction, part in data.groupby("direction"):
        own = direction == "own"
        look = {"color": COLORS[0] if own else "gray", "linestyle": "-" if own else "--", "marker": "o" if own else "s"}
        effect.plot(part.dose, part["mean"], label="the vector" if own else str(direction), markersize=4, **look)
        effect.fill_between(part.dose, part.low, part.high, color=look["color"], alpha=0.15, linewidth=0)
        damage.plot(part.dose, part.perplexity, markersize=4, **look)
        if "loops" in part:
            texts = [f"{count:g} loop" if count else "" for count in part.loops]
            loops += zip(part.dose.tolist(), part.perplexity.tolist(), texts, strict=True)
    _damage_axis(damage)
    reach = 0.08 * (data.dose.max() - data.dose.min())
    for axes in (effect, damage):
        axes.axvline(0, color="gray", linewidth=0.8)
        axes.set_xlim(data.dose.min() - reach, data.dose.max() + reach)
    legend(effect, "direction")
    place_labels(damage, [label for label in loops if label[2]])
    return Figure(f"dose_response-{behavior}", picture, data)


def _damage_axis(axes: Any) -> None:
    """Perplexity by dose, on a logarithmic axis whose numbers are plain."""
    from matplotlib.ticker import NullFormatter, StrMethodFormatter

    axes.set_ylabel("perplexity of answers\n(for the unsteered model)")
    axes.set_xlabel("relative dose: norm added / norm of the residual stream, with the multiplier's sign")
    axes.set_yscale("log")
    axes.margins(y=0.12)  # so that a label has its place above the highest point
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def shares_by_kind(outcomes: Mapping[str, Mapping[str, Iterable[float]]], title: str, name: str) -> Figure:
    """How often something is so, way of steering by way, split by the kind of question: bars with 95 % intervals.

    Args:
        outcomes: way of steering ("0", "+0.2", "zeroed out") -> kind of question -> for each question 1 or 0.
        title: above the picture.
        name: of the files.
    """
    import pandas as pd

    records = [
        {"steering": way, "kind": kind, **asdict(mean_interval(values))}
        for way, by_kind in outcomes.items()
        for kind, values in by_kind.items()
    ]
    data = pd.DataFrame(records)
    kinds = list(dict.fromkeys(data.kind))
    picture, [axes] = panels(6.4, 3.2)
    for n, kind in enumerate(kinds):
        part, width = data[data.kind == kind], 0.8 / len(kinds)
        places = [place + (n - (len(kinds) - 1) / 2) * width for place in range(len(part))]
        spread = [part["mean"] - part.low, part.high - part["mean"]]
        axes.bar(
            places, part["mean"], width, yerr=spread, capsize=3, color=COLORS[n], label=kind, hatch=("", "//")[n % 2]
        )
    axes.set_xticks(range(len(outcomes)), list(outcomes))
    axes.set(xlabel="steering", ylabel="share", ylim=(0, 1.02), title=title)
    legend(axes, "kind")
    return Figure(name, picture, data)
