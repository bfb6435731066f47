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
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache

from caa.models.batching import in_batches
from caa.models.blocks import decoder_blocks, evaluating
from caa.models.branching import branched
from caa.models.capabilities import can_branch, can_expand, can_pad
from caa.models.hooks import expanding
from caa.steering.intervention import Intervention
from caa.steering.settings import Setting, together
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
        read = [(self.prompt[-1], *tokens[:-1]) for tokens in self.continuations]
        return [list(tail) for tail in dict.fromkeys(read)]

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
    found = torch.full((len(texts), len(settings), max(len(t.continuations) for t in texts)), -torch.inf).double()
    budget = batch_size * max(text.length for text in texts)
    if any(each.strengths.numel() > 1 for each in wrapper.interventions):
        raise ValueError("texts are asked in an order of their own: steer what stays on with one multiplier for all")
    with evaluating(wrapper):
        with wrapper.paused():
            plan = list(_plan(wrapper, texts, settings, batch_size))
            if any(ask is ROWS for ask, _ in plan) and not _may_be_padded(wrapper.model, texts):
                budget = 1
        for ask, places in plan:
            some = [settings[place] for place in places]
            run = partial(_sums, wrapper, texts, some, ask, pad_id)
            lengths = [ask.tokens(text, len(some)) for text in texts]
            for rows, sums in in_batches(run, lengths, budget):
                for row, each in zip(rows, sums, strict=True):
                    found[row, places, : each.shape[1]] = each
    return found


def _plan(
    wrapper: SteeringWrapper, texts: Sequence[Continued], settings: Sequence[Setting], batch_size: int
) -> Iterator[tuple[Ask, list[int]]]:
    """How to ask, and for which of the settings: those that go into one pass."""
    longest, tails = max(text.length for text in texts), max(len(text.tails()) for text in texts)
    apart = set(range(len(settings)))
    if len(settings) * tails > 1 and not wrapper.interventions:
        late = [place for place, setting in enumerate(settings) if _leaves_prompt(setting, longest)]
        if late and can_branch(wrapper.model, longest):
            width = max(len(tail) for text in texts for tail in text.tails())
            yield from ((BRANCHES, some) for some in _chunks(late, max(1, MOST_COLUMNS // (width * tails))))
            apart -= set(late)
    lowest = {place: min((each.layer for each in settings[place]), default=-1) for place in sorted(apart)}
    for layer in sorted(set(lowest.values())):
        group = [place for place, first in lowest.items() if first == layer]
        size = batch_size if len(group) > 1 and can_expand(wrapper.model) else 1
        yield from ((ROWS, some) for some in _chunks(group, size))


def _may_be_padded(model: Any, texts: Sequence[Continued]) -> bool:
    return len({len(text.prompt) for text in texts}) == 1 or can_pad(model)


def _chunks(places: list[int], size: int) -> Iterator[list[int]]:
    return (places[start : start + size] for start in range(0, len(places), size))


def _leaves_prompt(setting: Setting, length: int) -> bool:
    """Is no token before the prompt's last one edited?"""
    positions, last = torch.arange(length - 1)[None], torch.tensor([[length - 1]])
    return not any(each.where(positions, last).any() for each in setting)


def _sums(
    wrapper: SteeringWrapper,
    texts: Sequence[Continued],
    settings: Sequence[Setting],
    ask: Ask,
    pad_id: int,
    rows: Sequence[int],
) -> list[Float[Tensor, "setting continuation"]]:
    """Of each text in a batch."""
    batch = [texts[row] for row in rows]
    first = min(text.start for text in batch)
    logs = ask.logits(wrapper, batch, settings, first, pad_id).float().log_softmax(-1)
    return [_gathered(logs[row], text, first) for row, text in enumerate(batch)]


def _gathered(
    logs: Float[Tensor, "setting tail column vocab"], text: Continued, first: int
) -> Float[Tensor, "setting continuation"]:
    """The sum over each continuation's tokens; column 0 of `logs` foretells token `first`."""
    sums = []
    for tokens in text.continuations:
        columns = torch.arange(text.start - first, len(tokens) - first)
        picked = logs[:, text.place(tokens), columns, torch.tensor(tokens[text.start :])]
        sums.append(picked.double().sum(-1).cpu())
    return torch.stack(sums, dim=1)


def _even_tails(batch: Sequence[Continued]) -> list[list[list[int]]]:
    """As many tails for every text: some stand twice."""
    most = max(len(text.tails()) for text in batch)
    return [(text.tails() * most)[:most] for text in batch]


# All settings and continuations of a prompt in one row.


def _branch_tokens(text: Continued, settings: int) -> int:
    tails = text.tails()
    return len(text.prompt) - 1 + settings * len(tails) * max(map(len, tails))


def _branch_logits(
    wrapper: SteeringWrapper, batch: Sequence[Continued], settings: Sequence[Setting], first: int, pad_id: int
) -> Float[Tensor, "text setting tail column vocab"]:
    """Of the branches' columns from `first` on."""
    tails = _even_tails(batch)
    text = branched([each.prompt[:-1] for each in batch], [each * len(settings) for each in tails], pad_id)
    per_setting = len(tails[0]) * text.width
    keep = torch.arange(len(settings) * per_setting).view(-1, text.width)[:, first:]
    inputs = text.inputs(wrapper.model)
    device = inputs["input_ids"].device
    prompts = torch.tensor([len(each.prompt) for each in batch], device=device)
    keep = (text.stem + keep.flatten()).to(device)
    with wrapper.steer(*(_spread(each, text.stem, per_setting) for each in together(settings))):
        output = wrapper(**inputs, prompt_lengths=prompts, logits_to_keep=keep, use_cache=False)
    logits: Tensor = output.logits
    return logits.view(len(batch), len(settings), len(tails[0]), text.width - first, -1)


def _spread(intervention: Intervention, stem: int, per_setting: int) -> Intervention:
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
    rows = [(each.prompt[:-1], tail) for each, own in zip(batch, tails, strict=True) for tail in own]
    text = branched([stem for stem, _ in rows], [[tail] for _, tail in rows], pad_id)
    device = wrapper.model.get_input_embeddings().weight.device
    ids, mask = text.ids.to(device), text.real.to(device)
    prompts = torch.tensor([len(stem) + 1 for stem, _ in rows], device=device)
    keep = torch.arange(text.stem + first, ids.shape[1], device=device)
    with _at_once(wrapper, settings, len(rows)):
        output = wrapper(ids, mask, prompt_lengths=prompts, logits_to_keep=keep, use_cache=False)
    by_row: Tensor = output.logits.view(len(batch), len(tails[0]), len(settings), text.width - first, -1)
    return by_row.transpose(1, 2)


@contextmanager
def _at_once(wrapper: SteeringWrapper, settings: Sequence[Setting], rows: int) -> Iterator[None]:
    """Steer every row by every setting, in copies made at the first layer that a setting edits."""
    edits = [replace(each, multiplier=each.strengths.flatten().repeat(rows)) for each in together(settings)]
    with ExitStack() as stack:
        stack.enter_context(wrapper.steer(*edits))
        if len(settings) > 1:
            lowest = min((each.layer for each in edits), default=0)
            stack.enter_context(expanding(decoder_blocks(wrapper.model), lowest, len(settings)))
        yield


@dataclass(frozen=True)
class Ask:
    """A way to put texts and settings into a pass."""

    tokens: Callable[[Continued, int], int]
    """(text, number of settings) -> how many a pass holds for it."""
    logits: Callable[..., Tensor]


BRANCHES, ROWS = Ask(_branch_tokens, _branch_logits), Ask(_row_tokens, _row_logits)


# Texts.


@torch.no_grad()
def generate_settings(
    wrapper: SteeringWrapper,
    ids: Int[Tensor, "row position"],
    attention_mask: Int[Tensor, "row position"],
    settings: Sequence[Setting],
) -> Int[Tensor, "answer column"]:
    """`generate` for every prompt (padded on the left) under every setting, in the order of `product(rows, settings)`.

    The prompt but for its last token is read once where no setting edits it, and its cache repeated.
    """
    device, times = wrapper.model.get_input_embeddings().weight.device, len(settings)
    ids, attention_mask = ids.to(device), attention_mask.to(device)
    with wrapper.paused():
        apart = not attention_mask.all() and not can_pad(wrapper.model)
    if apart:
        return _one_at_a_time(wrapper, ids, attention_mask.bool(), settings)
    cache = _shared_cache(wrapper, ids, attention_mask, settings)
    kept: dict[str, Any] = {} if cache is None else {"past_key_values": cache, "use_cache": True}
    rows = [row.repeat_interleave(times, dim=0) for row in (ids, attention_mask)]
    edits = [replace(each, multiplier=each.strengths.flatten().repeat(len(ids))) for each in together(settings)]
    with wrapper.steer(*edits):
        texts: Tensor = wrapper.generate(*rows, **kept)
    return texts


def _one_at_a_time(wrapper: SteeringWrapper, ids: Tensor, real: Tensor, settings: Sequence[Setting]) -> Tensor:
    """The same, each prompt without its pads."""
    answers: list[Tensor] = []
    for row, kept in zip(ids, real, strict=True):
        alone = row[kept][None]
        answers += generate_settings(wrapper, alone, torch.ones_like(alone), settings)[:, alone.shape[1] :]
    filling = wrapper.model.generation_config.pad_token_id or 0
    even = pad_sequence(answers, batch_first=True, padding_value=filling)
    return torch.cat([ids.repeat_interleave(len(settings), dim=0), even], dim=1)


def _shared_cache(wrapper: SteeringWrapper, ids: Tensor, mask: Tensor, settings: Sequence[Setting]) -> Any:
    """The keys and values of all tokens but the last, a row for each setting; None where that cannot be shared."""
    length = ids.shape[1]
    if len(settings) == 1 or length == 1 or wrapper.interventions:
        return None
    if not all(_leaves_prompt(setting, length) for setting in settings):
        return None
    read = wrapper(ids[:, :-1], mask[:, :-1], use_cache=True, logits_to_keep=1)
    cache = getattr(read, "past_key_values", None)
    if type(cache) is not DynamicCache:
        return None
    cache.batch_repeat_interleave(len(settings))
    return cache
