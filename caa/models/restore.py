"""A model lent to a trainer or to PEFT comes back as it was: they replace modules, patch, freeze and write weights."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from caa.models.tensors import plain_parts, same_bits


@contextmanager
def borrowed(model: Any) -> Iterator[None]:
    """Undo at the end, also on an error, what is done to the model meanwhile, as `remember` does it."""
    restore = remember(model)
    try:
        yield
    finally:
        restore()


@contextmanager
def as_it_was_on_error(model: Any) -> Iterator[None]:
    """Undo what was done to the model meanwhile if there is an error, as `remember` does it; leave it otherwise."""
    restore = remember(model)
    try:
        yield
    except BaseException:
        restore()
        raise


@contextmanager
def undone_on_error(model: Any) -> Iterator[WriteGuard]:
    """Undo what was done to the model meanwhile if there is an error, its numbers included; leave it otherwise."""
    restore = remember(model)
    with WriteGuard(model) as guard:
        try:
            yield guard
        except BaseException:
            restore()
            guard.restore()
            raise


@contextmanager
def same_randomness() -> Iterator[None]:
    """Draw meanwhile what anybody likes: afterwards all generators go on as if nothing had been drawn."""
    restore = _remember_randomness()
    try:
        yield
    finally:
        restore()


def _remember_randomness() -> Callable[[], None]:
    """Those of Python, NumPy and torch; of accelerators, those that were used already."""
    python, numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    accelerators = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []

    def restore() -> None:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(cpu)
        if accelerators:
            torch.cuda.set_rng_state_all(accelerators)

    return restore


def remember(model: Any) -> Callable[[], None]:
    """A function that makes the model what it is now, except for the numbers in its parameters.

    It brings back the modules that PEFT replaced, `forward` methods that TRL patched, hooks, training modes, gradient
    checkpointing, `requires_grad`, and the settings in `config` and `generation_config`; and the random numbers that
    come next, which trainers seed.
    """
    modules = list(model.modules())
    configs = [model.config, model.config.get_text_config(), getattr(model, "generation_config", None)]
    memories = [(owner, dict(vars(owner))) for owner in [*modules, *configs] if owner is not None]
    collections = [
        value for _, attributes in memories for value in attributes.values() if isinstance(value, (dict, set))
    ]
    contents = [(collection, collection.copy()) for collection in collections if collection]
    trainable = [(parameter, parameter.requires_grad) for _, _, parameter in _tensors_in(modules, buffers=False)]
    restore_randomness = _remember_randomness()

    def restore() -> None:
        for owner, attributes in memories:
            vars(owner).clear()
            vars(owner).update(attributes)
        # In place, not replaced: whoever registered a hook holds on to the dictionary that it is in.
        for collection in collections:
            collection.clear()
        for collection, content in contents:
            collection.update(content)
        for parameter, requires_grad in trainable:
            parameter.requires_grad = requires_grad
        restore_randomness()

    return restore


def _tensors_in(modules: Iterable[Any], *, buffers: bool) -> Iterator[tuple[int, str, Tensor]]:
    """Each parameter (and buffer) once, with the place of its module among the modules and its name there."""
    seen: set[int] = set()
    for place, module in enumerate(modules):
        named = chain(module._parameters.items(), module._buffers.items() if buffers else ())
        for name, tensor in named:
            if tensor is not None and id(tensor) not in seen:
                seen.add(id(tensor))
                yield place, name, tensor


class WriteGuard(TorchDispatchMode):
    """Sees every operation that writes into a model's tensors, and keeps what stood there before the first write.

    So a change of any one bit is known without a hash or a copy of the whole model: what no operation wrote to, and
    whose storage is still the same, has not changed. Costs microseconds for each operation meanwhile.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._model = model
        names, modules = zip(*model.named_modules(), strict=True)
        self._tensors = [
            _Located.of(f"{names[place]}.{name}".lstrip("."), tensor)
            for place, name, tensor in _tensors_in(modules, buffers=True)
        ]
        self._by_storage: dict[int, list[Tensor]] = {}
        for located in self._tensors:
            for part in located.parts:
                self._by_storage.setdefault(_storage(part), []).append(part)
        self._before: dict[int, Tensor] = {}

    @contextmanager
    def paused(self) -> Iterator[None]:
        """See nothing for a while: for what cannot write into the model."""
        self.__exit__(None, None, None)  # type: ignore[no-untyped-call]
        try:
            yield
        finally:
            self.__enter__()  # type: ignore[no-untyped-call]

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing is compiled meanwhile, and torch's wrapper around each operation costs more than the look at it."""
        return False

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for place, name in _writes(function):
            value = args[place] if place < len(args) else kwargs.get(name)
            for tensor in value if isinstance(value, (list, tuple)) else [value]:
                for part in plain_parts(tensor) if isinstance(tensor, Tensor) else []:
                    self._keep(part)
        return function(*args, **kwargs)

    def _keep(self, written: Tensor) -> None:
        for part in self._by_storage.get(_storage(written), []):
            if id(part) not in self._before:
                self._before[id(part)] = part.clone()

    def changed(self) -> list[str]:
        """The names of parameters and buffers that are not bit for bit what they were, or are not there any more."""
        here = {id(tensor) for _, _, tensor in _tensors_in(self._model.modules(), buffers=True)}
        return sorted(
            located.name for located in self._tensors if self._is_changed(located, id(located.tensor) in here)
        )

    def _is_changed(self, located: _Located, here: bool) -> bool:
        if self._before and any(not same_bits(part, self._before.get(id(part), part)) for part in located.parts):
            return True
        now = located.tensor if here else self._called(located.name)
        return now is None or not located.is_same(now)

    def _called(self, name: str) -> Tensor | None:
        """The tensor that has this name now."""
        owner, _, own = name.rpartition(".")
        try:
            tensor: Tensor | None = getattr(self._model.get_submodule(owner), own)
        except AttributeError:
            return None
        return tensor

    def knows(self, tensor: Tensor) -> bool:
        """Whether a tensor lies where one of the model's lay at the start."""
        return any(_storage(part) in self._by_storage for part in plain_parts(tensor))

    def restore(self) -> None:
        """Put back what was changed."""
        for located in self._tensors:
            if located.places != _places(located.tensor):
                located.tensor.data = located.data
            for part in located.parts:
                if id(part) in self._before:
                    part.copy_(self._before[id(part)])


class _Located(NamedTuple):
    """A tensor, and where in memory its numbers lie."""

    name: str
    tensor: Tensor
    data: Tensor
    """The same numbers: keeps their memory from being given to others."""
    parts: list[Tensor]
    places: list[Any]

    @classmethod
    def of(cls, name: str, tensor: Tensor) -> _Located:
        return cls(name, tensor, tensor.data, plain_parts(tensor.data), _places(tensor))

    def is_same(self, now: Tensor) -> bool:
        """Whether a tensor lies at the same place, or holds the same bits at another one."""
        if self.places == _places(now):
            return True
        parts = plain_parts(now.data)
        return len(parts) == len(self.parts) and all(map(same_bits, self.parts, parts))


def _places(tensor: Tensor) -> list[Any]:
    return [(_storage(part), part.storage_offset(), part.shape, part.stride()) for part in plain_parts(tensor)]


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


@cache
def _writes(function: Any) -> list[tuple[int, str]]:
    """Place and name of the arguments that an operation of torch writes into, as its schema says."""
    arguments = list(enumerate(function._schema.arguments))
    return [(place, argument.name) for place, argument in arguments if argument.is_write]
