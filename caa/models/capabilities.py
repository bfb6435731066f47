"""A model in, what it does exactly out: tried out on a few tokens, once for each model, not looked up by family."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from caa.models.batching import pad
from caa.models.blocks import decoder, decoder_blocks, evaluating, position_inputs, text_config
from caa.models.branching import branched
from caa.models.hooks import expanding


def can_branch(model: Any, longest: int) -> bool:
    """Whether this model computes branched texts of up to `longest` positions exactly; said once where it does not.

    ALiBi, state-space blocks and attention kernels that ignore masks all fail the same small comparison with separate
    rows. Windows are looked up: no mask of ours reaches into sliding ones, and GPT-Neo's span columns, not positions.
    """
    config = text_config(model)
    if "local" in (getattr(config, "attention_layers", None) or ()):
        _say_once(model, "row by row, not by branches", "its local attention counts columns")
        return False
    window = min(_windows(config), default=longest)
    if longest > window:
        why = f"texts of {longest} tokens reach beyond its sliding window of {window}"
        _say_once(model, "row by row, not by branches", why)
        return False
    why = "its attention does not keep the branches of one prompt apart"
    return _passes(model, _keeps_branches_apart, "row by row, not by branches", why)


def can_pad(model: Any) -> bool:
    """Whether a text padded on the left is what it is alone; recurrent families read their pads."""
    return _passes(model, _ignores_pads, "one prompt at a time", "padding on the left changes what it computes")


def can_expand(model: Any) -> bool:
    """Whether rows may be repeated between two of its blocks: MPT's biases, one for each head, look like rows."""
    return _passes(model, _repeats_rows, "one setting at a time", "its blocks do not take repeated rows")


def _windows(config: Any) -> list[int]:
    """Spans of local attention that the config names, in tokens."""
    if getattr(config, "use_sliding_window", True) is False:
        return []
    found = (getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size", "local_attention_size"))
    return [span for span in found if isinstance(span, int)]


_PAD = 3  # no model's own pad token: one whose embedding is zero would not show
_KNOWN: WeakKeyDictionary[Any, dict[Any, bool]] = WeakKeyDictionary()
_SAID: WeakKeyDictionary[Any, set[str]] = WeakKeyDictionary()


def _passes(model: Any, trial: Callable[[Any], bool], how: str, why: str) -> bool:
    """Does the model, with the attention kernel that it has now, stand the trial? A pass it cannot run is a no."""
    known = _KNOWN.setdefault(decoder(model), {})
    key = trial, getattr(model.config, "_attn_implementation", None)
    if key not in known:
        try:
            with torch.no_grad(), evaluating(model):
                known[key] = trial(model)
        except (TypeError, ValueError, RuntimeError, IndexError):
            known[key] = False
    if not known[key]:
        _say_once(model, how, why)
    return known[key]


def _say_once(model: Any, how: str, why: str) -> None:
    said = _SAID.setdefault(decoder(model), set())
    if why not in said:
        said.add(why)
        warnings.warn(f"{type(model).__name__} is asked {how}: {why}. Same numbers, more time.", stacklevel=3)


def _keeps_branches_apart(model: Any) -> bool:
    """Are the branches of a padded stem what separate rows are? The last of them stand far from it."""
    stems, branches = [[3, 4, 5, 6], [4, 5]], [[3 + n, 7, 11 - n] for n in range(8)]
    rows = [[*stem, *branch] for stem in stems for branch in branches]
    text = branched(stems, [branches] * len(stems), _PAD)
    joint = model(**text.inputs(model), use_cache=False).logits[:, text.stem + 2 :: text.width].flatten(0, 1)
    ids, mask = pad(rows, _PAD)
    return _same(joint, _logits(model, ids, mask)[torch.arange(len(rows)), mask.sum(1) - 1])


def _ignores_pads(model: Any) -> bool:
    """Is every token of a row that is padded on the left what it is in that row alone?"""
    short, long = [7, 8, 9], [3, 4, 5, 6, 7, 8, 9, 3, 4]
    ids, mask = pad([long, short], _PAD, side="left")
    alone = _logits(model, *pad([short], _PAD))
    return _same(_logits(model, ids, mask)[1:, -len(short) :], alone, most=0.05)


def _repeats_rows(model: Any) -> bool:
    """Is each copy of a row, made behind the first block, what the row is? One row and several fail differently."""
    for rows in ([[3, 4, 5, 6]], [[3, 4, 5, 6], [4, 5]]):
        ids, mask = pad(rows, _PAD, side="left")
        plain = _logits(model, ids, mask)
        with expanding(decoder_blocks(model), 0, 2):
            copies = _logits(model, ids, mask)
        if not _same(copies, plain.repeat_interleave(2, dim=0)):
            return False
    return True


def _logits(model: Any, ids: Tensor, mask: Tensor) -> Tensor:
    inputs = {"input_ids": ids, "attention_mask": mask, **position_inputs(model, mask)}
    device = model.get_input_embeddings().weight.device
    logits: Tensor = model(**{name: tensor.to(device) for name, tensor in inputs.items()}, use_cache=False).logits
    return logits


def _same(found: Tensor, expected: Tensor, most: float = 0.1) -> bool:
    """Within rounding, token by token, beside how far a token's logits lie apart; `most` bounds half precision."""
    if found.shape != expected.shape:
        return False
    spread = expected.float() - expected.float().mean(-1, keepdim=True)
    error = (found.float() - expected.float()).norm(dim=-1) / spread.norm(dim=-1)
    return bool(error.max() <= min(1024 * torch.finfo(expected.dtype).eps, most))
