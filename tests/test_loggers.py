"""Where people look: a run's mean scores in Lightning's loggers, a training's losses in Trainer's integrations."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from caa.cli import main
from caa.data.behaviors import Behavior, ContrastPair
from caa.reports.loggers import cell_means, log_tables, make_logger
from caa.reports.tables import finetune_tables
from caa.runs.rows import Cell, Row, VectorRef
from caa.training.config import FinetuneConfig
from caa.training.sft import finetune
from caa.vectors.vector import SteeringVector
from tests.tiny import tiny_model, tiny_tokenizer


def scalars(folder: Path) -> dict[str, list[float]]:
    """What TensorBoard shows: name -> values, step by step."""
    events = EventAccumulator(str(folder))
    events.Reload()
    return {name: [event.value for event in events.Scalars(name)] for name in events.Tags()["scalars"]}


@pytest.fixture
def tables():
    cells = [Cell("refusal", "ab", finetune, 13, m) for finetune in (None, "sft") for m in (-1.0, 0.0, 1.0)]
    cells += [Cell("refusal", "ab", None, 13, 1.0, vector=VectorRef("random", "0"))]
    cells += [Cell("refusal", "open", None, 13, 0.0)]
    rows = [
        Row(cell, f"q{question}", (number * question + question) / 37)
        for number, cell in enumerate(cells)
        for question in range(4)
    ]
    return finetune_tables(rows, model="tiny-chat")


NAMES = {
    *(f"refusal/ab/{finetune}/layer_13/{m}" for finetune in ("none", "sft") for m in ("-1", "+0", "+1")),
    "refusal/open/none/layer_13/+0",
}


def test_each_cell_has_its_name_and_its_mean(tables):
    means = cell_means(tables)
    assert means.keys() >= NAMES
    assert any("vector_random" in name for name in means)
    assert means["refusal/ab/sft/layer_13/+1"] == pytest.approx(sum((5 * q + q) / 37 for q in range(4)) / 4)
    assert len(set(means.values())) == len(means), "two cells of one number hide a mix-up"


def test_tensorboard_and_csv_hold_the_numbers_of_the_tables(tables, tmp_path):
    for kind in ("tensorboard", "csv"):
        log_tables(tables, make_logger(kind, tmp_path / kind), "tiny-chat")
    means = cell_means(tables)
    shown = scalars(tmp_path / "tensorboard" / "logs")
    assert {name: [pytest.approx(mean)] for name, mean in means.items()} == {
        name: values for name, values in shown.items() if name != "hp_metric"
    }
    [line] = csv.DictReader((tmp_path / "csv" / "logs" / "metrics.csv").open())
    assert {name: float(line[name]) for name in means} == means


@pytest.mark.parametrize(("kind", "logger"), [("wandb", "WandbLogger"), ("mlflow", "MLFlowLogger")])
def test_what_would_be_sent_is_the_means_and_the_model_and_no_key(tables, tmp_path, monkeypatch, kind, logger):
    sent = []

    class Recorder:
        def __init__(self, **options):
            sent.append(options)

        def __getattr__(self, name):
            return lambda *given, **named: sent.append((name, given))

    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    monkeypatch.setattr(f"lightning.pytorch.loggers.{logger}", Recorder)
    log_tables(tables, make_logger(kind, tmp_path / "mine"), "tiny-chat")
    options, *calls = sent
    assert "mine" in options.values()
    assert calls == [
        ("log_hyperparams", ({"model": "tiny-chat"},)),
        ("log_metrics", (cell_means(tables),)),
        ("finalize", ("success",)),
    ]
    assert "secret" not in repr(sent)


def test_a_missing_package_is_told_before_anything_is_computed(tmp_path, monkeypatch, capsys):
    for name in ("wandb", "mlflow", "tensorboard", "tensorboardX"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr("caa.training.reporting.find_spec", lambda name: None)
    monkeypatch.setattr("caa.load_model", lambda *_, **__: pytest.fail("a model was loaded"))
    for name in ("wandb", "mlflow", "tensorboard"):
        assert main(["finetune", "refusal", "positive", str(tmp_path / "out"), "--report-to", name]) == 1
        assert f"needs its package: pip install {name}" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_grid_logs_what_its_tables_say_and_nothing_unless_told(tmp_path):
    vector = tmp_path / "v.safetensors"
    torch.manual_seed(0)
    SteeringVector({2: torch.randn(192)}).save(vector)
    words = ["grid", "refusal", str(vector), "2", str(tmp_path / "run"), "--tasks", "ab", "--limit", "2"]
    words += ["--multipliers", "0,1"]
    assert main(words) == 0
    assert not (tmp_path / "run" / "logs").exists()
    assert main([*words, "--logger", "csv"]) == 0
    [line] = csv.DictReader((tmp_path / "run" / "logs" / "metrics.csv").open())
    printed = csv.DictReader((tmp_path / "run" / "tables.csv").open())
    table = {float(entry["multiplier"]): float(entry["mean"]) for entry in printed if entry["quantity"] == "score"}
    assert {0.0: line["refusal/ab/none/layer_2/+0"], 1.0: line["refusal/ab/none/layer_2/+1"]} == {
        multiplier: str(mean) for multiplier, mean in table.items()
    }


def test_a_training_reports_each_step_and_learns_the_same(tmp_path):
    pairs = [
        ContrastPair(f"Wait {n} days?\n (A) Yes\n (B) No", *(("(A)", "(B)") if n % 2 else ("(B)", "(A)")))
        for n in range(8)
    ]
    taught = Behavior("patience", tuple(pairs))
    config = FinetuneConfig(rank=2, alpha=4, max_steps=3, batch_size=4, gradient_accumulation=1)
    digests = []
    for place, report_to in (("plain", "none"), ("shown", "tensorboard")):
        out = finetune(
            tiny_model(),
            tiny_tokenizer(),
            taught,
            "positive",
            tmp_path / place,
            config,
            progress=False,
            report_to=report_to,
        )
        digests.append((out / "adapter_model.safetensors").read_bytes())
    assert digests[0] == digests[1]
    shown = scalars(tmp_path / "shown.logs")
    assert len(shown["train/loss"]) == 3
    assert max(shown["train/learning_rate"]) == pytest.approx(config.learning_rate)
    assert {path.name for path in tmp_path.iterdir()} == {"plain", "shown", "shown.logs"}
