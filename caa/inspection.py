"""Any file or folder of this field in, what it is, what is in it and whether it fits a given base out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from caa.hashing import file_digest
from caa.hub import ADAPTER, STEERED, VECTOR, VECTOR_FILE, address_of, holds, local_path
from caa.models.gguf import GgufHeader, describe, read_header
from caa.untrusted import read_object
from caa.vectors.formats.content import NoLayerError
from caa.vectors.formats.detect import READERS, as_vector, file_kind
from caa.vectors.formats.folders import folder_kind
from caa.vectors.formats.gguf import model_hint, read_gguf
from caa.vectors.vector import SteeringVector


@dataclass
class Finding:
    """What was found. Texts come from the file as they are: escape them before you show them."""

    kind: str
    facts: dict[str, str] = field(default_factory=dict)
    norms: dict[str, dict[int, float]] = field(default_factory=dict)
    """vector -> layer -> Euclidean norm, in residual-stream units."""
    verdicts: list[tuple[bool, str]] = field(default_factory=list)
    """Whether it fits the base, point by point, and why."""


@dataclass
class Base:
    """What an artefact asks of its base; empty where it does not say."""

    widths: set[int] = field(default_factory=set)
    layers: set[int] = field(default_factory=set)
    model_type: str = ""
    fingerprints: set[str] = field(default_factory=set)
    modules: dict[str, int] = field(default_factory=dict)
    """LoRA's modules -> their input width."""


def inspect(path: str | Path, model: str | None = None) -> Finding:
    """Look into a vector of any tool, a steered adapter, a PEFT adapter, a model in a GGUF file, or a run's folder.

    With `model`, named as `load_model` takes it, compare it with that base: by its config, and by its
    weights too where the artefact states a fingerprint. Nothing of the file is run. ValueError for anything else.
    """
    from caa.models.names import model_path

    path = _local(Path(model_path(str(path))))
    finding, base = _folder(path) if path.is_dir() else _file(path)
    if model:
        finding.verdicts = list(verdicts(base, model))
    return finding


def _local(path: Path) -> Path:
    """The same path, or where the Hub's files of that name came, whatever they are."""
    for kind in (STEERED, ADAPTER, VECTOR):
        if address_of(path) and holds(path, kind.key):
            folder = local_path(path, kind)
            return folder / VECTOR_FILE if kind is VECTOR else folder
    return local_path(path, STEERED)


def misfits(path: str | Path, model: str) -> list[str]:
    """Why a file or folder does not fit a base, by the base's config alone: no weights are read; [] if it fits."""
    path = Path(path)
    _, base = _folder(path) if path.is_dir() else _file(path)
    points = verdicts(replace(base, fingerprints=set()), model)
    return [reason for fits, reason in points if not fits]


def _file(path: Path) -> tuple[Finding, Base]:
    kind = file_kind(path)
    if kind == "caa":
        return _vector(Finding("steering vector of caa"), SteeringVector.load(path))
    if kind == "gguf" and (header := read_header(path)).of_architecture("block_count"):
        return _model(header)
    if kind == "gguf":
        hint = model_hint(path)
        finding, base = _vector(Finding("GGUF control vector", {"model hint": hint}), read_gguf(path))
        base.model_type = hint
        return finding, base
    return _foreign(path, kind)


def _model(header: GgufHeader) -> tuple[Finding, Base]:
    """Compared with another model, it is asked whether vectors of the one could steer the other."""
    layers = set(range(int(header.of_architecture("block_count"))))
    return Finding("model in a GGUF file", dict(describe(header))), Base(
        {int(header.of_architecture("embedding_length"))}, layers
    )


def _foreign(path: Path, kind: str) -> tuple[Finding, Base]:
    """Another tool's file or folder; a bare tensor is looked into as if it were one of layer 0."""
    title = "torch.save file" if kind == "torch" else f"{kind} file"
    try:
        content, says_layer = READERS[kind](path, None, None), True
    except NoLayerError:
        content, says_layer = READERS[kind](path, 0, None), False
    finding, base = _vector(Finding(f"{title}: {content.kind}"), as_vector(content, path, None))
    if not path.is_dir():
        finding.facts["sha256"] = file_digest(path)
    if not says_layer:
        finding.facts["layers"], base.layers = "it does not say (`caa import --layer N`)", set()
    return finding, base


def _vector(finding: Finding, vector: SteeringVector) -> tuple[Finding, Base]:
    finding.facts |= {"layers": listed(vector.layers), "width": str(vector.width)} | _origin(vector)
    finding.norms["norm"] = vector.norms()
    known = getattr(vector.source, "model_fingerprint", "")
    return finding, Base({vector.width}, set(vector.layers), fingerprints={known} - {""})


def _origin(vector: SteeringVector) -> dict[str, str]:
    stated = {name.replace("_", " "): value for name, value in asdict(vector.source).items() if value}
    history = stated.pop("history", ())
    return {name: str(value) for name, value in stated.items()} | ({"history": "; ".join(history)} if history else {})


def _folder(path: Path) -> tuple[Finding, Base]:
    from caa.steering.checkpoint.steered import MANIFEST

    if (path / MANIFEST).exists():
        return _steered(path, _json(path / MANIFEST))
    if (path / "adapter_config.json").exists():
        return _adapter(path, Finding("PEFT adapter"), Base())
    if (path / "rows.jsonl").exists():
        return _run(path)
    try:
        kind = folder_kind(path)
    except ValueError as error:
        raise ValueError(
            f"{path} holds nothing that is known here: no steering.json (steered adapter), no adapter_config.json "
            f"(PEFT adapter), no rows.jsonl (run), and no vector ({error})"
        ) from error
    return _foreign(path, kind)


def _steered(path: Path, manifest: dict[str, Any]) -> tuple[Finding, Base]:
    finding, base = Finding("steered adapter"), Base()
    try:
        stated = manifest["base"]
        name, known = (
            (stated["name"], stated["fingerprint"])
            if isinstance(stated, dict)
            else (stated, manifest["base_fingerprint"])
        )
        finding.facts |= {"base": str(name), "base fingerprint": str(known)}
        base.fingerprints = {str(known)}
        for number, record in enumerate(manifest["interventions"], start=1):
            vector = SteeringVector.load(path / Path(record["vector"]).name)
            finding.facts[f"intervention {number}"] = _intervention(vector, record)
            finding.norms[f"{number}: {vector.source.behavior or 'vector'}"] = vector.norms()
            base.widths.add(vector.width)
            base.layers.add(int(record["layer"]))
    except (LookupError, TypeError) as error:
        raise ValueError(f"{path} has a steering.json that cannot be read ({error!r})") from error
    return _adapter(path, finding, base) if (path / "adapter_config.json").exists() else (finding, base)


def _intervention(vector: SteeringVector, record: dict[str, Any]) -> str:
    multipliers = "/".join(f"{m:+g}" for m in record["multiplier"])
    gated = f", if {record['gate']}" if "gate" in record else ""
    gated += f", at the {record['site']}" if "site" in record else ""
    name = vector.source.behavior or "vector"
    return f"{name} x {multipliers}, layer {record['layer']}, {record['operator']}, {record['where']}{gated}"


def _adapter(path: Path, finding: Finding, base: Base) -> tuple[Finding, Base]:
    from safetensors import SafetensorError, safe_open

    config, record = _json(path / "adapter_config.json"), path / "caa.json"
    names = {"peft_type": "adapter", "r": "rank", "lora_alpha": "alpha", "base_model_name_or_path": "adapter's base"}
    finding.facts |= {label: str(config[name]) for name, label in names.items() if config.get(name)}
    finding.facts |= {
        f"trained: {key}": str(value) for key, value in (_json(record) if record.exists() else {}).items()
    }
    base.fingerprints |= {finding.facts.get("trained: base_fingerprint", "")} - {""}
    try:
        with safe_open(path / "adapter_model.safetensors", framework="pt") as file:
            shapes = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} has no adapter_model.safetensors that can be read ({error})") from error
    finding.facts["numbers"] = f"{sum(_product(shape) for shape in shapes.values()):,} in {len(shapes)} tensors"
    ends = ".lora_A.weight"
    inputs = {key.removesuffix(ends): shape[-1] for key, shape in shapes.items() if key.endswith(ends)}
    base.modules = {key.removeprefix("base_model.model."): width for key, width in inputs.items()}
    return finding, base


def _run(path: Path) -> tuple[Finding, Base]:
    from caa.runs.rows import read_rows

    rows = read_rows(path / "rows.jsonl")
    finding = Finding("run", {"rows": f"{len(rows):,}", "cells": str(len({row.cell for row in rows}))})
    for name in ("behavior", "task", "finetune", "layer", "multiplier", "vector", "setting"):
        counted = Counter(getattr(row.cell, name) for row in rows)
        finding.facts[name] = ", ".join(f"{value} ({counted[value]:,} rows)" for value in sorted(counted, key=str))
    record = _json(path / "run.json") if (path / "run.json").exists() else {}
    finding.facts |= dict(_flat(record.get("notes", {})))
    known = record.get("settings", {}).get("model", {})
    fingerprint = known.get("fingerprint", "") if isinstance(known, dict) else ""
    return finding, Base(
        layers={row.cell.layer for row in rows if row.cell.layer is not None}, fingerprints={fingerprint} - {""}
    )


def _flat(record: Any, place: str = "") -> Iterator[tuple[str, str]]:
    """
    >>> list(_flat({"model": {"name": "a"}, "n": 2}))
    [('model.name', 'a'), ('n', '2')]
    """
    for key, value in record.items():
        name = f"{place}.{key}" if place else str(key)
        yield from _flat(value, name) if isinstance(value, dict) else [(name, str(value))]


def _json(path: Path) -> dict[str, Any]:
    try:
        return read_object(path, "it")
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def _product(shape: list[int]) -> int:
    return shape[0] * _product(shape[1:]) if shape else 1


# Whether a given model has what an artefact asks of its base, point by point, with the reason.


def verdicts(base: Base, name: str) -> Iterator[tuple[bool, str]]:
    """Each point on which artefact and base agree or do not. The weights are read only if there is a fingerprint."""
    from caa.models.loading import load_config

    try:
        whole = load_config(name)
    except OSError as error:
        raise ValueError(f"there is no model {name!r} to compare with ({str(error).splitlines()[0]})") from error
    config = whole.get_text_config()
    for width in sorted(base.widths):
        yield width == config.hidden_size, f"width {width}; the base's is {config.hidden_size}"
    if base.layers:
        depth = config.num_hidden_layers
        yield max(base.layers) < depth, f"layers {listed(sorted(base.layers))}; the base has 0 to {depth - 1}"
    if base.model_type:
        yield (
            base.model_type in (config.model_type, whole.model_type),
            f"made for {base.model_type!r}; the base is {config.model_type!r}",
        )
    if base.modules:
        yield _modules_fit(base.modules, whole)
    if base.fingerprints:
        yield _fingerprint_fits(base.fingerprints, name)
    if not (base.widths or base.layers or base.model_type or base.modules or base.fingerprints):
        yield False, "it says nothing of its base, so nothing can be compared"


def _modules_fit(modules: dict[str, int], config: Any) -> tuple[bool, str]:
    """Against the base's modules without its weights: they are built on torch's meta device."""
    import torch

    from caa.models.loading import auto_class

    with torch.device("meta"):
        model: Any = auto_class(config).from_config(config)
    present = dict(model.named_modules())
    wrong = [name for name, width in modules.items() if width not in _widths(present.get(name))]
    detail = f"; {wrong[0]} and perhaps others do not fit" if wrong else ""
    return not wrong, f"LoRA on {len(modules)} modules, {len(modules) - len(wrong)} of which the base has so{detail}"


def _widths(module: Any) -> tuple[int, ...]:
    """A linear layer's two widths; GPT-2 keeps them the other way round."""
    weight = getattr(module, "weight", None)
    return tuple(weight.shape) if weight is not None else ()


def _fingerprint_fits(fingerprints: set[str], name: str) -> tuple[bool, str]:
    from caa.models.fingerprint import fingerprint, has_fingerprint
    from caa.models.loading import load_model

    model, _ = load_model(name)
    fits = all(has_fingerprint(model, known) for known in fingerprints)
    return fits, f"fingerprint {listed(sorted(fingerprints))}; the base's is {fingerprint(model)}"


def listed(values: Sequence[Any]) -> str:
    """
    >>> listed([0, 1, 2, 5])
    '0, 1, 2, 5'
    """
    return ", ".join(map(str, values))
