"""A model lent to a trainer comes back as it was: trainers replace and patch modules, freeze, and change configs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def borrowed(model: Any) -> Iterator[None]:
    """Undo at the end, also on an error, what is done to the model meanwhile, except to the numbers in its parameters.

    Brings back the modules that PEFT replaced, `forward` methods that TRL patched, hooks, training modes, gradient
    checkpointing, `requires_grad`, and the settings in `config` and `generation_config`.
    """
    configs = [model.config, model.config.get_text_config(), getattr(model, "generation_config", None)]
    remembered = [_remember(thing) for thing in [*model.modules(), *configs] if thing is not None]
    trainable = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        yield
    finally:
        for restore in remembered:
            restore()
        for parameter, requires_grad in trainable:
            parameter.requires_grad = requires_grad


def _remember(thing: Any) -> Callable[[], None]:
    """A function that sets the object's attributes back to what they are now."""
    attributes = dict(vars(thing))
    # Restored in place, not replaced: whoever registered a hook holds on to the dictionary that it is in.
    dictionaries = [(each, dict(each)) for each in attributes.values() if isinstance(each, dict)]

    def restore() -> None:
        vars(thing).clear()
        vars(thing).update(attributes)
        for dictionary, content in dictionaries:
            dictionary.clear()
            dictionary.update(content)

    return restore
