"""Find the decoder blocks of any causal language model, plain or wrapped by PEFT. Knows no architecture by name."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from jaxtyping import Int
from torch import Tensor, nn

from caa.models.batching import position_ids


def base_model(model: Any) -> Any:
    """The transformers model itself, below PEFT's wrapping and torch.compile's."""
    plain = getattr(model, "_orig_mod", model)
    return plain.get_base_model() if hasattr(plain, "get_base_model") else plain


def decoder(model: Any) -> nn.Module:
    """The part of a causal LM between the token ids and the head: the module that owns the blocks."""
    get_decoder = getattr(model, "get_decoder", None)
    owner = get_decoder() if get_decoder else None
    if not isinstance(owner, nn.Module) or getattr(model.config, "is_encoder_decoder", False):
        raise TypeError(f"{type(model).__name__} is not a decoder-only language model; steering needs a causal LM")
    return owner


def decoder_blocks(model: Any) -> nn.ModuleList:
    """The model's blocks, in order: block i writes the residual stream of layer i, counted from 0.

    They are the one list of modules in the decoder that is as long as its config says.
    """
    owner = decoder(model)
    lists = {name: child for name, child in owner.named_children() if isinstance(child, nn.ModuleList)}
    depth = text_config(model).num_hidden_layers
    candidates = [child for child in lists.values() if len(child) == depth]
    if len(candidates) != 1:
        lengths = {name: len(child) for name, child in lists.items()}
        raise TypeError(f"cannot tell the {depth} blocks of {type(owner).__name__}: its lists of modules are {lengths}")
    return candidates[0]


def text_config(model: Any) -> Any:
    """The config of the language model itself, also where it is one part of several (Gemma 3, Llama 4)."""
    return model.config.get_text_config()


def model_width(model: Any) -> int:
    """d_model, the width of the residual stream."""
    return int(text_config(model).hidden_size)


def context_length(model: Any, tokenizer: Any) -> int:
    """How many tokens the model reads: as many as it has positions, or fewer, where its tokenizer says so."""
    positions = getattr(text_config(model), "max_position_embeddings", None)
    return int(min(positions or sys.maxsize, tokenizer.model_max_length))


def check_layer(model: Any, layer: int) -> None:
    """ValueError for a layer that the model does not have."""
    depth = len(decoder_blocks(model))
    if not 0 <= layer < depth:
        raise ValueError(f"there is no layer {layer}: this model has layers 0 to {depth - 1} (block outputs, from 0)")


def position_inputs(model: Any, attention_mask: Int[Tensor, "row position"]) -> dict[str, Tensor]:
    """`position_ids` for a padded batch, where the family takes them: GPT-2 and others are wrong without."""
    takes = "position_ids" in inspect.signature(decoder(model).forward).parameters
    return {"position_ids": position_ids(attention_mask)} if takes else {}


def keeps_place(model: Any) -> bool:
    """Whether the family's cache says how many tokens it has read; the state of recurrent families does not."""
    return "past_key_values" in inspect.signature(decoder(model).forward).parameters


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for a while: no dropout; every module's own mode comes back, also on an error."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
