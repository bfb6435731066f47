"""Find the decoder blocks of any causal language model, plain or wrapped by PEFT. Knows no architecture by name.

They are the outermost chain of modules in which each is fed what the one before wrote, as one small pass shows. That
pass is run once for each model; where none can be (weights on the meta device) the structure has to do.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import pairwise
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Int
from torch import Tensor, nn

from caa.models.hooks import Call, RepeatedBlocks, stream_of, tracing
from caa.models.positions import CACHES, cache_in, position_ids
from caa.models.tensors import plain_parts


def base_model(model: Any) -> Any:
    """The transformers model itself, below PEFT's wrapping and torch.compile's."""
    plain = getattr(model, "_orig_mod", model)
    return plain.get_base_model() if hasattr(plain, "get_base_model") else plain


def decoder(model: Any) -> nn.Module:
    """The part of a causal LM between the token ids and the head: the innermost module that is given the ids."""
    owner: nn.Module = base_model(model).get_submodule(_stack(model).owner)
    return owner


def decoder_blocks(model: Any) -> nn.ModuleList:
    """The model's blocks, in order: block i writes the residual stream of layer i, counted from 0.

    TypeError, with the reason, for a model that has no such stream: an encoder, several streams, another layout.
    """
    stack, base = _stack(model), base_model(model)
    first = base.get_submodule(stack.blocks[0].rpartition(".")[0])
    if isinstance(first, nn.ModuleList) and not stack.repeated and len(first) == len(stack.blocks):
        return first
    blocks = [base.get_submodule(name) for name in stack.blocks]
    return RepeatedBlocks(blocks) if stack.repeated else nn.ModuleList(blocks)


@dataclass(frozen=True)
class _Stack:
    """Where in a model its residual stream runs, as paths, which stay when PEFT puts its layers in."""

    owner: str
    blocks: tuple[str, ...]
    width: int
    """d_model of the stream."""
    repeated: bool = False
    """Whether blocks run more than once in a pass."""
    first_position: int | None = 0
    """What it counts the tokens of a row without pads from: 0, or the number behind its pad token's (RoBERTa). None
    where it counts otherwise or takes no `position_ids`."""
    keeps_place: bool = True
    """Whether its cache says how many tokens it has read."""


_STACKS: WeakKeyDictionary[nn.Module, _Stack] = WeakKeyDictionary()


def _stack(model: Any) -> _Stack:
    base = base_model(model)
    _check_causal(base)
    known = _STACKS.get(base)
    if known is None or not _still_there(base, known):
        known = _STACKS[base] = _by_structure(base) if _is_empty(base) else _by_behavior(base)
    return known


def _check_causal(base: Any) -> None:
    config = getattr(base, "config", None)
    if config is None or not hasattr(base, "get_input_embeddings") or getattr(config, "is_encoder_decoder", False):
        raise TypeError(f"{type(base).__name__} is not a decoder-only language model; steering needs a causal LM")


def _still_there(base: nn.Module, stack: _Stack) -> bool:
    """Whether the list of blocks is as long as it was: layers may have been cut off."""
    container = stack.blocks[0].rpartition(".")[0]
    members = sum(name.rpartition(".")[0] == container for name in stack.blocks)
    try:
        return stack.repeated or len(list(base.get_submodule(container).children())) >= members
    except AttributeError:
        return False


def _is_empty(base: nn.Module) -> bool:
    """Whether the weights are on the meta device, and nobody brings them when a module runs."""
    meta = any(parameter.is_meta for parameter in base.parameters())
    return meta and not any(hasattr(module, "_hf_hook") for module in base.modules())


# By behavior: one pass over two rows that differ in their last token.

_ROWS, _COLUMNS = 2, 5


def _by_behavior(base: Any) -> _Stack:
    try:
        calls, ids = _traced(base)
    except (TypeError, ValueError, RuntimeError, IndexError, AttributeError, KeyError, AssertionError) as error:
        raise _unclear(base, f"a pass over plain text fails ({type(error).__name__}: {str(error)[:120]})") from error
    chains = _outermost({name: chain for name, chain in _calls_by_list(base, calls).items() if _is_chain(chain)})
    if not chains:
        raise _unclear(base, "no list of its modules is a chain in which each is fed what the one before wrote")
    run = [call for name in sorted(chains, key=lambda name: calls.index(chains[name][0])) for call in chains[name]]
    width = _check_stream(base, run)
    names = tuple(dict.fromkeys(call.name for call in run))
    owner, repeated = _owner(calls, ids, names[0]), len(run) > len(names)
    return _Stack(owner, names, width, repeated, _first_position(base, owner, ids), _keeps_place(base, owner, ids))


def _traced(base: Any) -> tuple[list[Call], Tensor]:
    """The calls of a pass without cache, and the ids that it was given."""
    ids = ordinary_ids(base, _COLUMNS + 1)
    device = input_device(base)
    rows = torch.tensor([ids[:_COLUMNS], [*ids[: _COLUMNS - 1], ids[-1]]], device=device)
    options: dict[str, Any] = {"use_cache": False} if takes(base, "use_cache") else {}
    if takes(base, "attention_mask"):
        options["attention_mask"] = torch.ones_like(rows)
    with trying_out(base), tracing(base) as calls:
        base(input_ids=rows, **options)
    return calls, rows


def _calls_by_list(base: nn.Module, calls: Sequence[Call]) -> dict[str, list[Call]]:
    """Path of a list of modules -> the calls of its elements, in their order."""
    by_list: dict[str, list[Call]] = {
        name: [] for name, module in base.named_modules() if isinstance(module, nn.ModuleList)
    }
    for call in calls:
        container = call.name.rpartition(".")[0]
        if container in by_list:
            by_list[container].append(call)
    return by_list


def _is_chain(calls: Sequence[Call]) -> bool:
    """Whether most calls are fed what the one before wrote; a single one has to write what is shaped as its input."""
    links = [_feeds(one, other) for one, other in pairwise(calls)]
    if len(calls) == 1:
        written = _tensors(calls[0].output)
        return bool(written) and any(tensor.shape == written[0].shape and tensor.ndim >= 3 for tensor in calls[0].given)
    return bool(calls) and 2 * sum(links) >= len(links)


def _feeds(one: Call, other: Call) -> bool:
    written = {(tensor.data_ptr(), tensor.shape) for tensor in _tensors(one.output) if tensor.ndim >= 3}
    return any((tensor.data_ptr(), tensor.shape) in written for tensor in other.given)


def _streams_handed_on(one: Call, other: Call) -> int:
    """How many tensors a block writes, not merely passes on, and gives to the next one."""
    streams = [tensor for tensor in _tensors(one.output) if tensor.is_floating_point() and tensor.ndim >= 3]
    written = {tensor.data_ptr() for tensor in streams if tensor.shape == streams[0].shape}
    written -= {tensor.data_ptr() for tensor in one.given}
    return len(written & {tensor.data_ptr() for tensor in other.given})


def _tensors(output: Any) -> list[Tensor]:
    """The tensors that a module returned, the first one first."""
    if isinstance(output, Tensor):
        return [output]
    values = list(output.values()) if isinstance(output, dict) else output
    return [value for value in values if isinstance(value, Tensor)] if isinstance(values, list | tuple) else []


def _outermost(chains: dict[str, list[Call]]) -> dict[str, list[Call]]:
    """Without those inside a block of another; of several that are left, those of more than one call."""
    outer = {name: chain for name, chain in chains.items() if not any(name.startswith(f"{other}.") for other in chains)}
    longer = {name: chain for name, chain in outer.items() if len(chain) > 1}
    return longer or outer


def _owner(calls: Sequence[Call], ids: Tensor, block: str) -> str:
    """The innermost module around the blocks that is given the ids themselves."""
    owners = [
        call.name
        for call in calls
        if (not call.name or block.startswith(f"{call.name}.")) and any(tensor is ids for tensor in call.given)
    ]
    return max(owners, key=len, default="")


def _first_position(base: Any, owner_name: str, ids: Tensor) -> int | None:
    """The first of the positions which, given or not, make no difference."""
    owner: Any = base.get_submodule(owner_name)
    if not _takes_positions(owner):
        return None
    padding = getattr(text_config(base), "pad_token_id", None)
    positions = torch.arange(_COLUMNS, device=ids.device).expand_as(ids)
    refusals = suppress(TypeError, ValueError, RuntimeError, IndexError, AttributeError)
    with refusals, trying_out(owner):
        own = _tensors(owner(input_ids=ids))[0].float()
        for first in (0,) if padding is None else (0, padding + 1):
            counted = _tensors(owner(input_ids=ids, position_ids=positions + first))[0].float()
            if (own - counted).norm() <= max(1e-3, 4 * torch.finfo(base.dtype).eps) * own.norm():
                return first
    return None


def _takes_positions(owner: nn.Module) -> bool:
    return "position_ids" in _parameters(owner)


def _check_stream(base: Any, run: Sequence[Call]) -> int:
    """d_model of what all calls write; TypeError, with the reason, where that is not one causal residual stream."""
    streams = [stream_of(base.get_submodule(call.name), call.output) for call in run]
    shapes = {tuple(stream.shape) for stream in streams}
    width = streams[0].shape[-1]
    if shapes != {(_ROWS, _COLUMNS, width)}:
        raise TypeError(
            f"the blocks of {type(base).__name__} write {sorted(map(list, shapes))} for {_ROWS} rows of {_COLUMNS} "
            "tokens and not one residual stream, [row, position, d_model], so nobody knows where to read or add a "
            "vector"
        )
    if 2 * sum(_streams_handed_on(*link) > 1 for link in pairwise(run)) > len(run):
        raise TypeError(
            f"the blocks of {type(base).__name__} hand on several residual streams of width {width}, each block "
            "writing to all of them, so nobody knows where to read or add a vector"
        )
    first, second = streams[-1][:, :-1].float()
    if (first - second).norm() > max(1e-3, 4 * torch.finfo(base.dtype).eps) * first.norm():
        raise TypeError(
            f"{type(base).__name__} is an encoder here: its tokens see those that follow, and a language model is "
            "asked what comes next. If it can be a decoder too, load it with is_decoder=True"
        )
    return int(width)


def _keeps_place(base: Any, owner: str, ids: Tensor) -> bool:
    """By the name of the cache, or, where recurrent states have that name too, by what one says that was filled."""
    names = _parameters(base.get_submodule(owner))
    if "cache" not in names:
        return "past_key_values" in names
    with trying_out(base), suppress(TypeError, ValueError, AttributeError):
        return int(cache_in(base(input_ids=ids, use_cache=True)).get_seq_length()) == ids.shape[1]
    return False


# By structure.


def _by_structure(base: Any) -> _Stack:
    """The one list of modules in the decoder that is as long as the config says."""
    owner, lists = _lists(base)
    depth, width = (getattr(text_config(base), name, None) for name in ("num_hidden_layers", "hidden_size"))
    names = [name for name, child in lists.items() if len(child) == depth]
    if len(names) != 1 or width is None:
        raise _unclear(base, "its weights are not there to run it")
    place = next(name for name, module in base.named_modules() if module is owner)
    prefix = f"{place}." if place else ""
    blocks = tuple(f"{prefix}{names[0]}.{layer}" for layer in range(len(lists[names[0]])))
    return _Stack(place, blocks, width, first_position=0 if _takes_positions(owner) else None)


def _lists(base: Any) -> tuple[nn.Module, dict[str, nn.ModuleList]]:
    """What the model calls its decoder, and the lists of modules in it."""
    owner: nn.Module = base.get_decoder() if hasattr(base, "get_decoder") else base
    return owner, {name: child for name, child in owner.named_children() if isinstance(child, nn.ModuleList)}


def _unclear(base: Any, reason: str) -> TypeError:
    owner, lists = _lists(base)
    lengths = {name: len(child) for name, child in lists.items()}
    return TypeError(
        f"cannot tell the blocks of {type(base).__name__}: {reason}; the lists of modules of its "
        f"{type(owner).__name__} are {lengths}"
    )


# What a model is like.


def ordinary_ids(model: Any, count: int) -> list[int]:
    """Ids of ordinary tokens: drawn from the second to eighth sixteenth of the vocabulary, none of them special.

    Tokenizers number bytes and special tokens first, then words by how frequent they are.
    """
    size = base_model(model).get_input_embeddings().weight.shape[0]
    values = vars(text_config(model)).items()
    special = {value for name, value in values if name.endswith("token_id") and isinstance(value, int)}
    drawn = torch.randperm(max(1, size // 2 - size // 16), generator=torch.Generator().manual_seed(0)) + size // 16
    ordinary = [token for token in drawn.tolist() if token not in special]
    return (ordinary * count)[:count]


def input_device(model: Any) -> torch.device:
    """Where the token ids go."""
    device: torch.device = base_model(model).get_input_embeddings().weight.device
    return torch.device("cpu") if device.type == "meta" else device


def takes(model: Any, name: str) -> bool:
    """Whether the model's own forward pass has a parameter of this name."""
    return name in _parameters(base_model(model))


_PARAMETERS: WeakKeyDictionary[nn.Module, frozenset[str]] = WeakKeyDictionary()


def _parameters(module: nn.Module) -> frozenset[str]:
    """The names of what its forward pass takes, looked up once: passes of one token ask for them again and again."""
    if module not in _PARAMETERS:
        _PARAMETERS[module] = frozenset(inspect.signature(module.forward).parameters)
    return _PARAMETERS[module]


def text_config(model: Any) -> Any:
    """The config of the language model itself, also where it is one part of several (Gemma 3, Llama 4)."""
    return model.config.get_text_config()


def is_quantized(model: Any) -> bool:
    """As its loader or its config says, or its weights, which torchao quantizes in place without a word."""
    if getattr(model, "quantization_method", None) or getattr(text_config(model), "quantization_config", None):
        return True
    return any(len(plain_parts(parameter.data)) > 1 for parameter in model.parameters())


def model_width(model: Any) -> int:
    """d_model, the width of the residual stream."""
    return _stack(model).width


def context_length(model: Any, tokenizer: Any) -> int:
    """How many tokens the model reads: as many as it has positions, or fewer, where its tokenizer says so."""
    positions = getattr(text_config(model), "max_position_embeddings", None) or sys.maxsize
    return int(min(positions - first_position(model), tokenizer.model_max_length))


def end_tokens(model: Any) -> list[int]:
    """The tokens at which the model's generation stops; none where its generation config does not say."""
    ends = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    return [ends] if isinstance(ends, int) else list(ends or ())


def check_layer(model: Any, layer: int) -> None:
    """ValueError for a layer that the model does not have."""
    depth = len(decoder_blocks(model))
    if not 0 <= layer < depth:
        raise ValueError(f"there is no layer {layer}: this model has layers 0 to {depth - 1} (block outputs, from 0)")


def first_position(model: Any) -> int:
    """The position of a text's first token: 0, but RoBERTa and its kin count from the number behind their pad's."""
    return _stack(model).first_position or 0


def position_inputs(model: Any, attention_mask: Int[Tensor, "row position"]) -> dict[str, Tensor]:
    """`position_ids` for a padded batch, where the family takes them: GPT-2 and others are wrong without."""
    first = _stack(model).first_position
    return {} if first is None else {"position_ids": position_ids(attention_mask) + first}


def generation_inputs(
    model: Any, attention_mask: Int[Tensor, "row position"], *, goes_on: bool = False
) -> dict[str, Tensor]:
    """`position_ids` for transformers' `generate` where its own are not those of the model's forward pass.

    It counts from 0 where RoBERTa does not, and where it goes on from a filled cache Qwen's image-text models count
    from what an earlier call has left in them.
    """
    return position_inputs(model, attention_mask) if goes_on or first_position(model) else {}


def keeps_place(model: Any) -> bool:
    """Whether the family's cache says how many tokens it has read; the state of recurrent families does not."""
    return _stack(model).keeps_place


def cache_name(model: Any) -> str:
    """What the model calls its cache: "past_key_values", or "cache" from transformers 5.24 on."""
    return CACHES["cache" in _parameters(decoder(model))]


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


@contextmanager
def trying_out(model: nn.Module) -> Iterator[None]:
    """For passes that find something out about a model: as it evaluates, without gradients, and never compiled.

    MemoryError where there is no room for one, which says nothing about the model.
    """
    with torch.no_grad(), evaluating(model), torch.compiler.set_stance("force_eager"):
        try:
            yield
        except torch.OutOfMemoryError as error:  # a RuntimeError, which would pass for "this model cannot"
            raise MemoryError("no room for a pass over a few tokens, which tells what the model can do") from error
