"""A vector, an adapter or a steered adapter goes to the Hub: only the files that make it one, after they were read."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from caa.hub import ADAPTER, CARD, STEERED, VECTOR_FILE, upload
from caa.models.adapters import read_record
from caa.steering.checkpoint.manifest import inside
from caa.steering.checkpoint.steered import read_steered
from caa.vectors.vector import SteeringVector


def publish(source: str | Path, name: str, *, private: bool | None = None, update: bool = False) -> str:
    """Put a vector's file, or the folder of an adapter or a steered adapter, on the Hub as `name` ("you/name").

    The address of the commit. ValueError for anything else and for what is damaged, FileExistsError, without `update`,
    for a repository that is there already. The token is that of `hf auth login`.
    """
    source = Path(source)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / source.name
        folder.mkdir()
        _stage(source, folder, name)
        return upload(folder, name, private=private, update=update)


def _stage(source: Path, folder: Path, name: str) -> None:
    if source.is_file():
        vector = SteeringVector.load(source)
        shutil.copyfile(source, folder / VECTOR_FILE)
        (folder / CARD).write_text(_vector_card(vector, name), encoding="utf-8")
    elif (source / STEERED.key).is_file():
        _copy(source, folder, [*_steered_files(source), STEERED.key, CARD])
    elif (source / ADAPTER.key).is_file():
        if not (source / "adapter_model.safetensors").is_file():
            raise ValueError(f"{source} holds no adapter_model.safetensors; weights of another kind are not put there")
        read_record(source)
        _copy(source, folder, ADAPTER.files)
    else:
        raise ValueError(f"{source} is neither a vector's file nor the folder of an adapter or a steered adapter")


def _steered_files(source: Path) -> list[str]:
    """Of a folder that is as its manifest says."""
    manifest = read_steered(source)
    if "files" not in manifest:
        raise ValueError(f"{source} has the first format, without hashes: load it, and save it again")
    return list(manifest["files"])


def _copy(source: Path, folder: Path, files: Sequence[str]) -> None:
    for file in files:
        if (source / file).is_file():
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(inside(source, file), folder / file)


def _vector_card(vector: SteeringVector, name: str) -> str:
    """Markdown with the front matter that the Hub reads; what the vector says of itself is shown as code."""
    facts = "\n".join(
        [repr(vector), *vector.source.history, *(f"layer {n}: {v:.4g}" for n, v in vector.norms().items())]
    )
    return f"""---
library_name: caa
tags: ["caa", "activation-steering"]
---

# A steering vector

```python
from caa import SteeringVector

vector = SteeringVector.load({json.dumps(name)})
```

What it is, what was done to it, and its norm at each layer (the output of that block, counted from 0):

````text
{facts.replace("`", "'")}
````
"""
