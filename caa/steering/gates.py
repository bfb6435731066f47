"""A gate: a probe at one layer that decides, once for each row, whether another layer is steered. Holds no hooks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from caa.models.positions import repeat_rows
from caa.steering.operators import check_bounds, lies_between, projection
from caa.vectors.vector import SteeringVector


@dataclass(frozen=True, eq=False)
class Gate:
    """Open for the rows whose projection on a vector is above, or below, a threshold where the prompt ends.

    It reads the last token of the prompt as block `layer` hands it on, steered there or not, and what it decides holds
    for that token and all after it. A gated intervention leaves the tokens before alone, whatever its scope.
    """

    vector: SteeringVector
    layer: int
    """The block whose output is read, counted from 0: one before the layer that is steered."""
    above: float | None = None
    """Along the direction of norm 1, in residual-stream units; None for no such bound."""
    below: float | None = None

    def __post_init__(self) -> None:
        check_bounds("Gate", self.above, self.below)

    @property
    def direction(self) -> Float[Tensor, " d_model"]:
        return self.vector.at(self.layer)

    @property
    def bounds(self) -> dict[str, int | float | None]:
        """Where it reads and what it compares with, as json keeps it."""
        return {"layer": self.layer, "above": self.above, "below": self.below}

    def __str__(self) -> str:
        """
        >>> str(Gate(SteeringVector({3: torch.ones(2)}), 3, above=0.5))
        'if vector at layer 3 is above 0.5'
        """
        bounds = [
            f"{name} {bound:g}" for name, bound in (("above", self.above), ("below", self.below)) if bound is not None
        ]
        return f"if {self.vector.source.behavior or 'vector'} at layer {self.layer} is {' and '.join(bounds)}"


class Decisions:
    """What a gate has decided about the rows of the running texts. Read in every pass, kept between passes."""

    def __init__(self, gate: Gate) -> None:
        self.gate = gate
        self._direction = gate.direction
        self._last: Bool[Tensor, " row"] | None = None
        """Of each row's last token."""
        self._open: Bool[Tensor, "row position"] = torch.zeros(0, 0, dtype=torch.bool)

    def read(
        self,
        resid: Float[Tensor, "row position d_model"],
        positions: Int[Tensor, "prompt position"],
        last_prompt: Int[Tensor, "prompt 1"],
        begins: bool,
    ) -> None:
        """Decide at each place where a prompt ends; a row of branches has several. `begins`: these are new texts.

        Where a prompt ended in a pass before, what was decided there holds on; a gate that did not read it is closed.
        """
        rows, columns, _ = resid.shape
        self._direction = self._direction.to(resid.device)
        ends = repeat_rows(positions == last_prompt, rows)
        latest = torch.where(ends, torch.arange(columns, device=resid.device), -1).cummax(1).values
        passed = lies_between(projection(resid, self._direction), self.gate.above, self.gate.below)
        known = repeat_rows(positions[:, :1] > last_prompt, rows)
        if begins or self._last is None or rows % len(self._last):
            known = torch.zeros_like(known)
        else:
            known = known & repeat_rows(self._last, rows)[:, None]
        self._open = torch.where(latest >= 0, passed.gather(1, latest.clamp(min=0)), known)
        self._last = self._open[:, -1]

    def for_rows(self, rows: int, device: torch.device) -> Bool[Tensor, "row position"]:
        """Of the running pass, on a device, for rows that may have been repeated since it was read."""
        return repeat_rows(self._open.to(device), rows)
