"""A model in, what it does exactly out: tried out on a few tokens, once for each model, not looked up by family."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from caa.models.adapters import active_adapter
from caa.models.batching import branched, pad
from caa.models.blocks import (
    base_model,
    cache_name,
    decoder,
    decoder_blocks,
    generation_inputs,
    input_device,
    keeps_place,
    ordinary_ids,
    position_inputs,
    text_config,
    trying_out,
)
from caa.models.hooks import RepeatedBlocks, cutting, expanding, picking, sparing, writing
from caa.models.positions import cache_in
from caa.models.prefix import read_prefix
from caa.models.slots import SlotCache


def can_branch(model: Any, longest: int) -> bool:
    """Whether this model computes branched texts of up to `longest` positions exactly; said once where it does not.

    ALiBi, state-space blocks and attention kernels that ignore masks all fail the same small comparison with separate
    rows. Windows are looked up: no mask of ours reaches into sliding ones, and GPT-Neo's span columns, not positions.
    """
    config = text_config(model)
    if _counts_columns(config):
        _say_once(model, "row by row, not by branches", "its local attention counts columns")
        return False
    window = min(_windows(config), default=longest)
    if longest > window:
        reason = f"texts of {longest} tokens reach beyond its sliding window of {window}"
        _say_once(model, "row by row, not by branches", reason)
        return False
    if longest > (most := min(_rotations(config), default=longest)):
        reason = f"beyond {most} tokens it rotates all tokens of a pass by the longest text in it"
        _say_once(model, "row by row, not by branches", reason)
        return False
    reason = "its attention does not keep the branches of one prompt apart"
    return _passes(model, _keeps_branches_apart, "row by row, not by branches", reason)


Apart = Callable[[], AbstractContextManager[None]]
"""A context for a trial, entered only where its outcome is not known yet."""


def ignores_pads(model: Any, apart: Apart = nullcontext) -> bool:
    """Whether a text padded on the left is what it is alone, read and continued; recurrent families read their pads."""
    return _stands(model, _ignores_pads, apart)


def can_pad(model: Any) -> bool:
    """The same, and said once where it is not so."""
    return _passes(model, _ignores_pads, "one prompt at a time", "padding on the left changes what it computes")


def can_expand(model: Any) -> bool:
    """Whether rows may be repeated between two of its blocks: MPT's biases, one for each head, look like rows."""
    return _passes(model, _repeats_rows, "one setting at a time", "its blocks do not take repeated rows")


def can_grow(model: Any) -> bool:
    """Whether branches may come to a text behind any of its blocks (`cutting`), as copies of one that is there."""
    return _stands(model, _takes_branches_later)


def can_go_on(model: Any) -> bool:
    """Whether branched texts may stand behind one prefix, read once for all of them (`PrefixCache`)."""
    return keeps_place(model) and _stands(model, _goes_on_from_prefix)


def can_repeat_cache(model: Any) -> bool:
    """Whether a prompt's cache can be repeated for several continuations (`repeat_cache`)."""
    if not keeps_place(model):
        return False
    return _passes(
        model, _goes_on_from_repeated_cache, "anew for every setting", "its cache of a prompt cannot be repeated"
    )


def can_pool(model: Any, longest: int) -> bool:
    """Whether texts of up to `longest` tokens may come and go in one cache, each at its own place (`SlotCache`)."""
    config = text_config(model)
    places = keeps_place(model) and position_inputs(model, torch.ones(1, 1, dtype=torch.long))
    if not places or _counts_columns(config) or longest > min(_windows(config) + _rotations(config), default=longest):
        return False
    return _stands(model, _keeps_slots_apart)


def can_mix(model: Any, adapter: str) -> bool:
    """Whether rows of one pass may each wear this adapter or none (PEFT's `adapter_names`), each as if it were alone.

    PEFT passes the names over without a word for its tuners that know nothing of them.
    """
    config = model.peft_config[adapter]
    if config.peft_type != "LORA" or getattr(config, "trainable_token_indices", None):
        return False  # no few tokens tell of an adapter that acts on certain ones
    try:
        with trying_out(model):
            return _keeps_adapters_apart(model, adapter)
    except (TypeError, ValueError, RuntimeError, IndexError, AttributeError, NotImplementedError):
        return False


def can_pick(model: Any) -> bool:
    """Whether the head, given some tokens of all rows alone (`picking`), gives the logits that it gives them anyway."""
    return _stands(model, _picks_tokens)


def spared_parts(model: Any) -> list[nn.Module]:
    """Parts of the last block that may leave out tokens whose logits nobody reads (`sparing`); none where that fails.

    Behind the last attention no token sees another one: its output projection and the MLP go token by token.
    """
    return _last_parts(model) if _stands(model, _spares_tokens) else []


def _last_parts(model: Any) -> list[nn.Module]:
    """By the names that most families give them; of others none."""
    named = dict(decoder_blocks(model)[-1].named_modules())
    return [named[path] for path in ("self_attn.o_proj", "mlp") if path in named]


def repeat_cache(cache: Any, rows: int, times: int) -> None:
    """Every row of a cache `times` times, in place: keys and values, and the states of recurrent layers too.

    The way that beams take, which every kind of cached layer knows; `batch_repeat_interleave` forgets states.
    """
    cache.reorder_cache(torch.arange(rows).repeat_interleave(times))


def _counts_columns(config: Any) -> bool:
    """GPT-Neo's local attention, whose spans no trial this short reaches beyond."""
    return "local" in (getattr(config, "attention_layers", None) or ())


def _windows(config: Any) -> list[int]:
    """Spans of local attention that the config names, in tokens."""
    if getattr(config, "use_sliding_window", True) is False:
        return []
    spans = (getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size", "local_attention_size"))
    return [span for span in spans if isinstance(span, int)]


def _rotations(config: Any) -> list[int]:
    """Lengths beyond which rotary positions depend on the longest text of a pass ("dynamic", and "longrope" as of
    Phi-3), by the config's parameters for all layers or for each kind of them."""
    stated = getattr(config, "rope_parameters", None) or {}
    parameters = [stated, *(kind for kind in stated.values() if isinstance(kind, dict))]
    names = "original_max_position_embeddings", "max_position_embeddings"
    return [
        next(filter(None, (kind.get(names[0]), getattr(config, names[0], None), getattr(config, names[1], None))))
        for kind in parameters
        if kind.get("rope_type") == "longrope" or "dynamic" in str(kind.get("rope_type"))
    ]


_KNOWN: WeakKeyDictionary[Any, dict[Any, bool]] = WeakKeyDictionary()
_SAID: WeakKeyDictionary[Any, set[str]] = WeakKeyDictionary()


def _passes(model: Any, trial: Callable[[Any], bool], manner: str, reason: str) -> bool:
    """Does the model stand the trial? Where not, how it is asked and why is said once."""
    passed = _stands(model, trial)
    if not passed:
        _say_once(model, manner, reason)
    return passed


def _stands(model: Any, trial: Callable[[Any], bool], apart: Apart = nullcontext) -> bool:
    """Does the model, with the attention kernel that it has now, stand the trial? A pass it cannot run is a no."""
    known = _KNOWN.setdefault(decoder(model), {})
    key = trial, getattr(model.config, "_attn_implementation", None)
    if key not in known:
        try:
            with apart(), trying_out(model):
                known[key] = trial(model)
        except (TypeError, ValueError, RuntimeError, IndexError, AttributeError, NotImplementedError):
            known[key] = False
    return known[key]


def _say_once(model: Any, manner: str, reason: str) -> None:
    reasons = _SAID.setdefault(decoder(model), set())
    if reason not in reasons:
        reasons.add(reason)
        name = type(base_model(model)).__name__
        warnings.warn(f"{name} is asked {manner}: {reason}. Same numbers, more time.", stacklevel=3)


def _keeps_branches_apart(model: Any) -> bool:
    """Are the branches of a padded stem what separate rows are? The last of them stand far from it."""
    filling, *ids = ordinary_ids(model, 24)
    stems, branches = [ids[:4], ids[1:3]], [[ids[4 + n], ids[12], ids[13 + n]] for n in range(8)]
    rows = [[*stem, *branch] for stem in stems for branch in branches]
    text = branched(stems, [branches] * len(stems), filling)
    joint = model(**text.inputs(model), use_cache=False).logits[:, text.stem + 2 :: text.width].flatten(0, 1)
    separate, mask = pad(rows, filling)
    last = torch.arange(len(rows)), mask.sum(1) - 1
    expected = _logits(model, separate, mask)[last]
    return _same(joint, expected, _rounding(model, separate, mask, last))


def _ignores_pads(model: Any) -> bool:
    """Is every token of a row that is padded on the left what it is in that row alone, and what it is continued by?"""
    filling, *drawn = ordinary_ids(model, 10)
    short, long = drawn[4:7], [*drawn[:7], *drawn[:2]]
    ids, mask = pad([long, short], filling, side="left")
    alone, real = pad([short], filling)
    places = torch.tensor(0), torch.arange(len(short))
    rounding = _rounding(model, alone, real, places)
    if not _same(_logits(model, ids, mask)[1, -len(short) :], _logits(model, alone, real)[places], rounding):
        return False
    if not keeps_place(model):
        return True
    padded, plain = (_written(model, *batch) for batch in ((ids, mask), (alone, real)))
    return _agree((padded[0][1:], padded[1][1:]), plain, rounding)


def _goes_on_from_repeated_cache(model: Any) -> bool:
    """Are two prompts of one length, each continued twice from its repeated cache, what they are without?"""
    filling, *drawn = ordinary_ids(model, 11)
    ids, mask = pad([drawn[:5], drawn[5:]], filling)
    rounding = _rounding(model, ids, mask, (torch.arange(2), torch.tensor([4, 4])))
    cache = cache_in(model(**_placed(model, ids[:, :-1], mask[:, :-1]), use_cache=True))
    repeat_cache(cache, 2, 2)
    twice = [values.repeat_interleave(2, dim=0) for values in (ids, mask)]
    plain = _written(model, *twice, use_cache=False)
    return _agree(_written(model, *twice, **{cache_name(model): cache}), plain, rounding)


def _keeps_slots_apart(model: Any) -> bool:
    """Does a prompt that takes the place of another one, beside a longer one, go on as it does alone?"""
    filling, *drawn = ordinary_ids(model, 12)
    prompts = [drawn[:3], drawn[3:9], drawn[9:11] * 2]
    stems, mask = pad([prompt[:-1] for prompt in prompts], filling)
    cache = cache_in(model(**_placed(model, stems, mask), use_cache=True))
    slots = SlotCache(2, 12)
    for row in (0, 1):
        slots.add(cache, row, len(prompts[row]) - 1, 1)
    _next_logits(model, slots, [prompts[0][-1], prompts[1][-1]])
    slots.remove(0)
    slots.add(cache, 2, len(prompts[2]) - 1, 1)
    joint = _next_logits(model, slots, [filling, prompts[2][-1]])
    rows = [[*prompts[1], filling], prompts[2]]
    alone, real = pad(rows, filling)
    last = torch.arange(2), real.sum(1) - 1
    return _same(joint, _logits(model, alone, real)[last], _rounding(model, alone, real, last))


def _keeps_adapters_apart(model: Any, adapter: str) -> bool:
    """Is each of two rows, one with the adapter and one without, what it is where all wear it, or none?"""
    filling, *drawn = ordinary_ids(model, 10)
    ids, mask = pad([drawn[:5], drawn[5:]], filling)
    names, last = [adapter, "__base__"], (torch.arange(2), mask.sum(1) - 1)
    rounding = _rounding(model, ids, mask, last)
    with active_adapter(model, adapter):
        worn = _logits(model, ids, mask)
        mixed = [_logits(model, ids, mask, adapter_names=order) for order in (names, names[::-1])]
    with active_adapter(model, None):
        plain = _logits(model, ids, mask)
    expected = torch.stack([worn[0], plain[1]]), torch.stack([plain[0], worn[1]])
    return all(_same(one[last], other[last], rounding) for one, other in zip(mixed, expected, strict=True))


def _next_logits(model: Any, slots: SlotCache, tokens: Sequence[int]) -> Tensor:
    """[row, vocab] behind one token more of each row."""
    logits: Tensor = model(**slots.inputs(model, tokens)).logits[:, -1]
    slots.advance()
    return logits


def _repeats_rows(model: Any) -> bool:
    """Is each copy of a row, made behind the first block, what the row is? One row and several fail differently."""
    if isinstance(decoder_blocks(model), RepeatedBlocks):
        return False  # what runs again in a pass would meet what it wrote for fewer rows
    filling, *drawn = ordinary_ids(model, 7)
    for rows in ([drawn[:4]], [drawn[:4], drawn[4:6]]):
        ids, mask = pad(rows, filling, side="left")
        plain = _logits(model, ids, mask)
        with expanding(decoder_blocks(model), 0, 2):
            copies = _logits(model, ids, mask)
        last = torch.arange(len(rows)), torch.tensor(-1)
        if not _same(copies[:, -1], plain[:, -1].repeat_interleave(2, dim=0), _rounding(model, ids, mask, last)):
            return False
    return True


def _goes_on_from_prefix(model: Any) -> bool:
    """Are branches behind a stem behind a prefix, both unsteered, what separate rows are?"""
    filling, *drawn = ordinary_ids(model, 14)
    shared, stems, branches = drawn[:4], [drawn[4:7], drawn[7:8]], [drawn[8:10], drawn[10:12]]
    rows = [[*shared, *stem, *branch] for stem in stems for branch in branches]
    text, prefix = branched(stems, [branches] * len(stems), filling, behind=len(shared)), read_prefix(model, shared)
    for _ in range(2):  # the second pass finds what the first one has left
        joint = model(**text.inputs(model), **prefix.inputs(model)).logits[:, text.stem + 1 :: text.width].flatten(0, 1)
    separate, mask = pad(rows, filling)
    last = torch.arange(len(rows)), mask.sum(1) - 1
    expected = _logits(model, separate, mask)[last]
    return _same(joint, expected, _rounding(model, separate, mask, last))


def _takes_branches_later(model: Any) -> bool:
    """Is a branch that comes in behind a block, one behind each, what the branch is that it is a copy of?"""
    blocks = decoder_blocks(model)
    if isinstance(blocks, RepeatedBlocks):
        return False  # what runs again in a pass would meet what it wrote for fewer columns
    filling, *drawn = ordinary_ids(model, 9)
    stems, tail = [drawn[:4], drawn[4:6]], drawn[6:8]
    rows = [[*stem, *tail] for stem in stems]
    text = branched(stems, [[tail] * (len(blocks) + 1)] * len(stems), filling)
    first = slice(text.stem, text.stem + text.width)

    def with_one_more(resid: Tensor) -> Tensor:
        return torch.cat([resid, resid[:, first]], dim=1)

    with cutting(blocks, first.stop), writing(blocks, dict.fromkeys(range(len(blocks)), with_one_more)):
        grown = model(**text.inputs(model), use_cache=False).logits[:, text.stem + 1 :: text.width]
    separate, mask = pad(rows, filling)
    last = torch.arange(len(rows)), mask.sum(1) - 1
    expected = _logits(model, separate, mask)[last][:, None].expand_as(grown)
    return _same(grown, expected, _rounding(model, separate, mask, last))


def _picks_tokens(model: Any) -> bool:
    """Are the logits of some tokens what they are among all? What stands behind the head is the model's own."""
    return _picks(model, [])


def _spares_tokens(model: Any) -> bool:
    """Are they so where the last block's parts compute these tokens alone, too?"""
    return _picks(model, _last_parts(model))


def _picks(model: Any, spared: Sequence[nn.Module]) -> bool:
    filling, *drawn = ordinary_ids(model, 8)
    ids, mask = pad([drawn[:5], drawn[5:]], filling)
    places = torch.tensor([[True, False, True, True, False], [False, True, False, False, False]])
    plain = _logits(model, ids, mask)[places]
    with ExitStack() as stack:
        stack.enter_context(picking(base_model(model).get_output_embeddings(), places))
        for part in spared:
            stack.enter_context(sparing(part, places))
        picked = _logits(model, ids, mask)
    return _same(picked, plain[None], _rounding(model, ids, mask, places.nonzero(as_tuple=True)))


def _logits(model: Any, ids: Tensor, mask: Tensor, **kwargs: Any) -> Tensor:
    logits: Tensor = model(**_placed(model, ids, mask), use_cache=False, **kwargs).logits
    return logits


def _placed(model: Any, ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """A padded batch as a model takes it, on its device."""
    inputs = {"input_ids": ids, "attention_mask": mask, **position_inputs(model, mask)}
    return {name: tensor.to(input_device(model)) for name, tensor in inputs.items()}


def _written(model: Any, ids: Tensor, mask: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    """Three tokens that follow greedily, [row, 3], and the logits of each, [row, 3, vocab]."""
    device = input_device(model)
    options = {
        "max_new_tokens": 3,
        "min_new_tokens": 3,
        "do_sample": False,
        "num_beams": 1,
        "use_cache": True,
    } | options
    options |= {"output_logits": True, "return_dict_in_generate": True, "pad_token_id": 0}
    mask = mask.to(device)
    result = model.generate(ids.to(device), attention_mask=mask, **generation_inputs(model, mask), **options)
    return result.sequences[:, ids.shape[1] :], torch.stack(result.logits, dim=1)


def _agree(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor], rounding: float) -> bool:
    """Whether the logits are the same for as long as the tokens before them are."""
    (one_ids, one_logits), (other_ids, other_logits) = one, other
    before = torch.ones_like(one_ids[:, :1], dtype=torch.bool)
    shared = torch.cat([before, (one_ids == other_ids)[:, :-1].cumprod(1).bool()], dim=1)
    return _same(one_logits[shared], other_logits[shared], rounding)


_EXACT = 1024 * torch.finfo(torch.float32).eps
"""Share of a token's logits that is always taken for rounding: sums of another order, in float32."""
_COARSE = 0.25
"""Share that never is."""


def _rounding(model: Any, ids: Tensor, mask: Tensor, places: Sequence[Tensor]) -> float:
    """How far rounding moves this model's logits at these places, in its own dtype, as a share of their spread.

    Every block's output is shaken by one step of the dtype, which is twice what rounding it once does.
    """
    plain = _logits(model, ids, mask)[tuple(places)]
    draw = torch.Generator().manual_seed(0)

    def shake(resid: Tensor) -> Tensor:
        noise = 2 * torch.rand(resid.shape, generator=draw) - 1
        return (resid.float() * (1 + torch.finfo(resid.dtype).eps * noise.to(resid.device))).to(resid.dtype)

    blocks = decoder_blocks(model)
    with writing(blocks, dict.fromkeys(range(len(blocks)), shake)):
        shaken = _logits(model, ids, mask)[tuple(places)]
    return float(_distance(shaken, plain).max())


def _same(logits: Tensor, expected: Tensor, rounding: float) -> bool:
    """Whether they differ by no more than the model's own rounding explains, token by token."""
    if logits.shape != expected.shape:
        return False
    return bool(_distance(logits, expected).max() <= min(max(8 * rounding, _EXACT), _COARSE))


def _distance(logits: Tensor, expected: Tensor) -> Tensor:
    """Of each token's logits, beside how far they lie apart from each other: [token]."""
    spread = expected.float() - expected.float().mean(-1, keepdim=True)
    error: Tensor = (logits.float() - expected.float()).norm(dim=-1)
    share: Tensor = error / spread.norm(dim=-1)
    return share
