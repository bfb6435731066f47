"""Contrast pairs or two lists of texts in, a steering vector or the activations themselves out.

Everything is read by one reader (`caa.extraction.reader`); what is kept of it depends on the method: running sums for
the mean difference, all activations for the others and for checks.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from caa.data.behaviors import Behavior, ContrastPair, letter
from caa.data.chat import Branches, ChatFormat
from caa.extraction.reader import ReadConfig, Text, Token, read
from caa.hashing import lines_digest
from caa.models.adapter_state import active_adapters
from caa.models.adapters import adapters_digest
from caa.models.fingerprint import fingerprint
from caa.models.names import model_name
from caa.models.sites import Site
from caa.vectors.activations import PairActivations, method_name
from caa.vectors.letters import LetterSums, warnings_of
from caa.vectors.methods import Method, balanced_mean, mean_difference
from caa.vectors.vector import Provenance, SteeringVector

logger = logging.getLogger(__name__)

Pairs = Behavior | Sequence[ContrastPair]
"""A behavior stands for its pairs, and gives the vector its name."""
Means = Mapping[int, Float[Tensor, "text sequence d_model"]]


def extract(
    model: Any,
    chat: ChatFormat | Any,
    pairs: Pairs,
    layers: Sequence[int] | None = None,
    *,
    method: Method = balanced_mean,
    token: Token = "parting",
    site: Site = "block output",
    behavior: str = "",
    batch_size: int = 8,
    progress: bool = False,
) -> SteeringVector:
    """The mean difference of the residual stream at the first token where the two answers differ (CAA).

    For answers "(A)" and "(B)" that token is the letter, as in Rimsky et al. (2024). Each letter counts alike, however
    many pairs have it; `method=mean_difference` is the paper's plain mean. All layers (default: every one) are read in
    one pass per batch; sums run in float64, so memory does not grow with the number of pairs and neither batching nor
    order shows in the result beyond float32's rounding. Active LoRA adapters are part of the model.

    What of the vector is a letter or rounding is in `source.checks` (`LetterSums.checks`), and is logged as a warning
    where it is much. `method` is any function of `caa.vectors.methods` or one of your own; others than the two means
    hold all activations at once (`PairActivations` says how much that is). `token` and `site` say what else may be
    read, and where. `batch_size` counts pairs of the longest kind. ValueError for no pairs, a token that some answer
    does not have, an unknown layer or site.
    """
    config = ReadConfig(token, site, batch_size, progress)
    if method not in (balanced_mean, mean_difference):
        activations = _read_pairs(model, chat, pairs, layers, behavior, config)
        sums, vector = LetterSums(activations.letters), activations.vector(method)
        sums.update(range(len(activations.letters)), activations.stacked())
        return _with_letters(vector, sums, model, balanced=False)
    chat, (name, pairs) = ChatFormat.of(chat), named_pairs(pairs, behavior)
    sums = LetterSums([letter(pair.positive) or "" for pair in pairs])
    data_hash = read_into(sums, model, chat.tokenizer, pair_texts(chat, pairs, token), layers, config, len(pairs))
    source = provenance(model, name, len(pairs), config, data_hash)
    source = replace(source, method=method_name(method, sums.letters))
    balanced = method is balanced_mean
    return _with_letters(SteeringVector(sums.directions(balanced), source), sums, model, balanced)


def _with_letters(vector: SteeringVector, sums: LetterSums, model: Any, balanced: bool) -> SteeringVector:
    """The vector with what of it is a letter or rounding among its checks, and a warning if it is much."""
    dtype = model.dtype
    checks = sums.checks(vector.directions, torch.finfo(dtype).eps, balanced)
    for warning in warnings_of(sums.letters, checks, str(dtype).removeprefix("torch.")):
        logger.warning(warning)
    counts = {f"pairs ({name})": float(sums.letters.count(name)) for name in sorted(set(sums.letters) - {""})}
    checked = vector.checked(checks)
    return SteeringVector(checked.directions, replace(checked.source, checks={**counts, **checked.source.checks}))


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
    config = ReadConfig("last", site, batch_size, progress)
    if method is not mean_difference:
        return _read_texts(model, tokenizer, positive, negative, layers, behavior, config).vector(method)
    texts = [*last_tokens(tokenizer, positive), *last_tokens(tokenizer, negative)]
    weights = [[1 / len(positive)]] * len(positive) + [[-1 / len(negative)]] * len(negative)
    total = WeightedSum(torch.tensor(weights, dtype=torch.float64))
    data_hash = read_into(total, model, tokenizer, texts, layers, config, len(texts))
    source = provenance(model, behavior, min(len(positive), len(negative)), config, data_hash)
    return SteeringVector(total.directions(), replace(source, method="mean difference, unpaired"))


def read_pairs(
    model: Any,
    chat: ChatFormat | Any,
    pairs: Pairs,
    layers: Sequence[int] | None = None,
    *,
    token: Token = "parting",
    site: Site = "block output",
    behavior: str = "",
    batch_size: int = 8,
    progress: bool = False,
) -> PairActivations:
    """The activations of both sides of each pair, for methods that need more than their means and for checks.

    The arguments are those of `extract`.
    """
    return _read_pairs(model, chat, pairs, layers, behavior, ReadConfig(token, site, batch_size, progress))


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
) -> PairActivations:
    """The activations at the last token of each text, read as it is; the lists need not be equally long.

    A text may be a prompt, a phrase or a single word. ValueError for an empty list or text.
    """
    config = ReadConfig("last", site, batch_size, progress)
    return _read_texts(model, tokenizer, positive, negative, layers, behavior, config)


def _read_pairs(
    model: Any,
    chat: ChatFormat | Any,
    pairs: Pairs,
    layers: Sequence[int] | None,
    behavior: str,
    config: ReadConfig,
) -> PairActivations:
    chat, (name, pairs) = ChatFormat.of(chat), named_pairs(pairs, behavior)
    kept, texts = Everything(), pair_texts(chat, pairs, config.token)
    data_hash = read_into(kept, model, chat.tokenizer, texts, layers, config, len(pairs))
    stacked = kept.stacked()
    return PairActivations(
        {layer: resid[:, 0] for layer, resid in stacked.items()},
        {layer: resid[:, 1] for layer, resid in stacked.items()},
        provenance(model, name, len(pairs), config, data_hash),
        tuple(letter(pair.positive) or "" for pair in pairs),
        tuple(pair.positive for pair in pairs),
    )


def _read_texts(
    model: Any,
    tokenizer: Any,
    positive: Sequence[str],
    negative: Sequence[str],
    layers: Sequence[int] | None,
    behavior: str,
    config: ReadConfig,
) -> PairActivations:
    sides = last_tokens(tokenizer, positive), last_tokens(tokenizer, negative)
    return read_sides(model, tokenizer, *sides, layers, behavior, config)


def read_sides(
    model: Any,
    tokenizer: Any,
    positive: Sequence[Text],
    negative: Sequence[Text],
    layers: Sequence[int] | None,
    behavior: str,
    config: ReadConfig,
) -> PairActivations:
    """The activations of two lists of texts of one sequence each, which need not be equally long."""
    kept, texts = Everything(), [*positive, *negative]
    data_hash = read_into(kept, model, tokenizer, texts, layers, config, len(texts))
    stacked = kept.stacked()
    return PairActivations(
        {layer: resid[: len(positive), 0] for layer, resid in stacked.items()},
        {layer: resid[len(positive) :, 0] for layer, resid in stacked.items()},
        provenance(model, behavior, min(len(positive), len(negative)), config, data_hash),
    )


# What is kept of what is read.


class WeightedSum:
    """The sum over all sequences of weight x activation, in float64: with weights 1 / n and -1 / n a mean difference.

    >>> total = WeightedSum(torch.tensor([[0.5, -0.5], [0.5, -0.5]]))
    >>> total.update([1], {0: torch.tensor([[[4.0], [0.0]]])})
    >>> total.update([0], {0: torch.tensor([[[2.0], [1.0]]])})
    >>> total.directions()
    {0: tensor([2.5000])}
    """

    def __init__(self, weights: Float[Tensor, "text sequence"]) -> None:
        self.weights = weights
        self.sums: dict[int, Float[Tensor, " d_model"]] = {}

    def update(self, rows: list[int], means: Means) -> None:
        for layer, resid in means.items():
            weights = self.weights[rows].to(resid.device)
            self.sums[layer] = self.sums.get(layer, 0) + (weights[:, :, None] * resid.double()).sum((0, 1))

    def directions(self) -> dict[int, Float[Tensor, " d_model"]]:
        """layer -> float32 [d_model]"""
        return {layer: summed.float() for layer, summed in self.sums.items()}


class Everything:
    """All activations, in float32 on the CPU."""

    def __init__(self) -> None:
        self.rows: list[int] = []
        self.batches: dict[int, list[Float[Tensor, "text sequence d_model"]]] = {}

    def update(self, rows: list[int], means: Means) -> None:
        self.rows += rows
        for layer, resid in means.items():
            self.batches.setdefault(layer, []).append(resid.float().cpu())

    def stacked(self) -> dict[int, Float[Tensor, "text sequence d_model"]]:
        """layer -> the texts in the order in which they were given."""
        order = torch.tensor(self.rows).argsort()
        return {layer: torch.cat(batches)[order] for layer, batches in self.batches.items()}


def read_into(
    reducer: WeightedSum | LetterSums | Everything,
    model: Any,
    tokenizer: Any,
    texts: Iterable[Text],
    layers: Sequence[int] | None,
    config: ReadConfig,
    n_texts: int,
) -> str:
    """Give the reducer all that is read; the digest of the ids, in the order of the texts."""
    digests: dict[int, str] = {}
    with tqdm(total=n_texts, desc="reading", unit="text", disable=not config.progress) as bar:
        for batch in read(model, tokenizer, texts, layers, config):
            reducer.update(batch.rows, batch.means())
            digests.update((row, text.digest()) for row, text in zip(batch.rows, batch.texts, strict=True))
            bar.update(len(batch.rows))
    return lines_digest(digests[row] for row in sorted(digests))


# What is read of words.


def named_pairs(pairs: Pairs, behavior: str = "") -> tuple[str, Sequence[ContrastPair]]:
    """The name that the vector gets, and the pairs; ValueError if there are none."""
    if isinstance(pairs, Behavior):
        behavior, pairs = behavior or pairs.name, pairs.require("pairs")
    if isinstance(pairs, str) or not all(isinstance(pair, ContrastPair) for pair in pairs):
        raise TypeError(f"pairs are ContrastPairs, or a Behavior as load_behavior gives it, and not {pairs!r:.60}")
    if not pairs:
        raise ValueError("no contrast pairs, so there is nothing to tell apart; give at least one")
    _warn_of_few(pairs)
    return behavior, pairs


def _warn_of_few(pairs: Sequence[ContrastPair]) -> None:
    """One pair, or copies of one, give a vector of all in which its two answers differ, the behavior or not."""
    if len({(pair.text, *pair.answers) for pair in pairs}) == 1:
        count = "one pair" if len(pairs) == 1 else f"{len(pairs)} copies of one pair"
        logger.warning(
            f"{count}: the vector holds all in which its two answers differ, not the behavior alone "
            f"({pairs[0].text[:60]!r}). Give a few dozen different pairs."
        )


def pair_texts(chat: ChatFormat, pairs: Iterable[ContrastPair], token: Token = "parting") -> Iterator[Text]:
    """Each pair as one text, the positive answer first, with the places that `token` means."""
    for pair in pairs:
        branches = chat.encode_pair(pair)
        sides = branches.positive, branches.negative
        yield Text(sides, tuple(_places(branches, ids, token) for ids in sides))


def _places(branches: Branches, ids: list[int], token: Token) -> tuple[int, ...]:
    start, end = branches.prompt_length, len(ids)
    if token == "parting":
        return (branches.parting,)
    if token == "mean":
        return tuple(range(start, end))
    number = -1 if token == "last" else token
    if not start - end <= number < end - start:
        raise ValueError(f"an answer of {end - start} tokens has no token {number}; 0 is its first, -1 its last")
    return (start + number if number >= 0 else end + number,)


def last_tokens(tokenizer: Any, texts: Sequence[str]) -> list[Text]:
    """Each text as ids, to be read at its last token."""
    if not texts:
        raise ValueError("two lists of texts are contrasted, and one of them is empty")
    ids = [ChatFormat.of(tokenizer).encode_text(text) for text in texts]
    if empty := [text for text, tokens in zip(texts, ids, strict=True) if not tokens]:
        raise ValueError(f"the text {empty[0]!r} has no tokens, so it cannot be read")
    return [Text.at_its_end(tokens) for tokens in ids]


def provenance(model: Any, behavior: str, n_pairs: int, config: ReadConfig, data_hash: str) -> Provenance:
    """Of what is read in the model as it is now; its method is still to come."""
    return Provenance(
        model=model_name(model),
        adapter=", ".join(active_adapters(model)),
        adapter_hash=adapters_digest(model),
        behavior=behavior,
        n_pairs=n_pairs,
        token=config.token if isinstance(config.token, str) else f"answer token {config.token}",
        site=config.site,
        model_fingerprint=fingerprint(model),
        data_hash=data_hash,
    )
