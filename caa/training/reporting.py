"""A training's losses where people look: Trainer's own integrations. Nothing is sent unless it is said where."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

ReportTo = Literal["none", "tensorboard", "wandb", "mlflow"]


def check_installed(report_to: ReportTo) -> None:
    """ImportError, before anything is computed, if the package that it needs is missing."""
    names = ("tensorboard", "tensorboardX") if report_to == "tensorboard" else (report_to,)
    if report_to != "none" and not any(map(find_spec, names)):
        raise ImportError(f"reporting to {report_to} needs its package: pip install {report_to}")


def report(trainer: Any, report_to: ReportTo, out: Path) -> None:
    """Let a trainer log each step there too, by the name of `out`.

    TensorBoard's files lie in `<out>.logs`; W&B and MLflow go by the environment (WANDB_PROJECT, MLFLOW_TRACKING_URI,
    ...).
    """
    from transformers.integrations.integration_utils import TensorBoardCallback, get_reporting_integration_callbacks

    check_installed(report_to)
    trainer.args.run_name = out.name
    if report_to == "tensorboard":
        callback = TensorBoardCallback()
        callback.logging_dir = str(out.with_name(f"{out.name}.logs"))
        trainer.add_callback(callback)
    elif report_to != "none":
        for callback in get_reporting_integration_callbacks([report_to]):
            trainer.add_callback(callback)
