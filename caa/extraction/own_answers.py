"""Opposing system prompts and questions, or aligned texts, in; what the model has in its stream all along them out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from caa.data.chat import ChatFormat, common_prefix
from caa.extraction.extract import Everything, provenance, read_into
from caa.extraction.reader import ReadConfig, Text, read
from caa.hashing import lines_digest
from caa.models.batching import by_length, pad
from caa.models.blocks import evaluating, input_device
from caa.models.capabilities import can_pad
from caa.models.sites import Site
from caa.steering.wrapper import SteeringWrapper
from caa.vectors.activations import PairActivations


def read_own_answers(
    model: Any,
    chat: ChatFormat | Any,
    questions: Sequence[str],
    positive: Sequence[str],
    negative: Sequence[str],
    layers: Sequence[int] | None = None,
    *,
    max_new_tokens: int = 48,
    site: Site = "block output",
    behavior: str = "",
    batch_size: int = 8,
) -> PairActivations:
    """The mean over the model's own greedy answer to each question, under opposing system prompts.

    As persona vectors are read (Chen et al. 2025): `positive` and `negative` are system prompts, as many of each, that
    ask for the behavior and for its opposite; each answer is read behind the prompt that it was given to. The vector is
    `read_own_answers(...).vector(mean_difference)`. Questions that one side answers with nothing are left out.
    ValueError for unequally many system prompts, and where no question has two answers.
    """
    if len(positive) != len(negative) or not positive:
        raise ValueError(f"each system prompt has its opposite; these are {len(positive)} and {len(negative)}")
    chat, sides = ChatFormat.of(chat), list[list[Text | None]]()
    for prompts in (positive, negative):
        ids = [replace(chat, system=system).encode(question) for system, question in product(prompts, questions)]
        sides.append(_answered(model, ids, max_new_tokens, chat.pad_id, batch_size))
    pairs = [(shows, opposes) for shows, opposes in zip(*sides, strict=True) if shows and opposes]
    if not pairs:
        raise ValueError("no question was answered under both system prompts, so there is nothing to read")
    config, kept = ReadConfig("mean", site, batch_size), Everything()
    texts = [text for side in zip(*pairs, strict=True) for text in side]
    data_hash = read_into(kept, model, chat.tokenizer, texts, layers, config, len(texts))
    stacked, source = kept.stacked(), provenance(model, behavior, len(pairs), config, data_hash)
    return PairActivations(
        {layer: resid[: len(pairs), 0] for layer, resid in stacked.items()},
        {layer: resid[len(pairs) :, 0] for layer, resid in stacked.items()},
        replace(source, token="mean of its own answer"),
    )


@torch.no_grad()
def _answered(
    model: Any, prompts: Sequence[list[int]], max_new_tokens: int, pad_id: int, batch_size: int
) -> list[Text | None]:
    """Each prompt with the model's greedy answer, to be read at the answer; None where that is empty."""
    wrapper, texts = SteeringWrapper(model), dict[int, Text | None]()
    size = batch_size if can_pad(model) else 1
    with evaluating(model):
        for rows in by_length(prompts, size):
            ids, mask = (
                tensor.to(input_device(model)) for tensor in pad([prompts[row] for row in rows], pad_id, "left")
            )
            written = wrapper.generate(ids, mask, max_new_tokens=max_new_tokens, do_sample=False, pad_token_id=pad_id)
            for row, answer in zip(rows, written[:, ids.shape[1] :].tolist(), strict=True):
                texts[row] = _text(prompts[row], _until_end(model, answer))
    return [texts[row] for row in range(len(prompts))]


def _text(prompt: list[int], answer: list[int]) -> Text | None:
    places = tuple(range(len(prompt), len(prompt) + len(answer)))
    return Text(([*prompt, *answer],), (places,)) if answer else None


def _until_end(model: Any, answer: list[int]) -> list[int]:
    """Without the first token that ends it, and what follows."""
    ends = model.generation_config.eos_token_id
    ends = {ends} if isinstance(ends, int) else set(ends or ())
    return answer[: next((place for place, token in enumerate(answer) if token in ends), len(answer))]


def read_aligned(
    model: Any,
    tokenizer: Any,
    positive: Sequence[str],
    negative: Sequence[str],
    layers: Sequence[int] | None = None,
    *,
    site: Site = "block output",
    behavior: str = "",
    batch_size: int = 8,
) -> PairActivations:
    """Two texts at all tokens in which they end alike: a pair of activations for each token, for PCA over positions.

        read_aligned(model, tokenizer, *HONESTY.prefixed(statements)).vector(pca)

    ValueError for unequally many texts, and for two that do not end in the same token.
    """
    if len(positive) != len(negative) or not positive:
        raise ValueError(f"{len(positive)} and {len(negative)} texts are no pairs")
    chat = ChatFormat.of(tokenizer)
    pairs = [_aligned(chat, *texts) for texts in zip(positive, negative, strict=True)]
    texts = [text for side in zip(*pairs, strict=True) for text in side]
    config = ReadConfig("last", site, batch_size)
    by_layer: dict[int, dict[int, Float[Tensor, "place d_model"]]] = {}
    for batch in read(model, tokenizer, texts, layers, config):
        counts = [len(text.places[0]) for text in batch.texts]
        for layer, resid in batch.residuals.items():
            by_layer.setdefault(layer, {}).update(zip(batch.rows, resid.float().cpu().split(counts), strict=True))
    sides = [range(len(pairs)), range(len(pairs), len(texts))]
    activations = [{n: torch.cat([rows[row] for row in side]) for n, rows in by_layer.items()} for side in sides]
    source = provenance(model, behavior, len(pairs), config, lines_digest(text.digest() for text in texts))
    return PairActivations(activations[0], activations[1], replace(source, token="all that end alike"))


def _aligned(chat: ChatFormat, shows: str, opposes: str) -> tuple[Text, Text]:
    """Two texts, to be read at the tokens in which they end alike."""
    ids = chat.encode_text(shows), chat.encode_text(opposes)
    shared = common_prefix(ids[0][::-1], ids[1][::-1])
    if not shared:
        raise ValueError(f"{shows[-60:]!r} and {opposes[-60:]!r} do not end alike, so their tokens are not aligned")
    one, other = (Text((side,), (tuple(range(len(side) - shared, len(side))),)) for side in ids)
    return one, other
