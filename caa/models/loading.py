"""A model's name in, the model and its tokenizer out: from the Hub, from a folder, or one of the embedded ones."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

import torch
from torch import nn

import caa

EMBEDDED = ("tiny-chat", "tiny-base")
_FILES = ("revision", "token", "cache_dir", "local_files_only", "trust_remote_code")
_SMALL = 2.0**-16
"""Every number of bfloat16 from here up to 65504 is one of float16 too; of the smaller ones some are not."""


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
    coarse; `device` "auto" spreads over what there is. `kwargs` go to `from_pretrained` (quantization, revision, ...);
    those that say which files to take go to the tokenizer's too.
    """
    from transformers import AutoModelForCausalLM

    on_cpu = device == "cpu" or (device == "auto" and not torch.accelerator.is_available())
    path = model_path(name)
    try:
        tokenizer = load_tokenizer(path, **{key: kwargs[key] for key in _FILES if key in kwargs})
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


def load_tokenizer(name: str, **kwargs: Any) -> Any:
    """A model's tokenizer, ready for batches: texts are padded on the left, as generation needs it."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_path(name), padding_side="left", **kwargs)
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
    bfloat16, with those below 2**-16 as zero. A checkpoint stored in bfloat16 or float16 has the same one in float32,
    bfloat16 and float16; one stored in float32 has another in float16, which rounds twice (`has_fingerprint` knows).
    Changes that leave the eight numbers of each tensor within half a step of bfloat16 (0.2 to 0.4 %) are not seen. The
    weights of quantized layers are left out: they differ from the model that they were made of.
    """
    return _hashed(model, _samples(model), _SMALL)


def has_fingerprint(model: Any, known: str) -> bool:
    """Whether a fingerprint is this model's: as it is, as it would be in float16, or of the first kind.

    The first kind counted numbers below 2**-16 too; files made with it stay good.
    """
    exact = _samples(model)
    halved = {name: (shape, some.half().float()) for name, (shape, some) in exact.items()}
    return known in {_hashed(model, samples, small) for samples in (exact, halved) for small in (_SMALL, 0.0)}


def float16_hint(model: Any) -> str:
    """What to try where a float16 model has not the fingerprint that was asked for; "" for other dtypes."""
    if model.dtype != torch.float16:
        return ""
    return " If its checkpoint is stored in float32, float16 has blurred it: load it in float32 or bfloat16."


_Samples = dict[str, tuple[list[int], torch.Tensor]]


def _hashed(model: Any, samples: _Samples, small: float) -> str:
    digest = hashlib.sha256(model.config.model_type.encode())
    for name, (shape, some) in sorted(samples.items()):
        rounded = some.bfloat16().float()
        kept = torch.where(rounded.abs() < small, 0.0, rounded)
        digest.update(f"{name}{shape}{kept.tolist()}".encode())
    return digest.hexdigest()[:16]


def _samples(model: nn.Module) -> _Samples:
    """Name in the base model -> shape, and eight numbers or fewer: float32, on the CPU."""
    return {name: (list(p.shape), _some(p.detach().reshape(-1))) for name, p in _base_parameters(model).items()}


def _some(numbers: torch.Tensor) -> torch.Tensor:
    return numbers[:: max(1, len(numbers) // 8)][:8].to("cpu", torch.float32)


_WRAPPERS = re.compile(r"^base_model\.model\.|\.(base_layer|original_module|token_adapter)(?=\.)")
_TRAINED = re.compile(r"\.lora_|\.modules_to_save\.|\.trainable_tokens_")


def _base_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The base's own parameters, under the names that they have without PEFT."""
    return {
        _WRAPPERS.sub("", name): parameter
        for name, parameter in model.named_parameters()
        if parameter.is_floating_point() and parameter.device.type != "meta" and not _TRAINED.search(name)
    }
