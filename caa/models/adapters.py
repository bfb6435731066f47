"""LoRA and other adapters on a live model: put on and proved, switched, taken off, saved. They are PEFT's."""

from __future__ import annotations

import json
import math
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from caa.hashing import tensors_digest
from caa.hub import ADAPTER, local_path
from caa.models.adapter_state import LAYERWISE, active_adapters, adapter_layers, check_unmerged, held_adapters
from caa.models.fingerprint import fingerprint, float16_hint, has_fingerprint
from caa.models.names import ADAPTER_CONFIG as CONFIG
from caa.models.names import model_name
from caa.models.restore import WriteGuard, same_randomness, undone_on_error
from caa.untrusted import check_fields, read_object

PROVENANCE = "caa.json"
"""Beside an adapter that this project trained: what it was taught, on which base, with which data."""
TRAINABLE = "_caa_trainable"
"""The attribute of a model that wears adapters: which of the base's parameters were trained without them."""
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
MOST_RANK = 2**14
"""Of an adapter whose weights are no safetensors, and so do not say their shapes."""
_TYPES: dict[str, dict[str, Any]] = {
    CONFIG: {
        "peft_type": str,
        "base_model_name_or_path": str | None,
        "r": int | None,
        "rank_pattern": dict[str, int] | None,
        "target_modules": str | list[str] | None,
        "modules_to_save": list[str] | None,
        "init_lora_weights": bool | str | None,
    },
    PROVENANCE: {
        "base": str,
        "base_fingerprint": str,
        "behavior": str,
        "direction": str,
        "config": dict[str, str | float | bool | None],
        "steered_by": list[dict[str, str | int | list[float] | None]],
    },
}
"""What the two files of an adapter say, as far as it is read here."""
_MOVES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Initializations of a LoRA that leave the rest of the base's weights in place of them."""
_CONVERT = (
    "Where it was trained, save it as a plain LoRA: `save_pretrained(folder, path_initial_model_for_weight_conversion="
    "...)` (PEFT's conversion for PiSSA, OLoRA and CorDA)"
)


class AdapterError(ValueError):
    """An adapter that cannot be had exactly: what is wrong with it, and what to do."""


def load_adapter(model: nn.Module, path: str | Path, name: str) -> nn.Module:
    """The model wearing one more adapter, which becomes the active one; a plain model becomes a PeftModel.

    `path` may be its name on the Hub ("you/adapter", "you/adapter@revision"). The adapter is proved: no bit of the base
    is another one, every tensor of the file has landed and every parameter of the adapter was filled. AdapterError (a
    ValueError), with the reason, for one that is not, that was made for another base, or that cannot have this name;
    the model is then left as it was.
    """
    folder = _local_adapter(path)
    config = _read_config(folder)
    _check_kind(folder, config)
    _check_rank(folder, config)
    check_unmerged(model)
    _check_made_for(folder, model)
    _check_name(model, name)
    try:
        # PEFT puts its layers in before it looks whether the weights fit them, and draws their first numbers.
        with same_randomness(), undone_on_error(model) as guard:
            with _landing(model) as landed, _reading_unwatched(guard):
                worn: nn.Module = _put_on(model, folder, name)
            _check_no_module(worn, name)  # now those of PEFT's own layers too
            _check_base_kept(folder, guard)
            _check_filled(folder, worn, name, guard, landed[-1])
            _check_finite(folder, worn, name)
            return worn
    except AdapterError:
        raise
    except Exception as error:  # whatever PEFT, safetensors or torch say of a file that others made
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise AdapterError(f"the adapter at {path} does not fit this model ({reason}).{_hint(model, error)}") from error


def _hint(model: nn.Module, error: Exception) -> str:
    """What may help with an error of PEFT that does not say it."""
    tokens = [config for config in getattr(model, "peft_config", {}).values() if _trains_tokens(config)]
    if isinstance(error, KeyError) and tokens:
        return " The model holds an adapter that trains tokens, behind which PEFT loads no other: load this one first."
    return ""


def _trains_tokens(config: Any) -> bool:
    return bool(getattr(config, "trainable_token_indices", None) or getattr(config, "token_indices", None))


def _check_name(model: nn.Module, name: str) -> None:
    """PEFT makes the name an entry of torch's dictionaries, whose entries are attributes."""
    if name in held_adapters(model):
        raise AdapterError(f"the model already holds an adapter {name!r}; give this one another name")
    if not name or "." in name or any(hasattr(taken, name) for taken in (nn.ModuleDict(), nn.ParameterDict())):
        raise AdapterError(
            f"no adapter can be called {name!r}: names are not empty, have no dot, and are no word of torch's "
            "dictionaries, such as 'keys'. Give it another name"
        )
    _check_no_module(model, name)


def _check_no_module(model: nn.Module, name: str) -> None:
    """PEFT takes every tensor whose path has the name in it for the adapter's, and leaves it out of other saves."""
    if name in _path_parts(model):
        raise AdapterError(
            f"no adapter can be called {name!r} on this model, where a module or a tensor is called so: PEFT would "
            f"take it for the adapter's. Give it another name, such as '{name}-adapter'"
        )


def _path_parts(model: nn.Module) -> set[str]:
    """What stands in the names of the model's tensors, apart from the names of adapters in their dictionaries."""
    held, parts = set(held_adapters(model)), set()
    for module in model.modules():
        names = {*module._modules, *module._parameters, *module._buffers}
        if not (hasattr(module, "keys") and names <= held):
            parts |= names
    return parts


# What a folder says, before anything is put on


def _local_adapter(path: str | Path) -> Path:
    try:
        return local_path(path, ADAPTER)
    except FileNotFoundError as error:
        raise AdapterError(str(error)) from error


def _read_config(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise AdapterError(f"there is no adapter at {folder}; `caa finetune` writes one")
    if not (folder / CONFIG).is_file():
        raise AdapterError(f"{folder} is no adapter of PEFT: it has no {CONFIG}")
    weights = [folder / file for file in WEIGHTS if (folder / file).is_file()]
    if not weights:
        raise AdapterError(f"{folder} holds no weights of an adapter ({' or '.join(WEIGHTS)})")
    for file in (folder / CONFIG, weights[0]):
        _check_no_pointer(file)
    return _read_object(folder / CONFIG)


def _read_object(file: Path) -> dict[str, Any]:
    try:
        return check_fields(read_object(file, "it"), _TYPES[file.name], "it", required=False)
    except ValueError as error:
        raise AdapterError(f"{file} is damaged ({error}); download or save it again") from error


def _check_rank(folder: Path, config: dict[str, Any]) -> None:
    """A rank beyond every tensor of the file would be taken out of memory before anybody sees that it is wrong."""
    if config.get("peft_type") != "LORA":  # what others call a rank is something else
        return
    ranks = [config.get("r", 1), *(config.get("rank_pattern") or {}).values()]
    file = folder / WEIGHTS[0]
    most = max(_dimensions(file), default=MOST_RANK) if file.is_file() else MOST_RANK
    if wrong := [rank for rank in ranks if type(rank) is int and not 0 < rank <= most]:
        raise AdapterError(
            f"the adapter at {folder} says that it has rank {wrong[0]}, and its tensors have no more than {most} rows: "
            "its config and its weights do not belong together. Download or save it again"
        )


def _dimensions(file: Path) -> Iterator[int]:
    try:
        with safe_open(file, framework="pt") as opened:
            for key in opened.keys():  # noqa: SIM118
                yield from opened.get_slice(key).get_shape()
    except SafetensorError as error:
        raise AdapterError(f"{file} is damaged ({error}); download or save it again") from error


def _check_no_pointer(file: Path) -> None:
    """A clone without Git LFS holds three lines of text in place of a large file."""
    with file.open("rb") as opened:
        if opened.read(64).startswith(b"version https://git-lfs"):
            raise AdapterError(f"{file} is a Git LFS pointer, not the file itself: run `git lfs pull` in its clone")


def _check_kind(folder: Path, config: dict[str, Any]) -> None:
    """Refuse what is known to change the base, or to act where neither switching nor reading can follow."""
    kind, init = str(config.get("peft_type")), str(config.get("init_lora_weights")).lower()
    if kind not in LAYERWISE:
        raise AdapterError(
            f"the adapter at {folder} is of PEFT's kind {kind}, which cannot be switched, read and saved exactly; "
            f"those that can are {', '.join(sorted(LAYERWISE))}. Train one of these"
        )
    if (trained := str(config.get("bias", "none"))) != "none":  # neither switching off nor unloading brings them back
        raise AdapterError(
            f"the adapter at {folder} holds biases of the base (bias={trained!r}), so the base could not be had "
            "without it any more. Train it with bias='none', or merge it into a checkpoint of its own"
        )
    if init.startswith(_MOVES_BASE):
        raise AdapterError(
            f"the adapter at {folder} changes the base's own weights (init_lora_weights={init!r}), so neither the base "
            f"nor other adapters would be what they were. {_CONVERT}"
        )
    if config.get("layer_replication"):
        raise AdapterError(
            f"the adapter at {folder} repeats blocks of the base (layer_replication), so layers would have other "
            "numbers. Merge it into a checkpoint of its own, and load that"
        )


def _check_made_for(folder: Path, model: nn.Module) -> None:
    """Compare the base that an adapter was trained on with this model; adapters of other tools do not say theirs."""
    record = read_record(folder)
    if record and not has_fingerprint(model, record["base_fingerprint"]):
        raise AdapterError(
            f"the adapter at {folder} was trained on {record['base']!r} ({record['base_fingerprint']}), and this model "
            f"is another one ({fingerprint(model)}). Load that base, or finetune this one.{float16_hint(model)}"
        )


def read_record(folder: Path) -> dict[str, Any]:
    """What is known of how a finetune was made; nothing of those of other tools."""
    path = folder / PROVENANCE
    if not path.exists():
        return {}
    record = _read_object(path)
    if absent := [name for name in ("base", "base_fingerprint") if name not in record]:
        raise AdapterError(f"{path} is damaged (it does not say its {absent[0]}); download or save it again")
    return record


# Put on, and proved


def _put_on(model: Any, folder: Path, name: str) -> Any:
    from peft import PeftModel

    if held_adapters(model) and not isinstance(model, PeftModel):
        raise AdapterError(
            f"transformers itself has put {', '.join(held_adapters(model))} on this model (`add_adapter`), where PEFT "
            "cannot switch them. Load the base alone, and its adapters with `load_adapter(folder, name)`"
        )
    with warnings.catch_warnings():
        # PEFT still says gradient_checkpointing, which transformers has renamed; the other two are looked at here.
        warnings.filterwarnings("ignore", ".*gradient_checkpointing", FutureWarning)
        warnings.filterwarnings("ignore", ".*(missing adapter keys|lora_bias=True)")
        if isinstance(model, PeftModel):
            model.load_adapter(str(folder), adapter_name=name)
            switch(model, [name])
        else:
            trainable = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
            model = PeftModel.from_pretrained(model, str(folder), adapter_name=name)
            setattr(model, TRAINABLE, trainable)
    if record := read_record(folder):
        model.peft_config[name]._caa_record = (record, adapter_hash(model, name))
    return model


def _check_base_kept(folder: Path, guard: WriteGuard) -> None:
    """No bit of the base, or of the adapters that were there before, is another one now."""
    if changed := guard.changed():
        raise AdapterError(
            f"the adapter at {folder} changes the base's own weights ({_some(changed)}), so neither the base nor other "
            f"adapters would be what they were. {_CONVERT}; or merge it into a checkpoint of its own"
        )


@contextmanager
def _landing(model: nn.Module) -> Iterator[list[Any]]:
    """Collects what torch says when tensors are loaded into the model: `missing_keys` and `unexpected_keys`."""
    results: list[Any] = []
    handle = model.register_load_state_dict_post_hook(lambda module, result: results.append(result))
    try:
        yield results
    finally:
        handle.remove()


@contextmanager
def _reading_unwatched(guard: WriteGuard) -> Iterator[None]:
    """Reading the file and listing the model write into nothing, and are most of the operations of a load."""
    from peft import PeftModel, peft_model

    with ExitStack() as stack:
        for owner, name in ((peft_model, "load_peft_weights"), (PeftModel, "state_dict")):
            if hasattr(owner, name):  # where another version calls it otherwise, it is watched
                stack.enter_context(patch.object(owner, name, _unwatched(getattr(owner, name), guard)))
        yield


def _unwatched(read: Callable[..., Any], guard: WriteGuard) -> Callable[..., Any]:
    def unwatched(*args: Any, **options: Any) -> Any:
        with guard.paused():
            return read(*args, **options)

    return unwatched


def _check_filled(folder: Path, worn: Any, name: str, guard: WriteGuard, landed: Any) -> None:
    """Every tensor of the file has its place, and every parameter of the adapter comes from the file."""
    if landed.unexpected_keys:
        raise AdapterError(
            f"{len(landed.unexpected_keys)} tensors of the adapter at {folder} have no place in this model "
            f"({_some(landed.unexpected_keys)}): it was made for a model whose modules have other names, or for more "
            "layers. Load the model that it was made for, or rename its tensors"
        )
    if missing := _unfilled(worn, landed.missing_keys, name, guard):
        raise AdapterError(
            f"the adapter at {folder} holds nothing for {len(missing)} of the tensors that its {CONFIG} asks for "
            f"({_some(missing)}): the file is not whole, or was made for a model with other names or fewer layers"
        )


def _check_finite(folder: Path, worn: Any, name: str) -> None:
    """Every number of the adapter is one: with a single NaN all answers would be none."""
    own = [(key, value) for key, value in worn.named_parameters() if name in key.split(".")]
    if broken := [key for key, value in own if not value.detach().float().isfinite().all()]:
        raise AdapterError(
            f"the adapter at {folder} holds NaN or infinity ({_some(broken)}): its training went "
            "wrong, or it was damaged. Train it again with a smaller learning rate, or download it again"
        )


def _unfilled(worn: Any, missing: list[str], name: str, guard: WriteGuard) -> list[str]:
    """The adapter's own tensors that no tensor of the file was written to; some have several names."""
    from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING

    marks = (PEFT_TYPE_TO_PREFIX_MAPPING[worn.peft_config[name].peft_type], "modules_to_save.", "trainable_tokens_")
    own = [key for key in missing if name in key.split(".") and any(mark in key for mark in marks)]
    if not own:
        return []
    tensors, absent = worn.state_dict(keep_vars=True), set(missing)
    filled = {id(tensor) for key, tensor in tensors.items() if key not in absent}
    return [key for key in own if id(tensors[key]) not in filled and not guard.knows(tensors[key])]


def _some(names: list[str]) -> str:
    """The first few of many.

    >>> _some(["a", "b", "c", "d"])
    'a, b, c, ...'
    """
    return ", ".join(names[:3] + ["..."] * (len(names) > 3))


# Taken off, and saved


def unload(model: Any) -> nn.Module:
    """The base without its adapters, as it was before `load_adapter`, which freezes it; a plain model is its own base.

    ValueError for a merged one.
    """
    from peft.utils import ModulesToSaveWrapper

    if not held_adapters(model):
        plain: nn.Module = model
        return plain
    check_unmerged(model)
    for module in model.modules():
        if isinstance(module, ModulesToSaveWrapper):
            module.set_adapter([])  # of an active one PEFT would leave the trained copy in place of the original
    base: nn.Module = model.unload()
    for parameter, requires_grad in getattr(model, TRAINABLE, []):
        parameter.requires_grad = requires_grad
    return base


def adapter_record(model: Any, name: str) -> dict[str, Any]:
    """What `load_adapter` read beside the adapter: base, behavior, direction, data hash; {} if there was nothing.

    {} too if the adapter is another one by now: scaled, trained on, or swapped by PEFT's `hotswap_adapter`.
    """
    record, known = getattr(model.peft_config[name], "_caa_record", ({}, ""))
    return dict(record) if record and adapter_hash(model, name) == known else {}


def save_adapter(model: Any, name: str, folder: Path) -> None:
    """Write one of the model's adapters as PEFT does, the same bytes each time, with what is known of it beside it.

    ValueError for a merged one, for one that was scaled on the model, which PEFT's files cannot say, and beside an
    adapter that is called as a module is.
    """
    check_unmerged(model)
    for held in held_adapters(model):
        _check_no_module(model, held)
    _check_unscaled(model, name)
    scratch = folder / "peft"
    # "auto" would look on the Hub whether the embeddings were resized.
    model.save_pretrained(scratch, selected_adapters=[name], save_embedding_layers=False)
    own = scratch if name == "default" else scratch / name  # PEFT puts every other adapter in a folder of its own
    for file in (CONFIG, WEIGHTS[0]):
        (own / file).rename(folder / file)
    shutil.rmtree(scratch)
    make_portable(folder, model)
    if record := adapter_record(model, name):
        (folder / PROVENANCE).write_text(json.dumps(record, indent=2), encoding="utf-8")


def _check_unscaled(model: Any, name: str) -> None:
    """PEFT's `set_scale` and `scale_layer` change what an adapter does, and its saves forget it."""
    for key, layer in _lora_layers(model, name):
        own = _own_scale(layer, name)
        if not math.isclose(layer.scaling[name], own):
            raise ValueError(
                f"the adapter {name!r} was scaled on the model ({key}: {layer.scaling[name]:g} in place of {own:g}), "
                f"and PEFT's files cannot say so: undo it (`set_scale({name!r}, 1)` of each layer), and make the "
                f"scaled one an adapter of its own: `model.add_weighted_adapter([{name!r}], [scale], name)`"
            )


def _own_scale(layer: Any, name: str) -> float:
    """What PEFT sets when it makes the layer."""
    from peft.tuners.adalora.layer import AdaLoraLayer

    rank, alpha = layer.r[name], layer.lora_alpha[name]
    if isinstance(layer, AdaLoraLayer):
        return float(alpha if alpha > 0 else rank)
    return float(alpha / (math.sqrt(rank) if layer.use_rslora.get(name) else rank))


def _lora_layers(model: nn.Module, name: str) -> Iterator[tuple[str, Any]]:
    from peft.tuners.lora import LoraLayer

    for key, layer in model.named_modules():
        if isinstance(layer, LoraLayer) and name in layer.scaling:
            yield key, layer


def make_portable(folder: Path, model: Any) -> None:
    """Give PEFT's adapter_config.json the base's name in place of this machine's path, and its sets an order."""
    path = folder / CONFIG
    config = json.loads(path.read_text(encoding="utf-8"))
    for key, value in config.items():
        config[key] = _in_order(value)
    config["base_model_name_or_path"] = model_name(model)
    path.write_text(json.dumps(config, indent=2, sort_keys=True), encoding="utf-8")


# Switched


def adapters_called(model: Any, name: str) -> list[str]:
    """The adapters that a name means: the one of that name, or several together, "helpful+positive".

    ValueError for a name that the model does not hold, and for several of which one begins within the text (aLoRA).
    """
    held = held_adapters(model)
    names = [name] if name in held else name.split("+")
    if unknown := [part for part in names if part not in held]:
        raise ValueError(f"the model holds no adapter {unknown[0]!r}; it holds {held or 'none'}")
    if len(set(names)) < len(names):
        raise ValueError(f"{name!r} names an adapter twice; a stronger one is `add_weighted_adapter`")
    partial = [part for part in names if getattr(model.peft_config[part], "alora_invocation_tokens", None)]
    if partial and len(names) > 1:
        raise ValueError(f"PEFT lets all active adapters begin where the first one does, so {partial[0]!r} acts alone")
    return names


@contextmanager
def active_adapter(model: Any, name: str | None) -> Iterator[None]:
    """Run with one adapter active, with several ("helpful+positive"), or with none, and go back to what was before,
    also on an error.

    That is: which are active, whether they act at all, and which parameters are trained. ValueError for a name that
    the model does not hold, and for a model that holds merged adapters or some that transformers itself put on.
    """
    names = [] if name is None else adapters_called(model, name)
    if not held_adapters(model):
        yield
        return
    _check_switchable(model)
    trained = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        with _only(model, names) if names else model.disable_adapter():
            yield
    finally:
        for parameter, requires_grad in trained:
            parameter.requires_grad = requires_grad


def _check_switchable(model: Any) -> None:
    check_unmerged(model)
    if not hasattr(model, "disable_adapter"):
        raise ValueError(
            f"transformers itself has put {', '.join(held_adapters(model))} on this model (`add_adapter`), and only "
            "PEFT's own models can be switched. Load the base alone, and its adapters with `load_adapter(folder, name)`"
        )


@contextmanager
def _only(model: Any, names: list[str]) -> Iterator[None]:
    """These adapters act, also where all are switched off."""
    before, first = list(model.base_model.active_adapters), model.active_adapter
    acting = bool(active_adapters(model))
    switch(model, names)
    try:
        yield
    finally:
        _set_active(model, before, first)
        _let_act(model, acting)


def switch(model: Any, names: list[str]) -> None:
    """From now on these adapters act and no others, untrained; with none the model is its base.

    ValueError as for `active_adapter`.
    """
    if held_adapters(model):
        _check_switchable(model)
        _let_act(model, bool(names))
    if names:
        _set_active(model, names, names[0])


def _set_active(model: Any, names: list[str], first: Any) -> None:
    """Also several, where PEFT's own models take one: an aLoRA begins at the tokens of their `active_adapter`."""
    model.base_model.set_adapter(names, inference_mode=True)
    if "active_adapter" in vars(model):  # a PeftMixedModel has no such place
        model.active_adapter = first


def _let_act(model: Any, acting: bool) -> None:
    (model.base_model.enable_adapter_layers if acting else model.base_model.disable_adapter_layers)()
    model._adapters_disabled = not acting  # `PeftModel.disable_adapter` sets both; aLoRA needs this one


def adapter_hash(model: nn.Module, name: str) -> str:
    """16 hex digits of what an adapter does: its weights, their scale in each layer, its variant or its config."""
    config: Any = model.peft_config[name]  # type: ignore[index]
    scale = torch.tensor([getattr(config, field, None) or 0 for field in ("r", "lora_alpha")])
    once = config.peft_type == "LORA"  # what layers of another kind share depends on what else is loaded
    parameters = model.named_parameters(remove_duplicate=once)
    weights = ((key, p) for key, p in parameters if f".{name}." in f"{key}.")
    return tensors_digest([("scale", scale), *weights, *_beyond_weights(model, name)])


def adapters_digest(model: Any) -> str:
    """`adapter_hash` of each adapter that acts now, joined by "+"; "" for none."""
    return "+".join(adapter_hash(model, name) for name in active_adapters(model))


def _beyond_weights(model: nn.Module, name: str) -> Iterator[tuple[str, Tensor]]:
    """What neither the weights nor the config's rank and alpha tell (rsLoRA, DoRA, ...); nothing for a plain LoRA."""
    config: Any = model.peft_config[name]  # type: ignore[index]
    for key, layer in _lora_layers(model, name):
        variant = layer.lora_variant.get(name)
        if variant or layer.scaling[name] != config.lora_alpha / config.r:
            yield f"{key} {type(variant).__name__}", torch.tensor(layer.scaling[name])
    tokens = [getattr(config, field, None) for field in ("alora_invocation_tokens", "trainable_token_indices")]
    if any(tokens):
        yield f"tokens {tokens}", torch.tensor(0)
    if config.peft_type != "LORA":
        fields = {key: _in_order(value) for key, value in config.to_dict().items() if key not in _IDLE_FIELDS}
        yield f"config {json.dumps(fields, sort_keys=True, default=str)}", torch.tensor(0)
        yield from _layer_settings(model, name)
        yield from _saved_buffers(model, name)


_IDLE_FIELDS = frozenset(
    {"auto_mapping", "base_model_name_or_path", "inference_mode", "peft_version", "revision", "task_type"}
)
"""Of PEFT's configs: nothing that an adapter does depends on them."""


def _in_order(value: Any) -> Any:
    """Sets of names, which PEFT writes as lists in any order, as sorted lists; all else as it is."""
    if isinstance(value, (set, list)) and all(isinstance(entry, str) for entry in value):
        return sorted(value)
    return value


def _layer_settings(model: nn.Module, name: str) -> Iterator[tuple[str, Tensor]]:
    """The numbers that each layer holds for an adapter beside its weights: scales, and indices that were drawn."""
    for path, layer in adapter_layers(model):
        for attribute, by_adapter in sorted(vars(layer).items()):
            value = by_adapter.get(name) if isinstance(by_adapter, dict) else None
            if isinstance(value, (int, float, Tensor)):
                yield f"{path}.{attribute}", torch.as_tensor(value)


def _saved_buffers(model: nn.Module, name: str) -> Iterator[tuple[str, Tensor]]:
    """The adapter's tensors in files that are no parameters, each once; adapters of a kind may share them."""
    buffers = {key for key, _ in model.named_buffers(remove_duplicate=False) if f".{name}." in f"{key}."}
    shared = {id(tensor): (key, tensor) for key, tensor in model.state_dict(keep_vars=True).items() if key in buffers}
    yield from shared.values()
