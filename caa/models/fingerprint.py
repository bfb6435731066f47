"""What tells one base model or tokenizer from another, and the refusal of a wrong one."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from caa.hashing import json_digest, text_digest
from caa.models.adapter_state import adapter_parameters, check_unmerged
from caa.models.blocks import base_model, decoder_blocks, model_width, text_config
from caa.models.names import model_name

PROBES = ("You can have 5 pearls now, or 50 next spring.", "(A) yes\n(B) no", "na\u00efve  \u4f60\u597d")
SMALL = 2.0**-16
"""Every number of bfloat16 from here up to 65504 is one of float16 too; of the smaller ones some are not."""
SAMPLED = 8
"""Numbers of each parameter that a fingerprint holds."""


@dataclass(frozen=True)
class Sample:
    """A few numbers of one parameter, evenly spread."""

    shape: tuple[int, ...]
    numbers: Tensor
    """float32 [8] or fewer, on the CPU."""

    def text(self, small: float) -> str:
        """Shape and numbers, rounded to bfloat16, those below `small` as zero."""
        rounded = self.numbers.bfloat16().float()
        return f"{list(self.shape)}{torch.where(rounded.abs() < small, 0.0, rounded).tolist()}"


def fingerprint(model: Any) -> str:
    """16 hex digits that tell one base model from another, whatever adapters it wears and dtype it is loaded in.

    A hash of the architecture and of every floating-point parameter's name, shape and eight of its numbers, rounded to
    bfloat16, with those below 2**-16 as zero. A checkpoint stored in bfloat16 or float16 has the same one in float32,
    bfloat16 and float16; one stored in float32 has another in float16, which rounds twice (`has_fingerprint` knows).
    Changes that leave the eight numbers of each tensor within half a step of bfloat16 (0.2 to 0.4 %) are not seen. The
    weights of quantized layers are left out: they differ from the model that they were made of. Of an image-text model
    the language model counts, under the names of its text-only class, so that twins of the same weights share it.
    """
    return _digest_of_text(model, sample_parameters(model))


def has_fingerprint(model: Any, known: str) -> bool:
    """Whether a fingerprint is this model's: as it is, as it would be in float16, or of the first kinds.

    The first kinds counted numbers below 2**-16 too, and the images' weights; files made with them stay good.
    """
    exact = sample_parameters(model)
    halved = {name: Sample(sample.shape, sample.numbers.half().float()) for name, sample in exact.items()}
    kinds = product((digest_of_samples, _digest_of_text), (exact, halved), (SMALL, 0.0))
    return any(known == digest(model, samples, small) for digest, samples, small in kinds)


def float16_hint(model: Any) -> str:
    """What to try where a float16 model has not the fingerprint that was wanted; "" for other dtypes."""
    if model.dtype != torch.float16:
        return ""
    return " If its checkpoint is stored in float32, float16 has blurred it: load it in float32 or bfloat16."


def describe(model: Any) -> dict[str, Any]:
    """What tells a base from others, and in words how."""
    return {
        "name": model_name(model),
        "fingerprint": fingerprint(model),
        "family": model.config.model_type,
        "width": model_width(model),
        "layers": len(decoder_blocks(model)),
    }


def check_base(folder: Path, recorded: dict[str, Any], model: Any) -> None:
    """ValueError, saying in what it differs, if the model is not the one that `describe` described."""
    if has_fingerprint(model, recorded["fingerprint"]):
        return
    given = describe(model)
    different = [key for key in ("family", "width", "layers") if recorded.get(key, given[key]) != given[key]]
    reason = ", ".join(f"{key} {given[key]}, not {recorded[key]}" for key in different)
    raise ValueError(
        f"{folder} was made for {recorded['name']!r}, and the model given is {given['name']!r}: "
        f"{reason or 'this model has other weights'}. Load that base, or leave the model out.{float16_hint(model)}"
    )


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """16 hex digits that tell one tokenizer from another: its words, its chat template, and what it makes of a text."""
    probed = [tokenizer(text).input_ids for text in PROBES]
    return json_digest([tokenizer.get_vocab(), tokenizer.chat_template, probed], sort_keys=True)


def check_tokenizer(folder: Path, known: str, tokenizer: Any) -> None:
    """ValueError if the tokenizer has another fingerprint; what is not known is not checked."""
    if known and tokenizer is not None and tokenizer_fingerprint(tokenizer) != known:
        raise ValueError(
            f"{folder} was made with another tokenizer or chat template than {tokenizer.name_or_path!r}: the steered "
            "tokens would be others. Use the one of its base."
        )


def digest_of_samples(model: Any, samples: dict[str, Sample], small: float = SMALL) -> str:
    """The fingerprint that samples of a model's parameters make, those of images included."""
    return _digest(model.config.model_type, samples, small)


def _digest(model_type: str, samples: dict[str, Sample], small: float) -> str:
    parameters = [f"{name}{sample.text(small)}" for name, sample in sorted(samples.items())]
    return text_digest("".join([model_type, *parameters]))


def _digest_of_text(model: Any, samples: dict[str, Sample], small: float = SMALL) -> str:
    """The fingerprint of the language model in a model, as its text-only class has it."""
    return _digest(text_config(model).model_type, _of_text(model, samples), small)


def _of_text(model: Any, samples: dict[str, Sample]) -> dict[str, Sample]:
    """Those of the language model and its head, under their names in its text-only class."""
    language = _language_model(model)
    if language is None:
        return samples
    head = (_name_of(base_model(model), base_model(model).get_output_embeddings()), "lm_head")
    names = {name: _moved(name, *language) or _moved(name, *head) for name in samples}
    return {names[name]: sample for name, sample in samples.items() if names[name]}


def _language_model(model: Any) -> tuple[str, str] | None:
    """Where an image-text model holds its language model, and where a model of its text-only class does."""
    base, config = base_model(model), text_config(model)
    if type(config) is type(base.config):
        return None
    block = _name_of(base, decoder_blocks(model)[0])
    for name, module in base.named_modules():
        if block.startswith(f"{name}.") and type(getattr(module, "config", None)) is type(config):
            whole = hasattr(module, module.base_model_prefix)  # with a head of its own
            return name, "" if whole else module.base_model_prefix
    return None


def _name_of(base: nn.Module, wanted: Any) -> str:
    return next((name for name, module in base.named_modules() if module is wanted), "")


def _moved(name: str, path: str, renamed: str) -> str:
    """
    >>> _moved("model.text.norm.weight", "model.text", "model"), _moved("vision.weight", "model.text", "model")
    ('model.norm.weight', '')
    """
    inside = name.removeprefix(f"{path}.")
    return "" if inside == name else f"{renamed}.{inside}".removeprefix(".")


def sample_parameters(model: nn.Module) -> dict[str, Sample]:
    """Name in the base model -> a few numbers of the parameter that has this name there, wherever they lie.

    ValueError for a model into whose weights an adapter is merged: they are not the base's.
    """
    check_unmerged(model)
    return {name: _sample(parameter) for name, parameter in _base_parameters(model).items()}


def _sample(parameter: Tensor) -> Sample:
    numbers = parameter.detach().reshape(-1)
    few = numbers[:: max(1, len(numbers) // SAMPLED)][:SAMPLED]
    return Sample(tuple(parameter.shape), few.to("cpu", torch.float32))


_WRAPPERS = re.compile(r"^base_model\.model\.|\.(base_layer|original_module|token_adapter)(?=\.)")
_TRAINED = re.compile(r"\.lora_|\.modules_to_save\.|\.trainable_tokens_")


def _base_parameters(model: Any) -> dict[str, Tensor]:
    """The base's own parameters, under the names that they have without PEFT; quantized ones are left out."""
    of_adapters = {id(parameter) for parameter in adapter_parameters(model)}
    parameters: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        if id(parameter) in of_adapters or _TRAINED.search(name) or not parameter.is_floating_point():
            continue
        whole = _whole(model, name, parameter)
        if whole is not None:
            parameters[_WRAPPERS.sub("", name)] = whole
    return _without_copies(model, parameters)


def _whole(model: nn.Module, name: str, parameter: Tensor) -> Tensor | None:
    """A parameter's own numbers, from the disk or from other devices; None if it is quantized or has none at all."""
    if hasattr(parameter, "full_tensor"):  # torch's DTensor: this process holds one part
        whole: Tensor = parameter.full_tensor()
        return whole
    if hasattr(parameter, "__tensor_flatten__"):
        return None
    return _offloaded(model, name) if parameter.is_meta else parameter


def _offloaded(model: nn.Module, name: str) -> Tensor | None:
    """What accelerate keeps elsewhere between two passes of a module."""
    parent, _, own = name.rpartition(".")
    hook = getattr(model.get_submodule(parent), "_hf_hook", None)
    for part in getattr(hook, "hooks", [hook]):
        if (kept := getattr(part, "weights_map", None)) is not None:
            stored: Tensor = kept[own]
            return stored
    return None


def _without_copies(model: Any, parameters: dict[str, Tensor]) -> dict[str, Tensor]:
    """A head that shares the embeddings' weights counts once, also where offloading has made two names of them."""
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    return {name: tensor for name, tensor in parameters.items() if tied.get(name) not in parameters}
