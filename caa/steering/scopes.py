"""Which tokens are steered. Pure functions: (positions, last_prompt) -> True where the edit applies."""

from __future__ import annotations

from collections.abc import Callable

from jaxtyping import Bool, Int
from torch import Tensor

Scope = Callable[[Tensor, Tensor], Tensor]
"""(positions int [row, position], last_prompt int [row, 1]) -> bool [row, position]."""


def after_prompt(
    positions: Int[Tensor, "row position"], last_prompt: Int[Tensor, "row 1"]
) -> Bool[Tensor, "row position"]:
    """CAA's scope: the last token of the prompt, which predicts the first of the answer, and every token after it.

    >>> import torch
    >>> after_prompt(torch.tensor([[0, 1, 2, 3]]), torch.tensor([[2]]))
    tensor([[False, False,  True,  True]])
    """
    return positions >= last_prompt


def everywhere(
    positions: Int[Tensor, "row position"], last_prompt: Int[Tensor, "row 1"]
) -> Bool[Tensor, "row position"]:
    """Every token, those of the prompt too.

    >>> import torch
    >>> everywhere(torch.tensor([[0, 1]]), torch.tensor([[1]]))
    tensor([[True, True]])
    """
    return positions == positions


SCOPES: dict[str, Scope] = {"after_prompt": after_prompt, "everywhere": everywhere}
"""The names by which saved adapters and configs call them."""
