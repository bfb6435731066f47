"""Reading and writing the residual stream of a live model: the only file that registers hooks."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

Edit = Callable[[Tensor], Tensor]
"""resid [row, position, d_model] -> resid, the same shape and dtype."""


def stream_of(module: nn.Module, output: Any) -> Tensor:
    """The residual stream in what a block returned: [row, position, d_model], bare or first in a tuple.

    TypeError for anything else, such as several streams. The one check that every reader and writer shares.
    """
    resid = output[0] if isinstance(output, tuple | list) and output else output
    if not isinstance(resid, Tensor) or resid.ndim != 3:
        shape = list(resid.shape) if isinstance(resid, Tensor) else f"a {type(output).__name__}"
        raise TypeError(
            f"a {type(module).__name__} writes {shape} and not one residual stream, [row, position, d_model], so "
            "nobody knows where to read or add a vector"
        )
    return resid


def _written(module: nn.Module, output: Any) -> Tensor:
    """What a part of a block returned; OPT hands its MLP all rows in one, [row * position, d_model]."""
    resid = output if isinstance(output, Tensor) else output[0]
    return resid if isinstance(resid, Tensor) and resid.ndim == 2 else stream_of(module, output)


def _with_resid(output: Any, resid: Tensor) -> Any:
    if isinstance(output, Tensor):
        return resid
    named = hasattr(output, "_replace")  # a named tuple, whose reader goes by its names
    return output._replace(**{output._fields[0]: resid}) if named else (resid, *output[1:])


Hook = Callable[..., Any]
"""One of torch's: (module, arguments, ..., output) -> what replaces the output, or None."""


def _attach(register: Callable[..., Any], hook: Hook, *, with_kwargs: bool = False, prepend: bool = False) -> Any:
    """Register a hook where compiled code sees it: by default torch.compile runs on as if there were none."""
    from torch._dynamo import config as dynamo  # half of what importing the rest of this package takes

    if dynamo.skip_nnmodule_hook_guards:
        dynamo.skip_nnmodule_hook_guards = False
        torch.compiler.reset()  # what was compiled before does not look
    return register(hook, with_kwargs=with_kwargs, prepend=prepend)


class RepeatedBlocks(nn.ModuleList):
    """Blocks that run several times in one pass, as those of a recurrent stack do."""


class _EnoughError(Exception):
    """Ends a forward pass in which nothing more is wanted."""


@contextmanager
def reading(
    blocks: nn.ModuleList,
    layers: Sequence[int],
    at: Int[Tensor, "row 2"] | None = None,
    *,
    inputs: bool = False,
    to_the_end: bool = True,
) -> Iterator[dict[int, Tensor]]:
    """Collect what the blocks write: layer -> [row, position, d_model] of the last forward pass, filled as it runs.

    With `at`, only those (row, position) places are kept, [place, d_model]: memory holds no more than is wanted.
    With `inputs`, what the blocks are given is collected in place of what they write.
    With `to_the_end=False` the pass, which is the last in the block, stops after the last wanted layer. Blocks that run
    several times in a pass never stop it, and what they write last is kept.
    """
    streams: dict[int, Tensor] = {}
    repeated = isinstance(blocks, RepeatedBlocks)

    def reader(layer: int) -> Hook:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            resid = (args[0] if args else kwargs["hidden_states"]) if inputs else _written(module, output)
            streams[layer] = resid.detach() if at is None else _places(resid.detach(), at)
            if not to_the_end and layer == max(layers) and not repeated:
                raise _EnoughError

        return hook

    with ExitStack() as stack:
        for layer in layers:
            stack.callback(_attach(blocks[layer].register_forward_hook, reader(layer), with_kwargs=True).remove)
        with suppress(_EnoughError):
            yield streams


def _places(resid: Tensor, at: Tensor) -> Tensor:
    """[place, d_model]; OPT hands its MLP all rows in one, [row * position, d_model]."""
    if resid.ndim == 2:
        resid = resid.reshape(int(at[:, 0].max()) + 1, -1, resid.shape[-1])
    return resid[at[:, 0].to(resid.device), at[:, 1].to(resid.device)]


def writing(modules: nn.ModuleList, edits: Mapping[int, Edit], *, inputs: bool = False) -> ExitStack:
    """Edit what the modules write until the returned stack is closed. It is a context manager; hooks of others stay.

    With `inputs`, what they are given is edited in place of what they write.
    """

    def writer(edit: Edit) -> Hook:
        return lambda module, args, output: _with_resid(output, edit(_written(module, output)))

    def giver(edit: Edit) -> Hook:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> Any:
            if args:
                return (edit(args[0]), *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": edit(kwargs["hidden_states"])}

        return hook

    with ExitStack() as stack:
        for layer, edit in edits.items():
            # prepend: transformers collects output_hidden_states with hooks of its own, and they must see the edit.
            if inputs:
                handle = _attach(modules[layer].register_forward_pre_hook, giver(edit), with_kwargs=True, prepend=True)
            else:
                handle = _attach(modules[layer].register_forward_hook, writer(edit), prepend=True)
            stack.callback(handle.remove)
        return stack.pop_all()


def expanding(blocks: nn.ModuleList, layer: int, times: int) -> ExitStack:
    """From the output of block `layer` on, every row stands `times` times, until the returned stack is closed.

    What the decoder hands to the later blocks (masks, positions, biases) is made for the rows at the start, so it is
    repeated on the way in. Tensors of one row for all are left to broadcast.
    """
    rows = 0

    def grow(module: nn.Module, args: Any, output: Any) -> Any:
        nonlocal rows
        resid = stream_of(module, output)
        rows = len(resid)
        return _with_resid(output, resid.repeat_interleave(times, dim=0))

    def follow(module: nn.Module, args: Any, kwargs: Any) -> Any:
        resid = kwargs.get("hidden_states")
        repeated = {name: _repeated(value, rows, times) for name, value in kwargs.items() if name != "hidden_states"}
        repeated |= {} if resid is None else {"hidden_states": resid}
        return (*args[:1], *(_repeated(value, rows, times) for value in args[1:])), repeated

    with ExitStack() as stack:
        stack.callback(_attach(blocks[layer].register_forward_hook, grow, prepend=True).remove)
        for block in list(blocks)[layer + 1 :]:
            stack.callback(_attach(block.register_forward_pre_hook, follow, with_kwargs=True).remove)
        return stack.pop_all()


def _repeated(value: Any, rows: int, times: int) -> Any:
    """Each row's share of a tensor `times` times; a row may have several slices (BLOOM: one for each head)."""
    if isinstance(value, tuple | list):
        return type(value)(_repeated(item, rows, times) for item in value)
    if not isinstance(value, Tensor) or value.ndim < 2 or len(value) % rows:
        return value
    return value.reshape(rows, -1, *value.shape[1:]).repeat_interleave(times, dim=0).flatten(0, 1)


def cutting(blocks: nn.ModuleList, columns: int) -> ExitStack:
    """The first block is given the first `columns` columns alone, until the returned stack is closed.

    Who edits what a block writes may append the others (`writing`), in their order. What the decoder hands to the
    blocks (masks, positions) is made for all columns at the start, so it is cut to as many as there are by then.
    """
    every = 0

    def start(module: nn.Module, args: Any, kwargs: Any) -> Any:
        nonlocal every
        resid = args[0] if args else kwargs["hidden_states"]
        every = resid.shape[1]
        cut = resid[:, :columns]
        return ((cut, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": cut})

    def follow(module: nn.Module, args: Any, kwargs: Any) -> Any:
        now = (args[0] if args else kwargs["hidden_states"]).shape[1]
        if now == every:
            return None
        named = {name: value if _is_apart(name) else _cut(value, every, now) for name, value in kwargs.items()}
        return (*args[:1], *(_cut(value, every, now) for value in args[1:])), named

    with ExitStack() as stack:
        stack.callback(_attach(blocks[0].register_forward_pre_hook, start, with_kwargs=True).remove)
        for block in blocks:
            stack.callback(_attach(block.register_forward_pre_hook, follow, with_kwargs=True).remove)
        return stack.pop_all()


def _is_apart(name: str) -> bool:
    """Whether an argument of a block is the stream itself, or of another text than the stream."""
    return name == "hidden_states" or name.startswith("encoder")


def _cut(value: Any, every: int, now: int) -> Any:
    """A tensor with as many columns as there are now: a mask has two axes of them, the second with what is cached."""
    if isinstance(value, tuple | list):
        return type(value)(_cut(item, every, now) for item in value)
    if not isinstance(value, Tensor):
        return value
    if value.ndim == 4 and value.shape[2] == every <= value.shape[3]:
        return value[:, :, :now, : value.shape[3] - every + now]
    axis = min(1, value.ndim - 1)
    return value.narrow(axis, 0, now) if value.ndim and value.shape[axis] == every else value


def listening(module: nn.Module, receive: Callable[[Mapping[str, Any]], None]) -> Any:
    """Give `receive` the arguments of every call of a module, by name; returns the handle that stops it."""
    signature = inspect.signature(module.forward)

    def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
        receive({**signature.bind_partial(*args).arguments, **kwargs})

    return _attach(module.register_forward_pre_hook, hook, prepend=True, with_kwargs=True)


@contextmanager
def picking(module: nn.Module, places: Bool[Tensor, "row position"]) -> Iterator[None]:
    """The module is given only these places of its input, in one row: [1, place, d]."""

    def hook(module: nn.Module, args: Any) -> Any:
        return (args[0][places.to(args[0].device)][None], *args[1:])

    handle = _attach(module.register_forward_pre_hook, hook)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def sparing(module: nn.Module, places: Bool[Tensor, "row position"]) -> Iterator[None]:
    """The module computes only these places of its input [row, position, d], and writes zeros at all others."""

    def give(module: nn.Module, args: Any) -> Any:
        return (args[0][places.to(args[0].device)][None], *args[1:])

    def spread(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        written = output.new_zeros(*places.shape, output.shape[-1])
        written[places.to(output.device)] = output[0]
        return written

    with ExitStack() as stack:
        stack.callback(_attach(module.register_forward_pre_hook, give).remove)
        stack.callback(_attach(module.register_forward_hook, spread, prepend=True).remove)
        yield


@contextmanager
def withholding(module: nn.Module, name: str) -> Iterator[None]:
    """The module is called without the keyword of this name, which hooks of before still see."""

    def hook(module: nn.Module, args: Any, kwargs: Any) -> Any:
        return args, {key: value for key, value in kwargs.items() if key != name}

    handle = _attach(module.register_forward_pre_hook, hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@dataclass(frozen=True)
class Call:
    """One call of a module in a traced pass."""

    name: str
    """The module's path in the model."""
    given: list[Tensor]
    """The tensors among its arguments."""
    output: Any


@contextmanager
def tracing(model: nn.Module) -> Iterator[list[Call]]:
    """Collect the calls of all modules that hold others, and of all elements of lists, in the order of their ends."""
    calls: list[Call] = []

    def tracer(name: str) -> Hook:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            given = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
            calls.append(Call(name, given, output))

        return hook

    lists = {name for name, module in model.named_modules() if isinstance(module, nn.ModuleList)}
    with ExitStack() as stack:
        for name, module in model.named_modules():
            if name.rpartition(".")[0] in lists or next(module.children(), None) is not None:
                register = module.register_forward_hook
                stack.callback(_attach(register, tracer(name), with_kwargs=True).remove)
        yield calls


@contextmanager
def observing(modules: Mapping[str, nn.Module], receive: Callable[[str, Any], None]) -> Iterator[None]:
    """Give `receive` the name and the output of every call of these modules."""

    def observer(name: str) -> Hook:
        return lambda module, args, output: receive(name, output)

    with ExitStack() as stack:
        for name, module in modules.items():
            stack.callback(_attach(module.register_forward_hook, observer(name)).remove)
        yield
