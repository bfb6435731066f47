"""The steered adapter: a folder with LoRAs, steering vectors, where and how strongly they act, and their origin."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from caa.callables import from_record, to_record
from caa.files import only_maker, replacing_folder
from caa.hub import CARD, STEERED, local_path
from caa.models.adapter_state import active_adapters
from caa.models.adapters import adapter_record, load_adapter, save_adapter, switch
from caa.models.fingerprint import check_base, check_tokenizer, describe, tokenizer_fingerprint
from caa.models.loading import load_model
from caa.models.sites import BLOCK_OUTPUT
from caa.steering.checkpoint.card import steered_card
from caa.steering.checkpoint.manifest import check_seal, inside, read_manifest, seal
from caa.steering.gates import Gate
from caa.steering.intervention import Intervention
from caa.steering.operators import OPERATORS
from caa.steering.patching import Recording
from caa.steering.scopes import SCOPES
from caa.untrusted import check_fields
from caa.vectors.vector import SteeringVector

FORMAT = "caa.steered.v2"
OLD_FORMAT = "caa.steered.v1"
GATED_FORMAT = "caa.steered.v3"
"""That of folders with what readers of v2 would pass over, and steer otherwise: gates and sites."""
MANIFEST = STEERED.key


def save_steered(
    folder: str | Path,
    model: Any,
    interventions: Sequence[Intervention],
    tokenizer: Any = None,
    *,
    finetunes: Sequence[str] | None = None,
    results: str = "",
    where: str = "",
) -> Path:
    """Write the folder, complete or not at all. FileExistsError if something else is there already, BlockingIOError
    while another process writes it.

    The first active LoRA lies at the root and loads with plain PEFT, the others in `adapters/NAME`; each vector is a
    safetensors file with its provenance; `steering.json` says what is steered and holds the hash of every file; the
    model card shows `results` (Markdown) and loads from `where`. The same model and steering give the same bytes.
    `finetunes` names the LoRAs to keep, by default those that are active.
    """
    folder = Path(folder)
    names = _to_keep(model, finetunes)
    with only_maker(folder):
        if folder.exists() and not (folder / MANIFEST).exists() and any(folder.iterdir()):
            raise FileExistsError(f"{folder} holds something that is no steered adapter; choose a new folder")
        with replacing_folder(folder) as scratch:
            _write(scratch, model, interventions, names, tokenizer)
            manifest = read_manifest(scratch, MANIFEST)
            card = steered_card(manifest, [_vector(intervention) for intervention in interventions], results, where)
            (scratch / CARD).write_text(card, encoding="utf-8")
    return folder


def _vector(intervention: Intervention) -> SteeringVector:
    """What is saved of it; ValueError for what belongs to certain prompts."""
    if isinstance(intervention.vector, Recording):
        raise ValueError(
            "a recording belongs to the prompts that it was made of, so it is no part of a steered adapter; "
            "take its intervention off before saving"
        )
    if intervention.strengths.ndim == 2:
        raise ValueError(
            "a coefficient for each token belongs to the prompts that it was made for, so it is no part of a steered "
            "adapter; take its intervention off before saving, or give one multiplier"
        )
    return intervention.vector


def _to_keep(model: Any, finetunes: Sequence[str] | None) -> list[str]:
    """The names of the LoRAs to save, the active ones first."""
    active, held = active_adapters(model), list(getattr(model, "peft_config", {}))
    chosen = active if finetunes is None else list(finetunes)
    if unknown := [name for name in chosen if name not in held]:
        raise ValueError(f"the model holds no finetune {unknown[0]!r} to save; it holds {held or 'none'}")
    if (chosen and not active) or not set(active) <= set(chosen):
        raise ValueError(
            f"a steered adapter wears a finetune that it holds: active are {active or 'none'}, to be kept "
            f"{chosen or 'none'}. Save within `finetune(name)` of one that is kept, or, to keep none, `finetune(None)`"
        )
    if bad := [name for name in chosen if Path(name).name != name]:
        raise ValueError(f"a finetune's name becomes a folder's name, which {bad[0]!r} cannot be; load it as another")
    return [*active, *(name for name in chosen if name not in active)]


def _write(
    folder: Path, model: Any, interventions: Sequence[Intervention], names: Sequence[str], tokenizer: Any
) -> None:
    for number, intervention in enumerate(interventions):
        _vector(intervention).save(folder / f"vector-{number}.safetensors")
        if intervention.gate:
            intervention.gate.vector.save(folder / f"gate-{number}.safetensors")
    manifest = {
        "format": GATED_FORMAT if any(map(_is_more, interventions)) else FORMAT,
        "base": describe(model),
        "tokenizer": tokenizer_fingerprint(tokenizer) if tokenizer is not None else "",
        "adapters": [_save_adapter(folder, model, name, first=name == names[0]) for name in names],
        "active": active_adapters(model) if names else [],
        "interventions": [_to_json(n, intervention) for n, intervention in enumerate(interventions)],
    }
    seal(folder, manifest, MANIFEST)


def _is_more(intervention: Intervention) -> bool:
    """Than what the second format says."""
    return intervention.gate is not None or intervention.place != BLOCK_OUTPUT


def _save_adapter(folder: Path, model: Any, name: str, *, first: bool) -> dict[str, Any]:
    """Save one LoRA, the first at the root of the folder, where plain PEFT looks for it."""
    place = "." if first else f"adapters/{name}"
    (folder / place).mkdir(parents=True, exist_ok=True)
    save_adapter(model, name, folder / place)
    return {"name": name, "folder": place, "record": adapter_record(model, name)}


def _to_json(number: int, intervention: Intervention) -> dict[str, Any]:
    gate = intervention.gate
    site = {"site": intervention.place} if intervention.place != BLOCK_OUTPUT else {}
    gated = {"gate": {"vector": f"gate-{number}.safetensors", **gate.bounds}} if gate else {}
    return {
        "vector": f"vector-{number}.safetensors",
        "layer": intervention.layer,
        "source_layer": intervention.source_layer,
        "multiplier": intervention.strengths.flatten().tolist(),
        "operator": to_record(intervention.operator, OPERATORS, "operator"),
        "where": to_record(intervention.where, SCOPES, "scope"),
        **gated,
        **site,
    }


def load_steered(
    folder: str | Path, model: nn.Module | None = None, tokenizer: Any = None, **kwargs: Any
) -> tuple[nn.Module | Any, *tuple[Intervention, ...]]:
    """The model of a steered adapter, wearing its LoRA and no other, and its interventions. `folder` may be a name on
    the Hub.

    ValueError, with the reason, for a damaged folder, another base, another tokenizer.
    """
    folder = _here(folder)
    manifest = read_steered(folder)
    if model is None:
        model, own = load_model(manifest["base"]["name"], **kwargs)
        tokenizer = own if tokenizer is None else tokenizer
    check_base(folder, manifest["base"], model)
    check_tokenizer(folder, manifest["tokenizer"], tokenizer)
    interventions = [_from_json(folder, record) for record in manifest["interventions"]]
    return _wearing(folder, manifest, model), *interventions


class Added(NamedTuple):
    """A steered adapter that was put on beside others."""

    model: Any
    """The model that holds its LoRAs too; which are active is left open."""
    finetune: str | None
    """What the model calls those that it wears."""
    interventions: tuple[Intervention, ...]


def add_steered(folder: str | Path, model: Any, tokenizer: Any, name: str) -> Added:
    """Put the LoRA that a steered adapter wears on a model that may hold others, as `name`; of several each has its own
    name behind that. ValueError as for `load_steered`, and for a name that is taken.
    """
    folder = _here(folder)
    manifest = read_steered(folder)
    check_base(folder, manifest["base"], model)
    check_tokenizer(folder, manifest["tokenizer"], tokenizer)
    active = manifest["active"]
    names = {own: name if len(active) == 1 else f"{name}-{own}" for own in active}
    for adapter in manifest["adapters"]:
        if adapter["name"] in names:
            model = load_adapter(model, inside(folder, adapter["folder"]), names[adapter["name"]])
    interventions = tuple(_from_json(folder, record) for record in manifest["interventions"])
    return Added(model, "+".join(names.values()) or None, interventions)


def _here(folder: str | Path) -> Path:
    """The folder of a steered adapter, downloaded if it is a name on the Hub; FileNotFoundError if it is none."""
    folder = local_path(folder, STEERED)
    if not (folder / MANIFEST).exists():
        raise FileNotFoundError(f"{folder} is no steered adapter: it has no {MANIFEST}. `save_pretrained` writes one")
    return folder


def read_steered(folder: Path) -> dict[str, Any]:
    """The manifest of a whole folder, in the words of the present format."""
    manifest = read_manifest(folder, MANIFEST)
    if manifest.get("format") not in (OLD_FORMAT, FORMAT, GATED_FORMAT):
        raise ValueError(
            f"{folder} has format {manifest.get('format')!r}; this version of caa reads {OLD_FORMAT} to "
            f"{GATED_FORMAT}. A newer version of caa may read it."
        )
    _check_manifest(manifest, f"the manifest of {folder}")
    if manifest["format"] == OLD_FORMAT:
        return _upgraded(manifest)
    check_seal(folder, manifest)
    return manifest


_INTERVENTION = {
    "vector": str,
    "layer": int,
    "source_layer": int | None,
    "multiplier": float | list[float],
    "operator": str | dict[str, Any],
    "where": str | dict[str, Any],
}
_GATE = {"vector": str, "layer": int, "above": float | None, "below": float | None}


def _check_manifest(manifest: dict[str, Any], place: str) -> None:
    """ValueError for a field of another type than is read below."""
    check_fields(manifest, {"interventions": list[dict[str, Any]]}, place)
    for record in manifest["interventions"]:
        check_fields(record, _INTERVENTION, f"{place}, an intervention")
        check_fields(record, {"gate": dict[str, Any], "site": str}, f"{place}, an intervention", required=False)
        if "gate" in record:
            check_fields(record["gate"], _GATE, f"{place}, a gate")
    if manifest.get("format") == OLD_FORMAT:
        check_fields(manifest, {"adapter": str | None, "base": str, "base_fingerprint": str}, place)
        return
    parts = {"adapters": list[dict[str, Any]], "active": list[str], "base": dict[str, Any], "tokenizer": str}
    check_fields(manifest, parts, place)
    check_fields(manifest["base"], {"name": str, "fingerprint": str}, f"{place}, its base")
    for adapter in manifest["adapters"]:
        check_fields(adapter, {"name": str, "folder": str}, f"{place}, an adapter")


def _upgraded(manifest: dict[str, Any]) -> dict[str, Any]:
    """A manifest of the first format, which held one LoRA and no hashes, in words of this one."""
    name = manifest["adapter"]
    return manifest | {
        "format": FORMAT,
        "base": {"name": manifest["base"], "fingerprint": manifest["base_fingerprint"]},
        "tokenizer": "",
        "adapters": [{"name": name, "folder": "."}] if name else [],
        "active": [name] if name else [],
    }


def _wearing(folder: Path, manifest: dict[str, Any], model: Any) -> Any:
    for adapter in manifest["adapters"]:
        model = load_adapter(model, inside(folder, adapter["folder"]), adapter["name"])
    switch(model, manifest["active"])
    return model


def _from_json(folder: Path, record: dict[str, Any]) -> Intervention:
    return Intervention(
        SteeringVector.load(inside(folder, record["vector"])),
        record["layer"],
        record["multiplier"],
        from_record(record["operator"], OPERATORS, "operator"),
        from_record(record["where"], SCOPES, "scope"),
        record["source_layer"],
        _gate(folder, record["gate"]) if "gate" in record else None,
        record.get("site", BLOCK_OUTPUT),  # where version 0.1 added vectors of any site
    )


def _gate(folder: Path, record: dict[str, Any]) -> Gate:
    vector = SteeringVector.load(inside(folder, record["vector"]))
    return Gate(vector, record["layer"], record["above"], record["below"])
