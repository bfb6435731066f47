"""What an artefact asks of its base model, and whether a given model has it, point by point, with the reason."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Base:
    """What an artefact asks of its base; empty where it does not say."""

    widths: set[int] = field(default_factory=set)
    layers: set[int] = field(default_factory=set)
    model_type: str = ""
    fingerprints: set[str] = field(default_factory=set)
    modules: dict[str, int] = field(default_factory=dict)
    """LoRA's modules -> their input width."""


def verdicts(base: Base, name: str) -> Iterator[tuple[bool, str]]:
    """Each point on which artefact and base agree or do not. The weights are read only if there is a fingerprint."""
    from transformers import AutoConfig

    from caa.models.loading import model_path

    try:
        whole = AutoConfig.from_pretrained(model_path(name))
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
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        found = dict(AutoModelForCausalLM.from_config(config).named_modules())
    wrong = [name for name, width in modules.items() if width not in _widths(found.get(name))]
    detail = f"; {wrong[0]} and perhaps others do not fit" if wrong else ""
    return not wrong, f"LoRA on {len(modules)} modules, {len(modules) - len(wrong)} of which the base has so{detail}"


def _widths(module: Any) -> tuple[int, ...]:
    """A linear layer's two widths; GPT-2 keeps them the other way round."""
    weight = getattr(module, "weight", None)
    return tuple(weight.shape) if weight is not None else ()


def _fingerprint_fits(fingerprints: set[str], name: str) -> tuple[bool, str]:
    from caa.models.loading import fingerprint, has_fingerprint, load_model

    model, _ = load_model(name)
    fits = all(has_fingerprint(model, known) for known in fingerprints)
    return fits, f"fingerprint {listed(sorted(fingerprints))}; the base's is {fingerprint(model)}"


def listed(values: Sequence[Any]) -> str:
    """
    >>> listed([0, 1, 2, 5])
    '0, 1, 2, 5'
    """
    return ", ".join(map(str, values))
