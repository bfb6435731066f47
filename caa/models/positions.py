"""The arguments of a forward pass in, the place of every token in its text out, and where each prompt ends."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

CACHES = ("past_key_values", "cache")
"""What models call the keys and values of earlier passes: until transformers 5.23, and from 5.24 on."""


def cache_in(named: Mapping[str, Any]) -> Any:
    """The cache among arguments or outputs; None where there is none."""
    return next((named[name] for name in CACHES if named.get(name) is not None), None)


class TokenClock:
    """Knows, for the running forward pass, the position of every token and where each prompt ends.

    It hears what the decoder is given. The first pass over a text (empty cache) is the prompt, unless `prompt_lengths`
    says where the prompt ends; later passes continue it. Positions come from `position_ids`, else from the attention
    mask, else from the cache's length: never from the shape of what happens to be passed this time. `first_position` is
    what `position_ids` give a text's first token; here it has position 0.
    """

    def __init__(self, first_position: int = 0) -> None:
        self.first = first_position
        self.prompt_lengths: Int[Tensor, " prompt"] | None = None
        """Set by whoever knows how many tokens of each prompt there are; None to let the first pass decide."""
        self.begins = True
        """Whether the running pass is the first over its texts."""
        self._positions: Int[Tensor, "row position"] | None = None
        self._last_prompt: Int[Tensor, "prompt 1"] | None = None

    def tick(self, inputs: Mapping[str, Any]) -> None:
        """A pass begins. ValueError for one that goes on from a state which does not say how long its past is."""
        tokens = inputs.get("input_ids")
        tokens = inputs["inputs_embeds"][..., 0] if tokens is None else tokens
        seen = _seen(inputs)
        mask = inputs.get("attention_mask")
        mask = mask if isinstance(mask, Tensor) and mask.ndim == 2 else None
        places = inputs.get("position_ids")
        places = None if places is None else (places - self.first).clamp(min=0)  # pads may stand before the first
        self.begins = bool(seen == 0)
        self._positions = _positions(tokens, places, mask, seen)
        if self.prompt_lengths is not None:
            self._last_prompt = self.prompt_lengths.to(tokens.device)[:, None] - 1
        elif self.begins:
            self._last_prompt = _last_real(self._positions, mask)

    def now(self) -> tuple[Int[Tensor, "prompt position"], Int[Tensor, "prompt 1"]]:
        """The positions of each prompt's tokens, which its beams share, and that of its last prompt token."""
        if self._positions is None or self._last_prompt is None:
            raise RuntimeError("a block ran without its decoder, so nobody knows which tokens it was given")
        rows, prompts = len(self._positions), len(self._last_prompt)
        if rows % prompts:
            raise ValueError(f"{prompts} prompt lengths do not fit a batch of {rows} rows: give one for each prompt")
        return self._positions[:: rows // prompts], self._last_prompt


def _seen(inputs: Mapping[str, Any]) -> int:
    """How many tokens the passes before have read; ValueError for a state that does not say."""
    cache = cache_in(inputs)
    if cache is not None and inputs.get("cu_seq_lens_q") is not None:
        raise ValueError(
            "continuous batching packs all requests into one row, in which nobody knows where each one's prompt ends: "
            "steer `generate` of a padded batch, or let `caa serve` put requests together"
        )
    if all(inputs.get(name) is None for name in ("cache_params", "state")):
        with suppress(ValueError, AttributeError):
            return 0 if cache is None else int(cache.get_seq_length())
    raise ValueError(
        "a recurrent state does not say how many tokens it has read, so nobody knows which ones follow: "
        "steer this family with use_cache=False, as the wrapper's own `generate` does"
    )


def position_ids(attention_mask: Int[Tensor, "row position"]) -> Int[Tensor, "row position"]:
    """The position of each token among the real ones of its row; pads get position 0.

    >>> position_ids(torch.tensor([[0, 1, 1]]))
    tensor([[0, 0, 1]])
    """
    return (attention_mask.long().cumsum(1) - 1).clamp(min=0)


def one_each(values: Tensor, prompts: int, noun: str) -> Tensor:
    """Values given once for all or once for each prompt, as [prompt, ...].

    >>> one_each(torch.tensor([5]), 3, "multipliers")
    tensor([5, 5, 5])
    """
    if len(values) not in (1, prompts):
        raise ValueError(f"{len(values)} {noun} do not fit a batch of {prompts} rows: give one, or one for each prompt")
    return values.expand(prompts, *values.shape[1:])


def repeat_rows(values: Tensor, rows: int) -> Tensor:
    """Values of each prompt, [prompt, ...], for the rows that generate makes of it (beams, samples): [row, ...].

    >>> repeat_rows(torch.tensor([1, 2]), 4)
    tensor([1, 1, 2, 2])
    """
    return values if len(values) == rows else values.repeat_interleave(rows // len(values), dim=0)


def coefficients(strengths: Float[Tensor, "*shape"], prompts: int, shape: tuple[int, int]) -> Float[Tensor, "row _"]:
    """An intervention's strengths for a pass of so many (rows, columns); ValueError if they do not fit it.

    >>> coefficients(torch.tensor([1.0, 2.0]), 2, (4, 9)).T
    tensor([[1., 1., 2., 2.]])
    """
    rows, columns = shape
    if strengths.ndim == 2 and strengths.shape[1] != columns:
        raise ValueError(
            f"coefficients for {strengths.shape[1]} tokens do not fit a pass of {columns}: they are for one forward "
            "pass over as many columns, without a cache"
        )
    given = strengths if strengths.ndim == 2 else strengths[:, None]
    return given if len(given) == rows else repeat_rows(one_each(given, prompts, "multipliers"), rows)


def _positions(tokens: Tensor, position_ids: Tensor | None, mask: Tensor | None, seen: int | Tensor) -> Tensor:
    rows, columns = tokens.shape
    if position_ids is not None:
        flat = position_ids[0] if position_ids.ndim == 3 else position_ids  # 3: one plane for each axis of a picture
        return flat.expand(rows, columns)
    if mask is not None:
        return (mask.long().cumsum(1) - 1).clamp(min=0)[:, -columns:]
    return (seen + torch.arange(columns, device=tokens.device)).expand(rows, columns)


def _last_real(positions: Tensor, mask: Tensor | None) -> Tensor:
    """The largest position among the tokens that the mask lets be seen, which is the last one's."""
    if mask is not None:
        positions = positions * mask[:, -positions.shape[1] :]
    return positions.max(dim=1, keepdim=True).values
