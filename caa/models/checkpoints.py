"""A full finetune of a base, a checkpoint of its own: proved to be one, and loaded where its base is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from caa.hub import local_file
from caa.models.adapters import PROVENANCE, read_record
from caa.models.blocks import is_quantized
from caa.models.fingerprint import fingerprint, has_fingerprint, sample_parameters
from caa.models.loading import load_model


@dataclass(frozen=True)
class Checkpoint:
    """A model whose parameters have the names and shapes of its base's, and other numbers."""

    path: str
    """A folder, or a name on the Hub."""
    fingerprint: str
    record: dict[str, Any] = field(default_factory=dict)
    """What is known of how it was made."""


def read_checkpoint(path: str | Path, base: Any) -> Checkpoint:
    """Load a checkpoint once, to prove that it is a finetune of this base; only what is known of it is kept.

    ValueError, with the reason, for one of another family or size, for one that was trained on another base, and for a
    quantized base, whose weights no checkpoint can be held against.
    """
    if is_quantized(base):
        raise ValueError(
            f"{path} is no adapter, and a full checkpoint cannot take the place of this quantized base, whose weights "
            "are others than those that it was trained on: load the base in full, or finetune it with adapters"
        )
    file = local_file(path, PROVENANCE)
    record = read_record(file.parent) if file else {}
    if record and not has_fingerprint(base, record["base_fingerprint"]):
        raise ValueError(
            f"{path} was trained on {record['base']!r} ({record['base_fingerprint']}), and this model is another one "
            f"({fingerprint(base)}): load that base"
        )
    model = load_alike(path, base)
    shapes, wanted = _shapes(model), _shapes(base)
    if different := sorted(name for name in shapes | wanted if shapes.get(name) != wanted.get(name)):
        name = different[0]
        raise ValueError(
            f"{path} is no finetune of this base: {len(different)} parameters differ in name or shape ({name}: "
            f"{shapes.get(name)}, in the base {wanted.get(name)})"
        )
    return Checkpoint(str(path), fingerprint(model), record)


def _shapes(model: Any) -> dict[str, tuple[int, ...]]:
    return {name: sample.shape for name, sample in sample_parameters(model).items()}


def load_alike(path: str | Path, base: Any) -> Any:
    """The model of a checkpoint, in the base's dtype and where the base is."""
    dtype, device = str(base.dtype).removeprefix("torch."), "auto" if _is_spread(base) else str(base.device)
    model, _ = load_model(str(path), dtype=dtype, device=device)
    return model


def _is_spread(model: Any) -> bool:
    return len(set((getattr(model, "hf_device_map", None) or {}).values())) > 1


@contextmanager
def aside(model: Any) -> Iterator[None]:
    """Its weights wait in main memory, so that the accelerator has room for another model; not if they are spread."""
    device = model.device
    if device.type == "cpu" or _is_spread(model) or getattr(model, "is_quantized", False):
        yield
        return
    model.to("cpu")
    try:
        yield
    finally:
        model.to(device)
