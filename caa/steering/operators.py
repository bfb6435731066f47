"""What is done to the residual stream. Pure functions: (resid, direction, strength) -> resid, nothing in place.

Those with a number of their own, such as the value to clamp to, are frozen dataclasses that are called the same way.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

Operator = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(resid [row, position, d_model], direction [d_model] or [row, position, d_model], strength float32 [row, position])
-> resid. A direction is float32 and one for all tokens, or in the stream's dtype and one for each (a `Recording`)."""


def add(
    resid: Float[Tensor, "row position d_model"],
    direction: Float[Tensor, "*token d_model"],
    strength: Float[Tensor, "row position"],
) -> Float[Tensor, "row position d_model"]:
    """Contrastive Activation Addition (Rimsky et al. 2024): resid + strength * direction.

    The push is rounded to the stream's dtype once, after the multiplication.

    >>> import torch
    >>> add(torch.zeros(1, 2, 2), torch.tensor([1.0, 2.0]), torch.tensor([[0.0, 3.0]]))
    tensor([[[0., 0.],
             [3., 6.]]])
    """
    return resid + (strength[..., None] * direction).to(resid.dtype)


def add_keeping_norm(
    resid: Float[Tensor, "row position d_model"],
    direction: Float[Tensor, "*token d_model"],
    strength: Float[Tensor, "row position"],
) -> Float[Tensor, "row position d_model"]:
    """`add`, and then back to the length that each token had: the stream turns and does not grow.

    A token that the push cancels to nothing has no way to point, and stays nothing.

    >>> import torch
    >>> add_keeping_norm(torch.tensor([[[3.0, 4.0]]]), torch.tensor([0.0, 1.0]), torch.tensor([[-4.0]]))
    tensor([[[5., 0.]]])
    """
    wide = _wide(resid)
    turned = normalize(add(wide, direction, strength), dim=-1)
    return torch.mul(turned, wide.norm(dim=-1, keepdim=True)).to(resid.dtype)


def add_relative(
    resid: Float[Tensor, "row position d_model"],
    direction: Float[Tensor, "*token d_model"],
    strength: Float[Tensor, "row position"],
) -> Float[Tensor, "row position d_model"]:
    """Push each token by a share of its own length: resid + strength * |resid| * u, where u has norm 1.

    The multiplier is the relative dose of every token; the length of the vector plays no part.

    >>> import torch
    >>> add_relative(torch.tensor([[[3.0, 4.0]]]), torch.tensor([0.0, 2.0]), torch.tensor([[0.2]]))
    tensor([[[3., 5.]]])
    """
    wide = _wide(resid)
    push = strength * wide.norm(dim=-1)
    return torch.add(wide, push[..., None] * normalize(_wide(direction), dim=-1)).to(resid.dtype)


def ablate(
    resid: Float[Tensor, "row position d_model"],
    direction: Float[Tensor, "*token d_model"],
    strength: Float[Tensor, "row position"],
) -> Float[Tensor, "row position d_model"]:
    """Take the direction out of the stream: resid - strength * (resid . u) u, where u has norm 1.

    The multiplier is the share that is removed: 1 leaves nothing along the direction, 2 mirrors it. The length of the
    vector plays no part. In half precision the result is rounded, so that about 0.1 % of the token's norm may stay.

    >>> import torch
    >>> ablate(torch.tensor([[[3.0, 4.0]]]), torch.tensor([0.0, 2.0]), torch.tensor([[1.0]]))
    tensor([[[3., 0.]]])
    """
    return Clamp(0.0)(resid, direction, strength)


@dataclass(frozen=True)
class Clamp:
    """Set each token's projection on the direction to one value, whatever it was; the rest of the token stays.

    The multiplier is the share of the way: 1 sets it, 0.5 goes half the way. `ablate` is `Clamp(0)`.

    >>> import torch
    >>> Clamp(7.0)(torch.tensor([[[3.0, 4.0]]]), torch.tensor([0.0, 2.0]), torch.tensor([[1.0]]))
    tensor([[[3., 7.]]])
    """

    value: float
    """Along the direction of norm 1, in residual-stream units."""

    def __post_init__(self) -> None:
        _check_numbers("Clamp", self.value)

    def __call__(
        self,
        resid: Float[Tensor, "row position d_model"],
        direction: Float[Tensor, "*token d_model"],
        strength: Float[Tensor, "row position"],
    ) -> Float[Tensor, "row position d_model"]:
        missing = strength * (self.value - projection(resid, direction))
        unit = normalize(_wide(direction), dim=-1)
        return (_wide(resid) + missing[..., None] * unit).to(resid.dtype)


def replace(
    resid: Float[Tensor, "row position d_model"],
    direction: Float[Tensor, "*token d_model"],
    strength: Float[Tensor, "row position"],
) -> Float[Tensor, "row position d_model"]:
    """Put another residual in place: resid + strength * (direction - resid). With a `Recording`, activation patching.

    1 replaces the token exactly, 0.5 is the mean of both.

    >>> import torch
    >>> replace(torch.tensor([[[3.0, 4.0]]]), torch.tensor([5.0, 0.0]), torch.tensor([[0.5]]))
    tensor([[[4., 2.]]])
    """
    return torch.lerp(resid, direction.to(resid.dtype).expand_as(resid), strength[..., None].to(resid.dtype))


@dataclass(frozen=True)
class Targeted:
    """Another operator, on those tokens alone whose projection on the direction is above, or below, a threshold.

    "A smaller, more targeted, subset of tokens" (Rimsky et al. 2024, section 9.1). The projection is that of the stream
    as it comes to this edit. It is a property of each token, so the KV cache makes no difference to it.

    >>> import torch
    >>> resid = torch.tensor([[[3.0, 1.0], [3.0, 4.0]]])
    >>> Targeted(above=2.0)(resid, torch.tensor([0.0, 5.0]), torch.tensor([[1.0, 1.0]]))
    tensor([[[3., 1.],
             [3., 9.]]])
    """

    above: float | None = None
    """Along the direction of norm 1, in residual-stream units; None for no such bound."""
    below: float | None = None
    operator: Operator = add

    def __post_init__(self) -> None:
        check_bounds("Targeted", self.above, self.below)

    def __call__(
        self,
        resid: Float[Tensor, "row position d_model"],
        direction: Float[Tensor, "*token d_model"],
        strength: Float[Tensor, "row position"],
    ) -> Float[Tensor, "row position d_model"]:
        chosen = lies_between(projection(resid, direction), self.above, self.below)
        return torch.where(chosen[..., None], self.operator(resid, direction, strength), resid)


def projection(
    resid: Float[Tensor, "row position d_model"], direction: Float[Tensor, "*token d_model"]
) -> Float[Tensor, "row position"]:
    """How far each token points along the direction of norm 1, in residual-stream units; at least float32.

    >>> import torch
    >>> projection(torch.tensor([[[3.0, 4.0]]]), torch.tensor([0.0, 2.0]))
    tensor([[4.]])
    """
    return (_wide(resid) * normalize(_wide(direction), dim=-1)).sum(-1)


def _wide(values: Tensor) -> Tensor:
    """Sums over d_model in half precision would lose what is to be taken out."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def lies_between(values: Tensor, above: float | None, below: float | None) -> Tensor:
    """Where values are above the one bound and below the other; None is no bound.

    >>> lies_between(torch.tensor([1.0, 2.0]), 1.5, None)
    tensor([False,  True])
    """
    return (values > (-math.inf if above is None else above)) & (values < (math.inf if below is None else below))


def check_bounds(name: str, above: float | None, below: float | None) -> None:
    """ValueError for no bound, one that is no number, and two that nothing lies between. `name` is whose they are."""
    bounds = [bound for bound in (above, below) if bound is not None]
    if not bounds:
        raise ValueError(f"{name} needs a threshold: give above=, below=, or both")
    _check_numbers(name, *bounds)
    if len(bounds) == 2 and bounds[0] >= bounds[1]:
        raise ValueError(f"no projection is above {bounds[0]:g} and below {bounds[1]:g}")


def _check_numbers(name: str, *numbers: float) -> None:
    if not all(map(math.isfinite, numbers)):
        raise ValueError(f"{name} needs finite numbers, in residual-stream units; got {numbers}")


OPERATORS: dict[str, Any] = {
    "add": add,
    "add_keeping_norm": add_keeping_norm,
    "add_relative": add_relative,
    "ablate": ablate,
    "clamp": Clamp,
    "replace": replace,
    "targeted": Targeted,
}
"""The names by which saved adapters and configs call them: a function, or a class with the fields that are saved."""
