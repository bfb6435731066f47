"""A text and a vector in, how much of the vector is in each token at each layer out; what the vector itself says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from caa.models.blocks import decoder_blocks, evaluating
from caa.models.hooks import reading
from caa.steering.intervention import Intervention
from caa.steering.operators import replace
from caa.steering.patching import Recording
from caa.steering.scopes import everywhere
from caa.steering.wrapper import SteeringWrapper
from caa.vectors.vector import SteeringVector

Measure = Literal["cosine", "dot"]
"""The cosine with the vector, or the dot product with its unit vector, which is in units of the residual stream."""

BEFORE, AFTER = 5, 6
"""Tokens in front of an answer and of it that pictures look at."""


@torch.no_grad()
def similarities(
    wrapper: SteeringWrapper,
    ids: Sequence[int],
    vector: SteeringVector,
    layers: Sequence[int] | None = None,
    *,
    prompt_length: int | None = None,
    measure: Measure = "cosine",
) -> Float[Tensor, "layer position"]:
    """How much each token of a text points along each layer's direction (Figure 6 of Rimsky et al. 2024), float32.

    The text is read under whatever steers the wrapper, whose scope begins at the end of the prompt: with
    `prompt_length` (default: all of it) a generated text is seen as it was when it was written. `layers` are those of
    the vector if not given.
    """
    layers = vector.layers if layers is None else list(layers)
    directions = torch.stack([vector.at(layer) for layer in layers])
    device = wrapper.model.get_input_embeddings().weight.device
    row, length = torch.tensor([list(ids)], device=device), torch.tensor([prompt_length or len(ids)], device=device)
    with evaluating(wrapper), reading(decoder_blocks(wrapper.model), layers) as residuals:
        wrapper(row, torch.ones_like(row), prompt_lengths=length, use_cache=False)
    resid = torch.stack([residuals[layer][0].float().cpu() for layer in layers])
    along = torch.einsum("lpd,ld->lp", resid, directions / directions.norm(dim=-1, keepdim=True))
    scales: dict[str, Tensor] = {"cosine": resid.norm(dim=-1), "dot": torch.ones(())}
    return along / scales[measure]


def token_texts(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """What each token adds to the text. Together they are the decoded text: one that needs a later token to be
    readable (a byte of a character) adds nothing, and the last of them adds it all."""
    texts, before = [], ""
    for end in range(1, len(ids) + 1):
        text = tokenizer.decode(list(ids[:end]), clean_up_tokenization_spaces=False)
        whole = end == len(ids) or not text.endswith("\ufffd")
        texts.append(text[len(before) :] if whole else "")
        before = text if whole else before
    return texts


@dataclass(frozen=True)
class Spoken:
    """A token that a direction speaks for."""

    token: str
    logit: float
    """Above the mean over the vocabulary."""


@torch.no_grad()
def logit_lens(
    wrapper: SteeringWrapper, tokenizer: Any, vector: SteeringVector, top: int = 10
) -> dict[int, list[Spoken]]:
    """layer -> the tokens whose logits are highest where the last block writes nothing but that layer's direction.

    That is the head behind the model's own last norm, whatever they are (nostalgebraist 2020, "interpreting GPT: the
    logit lens"). ValueError if the wrapper is being steered.
    """
    if wrapper.interventions:
        raise ValueError("the wrapper is being steered, so the lens would not show the vector alone: call unsteer()")
    last = len(decoder_blocks(wrapper.model)) - 1
    rows = torch.stack([vector.at(layer) for layer in vector.layers])[:, None]
    alone = Recording({last: rows}, torch.ones(len(rows), dtype=torch.long), vector.source)
    device = wrapper.model.get_input_embeddings().weight.device
    ids = torch.zeros(len(rows), 1, dtype=torch.long, device=device)
    with evaluating(wrapper), wrapper.steer(Intervention(alone, last, 1.0, replace, everywhere)):
        logits = wrapper(ids, torch.ones_like(ids), use_cache=False).logits[:, -1].float().cpu()
    best = (logits - logits.mean(-1, keepdim=True)).topk(top)
    spoken: dict[int, list[Spoken]] = {}
    for layer, tokens, values in zip(vector.layers, best.indices.tolist(), best.values.tolist(), strict=True):
        spoken[layer] = [Spoken(tokenizer.decode([token]), logit) for token, logit in zip(tokens, values, strict=True)]
    return spoken


def written(wrapper: SteeringWrapper, ids: Sequence[int], n_tokens: int) -> list[int]:
    """The text and the tokens that the model, steered as it is now, writes behind it greedily: always so many."""
    row = torch.tensor([list(ids)], device=wrapper.model.get_input_embeddings().weight.device)
    with evaluating(wrapper):
        ids_out = wrapper.generate(row, max_new_tokens=n_tokens, min_new_tokens=n_tokens, do_sample=False)[0]
    return list(ids_out.tolist())


def projections_apart(
    wrapper: SteeringWrapper,
    positive: Sequence[tuple[Sequence[int], int]],
    negative: Sequence[tuple[Sequence[int], int]],
    vector: SteeringVector,
) -> Float[Tensor, "layer position"]:
    """Where two kinds of texts differ along each layer's direction, from `BEFORE` tokens before their origins to
    `AFTER` behind: the projections of `projections_around`, positive minus negative."""
    sides = [projections_around(wrapper, texts, vector, BEFORE, AFTER) for texts in (positive, negative)]
    return sides[0] - sides[1]


def projections_around(
    wrapper: SteeringWrapper,
    texts: Sequence[tuple[Sequence[int], int]],
    vector: SteeringVector,
    before: int,
    after: int,
) -> Float[Tensor, "layer position"]:
    """The mean projection on each layer's direction, from `before` tokens before each text's origin to `after` behind.

    A text is ids and its origin: the place that becomes position 0, such as the first token that was generated. The
    difference of two kinds of texts shows where a direction tells them apart. ValueError if a text has no such token.
    """
    total = torch.zeros(len(vector.layers), before + after)
    for ids, origin in texts:
        if origin < before or origin + after > len(ids):
            raise ValueError(
                f"a text of {len(ids)} tokens, origin at {origin}, has no {before} tokens before and {after} behind"
            )
        along = similarities(wrapper, ids, vector, prompt_length=origin, measure="dot")
        total += along[:, origin - before : origin + after]
    return total / len(texts)
