"""LoRA adapters on a live model: put on, switch, switch off. The adapters themselves are PEFT's."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from caa.models.fingerprint import fingerprint, float16_hint, has_fingerprint
from caa.models.names import model_name
from caa.models.restore import undone_on_error

PROVENANCE = "caa.json"
"""Beside an adapter that this project trained: what it was taught, on which base, with which data."""


def load_adapter(model: nn.Module, path: str | Path, name: str) -> nn.Module:
    """The model wearing one more LoRA adapter, which becomes the active one; a plain model becomes a PeftModel.

    ValueError, with the reason, if the adapter was made for another base or cannot have this name; the model is then
    left as it was.
    """
    if not Path(path).is_dir():
        raise ValueError(f"there is no adapter at {path}; `caa finetune` writes one")
    check_base(model, path)
    _check_name(model, name)
    _check_biases(path)
    try:
        with undone_on_error(model):  # PEFT puts its layers in before it looks whether the weights fit them
            with_adapter = _put_on(model, path, name)
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"the adapter at {path} does not fit this model: {str(error)[:300]}") from error
    return with_adapter


def _check_name(model: nn.Module, name: str) -> None:
    """PEFT makes the name an entry of torch's dictionaries, whose entries are attributes."""
    if name in getattr(model, "peft_config", {}):
        raise ValueError(f"the model already holds an adapter {name!r}; give this one another name")
    if not name or "." in name or any(hasattr(taken, name) for taken in (nn.ModuleDict(), nn.ParameterDict())):
        raise ValueError(
            f"no adapter can be called {name!r}: names are not empty, have no dot, and are no word of torch's "
            "dictionaries, such as 'keys'. Give it another name"
        )


def _check_biases(path: str | Path) -> None:
    """PEFT writes such biases over the base's own, and neither switching off nor unloading brings those back."""
    config = Path(path) / "adapter_config.json"
    trained = json.loads(config.read_text(encoding="utf-8")).get("bias", "none") if config.exists() else "none"
    if trained != "none":
        raise ValueError(
            f"the adapter at {path} holds biases of the base (bias={trained!r}), so the base could not be had without "
            "it any more. Train it with bias='none', or merge it into a checkpoint of its own"
        )


def _put_on(model: Any, path: str | Path, name: str) -> nn.Module:
    from peft import PeftModel

    with warnings.catch_warnings():  # PEFT still says gradient_checkpointing, which transformers has renamed
        warnings.filterwarnings("ignore", ".*gradient_checkpointing", FutureWarning)
        if isinstance(model, PeftModel):
            model.load_adapter(str(path), adapter_name=name)
        else:
            model = PeftModel.from_pretrained(model, str(path), adapter_name=name)
    model.set_adapter(name, inference_mode=True)
    model.peft_config[name]._caa_record = _read_record(path)
    with_adapter: nn.Module = model.eval()
    return with_adapter


def unload(model: Any) -> nn.Module:
    """The base without its adapters, as it was; a plain model is its own base."""
    from peft.utils import ModulesToSaveWrapper

    base: nn.Module = model
    if getattr(model, "peft_config", {}):
        for module in model.modules():
            if isinstance(module, ModulesToSaveWrapper):
                module.set_adapter([])  # of an active one PEFT would leave the trained copy in place of the original
        base = model.unload()
    return base


def _read_record(path: str | Path) -> dict[str, Any]:
    """What is known of how an adapter was made; nothing of those of other tools."""
    record = Path(path) / PROVENANCE
    return json.loads(record.read_text(encoding="utf-8")) if record.exists() else {}


def adapter_record(model: Any, name: str) -> dict[str, Any]:
    """What `load_adapter` read beside the adapter: base, behavior, direction, data hash; {} if there was nothing."""
    return getattr(model.peft_config[name], "_caa_record", {})


def save_adapter(model: Any, name: str, folder: Path) -> None:
    """Write one of the model's adapters as PEFT does, the same bytes each time, with what is known of it beside it."""
    scratch = folder / "peft"
    # "auto" would look on the Hub whether the embeddings were resized.
    model.save_pretrained(scratch, selected_adapters=[name], save_embedding_layers=False)
    own = scratch if name == "default" else scratch / name  # PEFT puts every other adapter in a folder of its own
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        (own / file).rename(folder / file)
    shutil.rmtree(scratch)
    make_portable(folder, model)
    if record := adapter_record(model, name):
        (folder / PROVENANCE).write_text(json.dumps(record, indent=2), encoding="utf-8")


def make_portable(folder: Path, model: Any) -> None:
    """Give PEFT's adapter_config.json the base's name in place of this machine's path, and its sets an order."""
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    words = {key: sorted(value) for key, value in config.items() if _is_words(value)}
    config |= words | {"base_model_name_or_path": model_name(model)}
    path.write_text(json.dumps(config, indent=2, sort_keys=True), encoding="utf-8")


def _is_words(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


def check_base(model: nn.Module, path: str | Path) -> None:
    """Compare the base that an adapter was trained on with this model; adapters of other tools do not say theirs."""
    made_for = _read_record(path)
    if made_for and not has_fingerprint(model, made_for["base_fingerprint"]):
        raise ValueError(
            f"the adapter at {path} was trained on {made_for['base']!r} ({made_for['base_fingerprint']}), "
            f"and this model is another one ({fingerprint(model)}). Load that base, or finetune this one."
            f"{float16_hint(model)}"
        )


def active_adapters(model: Any) -> list[str]:
    """The names of the adapters that take part in a forward pass now."""
    if not getattr(model, "peft_config", {}):
        return []
    return list(model.active_adapters) if model.get_model_status().enabled else []


@contextmanager
def active_adapter(model: Any, name: str | None) -> Iterator[None]:
    """Run with one adapter active, or with none, and go back to what was before, also on an error.

    That is: which are active, whether they act at all, and which parameters are trained.
    """
    held = list(getattr(model, "peft_config", {}))
    if name is not None and name not in held:
        raise ValueError(f"the model holds no adapter {name!r}; it holds {held or 'none'}")
    if not held:
        yield
        return
    trained = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        with model.disable_adapter() if name is None else _only(model, name):
            yield
    finally:
        for parameter, requires_grad in trained:
            parameter.requires_grad = requires_grad


@contextmanager
def _only(model: Any, name: str) -> Iterator[None]:
    """One adapter acts, also where all are switched off."""
    before, acting = list(model.base_model.active_adapters), model.get_model_status().enabled
    _let_act(model, True)
    model.base_model.set_adapter([name], inference_mode=True)
    try:
        yield
    finally:
        model.base_model.set_adapter(before, inference_mode=True)
        _let_act(model, acting)


def _let_act(model: Any, acting: bool) -> None:
    (model.base_model.enable_adapter_layers if acting else model.base_model.disable_adapter_layers)()
    model._adapters_disabled = not acting  # `PeftModel.disable_adapter` sets both; aLoRA needs this one
