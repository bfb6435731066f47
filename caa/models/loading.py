"""A model's name in, the model and its tokenizer out: from the Hub, a folder, a GGUF file, or one of the embedded."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch

from caa.models.adapter_state import held_adapters
from caa.models.adapters import load_adapter
from caa.models.gguf import GgufHeader, load_gguf_config, mend_model, mend_tokenizer, read_header, require_gguf
from caa.models.names import KINDS, adapter_base, adapter_name, model_files

_WHICH_FILES = ("revision", "token", "cache_dir", "local_files_only", "trust_remote_code", "gguf_file")
"""Arguments of `from_pretrained` that a tokenizer needs too."""


def load_model(name: str, *, dtype: str = "auto", device: str = "auto", **kwargs: Any) -> tuple[Any, Any]:
    """A causal LM, or an image-text model for its text, in evaluation mode and its tokenizer, ready for batches.

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


def auto_class(config: Any) -> Any:
    """The auto class of transformers for a model's text use: image-text models that are no causal LM have their own."""
    import transformers

    image_text = type(config) in transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    if image_text and type(config) not in transformers.MODEL_FOR_CAUSAL_LM_MAPPING:
        return transformers.AutoModelForImageTextToText
    return transformers.AutoModelForCausalLM


def _auto_class(path: str, files: dict[str, str], arguments: dict[str, Any]) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    if files or "config" in arguments:
        return auto_class(arguments["config"]) if "config" in arguments else AutoModelForCausalLM
    which = {key: arguments[key] for key in _WHICH_FILES if key in arguments}
    return auto_class(AutoConfig.from_pretrained(path, **which))


def _load_plain(name: str, dtype: str, device: str, arguments: dict[str, Any]) -> tuple[Any, Any]:
    on_cpu = device == "cpu" or (device == "auto" and not torch.accelerator.is_available())
    path, files = _files(name, arguments)
    try:
        tokenizer = load_tokenizer(name, **{key: arguments[key] for key in _WHICH_FILES if key in arguments})
        model, info = _auto_class(path, files, arguments).from_pretrained(
            path,
            dtype="float32" if on_cpu and dtype == "auto" else dtype,
            device_map=None if on_cpu else device,
            output_loading_info=True,
            **_gguf_arguments(path, files, arguments) | files | arguments,
        )
    except OSError as error:
        raise ValueError(f"no model {name!r}: it is none of {KINDS} ({str(error).splitlines()[0]})") from error
    if files:
        mend_model(model, _gguf_header(path, files | arguments), info["missing_keys"])
        model.config.name_or_path = f"{path}/{files['gguf_file']}"
    else:
        _check_whole(name, model, info["missing_keys"])
    return model.eval(), tokenizer


def _check_whole(name: str, model: Any, missing: Collection[str]) -> None:
    """ValueError for weights that transformers has drawn at random, with no more than a warning."""
    if missing:
        some = ", ".join(sorted(missing)[:3])
        raise ValueError(
            f"{name!r} lacks {len(missing)} of the weights of a {type(model).__name__} ({some}), and they "
            "would be random: it is a model of another task, or its files are not all there"
        )


def _files(name: str, arguments: dict[str, Any]) -> tuple[str, dict[str, str]]:
    """As `model_files` says, unless the arguments name the file."""
    return (name, {"gguf_file": arguments["gguf_file"]}) if "gguf_file" in arguments else model_files(name)


def _gguf_arguments(path: str, files: dict[str, str], arguments: dict[str, Any]) -> dict[str, Any]:
    """The config, which would be read once more, unless it is for another revision's file."""
    return {} if arguments or not files else {"config": load_gguf_config(path, files["gguf_file"])}


def load_config(name: str) -> Any:
    """A model's config, without its weights; OSError or ValueError for a name that has none."""
    from transformers import AutoConfig

    path, files = model_files(name)
    return load_gguf_config(path, files["gguf_file"]) if files else AutoConfig.from_pretrained(path)


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

    path, files = _files(name, kwargs)
    if files:
        tokenizer = _gguf_tokenizer(path, files | kwargs)
    else:
        tokenizer = AutoTokenizer.from_pretrained(path, padding_side="left", **kwargs)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _gguf_tokenizer(path: str, arguments: dict[str, Any]) -> Any:
    from transformers import PreTrainedTokenizerFast

    require_gguf()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(path, padding_side="left", **arguments)
    mend_tokenizer(tokenizer, str(_gguf_header(path, arguments).fields.get("tokenizer.ggml.pre", "")))
    return tokenizer


def _gguf_header(path: str, arguments: dict[str, Any]) -> GgufHeader:
    """Of a file in a folder, or in the cache of the Hub, where `from_pretrained` has put it."""
    from transformers.utils.hub import cached_file

    which = {key: arguments[key] for key in ("revision", "token", "cache_dir", "local_files_only") if key in arguments}
    return read_header(str(cached_file(path, arguments["gguf_file"], **which)))
