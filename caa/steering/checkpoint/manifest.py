"""A folder and its manifest: hashes of every file go in; a folder that was tampered with or cut short is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from caa.hashing import WHOLE, file_digest, json_digest
from caa.hub import CARD
from caa.untrusted import check_fields, read_object


def seal(folder: Path, manifest: dict[str, Any], name: str) -> None:
    """Write the manifest, with the SHA-256 of every other file of the folder and of itself."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != CARD)
    hashes = {path.relative_to(folder).as_posix(): file_digest(path) for path in files}
    whole = manifest | {"files": hashes}
    (folder / name).write_text(json.dumps(whole | {"seal": _digest(whole)}, indent=2), encoding="utf-8")


def read_manifest(folder: Path, name: str) -> dict[str, Any]:
    """The manifest as it stands there; ValueError if it was cut short."""
    try:
        return read_object(folder / name, "it")
    except ValueError as error:
        raise ValueError(f"{folder / name} is damaged ({error}); save or download the folder again") from error


def check_seal(folder: Path, manifest: dict[str, Any]) -> None:
    """Compare the manifest and every file with their hashes; ValueError naming what is missing or was changed."""
    unsealed = {key: value for key, value in manifest.items() if key != "seal"}
    if manifest.get("seal") != _digest(unsealed):
        raise ValueError(
            f"the manifest of {folder} was changed after it was written: its hash is another. "
            "To change such a folder, load it, change what it does and save it again."
        )
    hashes: dict[str, str] = check_fields(manifest, {"files": dict[str, str]}, f"the manifest of {folder}")["files"]
    outside = [name for name in hashes if not _lies_in(folder, name)]
    missing = [name for name in hashes if not (folder / name).is_file()]
    for what, names in (("lie outside of it", outside), ("are missing", missing)):
        if names:
            raise ValueError(f"{folder} is not whole: files that its manifest names {what}: {', '.join(names)}")
    if changed := [name for name, known in hashes.items() if file_digest(folder / name) != known]:
        raise ValueError(
            f"{folder} was damaged or changed: other content than its hash says in {', '.join(changed)}. "
            "Save or download it again."
        )


def inside(folder: Path, name: str) -> Path:
    """Where a name in a folder's manifest leads; ValueError if that is not in the folder, be it by a link."""
    if not _lies_in(folder, name):
        raise ValueError(f"{folder} is not whole: its manifest names {name}, which lies outside of it")
    return folder / name


def _lies_in(folder: Path, name: str) -> bool:
    folder = folder.resolve()
    # What huggingface_hub downloads into `snapshots` are links to the files that it keeps in `blobs`.
    homes = [folder, folder.parents[1] / "blobs"] if folder.parent.name == "snapshots" else [folder]
    plain = not Path(name).is_absolute() and ".." not in Path(name).parts
    return plain and any((folder / name).resolve().is_relative_to(home) for home in homes)


def _digest(manifest: dict[str, Any]) -> str:
    return json_digest(manifest, sort_keys=True, digits=WHOLE)
