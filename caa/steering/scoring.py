"""Prompts, continuations and settings in, log probabilities out: every setting of a prompt in one forward pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from caa.models.adapter_state import check_readable
from caa.models.batching import Branched, branched, in_batches, tokens_of_a_pass
from caa.models.blocks import base_model, decoder_blocks, evaluating, input_device, takes, text_config
from caa.models.capabilities import can_branch, can_expand, can_go_on, can_grow, can_pad
from caa.models.hooks import expanding
from caa.models.prefix import PrefixCache, read_prefix, shared_length
from caa.models.tensors import check_logits
from caa.steering.branches import Columns, grown, in_order
from caa.steering.intervention import Intervention, Setting, check_suits_any_prompt, leaves_prompt, together
from caa.steering.wrapper import SteeringWrapper

MOST_COLUMNS = 512
"""Of the branches behind one stem. More would cost more in attention than reading the stem once more."""
LOGITS = 1 << 22
"""Numbers that the logits of a pass may always be."""
LOGITS_SHARE = 16
"""And one for so many of the model's parameters; the logits of one text are computed at once, however many."""
AT_ONCE = 1 << 20
"""Logits of texts whose logarithms are taken at once, or one text's."""


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

    @cached_property
    def tails(self) -> list[list[int]]:
        """What is read behind the stem, prompt[:-1]: for answers of one token each, it is the same for all."""
        distinct = dict.fromkeys((self.prompt[-1], *tokens[:-1]) for tokens in self.continuations)
        return [list(tail) for tail in distinct]

    def place(self, continuation: list[int]) -> int:
        """The index of its tail."""
        return self.tails.index([self.prompt[-1], *continuation[:-1]])

    def behind(self, prefix: int) -> Continued:
        """Without so many tokens in front."""
        return replace(self, prompt=self.prompt[prefix:])


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
    longest kind: a pass holds no more tokens than so many (`tokens_of_a_pass`), and fewer where memory runs out.
    """
    check_readable(wrapper.model)
    most = max(len(text.continuations) for text in texts)
    result = torch.full((len(texts), len(settings), most), -torch.inf, dtype=torch.float64)
    budget = tokens_of_a_pass(wrapper.model, batch_size, max(text.length for text in texts))
    check_suits_any_prompt(wrapper.interventions)
    with evaluating(wrapper):
        with wrapper.paused():
            passes = list(_plan(wrapper, texts, settings, batch_size))
            if any(isinstance(layout, Rows) for layout, _ in passes) and not _may_be_padded(wrapper.model, texts):
                budget = 1
        for layout, places in passes:
            some = [settings[place] for place in places]
            run = partial(_sums, wrapper, texts, some, layout, pad_id)
            for rows, sums in in_batches(run, _lengths(wrapper.model, layout, texts, len(some), budget), budget):
                result[torch.tensor(rows)[:, None], places, : sums.shape[2]] = sums
    return result


def _plan(
    wrapper: SteeringWrapper, texts: Sequence[Continued], settings: Sequence[Setting], batch_size: int
) -> Iterator[tuple[Layout, list[int]]]:
    """The passes: how each lays out its texts, and the indices of the settings that go into it."""
    longest, tails = max(text.length for text in texts), max(len(text.tails) for text in texts)
    remaining = set(range(len(settings)))
    if len(settings) * tails > 1 and not wrapper.interventions:
        late = [place for place, setting in enumerate(settings) if leaves_prompt(setting, longest)]
        if late and can_branch(wrapper.model, longest):
            width = max(len(tail) for text in texts for tail in text.tails)
            gated = [place for place in late if any(edit.gate for edit in settings[place])]
            plain = [place for place in late if place not in gated] if can_grow(wrapper.model) else []
            size = max(1, MOST_COLUMNS // (width * tails))
            if plain:
                wrapper.steer(*together([settings[place] for place in plain])).close()  # complains of what does not fit
                layout = Grown(_shared_prefix(wrapper, texts))
                yield from ((layout, some) for some in in_order(plain, settings, size))
            kept = [place for place in late if place not in plain]
            yield from ((Branches(), some) for some in _chunks(kept, size))
            remaining -= set(late)
    lowest = {
        place: min((edit.last_plain_block for edit in settings[place]), default=-1) for place in sorted(remaining)
    }
    for layer in sorted(set(lowest.values())):
        group = [place for place, first in lowest.items() if first == layer]
        size = batch_size if len(group) > 1 and layer >= 0 and can_expand(wrapper.model) else 1
        yield from ((Rows(), some) for some in _chunks(group, size))


def _shared_prefix(wrapper: SteeringWrapper, texts: Sequence[Continued]) -> PrefixCache | None:
    """Of the prompts but for their last tokens; None where it is short, or cannot stand before others."""
    length = shared_length([text.prompt[:-1] for text in texts])
    return read_prefix(wrapper.model, texts[0].prompt[:length]) if length and can_go_on(wrapper.model) else None


def _may_be_padded(model: Any, texts: Sequence[Continued]) -> bool:
    return len({len(text.prompt) for text in texts}) == 1 or can_pad(model)


def _chunks(places: list[int], size: int) -> Iterator[list[int]]:
    return (places[start : start + size] for start in range(0, len(places), size))


def _lengths(model: Any, layout: Layout, texts: Sequence[Continued], settings: int, budget: int) -> list[int]:
    """Tokens of each text in a pass; or more, so that no pass of `budget` tokens has too many logits."""
    parameters = sum(parameter.numel() for parameter in model.parameters())
    most = max(LOGITS, parameters // LOGITS_SHARE)
    vocabulary = getattr(text_config(model), "vocab_size", 0)
    lengths = []
    for text in texts:
        columns = sum(len(tail) - text.start for tail in text.tails)
        lengths.append(max(layout.tokens(text, settings), budget * settings * columns * vocabulary // most))
    return lengths


def _sums(
    wrapper: SteeringWrapper,
    texts: Sequence[Continued],
    settings: Sequence[Setting],
    layout: Layout,
    pad_id: int,
    rows: Sequence[int],
) -> Float[Tensor, "text setting continuation"]:
    """Of each text in a batch, float64; -inf where a text has fewer continuations than others."""
    some = [texts[row] for row in rows]
    first = min(text.start for text in some)
    return _gathered(layout.logits(wrapper, Batch(some, settings, first, pad_id)), some, first)


def _gathered(
    logits: Float[Tensor, "text setting tail column vocab"], batch: Sequence[Continued], first: int
) -> Float[Tensor, "text setting continuation"]:
    """The sum over each continuation's tokens; column 0 of `logits` predicts token `first`.

    A few texts at a time, so that no second copy of a whole pass's logits is ever held: a vocabulary may be large.
    """
    tokens = [
        (row, number, text.place(continuation), place - first, continuation[place])
        for row, text in enumerate(batch)
        for number, continuation in enumerate(text.continuations)
        for place in range(text.start, len(continuation))
    ]
    row, number, tail, column, token = torch.tensor(tokens, device=logits.device).T
    sums = torch.zeros(len(batch), logits.shape[1], max(len(text.continuations) for text in batch)).double()
    sums = sums.to(logits.device)
    for some in torch.arange(len(batch)).split(max(1, AT_ONCE // logits[0].numel())):
        mine = (row >= some[0]) & (row <= some[-1])
        logs = logits[some[0] : some[-1] + 1].float().log_softmax(-1)
        picked = logs[row[mine] - some[0], :, tail[mine], column[mine], token[mine]].double()
        sums.transpose(1, 2).index_put_((row[mine], number[mine]), picked, accumulate=True)
    if sums.isnan().any():
        check_logits(logits.flatten(0, -2), "in a scored answer")
    for place, text in enumerate(batch):
        sums[place, :, len(text.continuations) :] = -torch.inf
    return sums.cpu()


def _even_tails(batch: Sequence[Continued]) -> list[list[list[int]]]:
    """As many tails for every text: some stand twice."""
    most = max(len(text.tails) for text in batch)
    return [(text.tails * most)[:most] for text in batch]


def _kept_logits(
    wrapper: SteeringWrapper, keep: Int[Tensor, " kept"], columns: int, **inputs: Any
) -> Float[Tensor, "row kept vocab"]:
    """Those of the columns to keep, also of a model that computes all whatever it is told; [row * setting] rows."""
    keep = keep.to(inputs["input_ids"].device)
    options = {"logits_to_keep": keep} if takes(wrapper.model, "logits_to_keep") else {}
    logits: Tensor = wrapper.run_pass(**{"use_cache": False, **inputs}, **options).logits
    if logits.shape[1] == columns != len(keep):
        return logits[:, keep.to(logits.device)]
    if logits.shape[1] != len(keep):
        name = type(base_model(wrapper.model)).__name__
        raise TypeError(
            f"{name} gives logits {list(logits.shape)} for {columns} tokens, of which {len(keep)} were wanted"
        )
    return logits


@dataclass(frozen=True)
class Batch:
    """What one pass is to answer: these texts, each under all of these settings."""

    texts: Sequence[Continued]
    settings: Sequence[Setting]
    first: int
    """The first column of the continuations whose logits are wanted."""
    pad_id: int


class Layout(Protocol):
    """A way to put texts and settings into a pass."""

    def tokens(self, text: Continued, settings: int) -> int:
        """How many a pass holds for a text under so many settings."""
        ...

    def logits(self, wrapper: SteeringWrapper, batch: Batch) -> Float[Tensor, "text setting tail column vocab"]:
        """Of the continuations' columns from `batch.first` on."""
        ...


class Branches:
    """All settings and continuations of a prompt in one row."""

    def tokens(self, text: Continued, settings: int) -> int:
        return len(text.prompt) - 1 + settings * len(text.tails) * max(map(len, text.tails))

    def logits(self, wrapper: SteeringWrapper, batch: Batch) -> Float[Tensor, "text setting tail column vocab"]:
        rows, columns, keep = _branched(batch)
        inputs = rows.inputs(wrapper.model)
        edits = [_by_column(intervention, columns) for intervention in together(batch.settings)]
        prompts = columns.last_prompt[:, 0] + 1
        with wrapper.steer(*edits):
            logits = _kept_logits(wrapper, keep.flatten(), rows.ids.shape[1], **inputs, prompt_lengths=prompts)
        return logits.view(len(batch.texts), len(batch.settings), -1, rows.width - batch.first, logits.shape[-1])


@dataclass(frozen=True)
class Grown(Branches):
    """The same, but a setting's branch comes in where it begins to differ, and what all prompts share is read once."""

    prefix: PrefixCache | None = None

    def tokens(self, text: Continued, settings: int) -> int:
        return super().tokens(text, settings) - (self.prefix.length if self.prefix else 0)

    def logits(self, wrapper: SteeringWrapper, batch: Batch) -> Float[Tensor, "text setting tail column vocab"]:
        rows, columns, keep = _branched(batch, self.prefix.length if self.prefix else 0)
        inputs = {**rows.inputs(wrapper.model), **(self.prefix.inputs(wrapper.model) if self.prefix else {})}
        with grown(wrapper, batch.settings, columns):
            logits = _kept_logits(wrapper, keep.flatten(), rows.ids.shape[1], **inputs)
        return logits.view(len(batch.texts), len(batch.settings), -1, rows.width - batch.first, logits.shape[-1])


def _branched(batch: Batch, behind: int = 0) -> tuple[Branched, Columns, Int[Tensor, " kept"]]:
    """Texts with a branch for each setting and tail, where these stand, and each one's columns from `first` on.

    `behind` so many first tokens of all texts, which stand in a cache.
    """
    texts = [text.behind(behind) for text in batch.texts]
    tails, settings = _even_tails(texts), len(batch.settings)
    rows = branched([text.prompt[:-1] for text in texts], [own * settings for own in tails], batch.pad_id, behind)
    per_setting = len(tails[0]) * rows.width
    branches = torch.arange(settings * per_setting).view(-1, rows.width)[:, batch.first :]
    last_prompt = torch.tensor([[len(text.prompt) - 1] for text in batch.texts])
    return rows, Columns(rows.stem, per_setting, rows.positions, last_prompt), (rows.stem + branches).flatten()


def _by_column(intervention: Intervention, columns: Columns) -> Intervention:
    """A multiplier for each setting becomes a coefficient for each column: 0 in the stem."""
    of_branches = intervention.strengths.flatten().repeat_interleave(columns.per_setting)
    return replace(intervention, multiplier=torch.cat([torch.zeros(columns.stem), of_branches])[None])


class Rows:
    """A row for each continuation; a row for each setting too, from the first steered layer on."""

    def tokens(self, text: Continued, settings: int) -> int:
        return settings * len(text.tails) * text.length

    def logits(self, wrapper: SteeringWrapper, batch: Batch) -> Float[Tensor, "text setting tail column vocab"]:
        tails = _even_tails(batch.texts)
        rows = [(text.prompt[:-1], tail) for text, own in zip(batch.texts, tails, strict=True) for tail in own]
        padded = branched([stem for stem, _ in rows], [[tail] for _, tail in rows], batch.pad_id)
        device = input_device(wrapper.model)
        ids, mask = padded.ids.to(device), padded.real.to(device)
        prompts = torch.tensor([len(stem) + 1 for stem, _ in rows], device=device)
        keep = torch.arange(padded.stem + batch.first, ids.shape[1])
        with _at_once(wrapper, batch.settings, len(rows)):
            inputs = {"input_ids": ids, "attention_mask": mask, "prompt_lengths": prompts}
            logits = _kept_logits(wrapper, keep, ids.shape[1], **inputs)
        by_row = logits.view(len(batch.texts), len(tails[0]), len(batch.settings), padded.width - batch.first, -1)
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
