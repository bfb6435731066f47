"""Prompts and settings in, generated tokens out: every prompt under every setting, the prompt read once for all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from caa.models.adapter_state import check_readable
from caa.models.blocks import cache_name, input_device, takes
from caa.models.capabilities import can_pad, can_repeat_cache, repeat_cache
from caa.models.positions import cache_in
from caa.steering.intervention import Setting, leaves_prompt, together
from caa.steering.wrapper import SteeringWrapper


@torch.no_grad()
def generate_settings(
    wrapper: SteeringWrapper,
    ids: Int[Tensor, "row position"],
    attention_mask: Int[Tensor, "row position"],
    settings: Sequence[Setting],
) -> Int[Tensor, "answer column"]:
    """`generate` for every prompt (padded on the left) under every setting, in the order of `product(rows, settings)`.

    The prompt but for its last token is read once where no setting edits it, and its cache repeated.
    """
    check_readable(wrapper.model)
    device, times = input_device(wrapper.model), len(settings)
    ids, attention_mask = ids.to(device), attention_mask.to(device)
    with wrapper.paused():
        apart = not attention_mask.all() and not can_pad(wrapper.model)
    if apart:
        return _one_at_a_time(wrapper, ids, attention_mask.bool(), settings)
    cache = _shared_cache(wrapper, ids, attention_mask, settings)
    options = {} if cache is None else {cache_name(wrapper.model): cache, "use_cache": True}
    repeated = [values.repeat_interleave(times, dim=0) for values in (ids, attention_mask)]
    edits = [replace(edit, multiplier=edit.strengths.flatten().repeat(len(ids))) for edit in together(settings)]
    with wrapper.steer(*edits):
        written: Tensor = wrapper.generate(*repeated, **options)
    return written


def _one_at_a_time(wrapper: SteeringWrapper, ids: Tensor, real: Tensor, settings: Sequence[Setting]) -> Tensor:
    """The same, each prompt without its pads."""
    answers: list[Tensor] = []
    for row, kept in zip(ids, real, strict=True):
        alone = row[kept][None]
        answers += generate_settings(wrapper, alone, torch.ones_like(alone), settings)[:, alone.shape[1] :]
    filling = wrapper.model.generation_config.pad_token_id or 0
    even = pad_sequence(answers, batch_first=True, padding_value=filling)
    return torch.cat([ids.repeat_interleave(len(settings), dim=0), even], dim=1)


def _shared_cache(wrapper: SteeringWrapper, ids: Tensor, mask: Tensor, settings: Sequence[Setting]) -> Any:
    """The keys and values of all tokens but the last, a row for each setting; None where that cannot be shared."""
    length = ids.shape[1]
    if len(settings) == 1 or length == 1 or wrapper.interventions:
        return None
    if not all(leaves_prompt(setting, length) for setting in settings):
        return None
    with wrapper.paused():
        if not can_repeat_cache(wrapper.model):
            return None
    options: dict[str, Any] = {"logits_to_keep": 1} if takes(wrapper.model, "logits_to_keep") else {}
    cache = cache_in(wrapper.run_pass(ids[:, :-1], mask[:, :-1], use_cache=True, **options))
    repeat_cache(cache, len(ids), len(settings))
    return cache
