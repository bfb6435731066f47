"""A model's name in, the model and its tokenizer out: from the Hub, from a folder, or one of the embedded ones."""

from __future__ import annotations

from typing import Any

import torch

from caa.models.names import EMBEDDED, model_path

_WHICH_FILES = ("revision", "token", "cache_dir", "local_files_only", "trust_remote_code", "gguf_file")
"""Arguments of `from_pretrained` that a tokenizer needs too."""


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
        tokenizer = load_tokenizer(path, **{key: kwargs[key] for key in _WHICH_FILES if key in kwargs})
        model: Any = AutoModelForCausalLM.from_pretrained(
            path,
            dtype="float32" if on_cpu and dtype == "auto" else dtype,
            device_map=None if on_cpu else device,
            **kwargs,
        )
    except OSError as error:
        embedded, reason = ", ".join(EMBEDDED), str(error).splitlines()[0]
        raise ValueError(
            f"no model {name!r}: neither a folder, nor embedded ({embedded}), nor to be had from the Hub ({reason})"
        ) from error
    return model.eval(), tokenizer


def load_tokenizer(name: str, **kwargs: Any) -> Any:
    """A model's tokenizer, ready for batches: texts are padded on the left, as generation needs it."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_path(name), padding_side="left", **kwargs)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer
