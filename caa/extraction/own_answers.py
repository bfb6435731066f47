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
from caa.extraction.extract import provenance, read_sides
from caa.extraction.reader import ReadConfig, Text, read
from caa.hashing import lines_digest
from caa.models.sites import Site
from caa.steering.answers import greedy_answers
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
        sides.append(_answered(model, chat, ids, max_new_tokens, batch_size))
    pairs = [(shows, opposes) for shows, opposes in zip(*sides, strict=True) if shows and opposes]
    if not pairs:
        raise ValueError("no question was answered under both system prompts, so there is nothing to read")
    shows, opposes = zip(*pairs, strict=True)
    read = read_sides(model, chat.tokenizer, shows, opposes, layers, behavior, ReadConfig("mean", site, batch_size))
    return replace(read, source=replace(read.source, token="mean of its own answer"), letters=("",) * len(pairs))


def _answered(
    model: Any, chat: ChatFormat, prompts: Sequence[list[int]], max_new_tokens: int, batch_size: int
) -> list[Text | None]:
    """Each prompt with the model's greedy answer, to be read at the answer; None where that is empty."""
    answers = greedy_answers(SteeringWrapper(model), chat.tokenizer, prompts, [()], max_new_tokens, batch_size)
    by_prompt = {place.prompt: list(ids) for place, ids in answers}
    return [_text(prompt, by_prompt[row]) for row, prompt in enumerate(prompts)]


def _text(prompt: list[int], answer: list[int]) -> Text | None:
    places = tuple(range(len(prompt), len(prompt) + len(answer)))
    return Text(([*prompt, *answer],), (places,)) if answer else None


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
    source = replace(source, token="all that end alike")
    text_of = [text for text, pair in zip(positive, pairs, strict=True) for _ in pair[0].places[0]]
    return PairActivations(activations[0], activations[1], source, ("",) * len(text_of), tuple(text_of))


def _aligned(chat: ChatFormat, shows: str, opposes: str) -> tuple[Text, Text]:
    """Two texts, to be read at the tokens in which they end alike."""
    ids = chat.encode_text(shows), chat.encode_text(opposes)
    shared = common_prefix(ids[0][::-1], ids[1][::-1])
    if not shared:
        raise ValueError(f"{shows[-60:]!r} and {opposes[-60:]!r} do not end alike, so their tokens are not aligned")
    one, other = (Text((side,), (tuple(range(len(side) - shared, len(side))),)) for side in ids)
    return one, other
