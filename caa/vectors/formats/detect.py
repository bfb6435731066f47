"""Any tool's vector file in, a SteeringVector out, which says that it was imported and from what."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from safetensors import SafetensorError, safe_open

from caa.hashing import file_digest
from caa.vectors.formats.content import Content, from_zero
from caa.vectors.formats.folders import (
    folder_kind,
    read_persona_vectors,
    read_repsteer,
    read_rotalabs,
    read_safetensors,
)
from caa.vectors.formats.gguf import read_control_vector
from caa.vectors.formats.svec import read_svec
from caa.vectors.formats.torch_files import read_torch
from caa.vectors.vector import FORMAT, Provenance, SteeringVector

LONGEST_HEADER = 100_000_000
"""Bytes of a safetensors header that its library accepts."""
PICKLE = tuple(bytes([0x80, version]) for version in range(2, 6))
Reader = Callable[[Path, int | None, int | None], Content]
READERS: dict[str, Reader] = {
    "gguf": read_control_vector,
    "safetensors": read_safetensors,
    "torch": read_torch,
    "svec": read_svec,
    "repsteer": read_repsteer,
    "rotalabs": read_rotalabs,
    "persona-vectors": read_persona_vectors,
}
"""Kind of file or folder -> its reader, of a path, the layer given and the number of the base's blocks, if known."""


def import_vector(
    path: str | Path, layer: int | None = None, *, blocks: int | None = None, behavior: str = "", model: str = ""
) -> SteeringVector:
    """Read a vector that another tool wrote, by what its content says it is; `docs/formats.md` lists the tools.

    Layer i of the result is block i, counted from 0, however the file counts. What the file states of site, mode,
    scale and layers is honored; what cannot be is refused. It is read as tensors only: a file that holds more, a
    damaged one and an unknown one are a ValueError that says what to do.

    Args:
        path: a file, or the folder of a tool that writes folders.
        layer: for a file of one tensor that does not say whose: the block whose output it steers, counted from 0.
        blocks: how many blocks the base has, for files that count layers from the end (-1), or that hold one row for
            each and may have one of the embeddings too.
        behavior: noted as origin, in place of what the file says.
        model: likewise.
    """
    if layer is not None and layer < 0:
        raise ValueError(f"layers are counted from 0, so there is no layer {layer}")
    kind = file_kind(path)
    if kind == "caa":
        raise ValueError(f"{path} is a steering vector of caa already; load it as it is")
    return as_vector(READERS[kind](Path(path), layer, blocks), Path(path), blocks, behavior, model)


def as_vector(content: Content, path: Path, blocks: int | None, behavior: str = "", model: str = "") -> SteeringVector:
    """What a file said, as a vector whose history says so."""
    origin = content.origin or Provenance(
        model=content.model, behavior=content.behavior, method=content.method, site=content.site
    )
    origin = replace(
        origin,
        method=origin.method or "imported",
        behavior=behavior or origin.behavior,
        model=model or origin.model,
    )
    step = "; ".join([f"imported from {content.kind}, sha256 {_digest(path)[:16]}", *content.notes])
    return SteeringVector(from_zero(content.directions, blocks, path), origin.then(step))


def _digest(path: Path) -> str:
    tensors = sorted(path.glob("*.safetensors")) or sorted(path.glob("*.pt")) if path.is_dir() else [path]
    return file_digest(tensors[0])


def file_kind(path: str | Path) -> str:
    """What a file or folder is: "caa" (our own safetensors), or a key of `READERS`; ValueError for anything else.

    Formats are told by their magic. Safetensors has none but the length of its header, which may begin like any other
    file; so that is asked first, and must fit the file.
    """
    path = Path(path)
    if path.is_dir():
        return folder_kind(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file at {path}")
    with path.open("rb") as file:
        head = file.read(64)
    if head[:4] == b"GGUF":
        return "gguf"
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= min(path.stat().st_size - 8, LONGEST_HEADER):
        return _safetensors_kind(path)
    if head[:4] == b"PK\x03\x04" or head[:2] in PICKLE:
        return "torch"
    if head.lstrip()[:1] == b"{":
        return "svec"
    raise ValueError(
        f"{path} is none of the files that are known here (GGUF, safetensors, torch.save, .svec), or a damaged one"
    )


def _safetensors_kind(path: Path) -> str:
    try:
        with safe_open(path, framework="pt") as file:
            return "caa" if (file.metadata() or {}).get("format") == FORMAT else "safetensors"
    except SafetensorError as error:
        raise ValueError(f"{path} is a damaged safetensors file ({error})") from error
