"""Any tool's vector file in, a SteeringVector out, which says that it was imported and from what."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from safetensors import SafetensorError, safe_open

from caa.hashing import file_digest
from caa.vectors.formats.gguf import model_hint, read_gguf
from caa.vectors.formats.torch_files import flat, read_torch
from caa.vectors.vector import FORMAT, Provenance, SteeringVector


def import_vector(path: str | Path, layer: int | None = None, *, behavior: str = "", model: str = "") -> SteeringVector:
    """Read a vector that another tool wrote: GGUF, torch.save, safetensors. What a file is, its content says.

    `layer` is for a file that holds one tensor and does not say whose (nrimsky/CAA): the block whose output it steers,
    counted from 0. `behavior` and `model` are noted as its origin. A file is read as tensors only: one that holds more,
    a damaged one and an unknown one are a ValueError that says what to do.
    """
    if layer is not None and layer < 0:
        raise ValueError(f"layers are counted from 0, so there is no layer {layer}")
    kind = file_kind(path)
    if kind == "caa":
        raise ValueError(f"{path} is a steering vector of caa already; load it as it is")
    read = {"gguf": _from_gguf, "safetensors": _from_safetensors, "torch": _from_torch}[kind]
    vector = read(Path(path), layer)
    known = vector.source
    method, behavior, model = known.method or "imported", behavior or known.behavior, model or known.model
    return replace(vector, source=replace(known, method=method, behavior=behavior, model=model))


def file_kind(path: str | Path) -> str:
    """A file is "gguf", "caa" (our own safetensors), "safetensors" (another's), or "torch": all the rest."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no file at {path}")
    with Path(path).open("rb") as file:
        head = file.read(9)
    if head[:4] == b"GGUF":
        return "gguf"
    if head[8:9] != b"{" or head[:1] in (b"P", b"\x80"):
        return "torch"
    try:
        with safe_open(path, framework="pt") as file:
            return "caa" if (file.metadata() or {}).get("format") == FORMAT else "safetensors"
    except SafetensorError as error:
        raise ValueError(f"{path} is a damaged safetensors file ({error})") from error


def _from_gguf(path: Path, layer: int | None) -> SteeringVector:
    if layer is not None:
        raise ValueError(f"{path} says its layers itself; leave the layer out")
    vector, hint = read_gguf(path), model_hint(path)
    what = f"a GGUF control vector for {hint!r}" if hint else "a GGUF control vector"
    return replace(vector, source=vector.source.then(_step(what, path)))


def _from_torch(path: Path, layer: int | None) -> SteeringVector:
    directions, what = read_torch(path, layer)
    return SteeringVector(directions, Provenance().then(_step(what, path)))


def _from_safetensors(path: Path, layer: int | None) -> SteeringVector:
    with safe_open(path, framework="pt") as file:
        names = list(file.keys())
        if len(names) != 1 or layer is None:
            raise ValueError(f"{path} holds tensors named {names[:5]}; one can be imported, for a layer that you give")
        direction = flat(file.get_tensor(names[0]), path)
    return SteeringVector({layer: direction}, Provenance().then(_step("a bare tensor", path)))


def _step(what: str, path: Path) -> str:
    return f"imported from {what}, sha256 {file_digest(path)[:16]}"
