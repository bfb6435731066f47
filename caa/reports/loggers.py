"""Tables in; their mean scores in TensorBoard, W&B, MLflow or a CSV file out, by the loggers that Lightning brings."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from caa.reports.naming import logged_name

if TYPE_CHECKING:
    from caa.reports.tables.layout import Table

LoggerKind = Literal["tensorboard", "csv", "wandb", "mlflow"]


def make_logger(kind: LoggerKind, run: Path) -> Any:
    """A logger of Lightning, called like the run's folder; files lie in `<run>/logs`.

    Where W&B and MLflow send is theirs to say, in the environment (WANDB_PROJECT, MLFLOW_TRACKING_URI, ...).
    ImportError if the package that it needs is missing.
    """
    from lightning.pytorch import loggers

    folder = run / "logs"
    try:
        if kind == "tensorboard":
            return loggers.TensorBoardLogger(folder, name="", version="")
        if kind == "csv":
            return loggers.CSVLogger(folder, name="", version="")
        if kind == "wandb":
            folder.mkdir(parents=True, exist_ok=True)  # W&B would write to a temporary folder
            return loggers.WandbLogger(name=run.name, save_dir=folder)
        return loggers.MLFlowLogger(run_name=run.name, save_dir=str(folder))
    except ImportError as error:
        raise ImportError(f"the logger {kind} needs its package: pip install {kind}") from error


def cell_means(tables: Iterable[Table]) -> dict[str, float]:
    """The mean score of each cell of the tables, unrounded, by "behavior/" and what the Lightning module calls it."""
    scores = (entry for table in tables for entry in table.entries if entry.quantity == "score" and entry.estimate.n)
    return {f"{entry.cell.behavior}/{logged_name(entry.cell)}": entry.estimate.mean for entry in scores}


def log_tables(tables: Iterable[Table], logger: Any, model: str) -> None:
    """Log the mean scores of a finished run, and which model they are of."""
    logger.log_hyperparams({"model": model})
    logger.log_metrics(cell_means(tables), step=0)
    logger.finalize("success")
