"""Sites: a model and the name of a place in its blocks in, the modules that write there, or are given it, out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, get_args
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from caa.models.blocks import base_model, decoder, decoder_blocks, input_device, model_width, trying_out
from caa.models.hooks import observing, reading

Site = Literal["block output", "block input", "attention output", "MLP output", "attention heads"]
"""Where in a block activations are read and edited. "Attention" and "MLP output" are what the two add to the residual
stream; "attention heads" is what all heads wrote, side by side, before the output projection adds it up."""
BLOCK_OUTPUT: Site = "block output"
OF_BLOCKS = ("block output", "block input")
"""Sites that every model has, whatever its blocks are made of."""
INPUTS = ("block input", "attention heads")
"""Sites that are what a module is given, not what it writes."""

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
    """The module of each block that writes at the site, or, for `INPUTS`, whose input it is.

    What attention and MLP add to the stream is checked, once for each model: block input, attention and MLP have to sum
    up to the block's output; the heads' projection has to write what the attention writes. ValueError for an unknown
    site; TypeError for a model of which this cannot be told.
    """
    check_site(site)
    blocks = decoder_blocks(model)
    if site in OF_BLOCKS:
        return blocks
    paths = _places(model, blocks, site).paths
    return nn.ModuleList(block.get_submodule(path) for block, path in zip(blocks, paths, strict=True))


def site_width(model: Any, site: Site) -> int:
    """How wide a vector of this site is: d_model, but for heads, all of which together may be wider or narrower."""
    if site != "attention heads":
        return model_width(model)
    return _places(model, decoder_blocks(model), site).width


@dataclass(frozen=True)
class _Places:
    """Where in its blocks a model has a site: paths, which stay when PEFT puts its layers in."""

    paths: tuple[str, ...]
    width: int


_KNOWN: WeakKeyDictionary[Any, dict[Any, dict[str, _Places]]] = WeakKeyDictionary()
"""Model -> the paths of attention and MLP that were proved to sum up -> where its sites are."""


def _places(model: Any, blocks: nn.ModuleList, site: Site) -> _Places:
    paths = {name: tuple(_path(block, name) for block in blocks) for name in _PATHS}
    known, key = _KNOWN.setdefault(base_model(model), {}), tuple(paths.values())
    if key not in known:
        _check_sum(model, blocks, paths)
        known[key] = {name: _Places(of_blocks, model_width(model)) for name, of_blocks in paths.items()}
    if site not in known[key]:
        known[key][site] = _heads(model, blocks)
    return known[key][site]


def _path(block: nn.Module, site: str) -> str:
    sandwich = hasattr(block, "post_feedforward_layernorm")
    return _first(block, (_SANDWICH[site],) if sandwich else _PATHS[site], site)


def _first(block: nn.Module, paths: tuple[str, ...], site: str) -> str:
    for path in paths:
        with suppress(AttributeError):
            block.get_submodule(path)
            return path
    have = ", ".join(name for name, _ in block.named_children())
    raise TypeError(f"cannot tell which part of a {type(block).__name__} gives its {site}; it has {have}")


def _run(model: Any) -> None:
    """One pass over three tokens."""
    ids = torch.tensor([[1, 2, 3]], device=input_device(model))
    with trying_out(model):
        decoder(model)(input_ids=ids, use_cache=False)


def _check_sum(model: Any, blocks: nn.ModuleList, paths: Mapping[str, tuple[str, ...]]) -> None:
    """In half precision the sum is rounded; a wrong part is wrong by its whole size."""
    layers = range(len(blocks))
    parts = {
        site: nn.ModuleList(block.get_submodule(path) for block, path in zip(blocks, named, strict=True))
        for site, named in paths.items()
    }
    with (
        reading(blocks, layers, inputs=True) as before,
        reading(blocks, layers) as after,
        reading(parts["attention output"], layers) as attention,
        reading(parts["MLP output"], layers) as mlp,
    ):
        _run(model)
    for layer in layers:
        added = (after[layer] - before[layer]).float()
        summed = sum(part[layer].float().reshape(added.shape) for part in (attention, mlp) if layer in part)
        if (added - summed).norm() > 0.05 * added.norm():
            raise TypeError(
                f"what attention and MLP of a {type(blocks[0]).__name__} write does not sum up to what the block adds "
                f"(layer {layer}), so these sites cannot be told; read the block output. A steered model has to be "
                "unsteered first."
            )


def _heads(model: Any, blocks: nn.ModuleList) -> _Places:
    """The outermost linear layer of each attention that writes what the attention writes; its input is the site."""
    roots = [_first(block, _PATHS["attention output"], "attention heads") for block in blocks]
    modules = {f"{n} {path}": part for n, block in enumerate(blocks) for path, part in _candidates(block, roots[n])}
    written: dict[str, Tensor] = {}

    def keep(name: str, output: Any) -> None:
        written[name] = output if isinstance(output, Tensor) else output[0]

    with observing(modules, keep):
        _run(model)
    paths = tuple(_projection(blocks[n], root, n, written) for n, root in enumerate(roots))
    projections = nn.ModuleList(block.get_submodule(path) for block, path in zip(blocks, paths, strict=True))
    with reading(projections, [0], inputs=True) as heads:
        _run(model)
    return _Places(paths, heads[0].shape[-1])


def _candidates(block: nn.Module, root: str) -> Iterator[tuple[str, nn.Module]]:
    """The attention itself, and the modules with a matrix in it, outermost first."""
    for path, module in block.named_modules():
        if path == root or (path.startswith(f"{root}.") and _has_matrix(module)):
            yield path, module


def _has_matrix(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and weight.ndim == 2


def _projection(block: nn.Module, root: str, layer: int, written: Mapping[str, Tensor]) -> str:
    whole = written.get(f"{layer} {root}")
    for path, module in _candidates(block, root):
        output = written.get(f"{layer} {path}")
        if whole is not None and output is not None and _has_matrix(module) and torch.equal(output, whole):
            return path
    raise TypeError(
        f"no linear layer in the {root} of a {type(block).__name__} (layer {layer}) writes what the attention writes, "
        "so its heads cannot be told; use the attention output"
    )
