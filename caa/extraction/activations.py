"""Texts with places in, the activations that stand there out, one text after the other. Knows no pairs, no method."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from caa.data.chat import check_length
from caa.extraction.sites import Site, site_modules
from caa.models.batching import by_length, pad
from caa.models.blocks import check_layer, context_length, decoder, decoder_blocks, evaluating, position_inputs
from caa.models.hooks import reading


@dataclass(frozen=True)
class Text:
    """Ids, and the places in them that are to be read, counted from the first token."""

    ids: list[int]
    places: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.places or not 0 <= min(self.places) <= max(self.places) < len(self.ids):
            raise ValueError(f"places {list(self.places)} are not in a text of {len(self.ids)} tokens")

    @property
    def needed(self) -> list[int]:
        """The ids up to the last place: what follows cannot show there."""
        return self.ids[: max(self.places) + 1]


def chosen_layers(model: Any, layers: Sequence[int] | None) -> list[int]:
    """All layers for None, else these in order, each once; ValueError for one that the model does not have."""
    layers = list(range(len(decoder_blocks(model)))) if layers is None else sorted(set(layers))
    for layer in layers:
        check_layer(model, layer)
    return layers


@torch.no_grad()
def activations(
    model: Any,
    tokenizer: Any,
    texts: Sequence[Text],
    layers: Sequence[int],
    *,
    site: Site = "block output",
    batch_size: int = 16,
    progress: bool = False,
) -> Iterator[tuple[int, dict[int, Float[Tensor, "place d_model"]]]]:
    """For each text, shortest first: its index, and layer -> what stands at its places, on the layer's device.

    All layers are read in one pass per batch. Only the decoder runs, not the head; the model is in evaluation mode
    meanwhile, and active LoRA adapters are part of it. ValueError for a text that the context cannot hold.
    """
    needed = [text.needed for text in texts]
    for ids in needed:
        check_length(ids, context_length(model, tokenizer), "a text")
    modules, backbone = site_modules(model, site), decoder(model)
    device = model.get_input_embeddings().weight.device
    with evaluating(model):
        for rows in tqdm(by_length(needed, batch_size), desc="reading", unit="batch", disable=not progress):
            padded, mask = pad([needed[row] for row in rows], tokenizer.pad_token_id or 0)
            at = torch.tensor([(n, place) for n, row in enumerate(rows) for place in texts[row].places])
            inputs = {"input_ids": padded, "attention_mask": mask, **position_inputs(model, mask)}
            with reading(modules, layers, at, inputs=site == "block input") as found:
                backbone(**{name: tensor.to(device) for name, tensor in inputs.items()}, use_cache=False)
            counts = [len(texts[row].places) for row in rows]
            parts = {layer: values.split(counts) for layer, values in found.items()}
            for n, row in enumerate(rows):
                yield row, {layer: part[n] for layer, part in parts.items()}
