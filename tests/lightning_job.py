"""One Lightning job, with one process or two: what each process found goes to a file. Run by test_lightning.py.

python lightning_job.py FOLDER DEVICES
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer
from lightning.pytorch.strategies import DDPStrategy
from tiny import tiny_lora, tiny_model, tiny_tokenizer

from caa import Behavior, ContrastPair, Question, SteeringWrapper
from caa.lightning.data import CAADataModule
from caa.lightning.module import CAAModule

CHOICES = "\n (A) Yes\n (B) No"
LETTERS = ("(A)", "(B)")
SIZES = (7, 1)
"""Pairs and questions of each job: in batches of two, an odd number of items, and fewer items than processes."""


def behavior(size: int) -> Behavior:
    """So many pairs, A/B questions and open questions, of many lengths."""
    words = [f"{'Would you' * (1 + 3 * n % 4)} wait {n}?" for n in range(size)]
    answers = [LETTERS[:: 1 if n % 3 else -1] for n in range(size)]
    return Behavior(
        "patience",
        pairs=tuple(ContrastPair(f"{w}{CHOICES}", *a) for w, a in zip(words, answers, strict=True)),
        ab_questions=tuple(Question(f"Now: {w}{CHOICES}", *a) for w, a in zip(words, answers, strict=True)),
        open_questions=tuple(Question(w) for w in words),
    )


def facts(size: int) -> list[Question]:
    return [Question(f"Is {n} more than {n + 1}?{CHOICES}", "(B)", "(A)", category="sums") for n in range(size)]


def make_module(layers: Any = (1, 2), **how: Any) -> CAAModule:
    how = {"multipliers": (-0.5, 0, 2), "finetunes": (None, "sft"), "max_new_tokens": 3} | how
    return CAAModule(SteeringWrapper(tiny_lora(tiny_model())), tiny_tokenizer(), layers, **how)


def make_data(size: int) -> CAADataModule:
    return CAADataModule(behavior(size), facts(size), batch_size=2)


def make_trainer(folder: Path, devices: int = 1, **how: Any) -> Trainer:
    strategy = DDPStrategy(process_group_backend="gloo") if devices > 1 else "auto"
    quiet = {
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "logger": False,
        "log_every_n_steps": 1,
        "max_epochs": 1,
    }
    return Trainer(accelerator="cpu", devices=devices, strategy=strategy, default_root_dir=folder, **(quiet | how))


def find_and_measure(folder: Path, devices: int, size: int) -> dict[str, Any]:
    """Fit, test and predict; all that one process knows afterwards."""
    module, data, trainer = make_module(), make_data(size), make_trainer(folder, devices)
    trainer.fit(module, data)
    (logged,) = trainer.test(module, data, verbose=False)
    measured = [row.to_json() for row in module.rows]
    own = trainer.predict(module, data)
    return {
        "vector": {layer: v.tolist() for layer, v in module.vector.directions.items()},
        "n_pairs": module.vector.source.n_pairs,
        "logged": logged,
        "rows": measured,
        "answers": [row.to_json() for row in module.rows],
        "own": [answer for answers in own for answer in answers],
    }


if __name__ == "__main__":
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    folder, devices = Path(sys.argv[1]), int(sys.argv[2])
    found = {size: find_and_measure(folder / str(size), devices, size) for size in SIZES}
    rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
    torch.save(found, folder / f"{devices}-{rank}.pt")
