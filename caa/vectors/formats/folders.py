"""Vectors that tools write as a folder, or beside a file of JSON that says what they are; safetensors of one tensor."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from caa.hashing import file_digest
from caa.untrusted import fits, read_json
from caa.vectors.formats.content import Content, NoLayerError, check_unlayered, flat
from caa.vectors.formats.torch_files import load_tensors, read_sidecar, sidecar_content

SITES = {
    "resid_post": "block output",
    "resid_pre": "block input",
    "attn_out": "attention output",
    "mlp_out": "MLP output",
}
"""repsteer's components, by the names of `caa.models.sites`."""
_MARKS = {
    "repsteer": ("manifest.json", "tensors.safetensors"),
    "persona-vectors": ("metadata.json", "steering_vector.safetensors"),
    "rotalabs": ("metadata.json", "layer_*.pt"),
}


def folder_kind(folder: Path) -> str:
    """Which tool wrote a folder with a vector in it; ValueError for one that holds none."""
    for kind, patterns in _MARKS.items():
        if all(any(folder.glob(pattern)) for pattern in patterns):
            return kind
    tools = "; ".join(f"{kind}: {' and '.join(patterns)}" for kind, patterns in _MARKS.items())
    raise ValueError(f"{folder} holds no vector of a tool that is known here ({tools})")


def read_repsteer(path: Path, layer: int | None = None, blocks: int | None = None) -> Content:
    """An artifact folder of repsteer whose checksums hold: manifest, tensors, checksums."""
    check_unlayered(path, layer)
    _check_sums(path)
    manifest = read_object(path / "manifest.json")
    version, kind = str(manifest.get("schema_version")), manifest.get("artifact_type")
    if version.split(".")[0] != "1" or kind != "direction":
        raise ValueError(f"{path} is a repsteer {kind!r} of schema {version}; a direction of schema 1 can be imported")
    site = manifest.get("site") or {}
    component, block = site.get("component"), site.get("layer")
    elsewhere = site.get("stream", "language") != "language" or site.get("io", "output") != "output"
    if component not in SITES or elsewhere or site.get("unit") is not None or not isinstance(block, int):
        raise ValueError(f"{path} acts at {site}; a direction for one layer's {', '.join(SITES)} can be imported")
    tensors = _tensors(path / "tensors.safetensors")
    if sorted(tensors) != sorted(manifest.get("tensor_keys") or tensors) or "direction" not in tensors:
        raise ValueError(
            f"{path} holds tensors {sorted(tensors)}, and its manifest names {manifest.get('tensor_keys')}"
        )
    made = manifest.get("model") or {}
    return Content(
        "a repsteer artifact",
        {block: flat(tensors["direction"], path)},
        site=SITES[component],
        model=str(made.get("id") or ""),
        method=str(manifest.get("method") or ""),
    )


def _check_sums(folder: Path) -> None:
    stated = read_object(folder / "checksums.json")
    if stated.get("algorithm") != "sha256" or not isinstance(stated.get("files"), Mapping):
        raise ValueError(f"{folder} has no checksums in SHA-256, so nobody can tell whether it was changed")
    for name in ("manifest.json", "tensors.safetensors"):
        if str(stated["files"].get(name)).removeprefix("sha256:") != file_digest(folder / name):
            raise ValueError(f"{folder} was changed after it was written: {name} has not the checksum that it states")


def read_rotalabs(path: Path, layer: int | None = None, blocks: int | None = None) -> Content:
    """A set of rotalabs-steer: metadata.json with the layers, and for each a tensor with a sidecar of JSON."""
    check_unlayered(path, layer)
    record = read_object(path / "metadata.json")
    layers = record.get("layers")
    if not fits(layers, list[int]) or not layers:
        raise ValueError(f"{path / 'metadata.json'} names no layers")
    directions: dict[int, Tensor] = {}
    for number in layers:
        file = path / f"layer_{number}.pt"
        sidecar = read_sidecar(file)
        if sidecar is None or not file.is_file():
            raise ValueError(f"{path} names layer {number}, and has no {file.name} with {file.stem}.json beside it")
        directions |= sidecar_content(file, load_tensors(file), sidecar).directions
    behavior, model = str(record.get("behavior") or ""), str(record.get("model_name") or "")
    return Content("a set of rotalabs-steer", directions, behavior=behavior, model=model)


def read_persona_vectors(path: Path, layer: int | None = None, blocks: int | None = None) -> Content:
    """A folder of the package persona-vectors: steering_vector.safetensors and metadata.json, which says its layer."""
    check_unlayered(path, layer)
    record = read_object(path / "metadata.json")
    tensors = _tensors(path / "steering_vector.safetensors")
    block = record.get("layer")
    if set(tensors) != {"steering_vector"} or not isinstance(block, int):
        raise ValueError(f"{path} should hold one tensor 'steering_vector', and say its layer in metadata.json")
    direction = flat(tensors["steering_vector"], path)
    if record.get("hidden_size", len(direction)) != len(direction):
        raise ValueError(f"{path} says that its width is {record['hidden_size']}, and it is {len(direction)}")
    alpha = record.get("suggested_alpha")
    notes = (f"it suggests multiplier {alpha:g}",) if isinstance(alpha, (int, float)) else ()
    behavior, model = str(record.get("persona_id") or ""), str(record.get("model_id") or "")
    return Content("a persona vector", {block: direction}, behavior=behavior, model=model, notes=notes)


def read_safetensors(path: Path, layer: int | None = None, blocks: int | None = None) -> Content:
    """One bare tensor, for the layer that is given; or what a tool's sidecar in the same folder says of it."""
    tensors = _tensors(path)
    if set(tensors) == {"steering_vector"} and layer is None and (path.parent / "metadata.json").is_file():
        return read_persona_vectors(path.parent)
    if len(tensors) != 1:
        raise ValueError(f"{path} holds tensors named {list(tensors)[:5]}; a single one can be imported")
    if layer is None:
        raise NoLayerError(f"{path} holds a bare tensor, which is imported for a layer that you give (--layer 13)")
    return Content("a bare tensor", {layer: flat(next(iter(tensors.values())), path)})


def read_object(path: Path) -> dict[str, Any]:
    """A file of JSON that holds an object; ValueError for anything else."""
    try:
        record = read_json(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as JSON ({error})") from error
    if not isinstance(record, dict):
        raise ValueError(f"{path} is damaged: it holds a {type(record).__name__}, not an object")
    return record


def _tensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is no safetensors file, or a damaged one ({error})") from error
