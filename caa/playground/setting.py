"""Setting: what a person chose in the playground. Knows no model and no page."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from caa.steering.scopes import SCOPES

CHOICES = tuple(name for name, scope in SCOPES.items() if not isinstance(scope, type))
"""The scopes that need no numbers of their own."""


@dataclass(frozen=True)
class Setting:
    """One way to steer. A vector with multiplier 0 does nothing, and may still color the tokens."""

    layer: int
    """The block whose output is steered, counted from 0."""
    vectors: Mapping[str, float] = field(default_factory=dict)
    """Names of vectors -> multipliers."""
    finetune: str | None = None
    """The LoRA adapter that both sides wear, None for the base."""
    scope: str = "after_prompt"
    system: str = ""
    max_new_tokens: int = 64

    def __post_init__(self) -> None:
        if self.scope not in CHOICES:
            raise ValueError(f"there is no scope {self.scope!r}; choose one of {', '.join(CHOICES)}")
        if wrong := [name for name, multiplier in self.vectors.items() if not math.isfinite(multiplier)]:
            raise ValueError(f"the multiplier of {wrong[0]!r} is no number; move its slider")
        if self.layer < 0 or self.max_new_tokens < 1:
            raise ValueError(
                f"layers count from 0 and an answer has at least one token; "
                f"these are layer {self.layer} and {self.max_new_tokens} tokens"
            )
