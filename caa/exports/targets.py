"""What `caa export` needs: the targets by name, the steered adapter in a run's folder, and a change of scope."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from caa.exports.alora import to_alora
from caa.exports.merged import to_merged
from caa.exports.peft import to_peft
from caa.exports.tools import to_easysteer, to_gguf, to_lm_eval, to_repeng, to_vllm_lens
from caa.steering.checkpoint.steered import MANIFEST
from caa.steering.scopes import SCOPES
from caa.steering.wrapper import SteeringWrapper

TARGETS: dict[str, Callable[[SteeringWrapper, Any, Path], Path]] = {
    "peft": lambda wrapper, chat, out: to_peft(wrapper, out),
    "peft-alora": to_alora,
    "merged": to_merged,
    "gguf": lambda wrapper, chat, out: to_gguf(wrapper, out),
    "repeng": lambda wrapper, chat, out: to_repeng(wrapper, out),
    "lm-eval": lambda wrapper, chat, out: to_lm_eval(wrapper, out),
    "easysteer": lambda wrapper, chat, out: to_easysteer(wrapper, out),
    "vllm-lens": lambda wrapper, chat, out: to_vllm_lens(wrapper, out),
}
"""Target -> (wrapper, ChatFormat or tokenizer, folder) -> folder."""


def steered_folder(source: str | Path) -> Path:
    """The steered adapter that is meant: `source` itself, or the only one that a run has kept in `steered`."""
    kept = sorted(path.parent for path in Path(source).glob(f"steered/*/{MANIFEST}"))
    if len(kept) > 1:
        raise ValueError(f"{source} holds several steered adapters; export one of {', '.join(map(str, kept))}")
    return kept[0] if kept else Path(source)


def rescoped(wrapper: SteeringWrapper, scope: str | None) -> SteeringWrapper:
    """The same model, steered on other tokens; the same wrapper for None."""
    if scope is not None:
        changed = [replace(intervention, where=SCOPES[scope]) for intervention in wrapper.interventions]
        wrapper.unsteer()
        wrapper.steer(*changed)
    return wrapper
