"""A steering vector to a GGUF control vector and back: the format of llama.cpp, repeng and EasySteer."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from caa.files import replacing
from caa.vectors.vector import Provenance, SteeringVector

ARCHITECTURES = ("controlvector", "steervector")
"""What such a file says it is; the second is EasySteer's."""
SOURCE, HASH = "caa.source", "caa.sha256"
"""Two fields of our own, which other tools skip: the provenance as JSON, and a hash of it and of the numbers."""


def write_gguf(vector: SteeringVector, path: str | Path, model_type: str) -> Path:
    """Write a new file, complete or not at all: `direction.N`, float32 [d_model], acts on the output of block N.

    The file has no multiplier: scale the vector first. Layer N is `direction.N` for all three readers: repeng and
    EasySteer count blocks from 0, and llama.cpp does too, but has no slot for `direction.0` (llama-adapter.cpp).
    `model_type` is the base's `config.model_type`, a hint for whoever opens the file.
    """
    gguf = _gguf()
    if Path(path).exists():
        raise FileExistsError(f"{path} is there already; choose another name or remove it first")
    source = json.dumps(asdict(vector.source))
    with replacing(path) as scratch:
        writer = gguf.GGUFWriter(scratch, ARCHITECTURES[0])
        writer.add_string(f"{ARCHITECTURES[0]}.model_hint", model_type)
        writer.add_uint32(f"{ARCHITECTURES[0]}.layer_count", len(vector.layers))
        writer.add_string(SOURCE, source)
        writer.add_string(HASH, _hash(source, vector))
        for layer, direction in vector.directions.items():
            writer.add_tensor(f"direction.{layer}", direction.contiguous().numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return Path(path)


def read_gguf(path: str | Path) -> SteeringVector:
    """Read a control vector of llama.cpp, repeng, EasySteer or `write_gguf`; ValueError for anything else.

    A file that `write_gguf` made is checked against its hash, and its provenance comes back.
    """
    reader = _open(path)
    architecture = _text(reader, "general.architecture")
    if architecture not in ARCHITECTURES:
        raise ValueError(f"{path} is no control vector: it says it is {architecture or 'nothing'!r}")
    directions = {_layer(tensor.name, path): _numbers(tensor, path) for tensor in _directions(reader)}
    if not directions:
        raise ValueError(f"{path} has no tensor named direction.N, so it steers nothing")
    stated = _text(reader, SOURCE)
    vector = SteeringVector(directions, _source(stated, path) if stated else Provenance())
    if stated and _text(reader, HASH) != _hash(stated, vector):
        raise ValueError(f"{path} was changed after it was written: its content has not the hash that it states")
    return vector


def model_hint(path: str | Path) -> str:
    """What a control vector says of its base: usually the `model_type` of its config; empty if it says nothing."""
    return _text(_open(path), f"{ARCHITECTURES[0]}.model_hint")


def _gguf() -> ModuleType:
    try:
        import gguf
    except ImportError as error:
        raise ImportError("GGUF files need the gguf package: pip install 'caa[gguf]'") from error
    return gguf


def _open(path: str | Path) -> Any:
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no GGUF file at {path}")
    reader = _gguf().GGUFReader
    try:
        return reader(path)
    except Exception as error:  # the reader checks little, and trips over a damaged file in many ways
        raise ValueError(f"{path} is no GGUF file, or a damaged one ({error})") from error


def _text(reader: Any, name: str) -> str:
    field = reader.get_field(name)
    try:
        value = field.contents() if field else ""
    except UnicodeDecodeError as error:
        raise ValueError(f"a damaged GGUF file: its field {name!r} is no text ({error})") from error
    return value if isinstance(value, str) else ""


def _directions(reader: Any) -> list[Any]:
    return [tensor for tensor in reader.tensors if tensor.name.startswith("direction.")]


def _layer(name: str, path: str | Path) -> int:
    match = re.fullmatch(r"direction\.(0|[1-9][0-9]*)", name)  # "direction.01" would be another of layer 1
    if not match:
        raise ValueError(f"{path} has a tensor {name!r}; a control vector's are named direction.N, N a layer from 0 on")
    return int(match[1])


def _numbers(tensor: Any, path: str | Path) -> Tensor:
    if tensor.tensor_type.name not in ("F32", "F16"):
        kind = tensor.tensor_type.name
        raise ValueError(f"{path} holds {tensor.name} as {kind}; a control vector's numbers are F32, or F16")
    return torch.from_numpy(tensor.data.astype("float32", copy=True))


def _hash(source: str, vector: SteeringVector) -> str:
    """64 hex digits of the provenance, the layers and their numbers."""
    pieces = (f"{layer}".encode() + v.contiguous().numpy().tobytes() for layer, v in vector.directions.items())
    return hashlib.sha256(source.encode() + b"".join(pieces)).hexdigest()


def _source(stated: str, path: str | Path) -> Provenance:
    try:
        return Provenance.from_json(stated)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
