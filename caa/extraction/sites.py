"""Sites: a model and the name of a place in its blocks in, the modules that write there out."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import nn

from caa.models.blocks import decoder, decoder_blocks
from caa.models.hooks import reading

Site = Literal["block output", "block input", "attention output", "MLP output"]
"""Where in a block activations are read. "Attention" and "MLP output" are what the two add to the residual stream."""

# Paths inside a block, the first that is there. Behind a sandwich's second norm, where there is one; in BLOOM before
# the attention and the MLP add the residual stream to their output themselves.
_SANDWICH = {"attention output": "post_attention_layernorm", "MLP output": "post_feedforward_layernorm"}
_PATHS = {
    "attention output": ("self_attention.dense", "self_attn", "self_attention", "attention", "attn"),
    "MLP output": ("mlp.dense_4h_to_h", "mlp", "block_sparse_moe", "feed_forward", "fc2"),
}


def check_site(site: str) -> None:
    """ValueError, with the sites there are, for an unknown one."""
    if site not in get_args(Site):
        raise ValueError(f"there is no site {site!r}; there are {', '.join(get_args(Site))}")


def site_modules(model: Any, site: Site) -> nn.ModuleList:
    """The module of each block that writes at the site (for "block input" the blocks, whose input is to be read).

    What attention and MLP add to the stream is checked: block input, attention and MLP have to sum up to the block's
    output. ValueError for an unknown site; TypeError for a model of which this cannot be told.
    """
    check_site(site)
    blocks = decoder_blocks(model)
    if site not in _PATHS:
        return blocks
    parts = {name: nn.ModuleList(_part(block, name) for block in blocks) for name in _PATHS}
    _check_sum(model, blocks, parts)
    return parts[site]


def _part(block: nn.Module, site: str) -> nn.Module:
    sandwich = hasattr(block, "post_feedforward_layernorm")
    for path in (_SANDWICH[site],) if sandwich else _PATHS[site]:
        try:
            return block.get_submodule(path)
        except AttributeError:
            continue
    have = ", ".join(name for name, _ in block.named_children())
    raise TypeError(f"cannot tell which part of a {type(block).__name__} gives its {site}; it has {have}")


@torch.no_grad()
def _check_sum(model: Any, blocks: nn.ModuleList, parts: dict[str, nn.ModuleList]) -> None:
    """One pass over three tokens. In half precision the sum is rounded; a wrong part is wrong by its whole size."""
    layers = range(len(blocks))
    ids = torch.tensor([[1, 2, 3]], device=model.get_input_embeddings().weight.device)
    with (
        reading(blocks, layers, inputs=True) as before,
        reading(blocks, layers) as after,
        reading(parts["attention output"], layers) as attention,
        reading(parts["MLP output"], layers) as mlp,
    ):
        decoder(model)(input_ids=ids, use_cache=False)
    for layer in layers:
        added = (after[layer] - before[layer]).float()
        summed = sum(part[layer].float().reshape(added.shape) for part in (attention, mlp) if layer in part)
        if (added - summed).norm() > 0.05 * added.norm():
            raise TypeError(
                f"what attention and MLP of a {type(blocks[0]).__name__} write does not sum up to what the block adds "
                f"(layer {layer}), so these sites cannot be told; read the block output. A steered model has to be "
                "unsteered first."
            )
