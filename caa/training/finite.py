"""Stops a training run at the first step whose loss or gradient is no number, before anything of it is saved."""

from __future__ import annotations

import math
from typing import Any

from transformers import TrainerCallback


class DivergedError(ValueError):
    """The loss of a training run, its gradient or what it has learned holds NaN or infinity."""


class FiniteSteps(TrainerCallback):
    """DivergedError with the first loss, or norm of a gradient, that is NaN or infinite; the step is not saved."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        for name, words in {"loss": "loss", "grad_norm": "gradient's norm"}.items():
            value = float((logs or {}).get(name, 0.0))
            if not math.isfinite(value):
                cause = _cure(args.learning_rate) if state.global_step > 1 else _FROM_THE_START
                raise DivergedError(f"the {words} of step {state.global_step} is {value}: {cause}")


_FROM_THE_START = "the model's own logits are no numbers here. Load it in float32, or steer it less while it learns."


def _cure(learning_rate: float) -> str:
    return f"nothing of this finetune is kept. Use a smaller learning_rate (it was {learning_rate:g})."


def check_learned(model: Any, learning_rate: float) -> None:
    """DivergedError if the last step has left NaN or infinity in what was trained."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and not parameter.isfinite().all():
            raise DivergedError(f"after the last step {name} holds NaN or infinity: {_cure(learning_rate)}")
