"""Texts that are written side by side: they come and go, and each is asked for its next token as if it were alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from caa.models.batching import pad
from caa.models.blocks import cache_name, input_device, keeps_place, takes
from caa.models.positions import cache_in
from caa.models.slots import SlotCache
from caa.steering.intervention import Setting, together
from caa.steering.pool import STEM_TOKENS
from caa.steering.wrapper import SteeringWrapper

BASE = "__base__"
"""What PEFT calls a row without an adapter."""


@dataclass(eq=False)
class Text:
    """A prompt, the finetune and the steering that it is read under, and what was written so far."""

    prompt: Sequence[int]
    finetune: str | None = None
    setting: Setting = ()
    written: list[int] = field(default_factory=list)

    @property
    def next_id(self) -> int:
        """The token that is read next."""
        return self.written[-1] if self.written else self.prompt[-1]


class Rows(Protocol):
    """A group of texts that one pass, or one round of passes, takes a token further."""

    texts: list[Any]

    def add(self, texts: Sequence[Text]) -> None:
        """Take in texts, whose prompts are read but for the last token.

        Where memory runs out, those that were in stay as they are, and some of the new ones may be in too.
        """

    def remove(self, number: int) -> None:
        """Let a text go; the last one takes its place."""

    def reading(self) -> Any:
        """A context in which the model is, for these texts, what `next_logits` needs."""

    def next_logits(self) -> Float[Tensor, "row vocab"]:
        """What follows each text."""


class PooledRows:
    """Texts in one cache, each at its own place: one pass for all, whatever each is steered by.

    With `mixed` each row wears its own LoRA or none, else all wear `finetune`.
    """

    def __init__(self, wrapper: SteeringWrapper, finetune: str | None, *, mixed: bool) -> None:
        self.wrapper, self.finetune, self.mixed = wrapper, finetune, mixed
        self.texts: list[Any] = []
        self.cache = SlotCache(1, 1)

    def add(self, texts: Sequence[Text]) -> None:
        for batch in _batches(texts):
            stem = self._read(batch) if len(batch[0].prompt) > 1 else None
            self.cache.reserve(_power(len(self.texts) + len(batch)), _power(len(batch[0].prompt)), beside=True)
            if stem is None:
                self.cache.add_empty(len(batch))
            else:
                for row, text in enumerate(batch):
                    self.cache.add(stem, row, len(text.prompt) - 1, 1)
            self.texts += batch

    def _read(self, batch: Sequence[Text]) -> Any:
        """The cache of a pass over prompts but for their last tokens, padded on the right, where nothing looks back."""
        ids, mask = pad([text.prompt[:-1] for text in batch], 0)
        device = input_device(self.wrapper.model)
        with self._worn(), self.wrapper.steer(*together([text.setting for text in batch])):
            return cache_in(self._pass(batch, input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=True))

    def remove(self, number: int) -> None:
        self.cache.remove(number)
        last = self.texts.pop()
        if number < len(self.texts):
            self.texts[number] = last
        if not self.texts:
            self.cache = SlotCache(1, 1)  # its memory is free again

    @contextmanager
    def reading(self) -> Iterator[None]:
        with self._worn(), self.wrapper.steer(*together([text.setting for text in self.texts])):
            yield

    def next_logits(self) -> Float[Tensor, "row vocab"]:
        self.cache.reserve(len(self.texts), _power(self.cache.width))
        inputs = self.cache.inputs(self.wrapper.model, [text.next_id for text in self.texts])
        logits: Tensor = self._pass(self.texts, **inputs).logits[:, -1]
        self.cache.advance()
        return logits

    def _worn(self) -> Any:
        """Adapters of mixed rows are on all the time; each row says which one it wears."""
        return nullcontext() if self.mixed else self.wrapper.finetune(self.finetune)

    def _pass(self, texts: Sequence[Text], **kwargs: Any) -> Any:
        lengths = torch.tensor([len(text.prompt) for text in texts])
        if self.mixed and self.wrapper.adapters:
            kwargs["adapter_names"] = [text.finetune or BASE for text in texts]
        if takes(self.wrapper.model, "logits_to_keep"):
            kwargs["logits_to_keep"] = 1
        return self.wrapper.run_pass(prompt_lengths=lengths, **kwargs)


def _batches(texts: Sequence[Text]) -> Iterator[list[Text]]:
    """Longest prompts first, as many in a pass as fit into it; those of one token alone, for they need no pass."""
    batch: list[Text] = []
    for text in sorted(texts, key=lambda text: -len(text.prompt)):
        full = batch and (len(batch) + 1) * len(batch[0].prompt) > STEM_TOKENS
        if full or (batch and len(text.prompt) == 1 < len(batch[0].prompt)):
            yield batch
            batch = []
        batch.append(text)
    if batch:
        yield batch


def _power(size: int) -> int:
    """The next power of two: room that grows seldom.

    >>> [_power(size) for size in (1, 5, 64)]
    [1, 8, 64]
    """
    return 1 << (size - 1).bit_length()


class SeparateRows:
    """The same for models and settings that cannot share a cache: each text has its own passes.

    A cache of its own each text has where that says how much it has read and no gate looks at the prompt again.
    """

    def __init__(self, wrapper: SteeringWrapper, finetune: str | None) -> None:
        self.wrapper, self.finetune = wrapper, finetune
        self.texts: list[Any] = []
        self.caches: list[Any] = []

    def add(self, texts: Sequence[Text]) -> None:
        self.texts += texts
        self.caches += [None] * len(texts)

    def remove(self, number: int) -> None:
        last, cache = self.texts.pop(), self.caches.pop()
        if number < len(self.texts):
            self.texts[number], self.caches[number] = last, cache

    def reading(self) -> Any:
        return self.wrapper.finetune(self.finetune)

    def next_logits(self) -> Float[Tensor, "row vocab"]:
        return torch.cat([self._next(number) for number in range(len(self.texts))])

    def _next(self, number: int) -> Float[Tensor, "1 vocab"]:
        text, cache = self.texts[number], self.caches[number]
        model, whole = self.wrapper.model, [*text.prompt, *text.written]
        gated = any(intervention.gate for intervention in text.setting)
        keeps = keeps_place(model) and not gated
        ids = torch.tensor([whole if cache is None else whole[-1:]], device=input_device(model))
        mask, lengths = torch.ones(1, len(whole), dtype=torch.long, device=ids.device), torch.tensor([len(text.prompt)])
        past = {} if cache is None else {cache_name(model): cache}
        with self.wrapper.steer(*text.setting):
            output = self.wrapper.run_pass(ids, mask, prompt_lengths=lengths, use_cache=keeps, **past)
        self.caches[number] = cache_in(output) if keeps else None
        logits: Tensor = output.logits[:, -1]
        return logits
