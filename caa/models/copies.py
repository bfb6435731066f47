"""A live model in, a second one out that shares its tensors: the structure is a copy, without hooks."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn

from caa.models.adapters import TRAINABLE, unload
from caa.models.blocks import base_model

STEERING = "_caa_steering"
"""The attribute of a model that says what steers it."""


def shell(model: Any) -> Any:
    """A copy whose modules, adapters and `parameter.data` can be exchanged without a trace in the model.

    Writing into a tensor in place would show in both.
    """
    memo: dict[int, Any] = {id(buffer): buffer for buffer in model.buffers()}
    for parameter in model.parameters():
        plain = type(parameter) is nn.Parameter  # those of quantized layers know more than their numbers
        memo[id(parameter)] = nn.Parameter(parameter.data, parameter.requires_grad) if plain else parameter
    if (state := vars(base_model(model)).get(STEERING)) is not None:
        memo[id(state)] = state.of_a_copy()
    copied = copy.deepcopy(model, memo)
    vars(copied).pop(TRAINABLE, None)  # quantized parameters are the model's own
    for module in copied.modules():
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
    return copied


def plain_shell(model: Any) -> Any:
    """A shell of the base alone, without adapters."""
    return unload(shell(model))
