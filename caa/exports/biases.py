"""Interventions in, biases out: which linear layer has to add what, for a model without hooks to do the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from caa.exports.interventions import KEEP
from caa.models.blocks import decoder_blocks, text_config
from caa.steering.intervention import Intervention

# The linear layer of a block whose output is added to the residual stream last, as it is.
_LAST = {
    "bloom": "mlp.dense_4h_to_h",
    "cohere": "mlp.down_proj",
    "falcon": "mlp.dense_4h_to_h",
    "gemma": "mlp.down_proj",
    "gpt2": "mlp.c_proj",
    "gpt_neox": "mlp.dense_4h_to_h",
    "gptj": "mlp.fc_out",
    "granite": "mlp.down_proj",
    "llama": "mlp.down_proj",
    "mistral": "mlp.down_proj",
    "olmo": "mlp.down_proj",
    "opt": "fc2",
    "phi": "mlp.fc2",
    "phi3": "mlp.down_proj",
    "qwen2": "mlp.down_proj",
    "qwen3": "mlp.down_proj",
    "smollm3": "mlp.down_proj",
    "stablelm": "mlp.down_proj",
    "starcoder2": "mlp.c_proj",
}
_NORMED = ("gemma2", "gemma3", "gemma3_text", "olmo2", "olmo3", "glm4", "exaone4")
_EXPERTS = (
    "mixtral",
    "qwen2_moe",
    "qwen3_moe",
    "gpt_oss",
    "olmoe",
    "phimoe",
    "granitemoe",
    "deepseek_v2",
    "deepseek_v3",
)


def biases(model: Any, interventions: Sequence[Intervention]) -> dict[str, Tensor]:
    """Name of a linear layer in the base model -> what its bias has to grow by, float32 [d_model].

    ValueError for families in which no bias does what the hook does.
    """
    biases: dict[str, Tensor] = {}
    for intervention in interventions:
        name, factor = _last_linear(model, intervention.layer)
        push = intervention.strengths * intervention.direction / factor
        biases[name] = biases[name] + push if name in biases else push
    return biases


def _last_linear(model: Any, layer: int) -> tuple[str, float]:
    """The linear layer that writes last in a block, and what its output is multiplied by on its way to the stream."""
    config = text_config(model)
    _refuse_family(config)
    base = base_model(model)
    block = decoder_blocks(model)[layer]
    path = next(name for name, module in base.named_modules() if module is block)
    return f"{path}.{_LAST[config.model_type]}", getattr(config, "residual_multiplier", 1.0)


def _refuse_family(config: Any) -> None:
    family = config.model_type
    after = family == "opt" and not config.do_layer_norm_before
    reason = (
        "a norm stands between the last linear layer of a block and the residual stream, so no bias is the hook's push"
        if family in _NORMED or after
        else "a block's output is a mixture of experts, so no single bias is the hook's push"
        if family in _EXPERTS
        else f"it is not known which linear layer of its blocks writes last; known are {', '.join(_LAST)}"
    )
    if family not in _LAST or after:
        raise ValueError(f"this {family} model cannot carry a vector as a bias: {reason}. {KEEP}.")


def base_model(model: Any) -> nn.Module:
    """The transformers model inside a PeftModel, or the model itself."""
    base: nn.Module = model.get_base_model() if getattr(model, "peft_config", {}) else model
    return base
