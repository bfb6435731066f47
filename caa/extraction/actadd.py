"""Activation addition: two prompts in, their difference position by position out, to add to another's first tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from caa.extraction.activations import Text, activations, chosen_layers
from caa.extraction.pairs import origin
from caa.hashing import lines_digest
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
    ids = [prompt_ids(tokenizer, prompt) for prompt in (positive, negative)]
    longest = max(map(len, ids))
    padded = [each if len(each) == longest else each + [_space(tokenizer)] * (longest - len(each)) for each in ids]
    texts = [Text(each, tuple(range(longest))) for each in padded]
    found = dict(activations(model, tokenizer, texts, chosen_layers(model, layers)))
    differences = {layer: (found[0][layer].float() - found[1][layer].float()).cpu()[None] for layer in found[0]}
    source = origin(model, f"{positive!r} minus {negative!r}", 1, "last", "block output", lines_digest(padded))
    source = replace(source, method="activation addition", token="every prompt token")
    return Recording(differences, torch.tensor([longest]), source)


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
