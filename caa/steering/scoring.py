"""Prompts, continuations and settings in, log probabilities out: every setting of a prompt in one forward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from caa.models.adapter_state import check_readable
from caa.models.batching import branched, in_batches
from caa.models.blocks import base_model, decoder_blocks, evaluating, input_device, takes
from caa.models.capabilities import can_branch, can_expand, can_pad
from caa.models.hooks import expanding
from caa.models.tensors import check_logits
from caa.steering.intervention import Intervention, Setting, leaves_prompt, together
from caa.steering.wrapper import SteeringWrapper

MOST_COLUMNS = 512
"""Of the branches behind one stem. More would cost more in attention than reading the stem once more."""


@dataclass(frozen=True)
class Continued:
    """A prompt and what may follow it, as ids."""

    prompt: list[int]
    continuations: tuple[list[int], ...]
    start: int
    """Where in the continuations the tokens begin whose probabilities are wanted."""

    def __post_init__(self) -> None:
        if not self.prompt or any(len(tokens) <= self.start for tokens in self.continuations):
            raise ValueError("a prompt and continuations of some tokens are needed, and one of these has none")

    @property
    def length(self) -> int:
        """Tokens of the longest text that the model reads."""
        return len(self.prompt) + max(map(len, self.continuations)) - 1

    def tails(self) -> list[list[int]]:
        """What is read behind the stem, prompt[:-1]: for answers of one token each, it is the same for all."""
        distinct = dict.fromkeys((self.prompt[-1], *tokens[:-1]) for tokens in self.continuations)
        return [list(tail) for tail in distinct]

    def place(self, continuation: list[int]) -> int:
        """The index of its tail."""
        return self.tails().index([self.prompt[-1], *continuation[:-1]])


@torch.no_grad()
def log_probabilities(
    wrapper: SteeringWrapper,
    texts: Sequence[Continued],
    settings: Sequence[Setting],
    *,
    pad_id: int = 0,
    batch_size: int = 16,
) -> Float[Tensor, "text setting continuation"]:
    """log p(continuation from `start` on | prompt) under every setting, float64; -inf fills up shorter lists.

    Settings that leave the prompt before its last token alone are branches of one row; the others share the layers
    below the first steered one. Both equal one text at a time within rounding. `batch_size` counts plain texts of the
    longest kind: a pass holds no more tokens than so many, and fewer where memory runs out.
    """
    check_readable(wrapper.model)
    most = max(len(text.continuations) for text in texts)
    result = torch.full((len(texts), len(settings), most), -torch.inf, dtype=torch.float64)
    budget = batch_size * max(text.length for text in texts)
    if any(intervention.strengths.numel() > 1 for intervention in wrapper.interventions):
        raise ValueError("texts are asked in an order of their own: steer what stays on with one multiplier for all")
    with evaluating(wrapper):
        with wrapper.paused():
            passes = list(_plan(wrapper, texts, settings, batch_size))
            if any(layout is ROWS for layout, _ in passes) and not _may_be_padded(wrapper.model, texts):
                budget = 1
        for layout, places in passes:
            some = [settings[place] for place in places]
            run = partial(_sums, wrapper, texts, some, layout, pad_id)
            lengths = [layout.tokens(text, len(some)) for text in texts]
            for rows, sums in in_batches(run, lengths, budget):
                for row, of_text in zip(rows, sums, strict=True):
                    result[row, places, : of_text.shape[1]] = of_text
    return result


def _plan(
    wrapper: SteeringWrapper, texts: Sequence[Continued], settings: Sequence[Setting], batch_size: int
) -> Iterator[tuple[Layout, list[int]]]:
    """The passes: how each lays out its texts, and the indices of the settings that go into it."""
    longest, tails = max(text.length for text in texts), max(len(text.tails()) for text in texts)
    remaining = set(range(len(settings)))
    if len(settings) * tails > 1 and not wrapper.interventions:
        late = [place for place, setting in enumerate(settings) if leaves_prompt(setting, longest)]
        if late and can_branch(wrapper.model, longest):
            width = max(len(tail) for text in texts for tail in text.tails())
            yield from ((BRANCHES, some) for some in _chunks(late, max(1, MOST_COLUMNS // (width * tails))))
            remaining -= set(late)
    lowest = {
        place: min((edit.last_plain_block for edit in settings[place]), default=-1) for place in sorted(remaining)
    }
    for layer in sorted(set(lowest.values())):
        group = [place for place, first in lowest.items() if first == layer]
        size = batch_size if len(group) > 1 and layer >= 0 and can_expand(wrapper.model) else 1
        yield from ((ROWS, some) for some in _chunks(group, size))


def _may_be_padded(model: Any, texts: Sequence[Continued]) -> bool:
    return len({len(text.prompt) for text in texts}) == 1 or can_pad(model)


def _chunks(places: list[int], size: int) -> Iterator[list[int]]:
    return (places[start : start + size] for start in range(0, len(places), size))


def _sums(
    wrapper: SteeringWrapper,
    texts: Sequence[Continued],
    settings: Sequence[Setting],
    layout: Layout,
    pad_id: int,
    rows: Sequence[int],
) -> list[Float[Tensor, "setting continuation"]]:
    """Of each text in a batch."""
    batch = [texts[row] for row in rows]
    first = min(text.start for text in batch)
    logits = layout.logits(wrapper, batch, settings, first, pad_id)
    return [_gathered(logits[row], text, first) for row, text in enumerate(batch)]


def _gathered(
    logits: Float[Tensor, "setting tail column vocab"], text: Continued, first: int
) -> Float[Tensor, "setting continuation"]:
    """The sum over each continuation's tokens; column 0 of `logits` predicts token `first`.

    Text by text, so that no second copy of a whole pass's logits is ever held: a vocabulary may be large.
    """
    logs, sums = logits.float().log_softmax(-1), []
    for tokens in text.continuations:
        columns = torch.arange(text.start - first, len(tokens) - first)
        picked = logs[:, text.place(tokens), columns, torch.tensor(tokens[text.start :])]
        sums.append(picked.double().sum(-1).cpu())
    gathered = torch.stack(sums, dim=1)
    if gathered.isnan().any():
        check_logits(logits.flatten(0, -2), "in a scored answer")
    return gathered


def _even_tails(batch: Sequence[Continued]) -> list[list[list[int]]]:
    """As many tails for every text: some stand twice."""
    most = max(len(text.tails()) for text in batch)
    return [(text.tails() * most)[:most] for text in batch]


def _kept_logits(
    wrapper: SteeringWrapper, keep: Int[Tensor, " kept"], **inputs: Tensor
) -> Float[Tensor, "row kept vocab"]:
    """Those of the columns to keep, also of a model that computes all whatever it is told; [row * setting] rows."""
    columns = inputs["input_ids"].shape[1]
    keep = keep.to(inputs["input_ids"].device)
    options = {"logits_to_keep": keep} if takes(wrapper.model, "logits_to_keep") else {}
    logits: Tensor = wrapper.run_pass(**inputs, **options, use_cache=False).logits
    if logits.shape[1] == columns != len(keep):
        return logits[:, keep.to(logits.device)]
    if logits.shape[1] != len(keep):
        name = type(base_model(wrapper.model)).__name__
        raise TypeError(
            f"{name} gives logits {list(logits.shape)} for {columns} tokens, of which {len(keep)} were wanted"
        )
    return logits


# All settings and continuations of a prompt in one row.


def _branch_tokens(text: Continued, settings: int) -> int:
    tails = text.tails()
    return len(text.prompt) - 1 + settings * len(tails) * max(map(len, tails))


def _branch_logits(
    wrapper: SteeringWrapper, batch: Sequence[Continued], settings: Sequence[Setting], first: int, pad_id: int
) -> Float[Tensor, "text setting tail column vocab"]:
    """Of the branches' columns from `first` on."""
    tails = _even_tails(batch)
    stems = [text.prompt[:-1] for text in batch]
    rows = branched(stems, [own * len(settings) for own in tails], pad_id)
    per_setting = len(tails[0]) * rows.width
    columns = torch.arange(len(settings) * per_setting).view(-1, rows.width)[:, first:]
    inputs = rows.inputs(wrapper.model)
    device = inputs["input_ids"].device
    prompts = torch.tensor([len(text.prompt) for text in batch], device=device)
    keep = rows.stem + columns.flatten()
    with wrapper.steer(*(_by_column(intervention, rows.stem, per_setting) for intervention in together(settings))):
        logits = _kept_logits(wrapper, keep, **inputs, prompt_lengths=prompts)
    return logits.view(len(batch), len(settings), len(tails[0]), rows.width - first, -1)


def _by_column(intervention: Intervention, stem: int, per_setting: int) -> Intervention:
    """A multiplier for each setting becomes a coefficient for each column: 0 in the stem."""
    columns = intervention.strengths.flatten().repeat_interleave(per_setting)
    return replace(intervention, multiplier=torch.cat([torch.zeros(stem), columns])[None])


# A row for each continuation; a row for each setting too, from the first steered layer on.


def _row_tokens(text: Continued, settings: int) -> int:
    return settings * len(text.tails()) * text.length


def _row_logits(
    wrapper: SteeringWrapper, batch: Sequence[Continued], settings: Sequence[Setting], first: int, pad_id: int
) -> Float[Tensor, "text setting tail column vocab"]:
    """Of the continuations' columns from `first` on."""
    tails = _even_tails(batch)
    rows = [(text.prompt[:-1], tail) for text, own in zip(batch, tails, strict=True) for tail in own]
    padded = branched([stem for stem, _ in rows], [[tail] for _, tail in rows], pad_id)
    device = input_device(wrapper.model)
    ids, mask = padded.ids.to(device), padded.real.to(device)
    prompts = torch.tensor([len(stem) + 1 for stem, _ in rows], device=device)
    keep = torch.arange(padded.stem + first, ids.shape[1])
    with _at_once(wrapper, settings, len(rows)):
        logits = _kept_logits(wrapper, keep, input_ids=ids, attention_mask=mask, prompt_lengths=prompts)
    by_row = logits.view(len(batch), len(tails[0]), len(settings), padded.width - first, -1)
    return by_row.transpose(1, 2)


@contextmanager
def _at_once(wrapper: SteeringWrapper, settings: Sequence[Setting], rows: int) -> Iterator[None]:
    """Steer every row by every setting, in copies made at the first layer that a setting edits."""
    edits = [replace(edit, multiplier=edit.strengths.flatten().repeat(rows)) for edit in together(settings)]
    with ExitStack() as stack:
        stack.enter_context(wrapper.steer(*edits))
        if len(settings) > 1:
            lowest = min(edit.last_plain_block for edit in edits)
            stack.enter_context(expanding(decoder_blocks(wrapper.model), lowest, len(settings)))
        yield


@dataclass(frozen=True)
class Layout:
    """A way to put texts and settings into a pass."""

    tokens: Callable[[Continued, int], int]
    """(text, number of settings) -> how many a pass holds for it."""
    logits: Callable[..., Tensor]


BRANCHES, ROWS = Layout(_branch_tokens, _branch_logits), Layout(_row_tokens, _row_logits)
