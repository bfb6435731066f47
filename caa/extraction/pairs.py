"""Contrast pairs or two lists of texts in, readings out: which token of each is read, and where in the network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from caa.data.behaviors import ContrastPair, letter
from caa.data.chat import Branches, ChatFormat
from caa.extraction.activations import Text, activations, chosen_layers
from caa.extraction.sites import Site
from caa.hashing import lines_digest
from caa.models.adapters import active_adapters
from caa.models.fingerprint import fingerprint
from caa.models.names import model_name
from caa.vectors.activations import Readings
from caa.vectors.methods import Method, mean_difference, name_of
from caa.vectors.vector import Provenance, SteeringVector

Token = Literal["parting", "last", "mean"] | int
"""Which token of an answer is read: "parting" is the first at which the two answers differ (the letter of "(A)"),
"last" its last, "mean" the mean over all; a number is that token, from the answer's first or, below 0, from its end."""

Sides = tuple[list[Text], list[Text]]
"""The positive texts and the negative ones."""


def read_pairs(
    model: Any,
    chat: ChatFormat | Any,
    pairs: Sequence[ContrastPair],
    layers: Sequence[int] | None = None,
    *,
    token: Token = "parting",
    site: Site = "block output",
    behavior: str = "",
    batch_size: int = 16,
    progress: bool = False,
) -> Readings:
    """The activations of both sides of each pair, for methods that need more than their means and for checks.

    ValueError for no pairs, a token that some answer does not have, an unknown layer or site.
    """
    chat = ChatFormat.of(chat)
    sides = pair_texts(chat, pairs, token)
    source = origin(model, behavior, len(pairs), token, site, digest_of(sides))
    letters = tuple(letter(pair.positive) or "" for pair in pairs)
    how: dict[str, Any] = {"site": site, "batch_size": batch_size, "progress": progress}
    return _collected(model, chat.tokenizer, sides, layers, source, letters, **how)


def read_texts(
    model: Any,
    tokenizer: Any,
    positive: Sequence[str],
    negative: Sequence[str],
    layers: Sequence[int] | None = None,
    *,
    site: Site = "block output",
    behavior: str = "",
    batch_size: int = 16,
    progress: bool = False,
) -> Readings:
    """The activations at the last token of each text, read as it is; the lists need not be equally long.

    A text may be a prompt, a phrase or a single word. ValueError for an empty list or text.
    """
    sides = last_tokens(tokenizer, positive), last_tokens(tokenizer, negative)
    source = origin(model, behavior, min(len(positive), len(negative)), "last", site, digest_of(sides))
    how: dict[str, Any] = {"site": site, "batch_size": batch_size, "progress": progress}
    return _collected(model, tokenizer, sides, layers, source, (), **how)


def find(
    model: Any,
    chat: ChatFormat | Any,
    pairs: Sequence[ContrastPair],
    layers: Sequence[int] | None,
    method: Method,
    *,
    token: Token,
    site: Site,
    behavior: str,
    **how: Any,
) -> SteeringVector:
    """What `extract` does for every method, token and site; only the mean difference can do without the readings."""
    if method is not mean_difference:
        about: dict[str, Any] = {"token": token, "site": site, "behavior": behavior, **how}
        return read_pairs(model, chat, pairs, layers, **about).vector(method)
    sides = pair_texts(chat, pairs, token)
    directions = difference_of_means(model, chat.tokenizer, sides, layers, site=site, **how)
    source = origin(model, behavior, len(pairs), token, site, digest_of(sides))
    return SteeringVector(directions, replace(source, method=name_of(method)))


def pair_texts(chat: ChatFormat, pairs: Sequence[ContrastPair], token: Token = "parting") -> Sides:
    """Both sides of each pair as ids, with the places that `token` means."""
    if not pairs:
        raise ValueError("no contrast pairs, so there is nothing to tell apart; give at least one")
    branches = [chat.encode_pair(pair) for pair in pairs]
    positive = [Text(each.positive, _places(each, each.positive, token)) for each in branches]
    return positive, [Text(each.negative, _places(each, each.negative, token)) for each in branches]


def _places(branches: Branches, ids: list[int], token: Token) -> tuple[int, ...]:
    start, end = branches.prompt_length, len(ids)
    if token == "parting":
        return (branches.parting,)
    if token == "mean":
        return tuple(range(start, end))
    number = -1 if token == "last" else token
    if not isinstance(number, int):
        raise ValueError(f"there is no token {token!r}; it is 'parting', 'last', 'mean' or a number")
    if not start - end <= number < end - start:
        raise ValueError(f"an answer of {end - start} tokens has no token {number}; 0 is its first, -1 its last")
    return (start + number if number >= 0 else end + number,)


def last_tokens(tokenizer: Any, texts: Sequence[str]) -> list[Text]:
    """Each text as ids, to be read at its last token."""
    if not texts:
        raise ValueError("two lists of texts are contrasted, and one of them is empty")
    ids = [tokenizer(text).input_ids for text in texts]
    if empty := [text for text, tokens in zip(texts, ids, strict=True) if not tokens]:
        raise ValueError(f"the text {empty[0]!r} has no tokens, so it cannot be read")
    return [Text(tokens, (len(tokens) - 1,)) for tokens in ids]


def origin(model: Any, behavior: str, n_pairs: int, token: Token, site: Site, data_hash: str) -> Provenance:
    """The provenance of what is read in the model as it is now; its method is still to come."""
    return Provenance(
        model=model_name(model),
        adapter=", ".join(active_adapters(model)),
        behavior=behavior,
        n_pairs=n_pairs,
        token=token if isinstance(token, str) else f"answer token {token}",
        site=site,
        model_fingerprint=fingerprint(model),
        data_hash=data_hash,
    )


def digest_of(sides: Sides) -> str:
    """Of all that is read, the positive side first."""
    return lines_digest(text.ids for side in sides for text in side)


def _collected(
    model: Any,
    tokenizer: Any,
    sides: Sides,
    layers: Sequence[int] | None,
    source: Provenance,
    letters: tuple[str, ...],
    **how: Any,
) -> Readings:
    layers, n_positive = chosen_layers(model, layers), len(sides[0])
    rows: dict[int, dict[int, Tensor]] = {}
    for row, found in activations(model, tokenizer, [*sides[0], *sides[1]], layers, **how):
        rows[row] = {layer: values.float().mean(0).cpu() for layer, values in found.items()}
    stacked = {layer: torch.stack([rows[row][layer] for row in range(len(rows))]) for layer in layers}
    positive = {layer: values[:n_positive] for layer, values in stacked.items()}
    negative = {layer: values[n_positive:] for layer, values in stacked.items()}
    return Readings(positive, negative, source, letters)


def difference_of_means(
    model: Any, tokenizer: Any, sides: Sides, layers: Sequence[int] | None, **how: Any
) -> dict[int, Float[Tensor, " d_model"]]:
    """layer -> the mean difference, by running sums in float64, so that memory does not grow with the pairs.

    `how` goes to `activations`: site, batch_size, progress.
    """
    n_positive, n_negative = map(len, sides)
    total: dict[int, Tensor] = {}
    for row, found in activations(model, tokenizer, [*sides[0], *sides[1]], chosen_layers(model, layers), **how):
        weight = 1 / n_positive if row < n_positive else -1 / n_negative
        for layer, values in found.items():
            weighted = weight * values.double().mean(0)
            total[layer] = total[layer] + weighted if layer in total else weighted
    return {layer: summed.float() for layer, summed in total.items()}
