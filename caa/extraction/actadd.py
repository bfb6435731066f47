"""Activation addition: two prompts in, their difference position by position out, to add to another's first tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from caa.extraction.extract import provenance
from caa.extraction.reader import ReadConfig, Text, read
from caa.steering.patching import Recording


def prompt_difference(
    model: Any, tokenizer: Any, positive: str, negative: str, layers: Sequence[int] | None = None
) -> Recording:
    """The activations of the positive prompt minus those of the negative one, float32 [1, position, d_model] by layer.

    Both begin with the tokenizer's BOS, if it has one, so that the difference there is 0; the shorter prompt is padded
    with the space token (Turner et al. 2023, algorithm 1). Prompts are read as they are, without a chat template. Layer
    i is the output of block i; ActAdd's "input of block n" is layer n - 1. Add it to the first tokens of other prompts,
    whose ids `prompt_ids` makes, in their first pass only:

        wrapper.steer(Intervention(difference, layer, coefficient, where=prompt_only))
    """
    first, second = prompt_ids(tokenizer, positive), prompt_ids(tokenizer, negative)
    length = max(len(first), len(second))
    if len(first) != len(second):
        space = [_space(tokenizer)]
        first, second = (ids + space * (length - len(ids)) for ids in (first, second))
    text, config = Text((first, second), (tuple(range(length)),) * 2), ReadConfig(token="last")
    [batch] = read(model, tokenizer, [text], layers, config)
    sides = {layer: resid.float().cpu().view(2, length, -1) for layer, resid in batch.residuals.items()}
    source = provenance(model, f"{positive!r} minus {negative!r}", 1, config, text.digest())
    source = replace(source, method="activation addition", token="every prompt token")
    return Recording({layer: (up - down)[None] for layer, (up, down) in sides.items()}, torch.tensor([length]), source)


def prompt_ids(tokenizer: Any, prompt: str) -> list[int]:
    """The ids of a prompt as ActAdd reads and steers it: BOS first, if the tokenizer has one."""
    ids = tokenizer(prompt, add_special_tokens=False).input_ids
    if not ids:
        raise ValueError("an empty prompt has no activations to add; contrast with a single space, ' '")
    return ids if tokenizer.bos_token_id is None else [tokenizer.bos_token_id, *ids]


def _space(tokenizer: Any) -> int:
    ids = tokenizer(" ", add_special_tokens=False).input_ids
    if not ids:
        raise ValueError("this tokenizer has no token for a space, so give two prompts of as many tokens")
    return int(ids[-1])
