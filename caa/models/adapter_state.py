"""Which adapters a model holds, which of them act, which are merged: asked of PEFT, whoever put them on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

# fmt: off
LAYERWISE = frozenset({
    "LORA", "ADALORA", "ADAMSS", "BEFT", "BOFT", "C3A", "DEFT", "DELORA", "FOURIERFT", "FROD", "GLORA", "GRALORA",
    "HIRA", "HRA", "IA3", "LILY", "LN_TUNING", "LOHA", "LOKR", "MISS", "OFT", "OSF", "PEANUT", "PSOFT", "PVERA",
    "RANDLORA", "ROAD", "SHIRA", "SUPERTUNING", "TINYLORA", "TRAINABLE_TOKENS", "UNILORA", "VBLORA", "VERA", "WAVEFT",
})
# fmt: on
"""PEFT's tuners that act in single layers, so that a pass through the decoder alone shows them, and that the tests hold
against plain PEFT: loaded first and second, switched, taken off, saved (docs/adapters.md has the table)."""


def held_adapters(model: Any) -> list[str]:
    """The names of the adapters that the model holds, active or not."""
    return list(getattr(model, "peft_config", None) or {})


def active_adapters(model: Any) -> list[str]:
    """The names of the adapters that take part in a forward pass now."""
    if not held_adapters(model) or not _enabled(model):
        return []
    active = model.active_adapters  # a property of PEFT's models, a method of those that transformers put adapters on
    return list(active() if callable(active) else active)


def _enabled(model: Any) -> bool:
    layers = [layer for _, layer in adapter_layers(model)]
    if not layers:  # virtual tokens, which are no layers
        return not getattr(model, "_adapters_disabled", False)
    return any(not layer.disable_adapters for layer in layers)


def adapter_layers(model: Any) -> Iterator[tuple[str, Any]]:
    """The path and the layer of each of PEFT's layers."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for path, module in model.named_modules():
        if isinstance(module, BaseTunerLayer):
            yield path, module


def adapter_parameters(model: Any) -> Iterator[Any]:
    """Every parameter that belongs to an adapter's layer, or to all layers of one, and not to the base."""
    if not held_adapters(model):
        return
    from peft.tuners.tuners_utils import BaseTuner

    for _, layer in adapter_layers(model):
        for attribute in (*layer.adapter_layer_names, *layer.other_param_names):
            value = getattr(layer, attribute, None)
            yield from value.parameters() if isinstance(value, nn.Module) else [value]
    tuner = getattr(model, "base_model", None)
    if isinstance(tuner, BaseTuner):
        for name, parameter in tuner.named_parameters():
            if not name.startswith("model."):
                yield parameter


def merged_adapters(model: Any) -> list[str]:
    """The names of the adapters whose weights PEFT's `merge_adapter()` has added to the base's."""
    if not held_adapters(model):
        return []
    return list(dict.fromkeys(name for _, layer in adapter_layers(model) for name in layer.merged_adapters))


def check_unmerged(model: Any) -> None:
    """ValueError if the base's weights hold an adapter's, for then neither the base nor the adapter is to be had."""
    if merged := merged_adapters(model):
        raise ValueError(
            f"PEFT has merged {', '.join(merged)} into the base's weights (`merge_adapter()`), so neither the base nor "
            "the adapter is as it was. Load both again, or call `unmerge_adapter()`, which leaves rounding in the base"
        )


def check_readable(model: Any) -> None:
    """ValueError if an active adapter would be missed by a pass through the decoder alone, as all reading is.

    Virtual tokens and the activation tokens of an aLoRA are made by PEFT's `forward`, in front of the decoder.
    """
    check_unmerged(model)
    for name in active_adapters(model):
        config = model.peft_config[name]
        kind = str(getattr(config.peft_type, "value", config.peft_type))
        if kind not in LAYERWISE or getattr(config, "alora_invocation_tokens", None):
            label = "aLoRA" if kind == "LORA" else kind
            raise ValueError(
                f"the active adapter {name!r} ({label}) acts outside of the decoder's layers, so what is read would be "
                "another model's. Read with `finetune(None)`, or with an adapter of another kind, such as a LoRA"
            )
