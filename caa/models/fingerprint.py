"""What tells one base model or tokenizer from another, and the refusal of a wrong one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from caa.hashing import json_digest
from caa.models.blocks import decoder_blocks, model_width
from caa.models.loading import fingerprint, float16_hint, has_fingerprint, model_name

PROBES = ("You can have 5 pearls now, or 50 next spring.", "(A) yes\n(B) no", "na\u00efve  \u4f60\u597d")


def describe(model: Any) -> dict[str, Any]:
    """What tells a base from others, and in words how."""
    return {
        "name": model_name(model),
        "fingerprint": fingerprint(model),
        "family": model.config.model_type,
        "width": model_width(model),
        "layers": len(decoder_blocks(model)),
    }


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """16 hex digits that tell one tokenizer from another: its words, its chat template, and what it makes of a text."""
    known = [tokenizer.get_vocab(), tokenizer.chat_template, [tokenizer(text).input_ids for text in PROBES]]
    return json_digest(known, sort_keys=True)


def check_base(folder: Path, made_for: dict[str, Any], model: Any) -> None:
    """ValueError, saying in what it differs, if the model is not the one that `describe` described."""
    if has_fingerprint(model, made_for["fingerprint"]):
        return
    found = describe(model)
    facts = [key for key in ("family", "width", "layers") if made_for.get(key, found[key]) != found[key]]
    other = ", ".join(f"{key} {found[key]}, not {made_for[key]}" for key in facts) or "this model has other weights"
    raise ValueError(
        f"{folder} was made for {made_for['name']!r}, and the model given is {found['name']!r}: {other}. "
        f"Load that base, or leave the model out.{float16_hint(model)}"
    )


def check_tokenizer(folder: Path, known: str, tokenizer: Any) -> None:
    """ValueError if the tokenizer has another fingerprint; what is not known is not checked."""
    if known and tokenizer is not None and tokenizer_fingerprint(tokenizer) != known:
        raise ValueError(
            f"{folder} was made with another tokenizer or chat template than {tokenizer.name_or_path!r}: the steered "
            "tokens would be others. Use the one of its base."
        )
