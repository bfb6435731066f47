"""A model's name in, the model and its tokenizer out: from the Hub, from a folder, or one of the embedded ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from caa.models.adapter_state import held_adapters
from caa.models.adapters import load_adapter
from caa.models.names import EMBEDDED, adapter_base, adapter_name, model_path

_WHICH_FILES = ("revision", "token", "cache_dir", "local_files_only", "trust_remote_code", "gguf_file")
"""Arguments of `from_pretrained` that a tokenizer needs too."""


def load_model(name: str, *, dtype: str = "auto", device: str = "auto", **kwargs: Any) -> tuple[Any, Any]:
    """A causal LM in evaluation mode and its tokenizer, ready for batches.

    `dtype` "auto" is the checkpoint's own on an accelerator and float32 on a CPU, where half precision is slow and
    coarse; `device` "auto" spreads over what there is. `kwargs` go to `from_pretrained` (quantization, revision, ...);
    those that say which files to take go to the tokenizer's too. The folder of an adapter gives its base wearing the
    adapter, which has the folder's name. ValueError, with the way out, for what is no model.
    """
    if base := adapter_base(name):
        return _load_with_adapter(Path(name), base, dtype, device, kwargs)
    model, tokenizer = _load_plain(name, dtype, device, kwargs)
    if held := held_adapters(model):
        raise ValueError(
            f"{name!r} is an adapter ({', '.join(held)}) that transformers has put on its base, where it cannot be "
            f"switched off: load the base, {model.config.name_or_path!r}, and then its adapter from a folder"
        )
    return model, tokenizer


def _load_plain(name: str, dtype: str, device: str, arguments: dict[str, Any]) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM

    on_cpu = device == "cpu" or (device == "auto" and not torch.accelerator.is_available())
    path = model_path(name)
    try:
        tokenizer = load_tokenizer(path, **{key: arguments[key] for key in _WHICH_FILES if key in arguments})
        model: Any = AutoModelForCausalLM.from_pretrained(
            path,
            dtype="float32" if on_cpu and dtype == "auto" else dtype,
            device_map=None if on_cpu else device,
            **arguments,
        )
    except OSError as error:
        embedded, reason = ", ".join(EMBEDDED), str(error).splitlines()[0]
        raise ValueError(
            f"no model {name!r}: neither a folder, nor embedded ({embedded}), nor to be had from the Hub ({reason})"
        ) from error
    if "gguf_file" in arguments:
        _unmark_quantized(model)
    return model.eval(), tokenizer


def _unmark_quantized(model: Any) -> None:
    """A GGUF's weights are plain numbers once they are loaded, though transformers says that they are quantized."""
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config


def _load_with_adapter(folder: Path, base: str, dtype: str, device: str, arguments: dict[str, Any]) -> tuple[Any, Any]:
    """The base wearing the adapter; the tokenizer beside the adapter, if there is one."""
    try:
        model, tokenizer = load_model(base, dtype=dtype, device=device, **arguments)
    except (ValueError, FileNotFoundError) as error:
        raise ValueError(f"{folder} is an adapter, and its base cannot be loaded: {error}") from error
    if (folder / "tokenizer_config.json").is_file():
        tokenizer = load_tokenizer(str(folder))
    return load_adapter(model, folder, adapter_name(folder)), tokenizer


def load_tokenizer(name: str, **kwargs: Any) -> Any:
    """A model's tokenizer, ready for batches: texts are padded on the left, as generation needs it."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_path(name), padding_side="left", **kwargs)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer
