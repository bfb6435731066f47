"""Whole settings by name: asked beside layers or alone, resumed, told apart in rows, tables and reports; their file."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from test_grid import AB, BEHAVIOR, OPEN, TOKENIZER, asked, make_grid, make_wrapper, run, same_rows, vector

from caa import Intervention
from caa.evals.tasks import answer_open, score_choices
from caa.reports.pages.appendix import write_appendix
from caa.reports.tables import finetune_tables, write_report
from caa.runs.rows import OWN, Cell, Row, VectorRef, read_rows
from caa.steering.intervention import erase_subspace
from caa.steering.operators import Clamp, ablate, add_relative
from caa.steering.scopes import Decay, everywhere, prompt_only
from caa.steering.settings_file import load_settings, read_settings

__all__ = ["asked"]

SETTINGS = {
    "+": (Intervention(vector(), 1, 1.0),),
    "-": (Intervention(vector(), 1, -1.0),),
    "zero-out": (Intervention(vector(), 1, 1.0, ablate, everywhere),),
    "layer 2 at 1 to 3": tuple(Intervention(vector(), layer, 0.5, source_layer=2) for layer in (1, 2, 3)),
    "two | *vectors*": (
        Intervention(vector(), 2, 1.0, where=Decay(2.0)),
        Intervention(vector(5), 0, 0.3, add_relative),
    ),
    "subspace": erase_subspace(torch.stack([vector(seed).at(2) for seed in (1, 2)]), 2),
}


def named_grid(**changes):
    return make_grid(**{"layers": [], "settings": SETTINGS} | changes)


@pytest.fixture(scope="module")
def named(tmp_path_factory):
    out = tmp_path_factory.mktemp("named")
    run(named_grid(), out)
    return out


def test_every_cell_of_a_setting_equals_asking_it_alone(named):
    rows, wrapper = read_rows(named / "rows.jsonl"), make_wrapper()
    questions = {question.id: question for question in (*AB, *OPEN)}
    assert {row.cell for row in rows} == {
        Cell("myopia", task, finetune, None, float(bool(name)), setting=name)
        for task in ("ab", "open")
        for finetune in (None, "sft")
        for name in ("", *SETTINGS)
    }
    for row in rows:
        setting = SETTINGS.get(row.cell.setting, ())
        with wrapper.finetune(row.cell.finetune):
            if row.cell.task == "ab":
                (alone,) = score_choices(wrapper, TOKENIZER, [questions[row.question]], [setting])
                assert row.score == pytest.approx(alone.score, abs=1e-5)
            else:
                (text,) = answer_open(wrapper, TOKENIZER, [questions[row.question]], [setting], max_new_tokens=3)
                assert row.evidence["text"] == text
    assert len({row.score for row in rows if row.cell.task == "ab"}) > 40, "or every cell would do"


def test_a_torn_file_of_settings_is_completed_and_a_changed_setting_refused(named, tmp_path, asked):
    content = (named / "rows.jsonl").read_bytes()
    (tmp_path / "rows.jsonl").write_bytes(content[: len(content) // 2])
    (tmp_path / "run.json").write_bytes((named / "run.json").read_bytes())
    added = run(named_grid(), tmp_path)
    assert 0 < added < len(read_rows(named / "rows.jsonl"))
    assert len(asked) <= added, "something was asked whose answer was there"
    same_rows(read_rows(tmp_path / "rows.jsonl"), read_rows(named / "rows.jsonl"))
    changed = SETTINGS | {"zero-out": (replace(SETTINGS["zero-out"][0], where=prompt_only),)}
    with pytest.raises(FileExistsError, match="zero-out"):
        run(named_grid(settings=changed), tmp_path)
    asked.clear()
    more = {**SETTINGS, "half": (Intervention(vector(), 1, 0.5),)}
    assert run(named_grid(settings=more), tmp_path) == 2 * (len(AB) + len(OPEN))
    assert {multiplier for _, _, multiplier in asked} == {0.5}


def test_settings_stand_beside_layers_and_share_their_unsteered_answers(tmp_path, asked):
    grid = make_grid(settings={"+": SETTINGS["+"]}, finetunes=[None], tasks=["ab"])
    run(grid, tmp_path)
    assert len([question for question, layer, _ in asked if layer == -1]) == len(AB)
    scores = {
        (row.cell.layer, row.cell.multiplier, row.question): row.score for row in read_rows(tmp_path / "rows.jsonl")
    }
    for question in AB:
        assert scores[None, 0.0, question.id] == scores[1, 0.0, question.id]
        assert scores[None, 1.0, question.id] == pytest.approx(scores[1, 1.0, question.id], abs=1e-6)


def test_tables_and_reports_name_settings(named):
    tables = write_report(named)
    first = tables[0]
    assert first.title.endswith("named settings")
    assert [column for _, column in first.columns] == [0.0, *SETTINGS] * 2
    effects = first.below[0]
    assert "per unit" not in [column for _, column in effects.columns]
    assert {entry.cell.setting for entry in effects.entries} == set(SETTINGS)
    markdown = (named / "tables.md").read_text()
    assert "none zero-out" in markdown
    assert "sft two \\| " in markdown, "a name that is markup stands as it is"
    assert "zero-out" in (named / "tables.csv").read_text()
    assert "Setting zero-out" in write_appendix(named).read_text()


def test_beside_one_layer_settings_stand_in_its_table_and_beside_two_in_their_own():
    cells = [Cell("b", "ab", None, 1, m) for m in (0.0, 2.0)]
    cells += [Cell("b", "ab", layer=None), Cell("b", "ab", layer=None, multiplier=1.0, setting="zero-out")]
    scores = {cell: 0.3 + 0.1 * place for place, cell in enumerate(cells)}
    scores[cells[2]] = scores[cells[0]]  # the unsteered model is asked once
    rows = [Row(cell, f"q{n}", score + n / 100) for cell, score in scores.items() for n in range(5)]
    (table,) = finetune_tables(rows)
    assert table.columns == (("none", 0.0), ("none", 2.0), ("none", "zero-out"))
    assert table.title.endswith("layer 1")
    assert "What each setting does is in run.json." in " ".join(table.notes)
    changes = {entry.column: round(entry.estimate.mean, 6) for entry in table.below[0].entries}
    assert (changes[2.0], changes["zero-out"]) == (0.1, 0.3)
    elsewhere = [replace(row, cell=replace(row.cell, layer=2)) for row in rows if row.cell.layer]
    tables = finetune_tables([*rows, *elsewhere])
    assert [part.title.rpartition("; ")[2] for part in tables] == ["layer 1", "layer 2", "named settings"]


def test_random_and_reread_vectors_take_the_place_of_a_settings_own():
    again = vector(9)
    grid = named_grid(vector=SETTINGS["+"][0].vector, random_controls=1, reread={"sft": again})
    cases = {(case.cells[0].setting, case.cells[0].vector): case.setting for case in grid.cases("sft", "", "ab")}
    assert cases["+", VectorRef("reread")][0].vector is again
    assert cases["+", OWN][0].vector is grid.vector
    assert ("two | *vectors*", VectorRef("reread")) not in cases, "its vectors are not the grid's"
    control = cases["two | *vectors*", VectorRef("random", "0")]
    for edit, own in zip(control, SETTINGS["two | *vectors*"], strict=True):
        assert edit.direction.norm() == pytest.approx(own.direction.norm().item())
        assert abs(torch.cosine_similarity(edit.direction, own.direction, dim=0)) < 0.6
        assert (edit.layer, edit.where, edit.operator) == (own.layer, own.where, own.operator)


def test_a_row_keeps_the_name_and_old_rows_have_none():
    row = Row(Cell("b", "ab", "sft", None, 1.0, setting="zero-out"), "q", 0.5)
    assert Row.from_json(row.to_json()) == row
    assert row.cell.baseline() == Cell("b", "ab", "sft", None)
    old = Row(Cell("b", "ab", layer=3, multiplier=1.0), "q", 0.5)
    assert Row.from_json(old.to_json().replace('"setting": "", ', "")) == old


FILE = """
"+": {layer: 1}
zero-out: {layer: 1, operator: ablate, where: everywhere}
together:
  - {layers: [1, 2], source_layer: 3, multiplier: 0.5, operator: {name: clamp, value: 2}}
  - {layer: 0, vector: other.safetensors, where: {name: decay, half_life: 3, scope: prompt_only}}
"""


def test_a_file_of_settings_is_what_it_says(tmp_path):
    vector(7).save(tmp_path / "other.safetensors")
    (tmp_path / "settings.yaml").write_text(FILE)
    settings = load_settings(tmp_path / "settings.yaml", own := vector())
    assert list(settings) == ["+", "zero-out", "together"]
    assert (settings["zero-out"][0].operator, settings["zero-out"][0].where) == (ablate, everywhere)
    first, second, third = settings["together"]
    assert (first.layer, second.layer, second.source_layer, second.operator) == (1, 2, 3, Clamp(2))
    assert first.vector is own
    assert torch.equal(third.direction, vector(7).at(0))
    assert third.where == Decay(3, prompt_only)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: {layer: 1, operater: ablate}", "'a': unknown key 'operater', did you mean 'operator'"),
        ("a: {operator: ablate}", "say where, by layer or by layers"),
        ("a: {layer: 9}", "no direction for layer 9"),
        ("a: {layer: 1, operator: spin}", "knows no operator 'spin'"),
        ("1: {layer: 1}", "a setting's name is text"),
        ("[]", "should hold settings by name"),
        ("a: 3", "one intervention or a list of them"),
        ("a: {layer: 1, dose: 0.2}", "length is not known here"),
        ("a: {layer: 1, dose: 0.2, multiplier: 1}", "in place of a multiplier"),
        ("a: {layer: 1, dose: 0.2, operator: ablate}", "a dose is for what is added"),
    ],
)
def test_a_file_of_settings_that_says_nothing_clear_is_refused(tmp_path, text, reason):
    (tmp_path / "settings.yaml").write_text(text)
    with pytest.raises(ValueError, match=reason):
        load_settings(tmp_path / "settings.yaml", vector())


def test_a_dose_is_a_share_of_the_stream_and_a_layer_may_be_given_for_all():
    own, norms = vector(), {1: 40.0, 2: 50.0, 3: 60.0}
    content = {"+": {"dose": 0.25}, "wide": {"dose": -0.5, "layers": [1, 3], "source_layer": 2}, "out": {"layer": 2}}
    settings = read_settings(content, own, layer=2, norms=norms)
    (plus,) = settings["+"]
    assert (plus.layer, plus.vector) == (2, own)
    pushes = [plus, *settings["wide"]]
    for edit, share in zip(pushes, (0.25, -0.5, -0.5), strict=True):
        length = float(edit.multiplier) * edit.direction.norm().item()
        assert length == pytest.approx(share * norms[edit.layer], rel=1e-3)
    assert settings["out"][0].multiplier == 1.0
    with pytest.raises(ValueError, match="say where, by layer or by layers"):
        read_settings({"a": {"layer": 1, "layers": [2]}}, own)


def test_a_setting_that_could_not_be_asked_again_is_refused():
    for setting in (
        (),
        (Intervention(vector(), 1, [1.0, 2.0]),),
        (Intervention(vector(), 1, where=lambda p, q: p > 2),),
    ):
        with pytest.raises(ValueError, match=r"one or more interventions|one multiplier for each|use def"):
            named_grid(settings={"a": setting})
    with pytest.raises(ValueError, match="one or more layers"):
        named_grid(settings={})
    assert BEHAVIOR.name == "myopia"
