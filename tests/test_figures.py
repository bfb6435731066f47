"""Figures: the numbers behind each picture are the numbers it is said to show, and nothing is cut off."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from tiny import SHARED, needs_shared

from caa.runs.rows import Cell, Row, VectorRef

pytest.importorskip("matplotlib", reason="figures need the extra `plot`")

from caa.reports.figures import activations, curves, plot, tables, texts, vectors
from caa.reports.figures.plot import Figure
from caa.reports.tables import finetune_tables


def asked(cell: Cell, *scores: float, **evidence: object) -> list[Row]:
    return [Row(cell, f"q{n}", score, dict(evidence)) for n, score in enumerate(scores)]


def inside(figure: Figure) -> None:
    """No two labels of an axis touch. (What lies outside the axes is saved too: the box is made to fit.)"""
    figure.picture.canvas.draw()
    for axes in figure.picture.axes:
        for axis in (axes.xaxis, axes.yaxis):
            ticks = [tick.label1 for tick in axis.get_major_ticks() if tick.label1.get_rotation() in (0, 90)]
            boxes = [tick.get_window_extent() for tick in ticks if tick.get_text()]
            assert not any(a.overlaps(b) for a, b in pairwise(boxes)), "two labels overlap"


def test_a_figure_is_written_as_two_pictures_and_its_numbers(tmp_path):
    figure = vectors.between_behaviors({"a": [1.0, 0.0], "b": [1.0, 1.0]}, 13)
    paths = figure.save(tmp_path)
    assert [path.name for path in paths] == [f"between_behaviors-layer_13.{end}" for end in ("png", "svg", "csv")]
    assert paths[0].read_bytes().startswith(b"\x89PNG")
    assert b"<svg" in paths[1].read_bytes()
    read = pd.read_csv(paths[2])
    assert read[(read.behavior == "a") & (read["other behavior"] == "b")].cosine.item() == pytest.approx(0.5**0.5)
    before = paths[1].read_bytes()
    vectors.between_behaviors({"a": [1.0, 0.0], "b": [1.0, 1.0]}, 13).save(tmp_path)
    assert paths[1].read_bytes() == before, "the same numbers make the same file"


def test_the_diagonal_between_layers_is_one_and_the_matrix_is_symmetric():
    rng = np.random.default_rng(0)
    figure = vectors.inter_layer({i: rng.normal(size=8) for i in (3, 4, 9)}, "refusal")
    matrix = figure.data.pivot(index="layer", columns="other layer", values="cosine").to_numpy()
    np.testing.assert_allclose(np.diag(matrix), 1.0)
    np.testing.assert_allclose(matrix, matrix.T)
    assert abs(matrix[0, 1]) < 0.99
    inside(figure)


def test_a_zero_direction_has_no_cosine():
    with pytest.raises(ValueError, match="'b' is zero"):
        vectors.cosines({"a": [1.0], "b": [0.0]})


@needs_shared
def test_the_published_vectors_agree_as_the_paper_shows():
    from caa.vectors.formats import import_vector

    folder, layer = SHARED / "data" / "caa" / "vectors", 13
    found = {
        path.name: import_vector(path / f"vec_layer_{layer}_Llama-2-7b-chat-hf.pt", layer).at(layer).numpy()
        for path in sorted(folder.iterdir())
    }
    figure = vectors.between_behaviors(found, layer)
    cosine = figure.data.set_index(["behavior", "other behavior"]).cosine
    assert cosine["coordinate-other-ais", "corrigible-neutral-HHH"] == pytest.approx(0.730, abs=5e-4)
    assert cosine["hallucination", "refusal"] == pytest.approx(-0.739, abs=5e-4)
    assert cosine["corrigible-neutral-HHH", "hallucination"] == pytest.approx(0.689, abs=5e-4)
    assert len(found) == 7
    inside(figure)


def test_cosines_by_layer_are_one_line_for_each_behavior():
    found = {"a": {0: 1.0, 1: 0.5}, "b": {0: -0.5, 1: 0.2}}
    figure = vectors.cosine_by_layer(found, "base and chat", "fig9")
    assert figure.data.to_dict("records")[1] == {"behavior": "a", "layer": 1, "cosine": 0.5}
    [axes] = figure.picture.axes
    assert [list(line.get_ydata()) for line in axes.lines[:2]] == [[1.0, 0.5], [-0.5, 0.2]]
    assert axes.get_ylim()[0] < -0.5


@pytest.fixture
def grid() -> list[Row]:
    scores = {
        (f, m): s
        for f, each in ((None, (0.2, 0.5, 0.8)), ("positive", (0.4, 0.7, 0.9)))
        for m, s in zip((-1.0, 0.0, 1.0), each, strict=True)
    }
    return [
        row
        for b in ("refusal", "$x_1$ <i>")
        for (f, m), s in scores.items()
        for row in asked(Cell(b, "ab", f, 13, m), s, s)
    ]


def test_a_heat_table_shows_and_marks_what_the_table_does(grid):
    [table] = finetune_tables(grid)
    figure = tables.heat_table(table, "table4")
    first = figure.data[figure.data.line == "refusal"]
    assert list(first["mean"]) == pytest.approx([0.2, 0.5, 0.8, 0.4, 0.7, 0.9])
    assert list(first.mark) == ["lowest", "", "", "", "", "highest"]
    axes = figure.picture.axes[0]
    np.testing.assert_allclose(np.asarray(axes.images[0].get_array())[0], first["mean"])
    shown = [text.get_text().split("\n")[0] for text in axes.texts[:6]]
    assert shown == ["0.20 ▼", "0.50", "0.80", "0.40", "0.70", "0.90 ▲"]
    assert axes.get_yticklabels()[1].get_text() == "$x_1$ <i>", "a name is no formula"
    inside(figure)
    width, height = figure.picture.get_tightbbox().size
    assert height < 6, "a table of two lines is not a page of white"
    assert width < 12
    with pytest.raises(ValueError, match="shows scores"):
        tables.heat_table(table.below[0], "x")


def test_a_cell_that_was_not_asked_shows_a_dash_that_can_be_seen(grid, recwarn):
    left_out = grid[-1].cell
    [table] = finetune_tables([row for row in grid if row.cell != left_out])
    axes = tables.heat_table(table, "table4").picture.axes[0]
    dashes = [text for text in axes.texts if text.get_text() == "-"]
    assert {text.get_color() for text in dashes} == {"black"}, "white on white"
    assert not recwarn.list


def sweep(effects: dict[tuple[str, int], float], **cell: str) -> list[Row]:
    return [
        row
        for (behavior, layer), effect in effects.items()
        for m in (-1.0, 0.0, 1.0)
        for row in asked(
            Cell(behavior, "ab", layer=layer, multiplier=m, **cell), 0.4 + m * effect / 2, 0.6 + m * effect / 2
        )
    ]


def test_the_effect_by_layer_peaks_where_it_was_planted():
    planted = sweep({("b", 0): 0.1, ("b", 1): 0.6, ("b", 2): 0.2})
    noise = (
        sweep({("b", 2): 0.9}, vector=VectorRef("random", "0"))
        + sweep({("b", 0): 0.9}, finetune="positive")
        + sweep({("c", 0): 0.9})
    )
    figure = curves.effect_by_layer(planted + noise, "b")
    up = figure.data[figure.data.multiplier == 1]
    assert up.set_index("layer")["mean"].to_dict() == pytest.approx({0: 0.55, 1: 0.8, 2: 0.6})
    assert (figure.data.low <= figure.data["mean"]).all()
    [axes] = figure.picture.axes
    dashed = next(line for line in axes.lines if line.get_linestyle() == "--")
    assert set(dashed.get_ydata()) == {0.5}, "the unsteered model"
    inside(figure)
    with pytest.raises(ValueError, match="rows of one task"):
        curves.effect_by_layer(planted, "nothing")


def test_a_transfer_shows_the_push_at_each_layer():
    figure = curves.transfer(sweep({("a", 0): 0.2, ("a", 1): 0.6, ("b", 0): -0.4}), "behavior", "moved", "fig8")
    found = figure.data.set_index(["behavior", "layer"])["mean"].to_dict()
    assert found == pytest.approx({("a", 0): 0.2, ("a", 1): 0.6, ("b", 0): -0.4})
    with pytest.raises(ValueError, match="both signs"):
        curves.two_sided_effects([row for row in sweep({("a", 0): 0.2}) if row.cell.multiplier >= 0])


def test_true_and_false_claims_are_split():
    found = [
        *asked(Cell("h", "facts", multiplier=1.0), 0.9, 0.7, category="true"),
        *asked(Cell("h", "facts", multiplier=1.0), 0.1, category="false"),
        *asked(Cell("h", "facts", multiplier=0.0), 0.5, category="false"),
    ]
    figure = curves.effect_by_category(found, "h")
    assert figure.data.set_index(["category", "multiplier"])["mean"].to_dict() == pytest.approx(
        {("true", 1.0): 0.8, ("false", 1.0): 0.1, ("false", 0.0): 0.5}
    )


def test_lines_near_one_lie_apart_and_finetunes_have_panels_of_their_own():
    close = {"a": {0: 0.9990, 1: 0.9}, "b": {0: 0.9999, 1: 0.92}}
    figure = vectors.cosine_panels({"positive": close, "negative": {"a": {0: 0.95, 1: 0.2}}}, "x", "fig9")
    assert [axes.get_title() for axes in figure.picture.axes] == ["positive", "negative"]
    assert list(figure.data.panel) == ["positive"] * 4 + ["negative"] * 2
    [axes] = vectors.cosine_panels({"": close}, "x", "fig9").picture.axes
    axes.figure.canvas.draw()
    heights = [axes.transAxes.inverted().transform(axes.transData.transform((0, y)))[1] for y in (0.9990, 0.9999)]
    assert heights[1] - heights[0] > 0.05, "of the height: a thousandth apart, and seen"
    inside(figure)


@pytest.mark.parametrize("size", [6, 7, 9])
def test_labels_cover_neither_each_other_nor_points(size):
    picture, [axes] = plot.panels(5, 4)
    points = [(0.57, 0.477), (0.61, 0.48), (0.62, 0.47), (0.58, 0.49), (0.9, 0.5)]
    axes.scatter(*zip(*points, strict=True), s=20)
    axes.set(xlim=(0, 1), ylim=(0, 1))
    plot.place_labels(axes, [*((x, y, "+0.4") for x, y in points), (0.9, 0.5, "+0.6"), (0.9, 0.5, "+0.4")], size)
    assert [text.get_text() for text in axes.texts] == ["+0.4"] * 4 + ["+0.4, +0.6"]
    picture.canvas.draw()
    boxes = [text.get_window_extent() for text in axes.texts]
    assert not [1 for n, box in enumerate(boxes) for other in boxes[n + 1 :] if box.overlaps(other)]
    places = axes.transData.transform(points)
    assert not [1 for box in boxes for place in places if box.contains(*place)]


def test_a_random_direction_is_a_line_of_its_own_beside_the_dose():
    points = [
        {
            "direction": direction,
            "dose": d,
            "mean": 0.5 + sign * d,
            "low": 0.4,
            "high": 0.6,
            "perplexity": 3.0,
            "loops": 0,
        }
        for direction, sign in (("own", 1), ("random-0", -0.1))
        for d in (-0.3, 0.0, 0.3)
    ]
    effect, damage = curves.dose_response(points, "b", 3).picture.axes
    assert [text.get_text() for text in effect.get_legend().get_texts()] == ["the vector", "random-0"]
    assert list(effect.lines[1].get_ydata()) == pytest.approx([0.53, 0.5, 0.47])
    assert len(damage.lines) == 3


def test_a_dose_has_its_damage_below():
    found = [
        {"dose": d, "mean": 0.5 + d, "low": 0.4 + d, "high": 0.6 + d, "perplexity": 3 + 900 * abs(d)}
        for d in (0.3, -0.3, 0.0)
    ]
    figure = curves.dose_response(found, "b", 3)
    assert list(figure.data.dose) == [-0.3, 0.0, 0.3]
    effect, damage = figure.picture.axes
    assert list(effect.lines[0].get_ydata()) == pytest.approx([0.2, 0.5, 0.8])
    assert list(damage.lines[0].get_ydata()) == pytest.approx([273.0, 3.0, 273.0])
    assert damage.get_ylim()[1] > 1.5 * 273, "a label has its place above the highest point"
    figure.picture.canvas.draw()
    assert not [label.get_text() for label in damage.get_yticklabels() if "$" in label.get_text()], "plain numbers"


def test_statistics_of_projections():
    up = {0: np.array([1.0, 3.0]), 1: np.array([0.0, 0.0, 0.0, 9.0])}
    down = {0: np.array([-1.0, -3.0]), 1: np.array([-1.0, 1.0, -1.0, 1.0])}
    found = activations.projection_statistics(up, down).set_index(["layer", "side"])
    assert found.loc[(0, "positive"), "mean"] == 2
    assert found.loc[(0, "positive"), "spread"] == 1
    assert found.loc[(0, "positive"), "distance"] == 4
    assert found.loc[(1, "positive"), "peak"] > found.loc[(1, "negative"), "peak"]
    figure = activations.projection_histograms(up, down, "b")
    assert "layer 0, 4.0 spreads apart" in figure.picture.axes[0].get_title()
    counts = [sum(patch.get_height() for patch in side) for side in figure.picture.axes[0].containers]
    assert counts == [2, 2], "all texts are counted"


def test_a_planted_contrast_is_the_first_component():
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(40, 6))
    noise[:20, 2] += 30
    letters = ["A", "B"] * 20
    figure = activations.pca_scatter(noise[:20], noise[20:], letters, "b", 3)
    first = figure.data.groupby("side")["component 1"].mean()
    assert abs(first["positive"] - first["negative"]) == pytest.approx(30, abs=1.5)
    assert sorted(figure.picture.axes[0].get_legend_handles_labels()[1]) == [
        "negative A",
        "negative B",
        "positive A",
        "positive B",
    ]


def test_a_heat_map_of_positions_peaks_where_it_was_planted():
    values = np.zeros((3, 5))
    values[2, 1] = 7.0
    figure = activations.position_heat(values, [0, 1, 2], [-2, -1, 0, 1, 2], "t", "n")
    peak = figure.data.loc[figure.data.difference.idxmax()]
    assert (peak.layer, peak.position, peak.difference) == (2, -1, 7.0)
    axes = figure.picture.axes[0]
    shown = np.asarray(axes.images[0].get_array())
    row, column = np.unravel_index(shown.argmax(), shown.shape)
    assert axes.get_yticklabels()[row].get_text() == "2"
    assert axes.get_xticklabels()[column].get_text() == "-1"


def test_accuracy_by_layer():
    figure = activations.pair_accuracy_by_layer({"held-out": {0: 0.5, 1: 1.0}}, "b")
    assert figure.data.accuracy.tolist() == [0.5, 1.0]


def test_many_lines_are_told_apart():
    figure = vectors.cosine_by_layer({f"b{n}": {0: 0.1 * n, 1: 0.2} for n in range(12)}, "x", "y")
    looks = {(line.get_color(), line.get_marker(), line.get_linestyle()) for line in figure.picture.axes[0].lines[:12]}
    assert len(looks) == 12


def test_many_layers_have_labels_that_do_not_touch():
    rng = np.random.default_rng(0)
    inside(vectors.inter_layer({i: rng.normal(size=4) for i in range(80)}, "refusal"))


HOSTILE = ["<script>alert(1)</script>", ' "&', "$x_{$", "\n", "fin"]


def test_tokens_are_red_below_zero_and_blue_above():
    values = [-1.0, 1.0, 0.0, 0.5, -0.5]
    html = texts.token_html(HOSTILE, values, "<b>title", "dot product")
    assert "<script>" not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    assert "<b>title" not in html
    assert html.count("<span") == 5
    shown = re.findall(r'<span class="(\w+)" style="--share:(\d+)" title="([^"]*)"', html)
    assert shown == [
        ("below", "100", "-1.000"),
        ("above", "100", "+1.000"),
        ("above", "0", "+0.000"),
        ("above", "50", "+0.500"),
        ("below", "50", "-0.500"),
    ]
    assert ".below { background: color-mix(in srgb, var(--red)" in html
    assert ".above { background: color-mix(in srgb, var(--blue)" in html
    figure = texts.token_colors(HOSTILE, values, "title", "n")
    assert figure.data.cosine.tolist() == values
    drawn = "".join(text.get_text() for text in figure.picture.axes[0].texts)
    assert drawn == "".join(HOSTILE).replace("\n", "")
    figure.picture.canvas.draw()


def test_texts_stand_beside_each_other():
    said = {"Why?": {"original": "so", "plus": "word " * 200, "minus": "$x_{$<i>"}}
    figure = texts.side_by_side(said, "t", "n")
    assert figure.data.iloc[0].tolist() == ["Why?", "so", "word " * 200, "$x_{$<i>"]
    figure.picture.canvas.draw()
    boxes = {round(text.get_position()[0], 2): text.get_window_extent() for text in figure.picture.axes[0].texts[4:]}
    ordered = [boxes[x] for x in sorted(boxes)]
    assert all(a.x1 <= b.x0 for a, b in pairwise(ordered)), "columns do not run into each other"


def test_the_lens_shows_tokens_in_order():
    figure = vectors.logit_lens({0: [(" a", 3.0), ("b\n", 1.0)], 1: [("c", 2.0), ("d", 0.5)]}, "b")
    assert figure.data.token.tolist() == [" a", "b\n", "c", "d"]
    assert [text.get_text() for text in figure.picture.axes[0].texts] == ["␣a", "b⏎", "c", "d"]


def test_figures_need_no_torch():
    modules = ", ".join(
        f"caa.reports.figures.{name}" for name in ("activations", "curves", "tables", "texts", "vectors")
    )
    script = f"import sys, {modules}; sys.exit('torch' in sys.modules or 'matplotlib' in sys.modules)"
    assert not subprocess.run([sys.executable, "-c", script], check=False).returncode


def test_no_text_is_a_formula(tmp_path):
    """matplotlib would refuse to draw "$x_{$", and would set "$x$" in italics."""
    from matplotlib.text import Text

    said, name = "$x_{$", "b $x_{$"
    drawn = [
        texts.token_colors([said, said], [0.1, -0.2], name, "tokens"),
        texts.side_by_side({said: {"original": said}}, name, "beside"),
        vectors.logit_lens({0: [(said, 1.0)]}, name),
        vectors.between_behaviors({name: [1.0, 0.0], "c": [0.0, 1.0]}, 1),
        curves.transfer(sweep({(name, 0): 0.2, (name, 1): 0.3}), "behavior", name, "moved"),
        tables.heat_table(finetune_tables(asked(Cell(name, "ab", name, 1, 1.0), 0.5, 0.6))[0], "table"),
    ]
    for n, figure in enumerate(drawn):
        Figure(f"f{n}", figure.picture, figure.data).save(tmp_path)
        assert not [
            text.get_text() for text in figure.picture.findobj(Text) if text.get_parse_math() and "$" in text.get_text()
        ]


def test_a_gallery_takes_the_vectors_of_behaviors_and_not_those_read_in_finetunes(tmp_path):
    import torch

    from caa import SteeringVector
    from caa.gallery import Gallery
    from caa.runs.rows import append_rows

    for name in ("refusal", "refusal-positive", "unasked"):
        SteeringVector({2: torch.ones(96)}).save(tmp_path / "vectors" / f"{name}.safetensors")
    append_rows(
        tmp_path / "rows.jsonl", asked(Cell("refusal", "ab", "positive", 2, 1.0, vector=VectorRef("reread")), 0.5)
    )
    (tmp_path / "run.json").write_text(json.dumps({"notes": {"model": "tiny-chat"}}))
    gallery = Gallery(tmp_path)
    assert list(gallery.vectors) == list(gallery.behaviors) == ["refusal"]
    append_rows(tmp_path / "other" / "rows.jsonl", asked(Cell("sycophancy", "ab"), 0.5))
    with pytest.raises(FileNotFoundError, match="no rows or no vectors"):
        Gallery(tmp_path / "other")
