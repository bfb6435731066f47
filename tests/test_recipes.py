"""Every recipe and every config runs from the command in its first line."""

from __future__ import annotations

import csv
import json
import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest
import yaml
from small import small_world

from caa.cli import main
from caa.experiment import Experiment
from caa.gallery import Gallery
from caa.studies.honesty import verdict

ROOT = Path(__file__).parents[1]
RECIPES = sorted((ROOT / "recipes").glob("*.py"))
CONFIGS = sorted((ROOT / "caa" / "configs").glob("*.yaml"))


def command(path: Path) -> list[str]:
    first = path.read_text(encoding="utf-8").splitlines()[0]
    found = re.search(r"python (recipes/\S.*?)(?:\"\"\")?$", first)
    assert found, f"{path.name} does not begin with the command that runs it"
    return shlex.split(found.group(1))


def test_there_are_recipes_and_configs():
    assert len(RECIPES) >= 2
    assert len(CONFIGS) >= 2


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_a_recipe_is_short_and_says_how_to_run_it(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 140
    assert command(path)[0] == f"recipes/{path.name}"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_is_read_by_the_command_in_its_first_line(path, monkeypatch):
    first = path.read_text(encoding="utf-8").splitlines()[0]
    assert re.match(rf"# caa run {path.stem}: \S", first), f"{path.name} does not say how to run it and what it does"
    written = []
    monkeypatch.setattr(Experiment, "run", lambda self: written.append(self) or [])
    assert main(["run", path.stem, "--batch-size", "3", "--figures", "false"]) == 0
    settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    settings.pop("figures", None)  # the command's own option, which stands above
    assert {name: _plain(getattr(written[0], name), settings[name]) for name in settings} == settings | (
        {"batch_size": 3} if "batch_size" in settings else {}
    )
    assert written[0].batch_size == 3, "an option does not override the file"


def _plain(value, given):
    if isinstance(given, dict):
        known = value if isinstance(value, dict) else vars(value)
        return {name: _plain(known[name], part) for name, part in given.items()}
    return str(value) if isinstance(value, Path) else list(value) if isinstance(value, (list, tuple)) else value


def run(monkeypatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", list(arguments))
    monkeypatch.chdir(ROOT)
    runpy.run_path(arguments[0], run_name="__main__")


@pytest.mark.slow
def test_the_table_of_the_paper_on_the_embedded_model(tmp_path, capsys):
    """The shipped config, with less to do."""
    less = {"behaviors": "refusal", "finetunes": "none", "layer": "2", "random_controls": "0", "tasks": "ab"}
    options = [word for name, value in less.items() for word in (f"--{name}", value)]
    assert main(["run", "embedded", "--out", str(tmp_path / "run"), "--figures", "false", *options]) == 0
    assert "refusal" in capsys.readouterr().out
    assert (tmp_path / "run" / "tables.md").exists()


def test_love_and_hate_on_the_embedded_model(monkeypatch, capsys):
    run(monkeypatch, "recipes/love_hate.py", "--model", "tiny-base", "--layer", "2", "--max_new_tokens", "4")
    shown = capsys.readouterr().out
    assert "+2" in shown
    assert "I think that you" in shown


def test_activation_addition_on_the_embedded_model(monkeypatch, capsys):
    run(monkeypatch, "recipes/actadd.py", "--max_new_tokens", "3")
    shown = capsys.readouterr().out
    assert "'Love' minus 'Hate', layer 1: norm by position 0.0" in shown
    assert "+5" in shown


def test_less_sycophancy_on_the_embedded_model(monkeypatch, capsys):
    run(monkeypatch, "recipes/reduce_sycophancy.py", "--max_new_tokens", "3")
    shown = capsys.readouterr().out
    assert "4 pairs of exchanges" in shown
    assert "-0.3" in shown


@pytest.mark.slow
def test_the_lesson_on_the_embedded_model(monkeypatch, capsys):
    """As the lesson writes it, in at most 40 lines."""
    run(monkeypatch, "recipes/steering_experiment.py", "--limit", "6")
    shown = capsys.readouterr().out
    assert "moves held-out questions by" in shown
    assert "'facts'" in shown
    assert "fails first" in shown
    assert len((ROOT / "recipes" / "steering_experiment.py").read_text(encoding="utf-8").splitlines()) <= 40


@pytest.mark.slow
def test_a_search_beside_the_full_grid(monkeypatch, capsys):
    few = ["--behaviors", "[refusal]", "--doses", "[0.3]", "--controls", "1", "--limit", "4"]
    run(monkeypatch, "recipes/search_against_grid.py", *few)
    assert "refusal" in capsys.readouterr().out


@pytest.mark.slow
def test_honesty_on_the_embedded_model(monkeypatch, tmp_path, capsys):
    words = ["--claims", "60", "--layer", "2", "--max_new_tokens", "4", "--out", str(tmp_path)]
    run(monkeypatch, "recipes/honesty_facts.py", *words)
    shown = capsys.readouterr().out
    assert "unseen ones" in shown
    assert "zeroed out" in shown.replace("\n", " ")
    assert {path.stem for path in tmp_path.glob("*.png")} == {
        "pair_accuracy-honesty",
        "pca-honesty-layer_2",
        "projections-honesty-true_claims",
        "projections-honesty-false_claims",
        "verdicts-mean_difference",
        "verdicts-PC2_of_the_differences",
        "positions-honesty",
        "side_by_side-honesty",
    }
    with open(tmp_path / "verdicts-mean_difference.csv", encoding="utf-8") as file:
        bars = list(csv.DictReader(file))
    assert [(bar["steering"], bar["kind"]) for bar in bars[::2]] == [
        (way, bars[0]["kind"]) for way in ("0", "-0.2", "+0.2", "zeroed out")
    ]
    assert {bar["n"] for bar in bars} == {bars[0]["n"]}, "as many true claims as false ones"


def test_verdicts_on_claims():
    said = {"(A) True": True, "The answer is (B).": False, "B": False, "True, since it is": True, "I say: False": False}
    unclear = ("A human said so", "I cannot tell", "about nothing")
    assert {answer: verdict(answer) for answer in (*said, *unclear)} == said | dict.fromkeys(unclear)


@pytest.mark.slow
def test_the_comparison_of_methods_on_the_embedded_model(monkeypatch, tmp_path):
    whole = json.loads((ROOT / "caa" / "data" / "builtin" / "refusal.json").read_text(encoding="utf-8"))
    small = {"name": "refusal", "pairs": whole["pairs"][:40], "ab_questions": whole["ab_questions"][:12]}
    (tmp_path / "small.json").write_text(json.dumps(small), encoding="utf-8")
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- compare_methods: begin -->\nold\n<!-- compare_methods: end -->\nafter\n")
    words = ["recipes/compare_methods.py", "--out", str(tmp_path / "run"), "--page", str(page), "--few", "[5]"]
    run(monkeypatch, *words, "--behaviors", f"[{tmp_path / 'small.json'}]", "--tasks", "[ab]")
    text = page.read_text()
    assert text.startswith("before\n<!--")
    assert text.endswith("-->\nafter\n")
    assert "old" not in text
    assert re.search(r"\| mean difference \| \+0\.\d\d \(\+0\.\d\d to \+0\.\d\d\) \|", text), (
        "the vector moves its own behavior"
    )
    assert "| mean difference, 5 pairs |" in text
    assert "| control: letter only |" in text
    assert re.search(r"\| mean difference \| \+0\.\d\d ±0\.\d\d \|", (tmp_path / "run" / "tables.md").read_text())


@pytest.mark.slow
def test_any_finetune_on_the_embedded_model(monkeypatch, tmp_path, capsys):
    whole = json.loads((ROOT / "caa" / "data" / "builtin" / "refusal.json").read_text(encoding="utf-8"))
    small = {"name": "refusal", "pairs": whole["pairs"][:16], "ab_questions": whole["ab_questions"][:2]}
    (tmp_path / "small.json").write_text(json.dumps(small), encoding="utf-8")
    words = ["--out", str(tmp_path / "run"), "--behaviors", f"[{tmp_path / 'small.json'}]", "--steps", "2"]
    run(monkeypatch, "recipes/any_finetune.py", *words)
    shown = " ".join(capsys.readouterr().out.split())
    assert "dpo-for: positive by DPO (LoRA)" in shown
    assert "plain-peft: made elsewhere" in shown
    assert "random x3: 3 random directions" in shown
    with open(tmp_path / "run" / "figures" / "moves.csv", encoding="utf-8") as file:
        moves = {line["finetune"]: line for line in csv.DictReader(file)}
    assert list(moves) == [*FINETUNES, "plain-peft", "steered -0.3", "steered +0.3"]
    assert 0.1 < float(moves["steered +0.3"]["size"]) < 0.5
    assert all(float(moves[name]["size"]) > 0 and 0.9 < float(moves[name]["reread"]) <= 1.00001 for name in FINETUNES)
    before = (tmp_path / "run" / "rows.jsonl").read_bytes()
    monkeypatch.setattr("caa.training.sft._train", lambda *_: pytest.fail("trained again"))
    run(monkeypatch, "recipes/any_finetune.py", *words)
    assert (tmp_path / "run" / "rows.jsonl").read_bytes() == before


FINETUNES = ["positive", "negative", "dpo-for", "dpo-against", "full", "pushed"]


@pytest.mark.slow
def test_training_while_steered_over_seeds(monkeypatch, tmp_path, capsys):
    whole = json.loads((ROOT / "caa" / "data" / "builtin" / "refusal.json").read_text(encoding="utf-8"))
    small = {"name": "refusal", "pairs": whole["pairs"][:16], "ab_questions": whole["ab_questions"][:2]}
    (tmp_path / "small.json").write_text(json.dumps(small), encoding="utf-8")
    words = ["--out", str(tmp_path / "run"), "--behaviors", f"[{tmp_path / 'small.json'}]", "--steps", "2"]
    run(monkeypatch, "recipes/trained_while_steered.py", *words, "--seeds", "2")
    assert "trained_while_steered.png" in capsys.readouterr().out
    with open(tmp_path / "run" / "trained_while_steered.csv", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert [(line["measure"], float(line["push"])) for line in lines] == [
        (measure, push) for measure in ("unsteered", "effect") for push in (-0.3, 0.0, 0.3)
    ]
    assert all(float(line["low"]) <= float(line["mean"]) <= float(line["high"]) for line in lines)


PICTURES = {
    "base_vs_chat",
    "between_behaviors",
    "dose_response",
    "effect_by_layer",
    "inter_layer",
    "layer_transfer",
    "logit_lens",
    "model_transfer",
    "pair_accuracy",
    "pca",
    "positions",
    "projections",
    "side_by_side",
    "table",
    "tokens",
}
"""What begins the names of a run's figures."""


@pytest.mark.slow
def test_every_figure_of_a_run_without_finetunes(tmp_path):
    """All are drawn; how they are written, and the page that holds them, test_docs.py sees in a run with finetunes."""
    pytest.importorskip("matplotlib", reason="figures need the extra `plot`")
    with small_world(tmp_path / "small-data"):
        Experiment(tmp_path / "run", ["refusal"], finetunes=["none"], multipliers=(-0.3, 0.0, 0.3), batch_size=64).run()
        figures = list(Gallery(tmp_path / "run").figures())
    assert {figure.name.split("-")[0] for figure in figures} == PICTURES
    assert all(len(figure.data) for figure in figures)
