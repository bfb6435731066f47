"""Logits of the hook and of an export in; either they are equal, or the export is not written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from caa.models.blocks import text_config

TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-4}
HALF = 0.05
"""In half precision the hook rounds the stream once more than a bias does: 1.4 % of the largest logit on tiny-chat."""


@dataclass(frozen=True)
class Parity:
    """How far an export is from the hook, and how much there was to miss, in logits."""

    error: float
    """Largest absolute difference between the logits of the export and those of the hook."""
    effect: float
    """Largest absolute difference between the logits with and without steering."""
    scale: float
    """Largest absolute logit."""
    dtype: str

    def __str__(self) -> str:
        return f"{self.error:.1g} at most, where steering moves them by up to {self.effect:.2g} ({self.dtype})"


def check_parity(
    hook: Float[Tensor, "*token vocabulary"],
    exported: Float[Tensor, "*token vocabulary"],
    unsteered: Float[Tensor, "*token vocabulary"],
) -> Parity:
    """ValueError if the export is further from the hook than rounding, or if steering does too little to be told.

    >>> hook, unsteered = torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 3.0]])
    >>> check_parity(hook, hook, unsteered).effect
    1.0
    >>> check_parity(hook, hook + 0.01, unsteered)
    Traceback (most recent call last):
    ValueError: the export was not written: its logits differ from the hook's by 0.01, ...
    """
    error, effect = _distance(exported, hook), _distance(hook, unsteered)
    scale = hook.abs().max().item()
    allowed = TOLERANCE.get(hook.dtype, HALF) * max(1.0, scale)
    if not error <= allowed:
        raise ValueError(
            f"the export was not written: its logits differ from the hook's by {error:.2g}, more than the "
            f"{allowed:.2g} that rounding explains. Keep the steered adapter, and please report this model's family."
        )
    if not error < 0.5 * effect:
        raise ValueError(
            f"the export was not written: steering moves the logits by {effect:.2g} only, too little to tell whether "
            "the export does the same. Steer more strongly, or with dtype float32."
        )
    return Parity(error, effect, scale, str(hook.dtype).removeprefix("torch."))


def _distance(a: Tensor, b: Tensor) -> float:
    return (a.double() - b.double().to(a.device)).abs().max().item()


def probe(model: Any, length: int = 16) -> Int[Tensor, "2 position"]:
    """Token ids to compare on: random ones, the same for every call."""
    config = text_config(model)
    length = min(length, getattr(config, "max_position_embeddings", None) or length)
    drawn = torch.randint(config.vocab_size, (2, length), generator=torch.Generator().manual_seed(0))
    return drawn.to(model.get_input_embeddings().weight.device)
