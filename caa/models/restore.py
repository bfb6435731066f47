"""A model lent to a trainer or to PEFT comes back as it was: they replace modules, patch, freeze and write weights."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import chain
from typing import Any

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


def remember(model: Any) -> Callable[[], None]:
    """A function that makes the model what it is now, except for the numbers in its parameters.

    It brings back the modules that PEFT replaced, `forward` methods that TRL patched, hooks, training modes, gradient
    checkpointing, `requires_grad`, and the settings in `config` and `generation_config`.
    """
    configs = [model.config, model.config.get_text_config(), getattr(model, "generation_config", None)]
    memories = [_Memory.of(owner) for owner in [*model.modules(), *configs] if owner is not None]
    trainable = [(parameter, parameter.requires_grad) for parameter in model.parameters()]

    def restore() -> None:
        for memory in memories:
            memory.restore()
        for parameter, requires_grad in trainable:
            parameter.requires_grad = requires_grad

    return restore


@dataclass(frozen=True)
class _Memory:
    """The attributes of a module or config, and what was in those that are dictionaries or sets."""

    owner: Any
    attributes: dict[str, Any]
    contents: list[tuple[Any, Any]]

    @classmethod
    def of(cls, owner: Any) -> _Memory:
        attributes = dict(vars(owner))
        collections = [value for value in attributes.values() if isinstance(value, (dict, set))]
        return cls(owner, attributes, [(collection, copy.copy(collection)) for collection in collections])

    def restore(self) -> None:
        vars(self.owner).clear()
        vars(self.owner).update(self.attributes)
        # In place, not replaced: whoever registered a hook holds on to the dictionary that it is in.
        for collection, content in self.contents:
            collection.clear()
            collection.update(content)


class WriteGuard(TorchDispatchMode):
    """Sees every operation that writes into a model's tensors, and keeps what stood there before the first write.

    So a change of any one bit is known without a hash or a copy of the whole model: what no operation wrote to, and
    whose storage is still the same, has not changed. Costs microseconds for each operation meanwhile.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._model = model
        tensors = chain(model.named_parameters(), model.named_buffers())
        self._tensors = {name: (tensor, tensor.data) for name, tensor in tensors}
        self._parts = [(name, part) for name, (_, data) in self._tensors.items() for part in plain_parts(data)]
        self._by_storage: dict[int, list[Tensor]] = {}
        for _, part in self._parts:
            self._by_storage.setdefault(_storage(part), []).append(part)
        self._before: dict[int, Tensor] = {}

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
        named = dict(chain(self._model.named_parameters(), self._model.named_buffers()))
        here = {id(tensor) for tensor in named.values()}
        changed = {name for name, part in self._parts if not same_bits(part, self._before.get(id(part), part))}
        for name, (tensor, data) in self._tensors.items():
            now = tensor if id(tensor) in here else named.get(name)
            if now is None or not _same_numbers(data, now.data):
                changed.add(name)
        return sorted(changed)

    def knows(self, tensor: Tensor) -> bool:
        """Whether a tensor lies where one of the model's lay at the start."""
        return any(_storage(part) in self._by_storage for part in plain_parts(tensor))

    def restore(self) -> None:
        """Put back what was changed."""
        for tensor, data in self._tensors.values():
            if [_storage(part) for part in plain_parts(data)] != [_storage(part) for part in plain_parts(tensor.data)]:
                tensor.data = data
        for _, part in self._parts:
            if id(part) in self._before:
                part.copy_(self._before[id(part)])


def _same_numbers(old: Tensor, new: Tensor) -> bool:
    """Whether two tensors share their memory, or hold the same bits in other places."""
    parts = plain_parts(old), plain_parts(new)
    if [_storage(part) for part in parts[0]] == [_storage(part) for part in parts[1]]:
        return True
    return len(parts[0]) == len(parts[1]) and all(map(same_bits, *parts))


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


@cache
def _writes(function: Any) -> list[tuple[int, str]]:
    """Place and name of the arguments that an operation of torch writes into, as its schema says."""
    arguments = list(enumerate(function._schema.arguments))
    return [(place, argument.name) for place, argument in arguments if argument.is_write]
