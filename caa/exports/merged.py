"""A steered model in, a stock checkpoint out: the LoRA merged into the weights, the vector in a bias."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from caa.data.chat import ChatFormat
from caa.exports.biases import biases
from caa.exports.folder import describe_export, new_export
from caa.exports.interventions import check_interventions
from caa.exports.llama import as_llama
from caa.exports.parity import Parity, check_parity, probe
from caa.models.adapter_state import active_adapters, check_unmerged
from caa.models.adapters import unload
from caa.models.blocks import is_quantized
from caa.models.copies import shell
from caa.models.loading import auto_class
from caa.steering.scopes import everywhere
from caa.steering.wrapper import SteeringWrapper

USE = """```python
model = AutoModelForCausalLM.from_pretrained("this folder")
```

It is a stock checkpoint: `transformers serve "this folder"` serves it with an OpenAI-compatible API, and so does vLLM
(`vllm serve "this folder"`; tried with 0.32.0 on a CPU). Not run by the authors: `python convert_hf_to_gguf.py "this
folder"` (llama.cpp). It steers every token, those of the prompt too."""
_INSTEAD = (
    "Nearest: `--to peft-alora` starts after the prompt; `--scope everywhere` steers the prompt too, another model"
)


def to_merged(
    wrapper: SteeringWrapper, chat: ChatFormat | Any, out: str | Path, *, max_shard_size: str = "5GB"
) -> Path:
    """Write a folder that stock transformers loads, with tokenizer and generation config, in the model's dtype.

    ValueError, before anything is written, for other scopes than everywhere, other operators than add, quantized bases,
    and families whose checkpoints have no place for the bias.
    """
    interventions = check_interventions(wrapper.interventions, [everywhere], "merged", _INSTEAD)
    wanted = biases(wrapper.model, interventions)
    merged = _with_room(_merge(wrapper.model), wanted)
    for name, push in wanted.items():
        bias = merged.get_submodule(name).bias
        bias.data = (bias.data.float() + push.to(bias.device)).to(bias.dtype)
    with new_export(out) as scratch, torch.no_grad():
        merged.save_pretrained(scratch, max_shard_size=max_shard_size)
        ChatFormat.of(chat).tokenizer.save_pretrained(scratch)
        del merged
        parity = _compare(wrapper, scratch)
        describe_export(scratch, "merged", wrapper.model, interventions, parity, USE)
    return Path(out)


def _merge(model: Any) -> Any:
    """A shell of the base with the active LoRAs in its weights; the model itself is left as it is.

    PEFT's own merge stops half way where it fails, so it works on a shell, whose weights it replaces (`safe_merge`).
    """
    if is_quantized(model):
        raise ValueError("a quantized base cannot hold a merged finetune; load the base in full, or export `--to peft`")
    check_unmerged(model)
    copied = shell(model)
    if not active_adapters(copied):
        return unload(copied)
    # So a head that shares the embeddings' weights has its own too, if an adapter changes one of the two, and PEFT then
    # says so in the config (`tie_word_embeddings`). The checkpoint is larger by the head.
    for layer in copied.modules():
        if (base := getattr(layer, "base_layer", None)) is not None:
            _own_weights(base)
    try:
        return copied.merge_and_unload(safe_merge=True)
    except Exception as error:  # PEFT's tuners each have their own
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"PEFT cannot merge this finetune ({reason}). Nearest: `--to peft`") from error


def _own_weights(layer: nn.Module) -> None:
    """Exchange a shell's weights for copies, for some of PEFT's tuners merge into them in place."""
    for name, parameter in layer.named_parameters(recurse=False):
        layer.register_parameter(name, nn.Parameter(parameter.detach().clone(), parameter.requires_grad))


def _with_room(model: Any, wanted: Mapping[str, Tensor]) -> Any:
    """The model itself where its layers have a bias, else one of the same numbers with biases, zero so far."""
    if all(model.get_submodule(name).bias is not None for name in wanted):
        return model
    config = model.config
    if hasattr(config, "mlp_bias"):
        return _rebuilt(model, type(model), type(config)(**config.to_dict() | {"mlp_bias": True}))
    converted = as_llama(config)
    if converted is None:
        raise ValueError(
            f"a stock {config.model_type} checkpoint has no place for the bias that carries the vector, and would load "
            "without it. Nearest: `--to peft`, the same model as an adapter"
        )
    return _rebuilt(model, *converted)


def _rebuilt(model: Any, architecture: Any, config: Any) -> Any:
    """The same tensors in an architecture that has more biases, which are zero."""
    with torch.device("meta"):
        new = architecture(config)
    tensors = model.state_dict()
    device = model.get_input_embeddings().weight.device
    missing = new.load_state_dict(tensors, strict=False, assign=True)
    if missing.unexpected_keys or not all(key.endswith("bias") for key in missing.missing_keys):
        raise ValueError(f"{architecture.__name__} does not hold these weights: {missing}")
    for key in missing.missing_keys:
        parent, _, name = key.rpartition(".")
        zeros = torch.zeros(new.get_parameter(key).shape, dtype=model.dtype, device=device)
        setattr(new.get_submodule(parent), name, nn.Parameter(zeros, requires_grad=False))
    new.tie_weights()
    new.config.dtype = model.dtype
    new.generation_config = model.generation_config
    return new.eval()


def _compare(wrapper: SteeringWrapper, folder: Path) -> Parity:
    """With the checkpoint loaded back from the disk, as a reader will."""
    ids, model = probe(wrapper.model), wrapper.model
    places = getattr(model, "hf_device_map", None)
    exported: Any = auto_class(model.config).from_pretrained(folder, dtype=model.dtype, device_map=places)
    exported = exported.eval() if places else exported.to(ids.device).eval()
    return check_parity(wrapper(ids).logits, exported(ids).logits, shell(model)(ids).logits)
