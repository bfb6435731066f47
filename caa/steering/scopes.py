"""Which tokens are steered. Pure functions: (positions, last_prompt) -> True, or a weight, where the edit applies.

Those with numbers of their own are frozen dataclasses that are called the same way. A scope sees positions, counted
from the first token of each text, and no shapes: pads, the KV cache and beams make no difference to it. Tokens that are
chosen by what the stream holds there are a matter of `operators.Targeted`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from caa.models.positions import one_each, position_ids

Scope = Callable[[Tensor, Tensor], Tensor]
"""(positions int [row, position], last_prompt int [row, 1]) -> bool [row, position], or float32 weights of the
multipliers."""


def after_prompt(
    positions: Int[Tensor, "row position"], last_prompt: Int[Tensor, "row 1"]
) -> Bool[Tensor, "row position"]:
    """CAA's scope: the last token of the prompt, which predicts the first of the answer, and every token after it.

    Whoever edits "the current token" of each step of a cached generation does the same.

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


def prompt_only(
    positions: Int[Tensor, "row position"], last_prompt: Int[Tensor, "row 1"]
) -> Bool[Tensor, "row position"]:
    """The tokens of the prompt, its last one too, and none of the answer.

    >>> import torch
    >>> prompt_only(torch.tensor([[0, 1, 2, 3]]), torch.tensor([[2]]))
    tensor([[ True,  True,  True, False]])
    """
    return positions <= last_prompt


def last_prompt_token(
    positions: Int[Tensor, "row position"], last_prompt: Int[Tensor, "row 1"]
) -> Bool[Tensor, "row position"]:
    """The last token of the prompt alone: the one that predicts the first token of the answer.

    >>> import torch
    >>> last_prompt_token(torch.tensor([[0, 1, 2, 3]]), torch.tensor([[2]]))
    tensor([[False, False,  True, False]])
    """
    return positions == last_prompt


@dataclass(frozen=True)
class First:
    """The first k tokens of each text; a token that the tokenizer sets in front, such as <s>, is one of them.

    >>> import torch
    >>> First(2)(torch.tensor([[0, 1, 2, 3]]), torch.tensor([[2]]))
    tensor([[ True,  True, False, False]])
    """

    k: int

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ValueError(f"First needs at least one token, this k is {self.k}")

    def __call__(
        self, positions: Int[Tensor, "row position"], last_prompt: Int[Tensor, "row 1"]
    ) -> Bool[Tensor, "row position"]:
        return positions < self.k


@dataclass(frozen=True)
class Steps:
    """The first n steps of the answer: the last token of the prompt, which predicts its first, and the n - 1 behind.

    >>> import torch
    >>> Steps(2)(torch.tensor([[0, 1, 2, 3]]), torch.tensor([[1]]))
    tensor([[False,  True,  True, False]])
    """

    n: int

    def __post_init__(self) -> None:
        if self.n < 1:
            raise ValueError(f"Steps needs at least one step, this n is {self.n}")

    def __call__(
        self, positions: Int[Tensor, "row position"], last_prompt: Int[Tensor, "row 1"]
    ) -> Bool[Tensor, "row position"]:
        return (positions >= last_prompt) & (positions < last_prompt + self.n)


@dataclass(frozen=True)
class Decay:
    """Another scope, with weights that halve every so many tokens from the last one of the prompt on.

    >>> import torch
    >>> Decay(1.0)(torch.tensor([[0, 1, 2, 3]]), torch.tensor([[1]]))
    tensor([[0.0000, 1.0000, 0.5000, 0.2500]])
    """

    half_life: float
    """Tokens after which half of the multiplier is left."""
    scope: Scope = after_prompt

    def __post_init__(self) -> None:
        if not 0 < self.half_life < math.inf:
            raise ValueError(f"Decay needs a half-life above 0, in tokens; this is {self.half_life}")

    def __call__(
        self, positions: Int[Tensor, "row position"], last_prompt: Int[Tensor, "row 1"]
    ) -> Float[Tensor, "row position"]:
        steps = (positions - last_prompt).clamp(min=0)
        return 0.5 ** (steps / self.half_life) * self.scope(positions, last_prompt)


@dataclass(frozen=True)
class At:
    """Tokens by their places in the text, counted from its first, from 0: one list for each prompt, or one for all.

    >>> import torch
    >>> At([[0, 2], [1]])(torch.tensor([[0, 1, 2], [0, 1, 2]]), torch.tensor([[2], [2]]))
    tensor([[ True, False,  True],
            [False,  True, False]])
    """

    places: Sequence[Sequence[int]]
    """`[prompt][place]`"""

    def __post_init__(self) -> None:
        places = tuple(tuple(int(place) for place in row) for row in self.places)
        if not places or min((place for row in places for place in row), default=0) < 0:
            raise ValueError(f"At needs a list of places for each prompt, counted from 0; these are {places}")
        object.__setattr__(self, "places", places)

    @classmethod
    def mask(cls, mask: Bool[Tensor, "row position"], attention_mask: Int[Tensor, "row position"] | None = None) -> At:
        """The tokens where the mask is True. A mask made for a padded batch needs that batch's `attention_mask`.

        >>> import torch
        >>> At.mask(torch.tensor([[False, False, True]]), attention_mask=torch.tensor([[0, 1, 1]]))
        At(places=((1,),))
        """
        real = torch.ones_like(mask).long() if attention_mask is None else attention_mask
        chosen = mask & real.bool()
        return cls([row[some].tolist() for row, some in zip(position_ids(real), chosen, strict=True)])

    def __call__(
        self, positions: Int[Tensor, "row position"], last_prompt: Int[Tensor, "row 1"]
    ) -> Bool[Tensor, "row position"]:
        columns = list(zip_longest(*self.places, fillvalue=-1))  # no token has position -1
        wanted = torch.tensor(columns, dtype=torch.long, device=positions.device).reshape(-1, len(self.places)).T
        wanted = one_each(wanted, len(positions), "lists of places")
        return (positions[..., None] == wanted[:, None, :]).any(-1)


def prompts_of(scope: Scope) -> int:
    """How many prompts a scope has places for; 1 for one that suits any prompt.

    >>> prompts_of(everywhere), prompts_of(At([[5]])), prompts_of(Decay(2.0, At([[5], [0]])))
    (1, 1, 2)
    """
    inner = scope.scope if isinstance(scope, Decay) else scope
    return len(inner.places) if isinstance(inner, At) else 1


SCOPES: dict[str, Any] = {
    "after_prompt": after_prompt,
    "everywhere": everywhere,
    "prompt_only": prompt_only,
    "last_prompt_token": last_prompt_token,
    "first": First,
    "at": At,
    "steps": Steps,
    "decay": Decay,
}
"""The names by which saved adapters and configs call them: a function, or a class with the fields that are saved."""
