"""LoRA adapters on a live model: put on, switch, switch off. The adapters themselves are PEFT's."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from caa.steering.loading import fingerprint

PROVENANCE = "caa.json"
"""Beside an adapter that this project trained: what it was taught, on which base, with which data."""


def load_adapter(model: nn.Module, path: str | Path, name: str) -> nn.Module:
    """The model wearing one more LoRA adapter, which becomes the active one; a plain model becomes a PeftModel.

    ValueError, with the reason, if the adapter was made for another base.
    """
    from peft import PeftModel

    if not Path(path).is_dir():
        raise ValueError(f"there is no adapter at {path}; `caa finetune` writes one")
    check_base(model, path)
    if name in getattr(model, "peft_config", {}):
        raise ValueError(f"the model already holds an adapter {name!r}; give this one another name")
    try:
        with warnings.catch_warnings():  # PEFT still says gradient_checkpointing, which transformers has renamed
            warnings.filterwarnings("ignore", ".*gradient_checkpointing", FutureWarning)
            if not isinstance(model, PeftModel):
                return PeftModel.from_pretrained(model, str(path), adapter_name=name).eval()
            model.load_adapter(str(path), adapter_name=name)
        model.set_adapter(name, inference_mode=True)
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"the adapter at {path} does not fit this model: {str(error)[:300]}") from error
    return model.eval()


def check_base(model: nn.Module, path: str | Path) -> None:
    """Compare the base that an adapter was trained on with this model; adapters of other tools do not say theirs."""
    record = Path(path) / PROVENANCE
    made_for = json.loads(record.read_text(encoding="utf-8")) if record.exists() else {}
    if made_for and made_for["base_fingerprint"] != (found := fingerprint(model)):
        raise ValueError(
            f"the adapter at {path} was trained on {made_for['base']!r} ({made_for['base_fingerprint']}), "
            f"and this model is another one ({found}). Load that base, or finetune this one."
        )


def active_adapters(model: Any) -> list[str]:
    """The names of the adapters that take part in a forward pass now."""
    if not getattr(model, "peft_config", {}):
        return []
    return list(model.active_adapters) if model.get_model_status().enabled else []


@contextmanager
def active_adapter(model: Any, name: str | None) -> Iterator[None]:
    """Run with one adapter active, or with none, and go back to what was active before, also on an error."""
    held = list(getattr(model, "peft_config", {}))
    if name is None:
        if not held:
            yield
            return
        with model.disable_adapter():
            yield
        return
    if name not in held:
        raise ValueError(f"the model holds no adapter {name!r}; it holds {held or 'none'}")
    before = list(model.base_model.active_adapters)
    model.base_model.set_adapter([name], inference_mode=True)
    try:
        yield
    finally:
        model.base_model.set_adapter(before, inference_mode=True)
