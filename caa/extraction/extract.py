"""Contrast pairs in, a steering vector out: reads the residual stream where the two answers part."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from caa.data.behaviors import ContrastPair
from caa.data.chat import ChatFormat, check_length
from caa.extraction.activations import chosen_layers
from caa.extraction.pairs import Token, difference_of_means, digest_of, find, last_tokens, origin, read_texts
from caa.extraction.sites import Site
from caa.hashing import lines_digest
from caa.models.batching import in_batches
from caa.models.blocks import context_length, decoder, decoder_blocks, evaluating, position_inputs
from caa.models.branching import Branched, branched
from caa.models.capabilities import can_branch, can_pad
from caa.models.hooks import reading
from caa.vectors.methods import Method, mean_difference, name_of
from caa.vectors.vector import SteeringVector

AT_A_TIME = 512
"""Pairs that are in memory as token ids."""
Fork = tuple[list[int], tuple[list[int], ...]]
"""A text as ids, and the ends that it is read with: one, or two for a contrast pair."""


def extract(
    model: Any,
    chat: ChatFormat | Any,
    pairs: Sequence[ContrastPair],
    layers: Sequence[int] | None = None,
    *,
    method: Method = mean_difference,
    token: Token = "parting",
    site: Site = "block output",
    behavior: str = "",
    batch_size: int = 8,
    progress: bool = False,
) -> SteeringVector:
    """The mean difference of the residual stream at the first token where the two answers differ (CAA).

    For answers "(A)" and "(B)" that token is the letter, as in Rimsky et al. (2024). All layers (default: every one)
    are read in one pass per batch; sums run in float64, so memory does not grow with the number of pairs and neither
    batching nor order shows in the result beyond float32's rounding. Active LoRA adapters are part of the model.

    `method` is any function of `caa.vectors.methods` or one of your own; others than the mean difference hold all
    activations at once (`Readings` says how much that is). `token` and `site` say what else may be read, and where.
    """
    chat = ChatFormat.of(chat)
    if (method, token, site) != (mean_difference, "parting", "block output"):
        said: dict[str, Any] = {"token": token, "behavior": behavior}
        how: dict[str, Any] = {"site": site, "batch_size": batch_size, "progress": progress}
        return find(model, chat, pairs, layers, method, **said, **how)
    if not pairs:
        raise ValueError("no contrast pairs, so there is nothing to tell apart; give at least one")
    total: dict[int, Tensor] = {}
    hashes: list[str] = []
    layers = chosen_layers(model, layers)
    with tqdm(total=len(pairs), desc="reading", unit="pair", disable=not progress) as bar:
        for start in range(0, len(pairs), AT_A_TIME):
            some = pairs[start : start + AT_A_TIME]
            forks = list(pair_forks(chat, some))
            hashes += [lines_digest(fork) for fork in forks]
            for rows, found in fork_activations(model, chat.tokenizer, forks, layers, batch_size):
                _add(total, found)
                bar.update(len(rows))
    directions = {layer: (summed / len(pairs)).float() for layer, summed in total.items()}
    source = origin(model, behavior, len(pairs), token, site, lines_digest(hashes))
    return SteeringVector(directions, replace(source, method=name_of(method)))


def _add(total: dict[int, Tensor], found: Mapping[int, Float[Tensor, "fork end d_model"]]) -> None:
    """The differences of a batch to the sums so far."""
    for layer, resid in found.items():
        positive, negative = resid.double().sum(0)
        total[layer] = total.get(layer, 0) + (positive - negative)


def pair_forks(chat: ChatFormat, pairs: Iterable[ContrastPair]) -> Iterator[Fork]:
    """What the two answers to each question share, and the token of each at which they part."""
    for pair in pairs:
        b = chat.encode_pair(pair)
        yield b.positive[: b.parting], ([b.positive[b.parting]], [b.negative[b.parting]])


def extract_from_texts(
    model: Any,
    tokenizer: Any,
    positive: Sequence[str],
    negative: Sequence[str],
    layers: Sequence[int] | None = None,
    *,
    method: Method = mean_difference,
    site: Site = "block output",
    behavior: str = "",
    batch_size: int = 16,
    progress: bool = False,
) -> SteeringVector:
    """The mean over the positive texts minus the mean over the negative ones, at the last token of each.

    The texts are prompts, phrases or single words. They are read as they are, without a chat template, and need be
    neither paired nor equally many; `method` then has to be one that can do without pairs.
    """
    how: dict[str, Any] = {"site": site, "batch_size": batch_size, "progress": progress}
    if method is not mean_difference:
        return read_texts(model, tokenizer, positive, negative, layers, behavior=behavior, **how).vector(method)
    sides = last_tokens(tokenizer, positive), last_tokens(tokenizer, negative)
    about = model, behavior, min(len(positive), len(negative))
    source = origin(*about, "last", site, digest_of(sides))
    directions = difference_of_means(model, tokenizer, sides, layers, **how)
    return SteeringVector(directions, replace(source, method="mean difference, unpaired"))


@torch.no_grad()
def fork_activations(
    model: Any,
    tokenizer: Any,
    forks: Sequence[Fork],
    layers: Sequence[int],
    batch_size: int,
) -> Iterator[tuple[list[int], dict[int, Float[Tensor, "fork end d_model"]]]]:
    """Batch by batch: which of the forks, and layer -> the residual stream at the last token of each of their ends.

    A text is read once for all its ends, by the decoder without its head, up to the last layer that is wanted.
    `batch_size` counts texts of the longest kind; where memory runs out, or pads would show, fewer are taken. All have
    as many ends.
    """
    limit = context_length(model, tokenizer)
    for stem, ends in forks:
        check_length(range(len(stem) + max(map(len, ends))), limit, "a text")
    lengths = [len(stem) + sum(map(len, ends)) for stem, ends in forks]
    longest = max(lengths)
    branching = len(forks[0][1]) > 1 and can_branch(model, longest)
    together = branching or len({len(stem) for stem, _ in forks}) == 1 or can_pad(model)
    budget = batch_size * longest if together else 1
    read = partial(_read_forks, model, tokenizer.pad_token_id or 0, layers, branching)
    with evaluating(model):
        yield from in_batches(lambda rows: read([forks[row] for row in rows]), lengths, budget)


def _read_forks(
    model: Any, pad_id: int, layers: Sequence[int], branching: bool, forks: Sequence[Fork]
) -> dict[int, Float[Tensor, "fork end d_model"]]:
    """One pass; each end is a branch of its text, or a row with a copy of it."""
    ends = len(forks[0][1])
    rows = forks if branching else [(stem, (end,)) for stem, own in forks for end in own]
    text = branched([stem for stem, _ in rows], [list(own) for _, own in rows], pad_id)
    last = torch.tensor([[len(end) - 1 for end in own] for _, own in rows])
    columns = text.stem + torch.arange(last.shape[1]) * text.width + last
    places = torch.stack([torch.arange(len(rows))[:, None].expand_as(columns), columns], dim=-1).flatten(0, 1)
    device = model.get_input_embeddings().weight.device
    inputs = text.inputs(model) if branching else _plain_inputs(model, text)
    with reading(decoder_blocks(model), layers, at=places, to_the_end=False) as found:
        decoder(model)(**{name: tensor.to(device) for name, tensor in inputs.items()}, use_cache=False)
    return {layer: resid.view(len(forks), ends, -1) for layer, resid in found.items()}


def _plain_inputs(model: Any, text: Branched) -> dict[str, Tensor]:
    return {"input_ids": text.ids, "attention_mask": text.real, **position_inputs(model, text.real)}
