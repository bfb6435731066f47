"""torch.save files of other tools: tensors in or out, and nothing else. No code in such a file is ever run."""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from caa.files import replacing


class SteeringVectorsObject:
    """Stands in for `steering_vectors.SteeringVector` while its file is read: it takes the fields, it does nothing."""

    layer_activations: Mapping[int, Tensor]
    layer_type: str


STAND_IN = (SteeringVectorsObject, "steering_vectors.steering_vector.SteeringVector")


def write_lm_eval(pushes: Mapping[str, Tensor], path: str | Path) -> Path:
    """Write a new file for the `steered` model of lm-evaluation-harness: hookpoint -> what is added at every token.

    A hookpoint is the name of a block in `model.base_model`, "layers.13", or "model.model.layers.13" through PEFT.
    """
    if Path(path).exists():
        raise FileExistsError(f"{path} is there already; choose another name or remove it first")
    config = {name: _lm_eval(push) for name, push in pushes.items()}
    with replacing(path) as scratch:
        torch.save(config, scratch)
    return Path(path)


def _lm_eval(push: Tensor) -> dict[str, Any]:
    """One entry, every field that hf_steered.py reads. The multiplier is in the vector, as the hook has it."""
    vector = push.contiguous().clone()  # a view would take the whole tensor that it is a part of along
    return {"steering_vector": vector, "steering_coefficient": 1.0, "action": "add", "bias": None, "head_index": None}


def read_torch(path: str | Path, layer: int | None = None) -> tuple[dict[int, Tensor], str]:
    """Layer -> direction, and what the file was; ValueError for a damaged file and one that holds more than tensors.

    Read are a bare tensor (nrimsky/CAA; `layer` says which layer it is for), a dict of them by layer, the steering file
    of lm-evaluation-harness, and a `steering_vectors.SteeringVector` that torch.save wrote.
    """
    content = load_tensors(path)
    if isinstance(content, Tensor):
        return _bare(content, layer, path), "a bare tensor"
    directions, kind = _by_layer(content, path)
    if layer is not None:
        raise ValueError(f"{path} says its layers itself; leave the layer out")
    return directions, kind


def _by_layer(found: Any, path: str | Path) -> tuple[dict[int, Tensor], str]:
    if isinstance(found, SteeringVectorsObject):
        return _of_steering_vectors(found, path), "a steering-vectors object"
    if isinstance(found, dict) and found and all(type(key) is int and key >= 0 for key in found):
        return {key: flat(value, path) for key, value in found.items()}, "a dict of tensors by layer"
    if isinstance(found, dict) and found and all(_is_lm_eval(key, entry) for key, entry in found.items()):
        return _of_lm_eval(found, path), "a steering file of lm-evaluation-harness"
    raise ValueError(
        f"{path} holds {_describe(found)}. Known are a tensor, a dict of tensors by layer, and the files of "
        "steering-vectors and lm-evaluation-harness. Save it again as torch.save({layer: tensor, ...}, path)."
    )


def load_tensors(path: str | Path) -> Any:
    """What a torch.save file holds, read as tensors and plain containers of them; ValueError if it holds more."""
    _check_archive(path)
    try:
        with torch.serialization.safe_globals([STAND_IN]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of an odd pickle protocol; what matters becomes an error below
            return torch.load(path, weights_only=True, map_location="cpu")
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} holds more than tensors ({_reason(error)}), or is no file of torch.save; nothing in it was run. "
            "Where it was made, save the tensors alone: torch.save({layer: tensor, ...}, path)"
        ) from error
    except Exception as error:  # torch trips over damaged bytes in many ways
        raise ValueError(f"{path} is no file of torch.save, or a damaged one ({_reason(error)})") from error


def _check_archive(path: str | Path) -> None:
    """torch.load does not look at the checksums of its archive; a flipped bit would come through as a number."""
    if Path(path).read_bytes()[:2] != b"PK":
        return  # the older format of torch.save, which has no checksums
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
    except Exception as error:  # zipfile, too, has many words for damage
        raise ValueError(f"{path} is damaged ({error})") from error
    if broken:
        raise ValueError(f"{path} is damaged, or was changed: the checksum of {broken!r} inside is wrong")


def _reason(error: Exception) -> str:
    """The part of torch's answer that says what was found, without its advice to trust the file."""
    lines = " ".join(str(error).split())
    named = re.search(r"(GLOBAL|Unsupported global|Unsupported operand|Unsupported class|Can only)[^.]*\S*", lines)
    return named.group(0)[:120] if named else lines[:120]


def _bare(tensor: Tensor, layer: int | None, path: str | Path) -> dict[int, Tensor]:
    if layer is None:
        raise ValueError(f"{path} is a bare tensor, which does not say its layer: give it, counted from 0 (--layer 13)")
    return {layer: flat(tensor, path)}


def flat(tensor: Any, path: str | Path) -> Tensor:
    """One direction, float32 [d_model]; ValueError for several in one tensor, for nobody can tell their layers."""
    if not isinstance(tensor, Tensor) or tensor.layout is not torch.strided or not tensor.is_floating_point():
        raise ValueError(f"{path} holds {_describe(tensor)} where floating-point numbers of shape [d_model] are needed")
    if tensor.numel() != max(tensor.shape, default=0) or tensor.numel() < 2:
        raise ValueError(f"{path} holds a tensor of shape {list(tensor.shape)}; save one of shape [d_model] per layer")
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise ValueError(f"{path} is damaged: its tensor is larger than the numbers that it brings")
    return tensor.detach().reshape(-1).float()


def _of_steering_vectors(found: SteeringVectorsObject, path: str | Path) -> dict[int, Tensor]:
    kind, held = getattr(found, "layer_type", None), getattr(found, "layer_activations", None)
    if kind != "decoder_block" or not isinstance(held, dict) or not all(type(key) is int for key in held):
        raise ValueError(
            f"{path} steers {kind!r}; only vectors of the blocks' outputs, 'decoder_block', can be imported"
        )
    return {layer: flat(value, path) for layer, value in held.items()}


def _is_lm_eval(hookpoint: Any, entry: Any) -> bool:
    return isinstance(hookpoint, str) and isinstance(entry, dict) and "steering_vector" in entry


def _of_lm_eval(found: Mapping[str, Mapping[str, Any]], path: str | Path) -> dict[int, Tensor]:
    directions = {}
    for hookpoint, entry in found.items():
        block = re.fullmatch(r"(?:.*\.)?(?:layers|h|blocks)\.(\d+)", hookpoint, re.ASCII)
        whole = entry.get("head_index") is None and entry.get("bias") is None
        factor = entry.get("steering_coefficient", 1.0)
        if not block or entry.get("action") != "add" or not whole or not isinstance(factor, (int, float)):
            raise ValueError(f"{path} does more at {hookpoint!r} than to add a vector to a block's output")
        directions[int(block[1])] = factor * flat(entry["steering_vector"], path)
    return directions


def _describe(found: Any) -> str:
    if isinstance(found, dict):
        return (
            f"a dict with the keys {', '.join(repr(key)[:30] for key in list(found)[:5])}" if found else "an empty dict"
        )
    return f"a tensor of {found.dtype}, {found.layout}" if isinstance(found, Tensor) else f"a {type(found).__name__}"
