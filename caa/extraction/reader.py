"""Texts with places in, the activations that stand there out: the one way in which a network is read. Knows no method.

A text is one sequence of ids, or several that begin alike, such as a question with each of its two answers. What they
share is read once where the model can branch; elsewhere each sequence is a row of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from caa.data.chat import check_length, common_prefix
from caa.hashing import lines_digest
from caa.models.adapter_state import check_readable
from caa.models.batching import branched, in_batches, pad, tokens_of_a_pass
from caa.models.blocks import check_layer, context_length, decoder, decoder_blocks, evaluating, position_inputs
from caa.models.capabilities import can_branch, can_go_on
from caa.models.hooks import reading
from caa.models.prefix import PrefixCache, read_prefix, shared_length
from caa.models.sites import INPUTS, Site, check_site, site_modules
from caa.steering.state import check_unsteered

Token = Literal["parting", "last", "mean"] | int
"""Which token of an answer is read: "parting" is the first at which the two answers differ (the letter of "(A)"),
"last" its last, "mean" the mean over all; a number is that token, from the answer's first or, below 0, from its end."""

AT_A_TIME = 512
"""Texts that are in memory as token ids."""


@dataclass(frozen=True)
class ReadConfig:
    """What is read of each answer, where in the network, and how much at a time. ValueError for what there is not."""

    token: Token = "parting"
    site: Site = "block output"
    batch_size: int = 8
    """Texts of the longest kind in one pass; a contrast pair is one text."""
    progress: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.token, int) and self.token not in ("parting", "last", "mean"):
            raise ValueError(f"there is no token {self.token!r}; it is 'parting', 'last', 'mean' or a number")
        check_site(self.site)
        if self.batch_size < 1:
            raise ValueError(f"a batch holds at least one row, this batch_size is {self.batch_size}")


@dataclass(frozen=True)
class Text:
    """One sequence of ids, or several that begin alike, and the places in them that are read."""

    sequences: tuple[list[int], ...]
    """Each ends at its last place, whatever it was given: what follows cannot show there."""
    places: tuple[tuple[int, ...], ...]
    """For each sequence its places, counted from its first token."""

    def __post_init__(self) -> None:
        for ids, places in zip(self.sequences, self.places, strict=True):
            if not places or not 0 <= min(places) <= max(places) < len(ids):
                raise ValueError(f"places {list(places)} are not in a text of {len(ids)} tokens")
        ends = (max(places) + 1 for places in self.places)
        cut = tuple(ids[:end] for ids, end in zip(self.sequences, ends, strict=True))
        object.__setattr__(self, "sequences", cut)

    @classmethod
    def at_its_end(cls, ids: list[int]) -> Text:
        """One sequence, read at its last token."""
        return cls((ids,), ((len(ids) - 1,),))

    @cached_property
    def prefix_length(self) -> int:
        """How many tokens all sequences share, leaving each at least one of its own."""
        first, *others = self.sequences
        return min([*(len(ids) - 1 for ids in self.sequences), *(common_prefix(first, ids) for ids in others)])

    @property
    def columns(self) -> int:
        """Tokens of a pass that reads what the sequences share once."""
        return self.prefix_length + len(self.sequences) * (max(map(len, self.sequences)) - self.prefix_length)

    def digest(self) -> str:
        """Of the ids that are read: the shared ones, then the others."""
        prefix = self.prefix_length
        return lines_digest((self.sequences[0][:prefix], [ids[prefix:] for ids in self.sequences]))


@dataclass(frozen=True, eq=False)
class ReadBatch:
    """What one pass left at the places of its texts."""

    rows: list[int]
    """Which texts these are, in the order in which they were given to the reader."""
    texts: list[Text]
    residuals: dict[int, Float[Tensor, "place d_model"]]
    """layer -> text by text, sequence by sequence, place by place; on the layer's device, in the model's dtype."""

    def means(self) -> dict[int, Float[Tensor, "text sequence d_model"]]:
        """layer -> the mean over each sequence's places, of texts with equally many sequences."""
        counts = [len(places) for text in self.texts for places in text.places]
        shape = len(self.texts), len(self.texts[0].sequences), -1
        if max(counts) == 1:
            return {layer: resid.view(shape) for layer, resid in self.residuals.items()}
        parts = {layer: torch.split(resid.double(), counts) for layer, resid in self.residuals.items()}
        return {layer: torch.stack([part.mean(0) for part in split]).view(shape) for layer, split in parts.items()}


def chosen_layers(model: Any, layers: Sequence[int] | None) -> list[int]:
    """All layers for None, else these in order, each once; ValueError for one that the model does not have."""
    layers = list(range(len(decoder_blocks(model)))) if layers is None else sorted(set(layers))
    for layer in layers:
        check_layer(model, layer)
    return layers


@torch.no_grad()
def read(
    model: Any, tokenizer: Any, texts: Iterable[Text], layers: Sequence[int] | None, config: ReadConfig
) -> Iterator[ReadBatch]:
    """Batch by batch, similar lengths together: what stands at the places of texts of equally many sequences.

    All layers are read in one pass per batch, by the decoder without its head, up to the last layer that is wanted; the
    model is in evaluation mode meanwhile, and active LoRA adapters are part of it. Where memory runs out, batches get
    smaller. ValueError for a text that the context cannot hold.
    """
    check_readable(model)
    check_unsteered(model, "what is read")
    layers, modules = chosen_layers(model, layers), site_modules(model, config.site)
    limit, pad_id = context_length(model, tokenizer), tokenizer.pad_token_id or 0
    texts, first = iter(texts), 0
    with evaluating(model):
        while some := list(islice(texts, AT_A_TIME)):
            for ids in chain.from_iterable(text.sequences for text in some):
                check_length(ids, limit, "a text")
            for rows, residuals in _read_some(model, pad_id, modules, layers, some, config):
                _check_numbers(residuals, model)
                yield ReadBatch([first + row for row in rows], [some[row] for row in rows], residuals)
            first += len(some)


def _check_numbers(residuals: dict[int, Tensor], model: Any) -> None:
    """ValueError if some of what was read is no number: a mean over it, and a vector, would be none either."""
    if broken := [layer for layer, resid in residuals.items() if not resid.isfinite().all()]:
        raise ValueError(
            f"the activations at layer {broken[0]} are no numbers any more (NaN or infinity), in {model.dtype}: load "
            "the model in float32 or bfloat16, or look whether an adapter that is worn has broken weights"
        )


def _read_some(
    model: Any, pad_id: int, modules: nn.ModuleList, layers: Sequence[int], texts: Sequence[Text], config: ReadConfig
) -> Iterator[tuple[list[int], dict[int, Float[Tensor, "place d_model"]]]]:
    """Texts that are in memory, in batches: which of them, and what stands at their places."""
    lengths = [text.columns for text in texts]
    branching = len(texts[0].sequences) > 1 and can_branch(model, max(lengths))
    device = model.get_input_embeddings().weight.device
    prefix = _shared_prefix(model, texts) if branching else None

    def one_pass(rows: list[int]) -> dict[int, Tensor]:
        some = [texts[row] for row in rows]
        inputs, at = _as_branches(model, some, pad_id, prefix) if branching else _as_rows(model, some, pad_id)
        options = prefix.inputs(model) if prefix else {"use_cache": False}
        with reading(modules, layers, at, inputs=config.site in INPUTS, to_the_end=False) as residuals:
            decoder(model)(**{name: tensor.to(device) for name, tensor in inputs.items()}, **options)
        return residuals

    return in_batches(one_pass, lengths, tokens_of_a_pass(model, config.batch_size, max(lengths)))


def _as_rows(model: Any, texts: Sequence[Text], pad_id: int) -> tuple[dict[str, Tensor], Int[Tensor, "place 2"]]:
    """Each sequence is a row. Pads stand on the right, where no token of any family sees them."""
    ids, mask = pad([ids for text in texts for ids in text.sequences], pad_id)
    rows = enumerate(places for text in texts for places in text.places)
    at = torch.tensor([(row, place) for row, places in rows for place in places])
    return {"input_ids": ids, "attention_mask": mask, **position_inputs(model, mask)}, at


def _shared_prefix(model: Any, texts: Sequence[Text]) -> PrefixCache | None:
    """What all texts begin with, up to the first place that is read; None where it is short, or cannot be shared."""
    before = [min(text.prefix_length, *chain.from_iterable(text.places)) for text in texts]
    length = shared_length([text.sequences[0][:end] for text, end in zip(texts, before, strict=True)])
    return read_prefix(model, texts[0].sequences[0][:length]) if length and can_go_on(model) else None


def _as_branches(
    model: Any, texts: Sequence[Text], pad_id: int, shared: PrefixCache | None
) -> tuple[dict[str, Tensor], Int[Tensor, "place 2"]]:
    """Each text is a row, its sequences are branches of what they share; what all share is in the cache."""
    cached = shared.length if shared else 0
    prefixes = [text.sequences[0][cached : text.prefix_length] for text in texts]
    endings = [[ids[text.prefix_length :] for ids in text.sequences] for text in texts]
    joint = branched(prefixes, endings, pad_id, cached)
    at: list[tuple[int, int]] = []
    for row, (text, prefix) in enumerate(zip(texts, prefixes, strict=True)):
        for branch, places in enumerate(text.places):
            behind = joint.stem - len(prefix) - cached  # a place of the prefix; pads stand before it
            own = behind + branch * joint.width  # a place of the ending; other endings stand before it
            at += [(row, place + (behind if place < text.prefix_length else own)) for place in places]
    return joint.inputs(model), torch.tensor(at)
