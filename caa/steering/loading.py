"""A model's name in, the model and its tokenizer out: from the Hub, from a folder, or one of the embedded ones."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import nn

import caa

EMBEDDED = ("tiny-chat", "tiny-base")


def model_path(name: str) -> str:
    """Where a model lives: the folder of an embedded one, in a clone or an installed wheel; else the name as it is."""
    if name not in EMBEDDED or Path(name).exists():
        return name
    places = _embedded_places(name)
    found = next((place for place in places if (place / "config.json").exists()), None)
    if found is None:
        raise FileNotFoundError(f"the embedded model {name!r} is missing; looked in {[str(p) for p in places]}")
    return str(found)


def _embedded_places(name: str) -> list[Path]:
    """Inside an installed package, or beside it in a clone."""
    package = Path(caa.__file__).resolve().parent
    return [root / "checkpoints" / name for root in (package, package.parent)]


def load_model(name: str, *, dtype: str = "auto", device: str = "auto", **kwargs: Any) -> tuple[Any, Any]:
    """A causal LM in evaluation mode and its tokenizer, ready for batches.

    `dtype` "auto" is the checkpoint's own on an accelerator and float32 on a CPU, where half precision is slow and
    coarse; `device` "auto" spreads over what there is. `kwargs` go to `from_pretrained` (quantization, revision, ...).
    """
    from transformers import AutoModelForCausalLM

    on_cpu = device == "cpu" or (device == "auto" and not torch.accelerator.is_available())
    path = model_path(name)
    try:
        tokenizer = load_tokenizer(path)
        model = AutoModelForCausalLM.from_pretrained(
            path,
            dtype="float32" if on_cpu and dtype == "auto" else dtype,
            device_map=None if on_cpu else device,
            **kwargs,
        )
    except OSError as error:
        known, reason = ", ".join(EMBEDDED), str(error).splitlines()[0]
        raise ValueError(
            f"no model {name!r}: neither a folder, nor embedded ({known}), nor to be had from the Hub ({reason})"
        ) from error
    return model.eval(), tokenizer


def load_tokenizer(name: str) -> Any:
    """A model's tokenizer, ready for batches: texts are padded on the left, as generation needs it."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_path(name), padding_side="left")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def model_name(model: Any) -> str:
    """The name to find this model by again: its embedded name, its Hub id, or its path."""
    path = str(model.config.name_or_path)
    return next((name for name in EMBEDDED if path and Path(path).resolve() in _embedded_places(name)), path)


def fingerprint(model: Any) -> str:
    """16 hex digits that tell one base model from another, whatever adapters it wears and dtype it is loaded in.

    A hash of the architecture and of every floating-point parameter's name, shape and eight of its numbers, rounded to
    bfloat16. The weights of quantized layers are left out: they differ from the model that they were made of.
    """
    digest = hashlib.sha256(model.config.model_type.encode())
    for name, parameter in sorted(_base_parameters(model).items()):
        numbers = parameter.detach().reshape(-1)
        some = numbers[:: max(1, len(numbers) // 8)][:8].to("cpu", torch.bfloat16).float()
        digest.update(f"{name}{list(parameter.shape)}{some.tolist()}".encode())
    return digest.hexdigest()[:16]


def _base_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    plain = {
        name.removeprefix("base_model.model.").replace(".base_layer", ""): parameter
        for name, parameter in model.named_parameters()
        if parameter.is_floating_point() and ".lora_" not in name and ".modules_to_save." not in name
    }
    return {name: p for name, p in plain.items() if p.device.type != "meta"}
