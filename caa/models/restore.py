"""A model lent to a trainer or to PEFT comes back as it was: they replace and patch modules, freeze, change configs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def borrowed(model: Any) -> Iterator[None]:
    """Undo at the end, also on an error, what is done to the model meanwhile, as `remember` does it."""
    restore = remember(model)
    try:
        yield
    finally:
        restore()


@contextmanager
def undone_on_error(model: Any) -> Iterator[None]:
    """Undo what was done to the model meanwhile if there is an error; leave it if all went well."""
    restore = remember(model)
    try:
        yield
    except BaseException:
        restore()
        raise


def remember(model: Any) -> Callable[[], None]:
    """A function that makes the model what it is now, except for the numbers in its parameters.

    It brings back the modules that PEFT replaced, `forward` methods that TRL patched, hooks, training modes, gradient
    checkpointing, `requires_grad`, and the settings in `config` and `generation_config`.
    """
    configs = [model.config, model.config.get_text_config(), getattr(model, "generation_config", None)]
    remembered = [_remember(thing) for thing in [*model.modules(), *configs] if thing is not None]
    trainable = [(parameter, parameter.requires_grad) for parameter in model.parameters()]

    def restore() -> None:
        for each in remembered:
            each()
        for parameter, requires_grad in trainable:
            parameter.requires_grad = requires_grad

    return restore


def _remember(thing: Any) -> Callable[[], None]:
    """A function that sets the object's attributes back to what they are now."""
    attributes = dict(vars(thing))
    # Restored in place, not replaced: whoever registered a hook holds on to the dictionary that it is in.
    collections = [(each, copy.copy(each)) for each in attributes.values() if isinstance(each, (dict, set))]

    def restore() -> None:
        vars(thing).clear()
        vars(thing).update(attributes)
        for collection, content in collections:
            collection.clear()
            collection.update(content)

    return restore
