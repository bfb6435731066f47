"""torch.save files of other tools: tensors in or out, and nothing else. No code in such a file is ever run."""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from caa.files import replacing
from caa.untrusted import read_json
from caa.vectors.formats.content import Content, NoLayerError, check_floating, check_unlayered, describe, flat


class SteeringVectorsObject:
    """Stands in for `steering_vectors.SteeringVector` while its file is read: it takes the fields, it does nothing."""

    layer_activations: Mapping[int, Tensor]
    layer_type: str


STAND_IN = (SteeringVectorsObject, "steering_vectors.steering_vector.SteeringVector")
# What a NumPy array is pickled as: numbers, a shape, a dtype. vLLM-Hook keeps its directions so.
_NUMPY: list[Any] = [np.ndarray, np.dtype, *(type(np.dtype(name)) for name in ("float16", "float32", "float64"))]
_NUMPY += [(np.zeros(0).__reduce__()[0], f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")]


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


def read_torch(path: str | Path, layer: int | None = None, blocks: int | None = None) -> Content:
    """What a file holds; ValueError for a damaged file and one that holds more than tensors.

    Read are: one tensor (nrimsky/CAA; `layer` says which block it is for, or a sidecar of rotalabs-steer), a row for
    each block (hidden-directions, hotwire) or for each of `hidden_states` (persona_vectors), which of the two the
    number of the base's `blocks` says; a dict of tensors by layer; the files of lm-evaluation-harness, vLLM-Hook and
    of hidden-directions' baked biases; and a `steering_vectors.SteeringVector` that torch.save wrote.
    """
    content = load_tensors(path)
    if isinstance(content, Tensor):
        return _tensor(content, layer, blocks, path)
    if isinstance(content, dict) and "dir" in content:
        return _vllm_hook(content, layer, path)
    by_layer = _by_layer(content, path)
    check_unlayered(path, layer)
    return by_layer


def _tensor(tensor: Tensor, layer: int | None, blocks: int | None, path: str | Path) -> Content:
    check_floating(tensor, path)
    if tensor.ndim == 2 and min(tensor.shape) > 1:
        return _rows(tensor, layer, blocks, path)
    sidecar = read_sidecar(path)
    if sidecar is not None and layer is None:
        return sidecar_content(path, tensor, sidecar)
    return Content("a bare tensor", _bare(tensor, layer, path))


def _rows(tensor: Tensor, layer: int | None, blocks: int | None, path: str | Path) -> Content:
    """One row for each block, or for each of `hidden_states`, the first of which is the embeddings'."""
    count, width = tensor.shape
    if blocks not in (count, count - 1):
        known = "" if blocks is None else f", and a base of {blocks} blocks fits neither"
        raise ValueError(
            f"{path} holds {count} rows of {width} numbers and does not say how they are counted{known}. With blocks="
            f"{count}, row L is block L (hidden-directions, hotwire); with blocks={count - 1}, row i is "
            f"hidden_states[i], so that row L + 1 is block L and row 0 the embeddings (persona_vectors)."
        )
    first = count - blocks
    rows = {row - first: flat(tensor[row].clone(), path) for row in range(first, count)}
    kept = {number: row for number, row in rows.items() if row.any() and layer in (None, number)}
    if not kept:
        raise ValueError(f"{path} has nothing but zeros" + (f" for layer {layer}" if layer is not None else ""))
    if not first:
        return Content("a tensor of a row for each block", kept)
    notes = ["row i is hidden_states[i], so block i - 1; row 0, the embeddings, is left out"]
    if blocks - 1 in kept:
        notes.append(f"layer {blocks - 1} was read behind the final norm")
    return Content("a tensor of a row for each hidden state", kept, notes=tuple(notes))


def read_sidecar(path: str | Path) -> dict[str, Any] | None:
    """What rotalabs-steer says of a tensor, in the file of JSON beside it; None if there is no such file."""
    try:
        record = read_json(Path(path).with_suffix(".json"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) and "layer_index" in record and "vector_shape" in record else None


def sidecar_content(path: str | Path, tensor: Any, record: Mapping[str, Any]) -> Content:
    """A tensor of rotalabs-steer with what its sidecar says: layer L is the output of block L."""
    direction, layer = flat(tensor, path), record["layer_index"]
    if not isinstance(layer, int) or list(tensor.shape) != record["vector_shape"]:
        raise ValueError(
            f"{path} has shape {list(tensor.shape)}, and its sidecar says {record['vector_shape']}, layer {layer!r}: "
            "the two do not belong together"
        )
    behavior, model = str(record.get("behavior") or ""), str(record.get("model_name") or "")
    method = str(record.get("extraction_method") or "")
    return Content("a tensor of rotalabs-steer", {layer: direction}, behavior=behavior, model=model, method=method)


def _vllm_hook(content: Mapping[str, Any], layer: int | None, path: str | Path) -> Content:
    """The direction of vLLM-Hook; its layer stands in the tool's configuration, as `optimal_layer`."""
    if layer is None:
        raise NoLayerError(
            f"{path} is a vector of vLLM-Hook, which does not say its layer: give the `optimal_layer` of its "
            "configuration (--layer 13)"
        )
    notes = ("its `avg_proj`, which the method adjust_rs sets the projection to, is left out",)
    directions = {layer: flat(_as_tensor(content["dir"]), path)}
    return Content("a vector of vLLM-Hook", directions, notes=notes if "avg_proj" in content else ())


def _as_tensor(value: Any) -> Any:
    return torch.from_numpy(value.astype("float32")) if isinstance(value, np.ndarray) else value


def _by_layer(content: Any, path: str | Path) -> Content:
    if isinstance(content, SteeringVectorsObject):
        return Content("a steering-vectors object", _of_steering_vectors(content, path))
    if isinstance(content, dict) and content and all(type(key) is int for key in content):
        return Content("a dict of tensors by layer", {key: flat(value, path) for key, value in content.items()})
    if isinstance(content, dict) and content and all(_is_lm_eval(key, entry) for key, entry in content.items()):
        return Content("a steering file of lm-evaluation-harness", _of_lm_eval(content, path))
    if isinstance(content, dict) and {"bias", "layer", "base_model"} <= content.keys():
        layer, model = content["layer"], str(content["base_model"])
        return Content("a baked bias of hidden-directions", {layer: flat(content["bias"], path)}, model=model)
    raise ValueError(
        f"{path} holds {describe(content)}. Known are a tensor, a dict of tensors by layer, and the files of "
        "steering-vectors, vLLM-Hook, hidden-directions and lm-evaluation-harness. Save it again as "
        "torch.save({layer: tensor, ...}, path)."
    )


def load_tensors(path: str | Path) -> Any:
    """What a torch.save file holds, read as tensors and plain containers of them; ValueError if it holds more."""
    _check_archive(path)
    try:
        with torch.serialization.safe_globals([STAND_IN, *_NUMPY]), warnings.catch_warnings():
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
            _check_sizes(archive, Path(path).stat().st_size)
            broken = archive.testzip()
    except Exception as error:  # zipfile, too, has many words for damage
        raise ValueError(f"{path} is damaged ({error})") from error
    if broken:
        raise ValueError(f"{path} is damaged, or was changed: the checksum of {broken!r} inside is wrong")


def _check_sizes(archive: zipfile.ZipFile, held: int) -> None:
    """ValueError where less is in the file than it says: torch.save compresses nothing, and torch.load takes the memory
    that an entry asks for before it reads the entry."""
    entries = archive.infolist()
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise ValueError("it is compressed, as torch.save writes no file")
    if sum(entry.file_size for entry in entries) > held:
        raise ValueError(f"it says that it holds more than its {held:,} bytes")


def _reason(error: Exception) -> str:
    """The part of torch's answer that says what was found, without its advice to trust the file."""
    lines = " ".join(str(error).split())
    named = re.search(r"(GLOBAL|Unsupported global|Unsupported operand|Unsupported class|Can only)[^.]*\S*", lines)
    return named.group(0)[:120] if named else lines[:120]


def _bare(tensor: Tensor, layer: int | None, path: str | Path) -> dict[int, Tensor]:
    if layer is None:
        raise NoLayerError(
            f"{path} is a bare tensor, which does not say its layer: give it, counted from 0 (--layer 13)"
        )
    return {layer: flat(tensor, path)}


def _of_steering_vectors(vector: SteeringVectorsObject, path: str | Path) -> dict[int, Tensor]:
    kind, held = getattr(vector, "layer_type", None), getattr(vector, "layer_activations", None)
    if kind != "decoder_block" or not isinstance(held, dict) or not all(type(key) is int for key in held):
        raise ValueError(
            f"{path} steers {kind!r}; only vectors of the blocks' outputs, 'decoder_block', can be imported"
        )
    return {layer: flat(value, path) for layer, value in held.items()}


def _is_lm_eval(hookpoint: Any, entry: Any) -> bool:
    return isinstance(hookpoint, str) and isinstance(entry, dict) and "steering_vector" in entry


def _of_lm_eval(config: Mapping[str, Mapping[str, Any]], path: str | Path) -> dict[int, Tensor]:
    directions = {}
    for hookpoint, entry in config.items():
        block = re.fullmatch(r"(?:.*\.)?(?:layers|h|blocks)\.(\d+)", hookpoint, re.ASCII)
        whole = entry.get("head_index") is None and entry.get("bias") is None
        factor = entry.get("steering_coefficient", 1.0)
        if not block or entry.get("action") != "add" or not whole or not isinstance(factor, (int, float)):
            raise ValueError(f"{path} does more at {hookpoint!r} than to add a vector to a block's output")
        directions[int(block[1])] = factor * flat(entry["steering_vector"], path)
    return directions
