"""Prompts and settings in, greedy answers out, in one pool of rows: whoever ends leaves, whoever waits comes in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, NamedTuple

import torch
from transformers.cache_utils import Cache

from caa.models.batching import pad
from caa.models.blocks import input_device, takes
from caa.models.positions import cache_in
from caa.models.slots import SlotCache
from caa.models.tensors import check_logits
from caa.steering.intervention import Setting, leaves_prompt, together
from caa.steering.wrapper import SteeringWrapper

STEM_TOKENS = 2048
"""Of prompts, in one pass; at least one prompt is read."""
FREE_SHARE = 8
"""New texts come in when one in so many rows is free: a pass for every single one would cost more than it gains."""


class Place(NamedTuple):
    """Whose answer it is: indices of a prompt and of a setting."""

    prompt: int
    setting: int


@dataclass(frozen=True)
class Writing:
    """What a pool is asked for."""

    prompts: Sequence[Sequence[int]]
    settings: Sequence[Setting]
    max_new_tokens: int
    ends: frozenset[int]
    """Tokens that end an answer, which does not hold them."""

    def stem(self, place: Place) -> Stem:
        """Settings that leave the prompt alone share its stem."""
        alone = leaves_prompt(self.settings[place.setting], len(self.prompts[place.prompt]))
        return Stem(place.prompt, None if alone else place.setting)


class Stem(NamedTuple):
    """A prompt but for its last token, and the setting that it is read under."""

    prompt: int
    setting: int | None


@torch.no_grad()
def write(wrapper: SteeringWrapper, writing: Writing, rows: int) -> Iterator[tuple[Place, list[int]]]:
    """Every prompt's answer under every setting, as it is done: the ids before the first end, shortest prompts first.

    Each is what it is alone, to rounding. At most `rows` are written at once, and half as many where memory runs out.
    The wrapper is not steered by the pool while the caller has an answer in hand. ValueError where a model writes no
    numbers any more.
    """
    order = sorted(range(len(writing.prompts)), key=lambda prompt: len(writing.prompts[prompt]))
    waiting = [Place(prompt, setting) for prompt in order for setting in range(len(writing.settings))]
    while waiting:
        pool = _Pool(wrapper, writing, waiting, min(rows, len(waiting)))
        try:
            yield from pool.run()
        except torch.OutOfMemoryError:
            if rows == 1:
                raise
            rows = max(1, min(rows, len(waiting)) // 2)
        waiting = pool.left()


@dataclass
class _Row:
    place: Place
    ids: list[int] = field(default_factory=list)


class _Pool:
    """The rows that are being written, the texts that wait, and the stems that were read for them."""

    def __init__(self, wrapper: SteeringWrapper, writing: Writing, waiting: Sequence[Place], rows: int) -> None:
        self.wrapper, self.model, self.writing, self.size = wrapper, wrapper.model, writing, rows
        self.waiting = list(waiting)
        self.stem_of = {place: writing.stem(place) for place in waiting}
        self.rows: list[_Row] = []
        self.cache = SlotCache(rows, max(map(len, writing.prompts)) + writing.max_new_tokens)
        self.stems: dict[Stem, tuple[Cache, int]] = {}
        self.last: list[int] = []
        """The token of each row that is read next."""

    def left(self) -> list[Place]:
        return [row.place for row in self.rows] + self.waiting

    def run(self) -> Iterator[tuple[Place, list[int]]]:
        while self.rows or self.waiting:
            if not self.rows or (self.size - len(self.rows)) * FREE_SHARE >= self.size:
                self._fill()
            yield from self._write_until_some_end()

    def _fill(self) -> None:
        """Rows that are free get the texts that wait longest."""
        arriving = self.waiting[: self.size - len(self.rows)]
        for stem, places in groupby(arriving, self.stem_of.__getitem__):
            group, prompt = list(places), self.writing.prompts[stem.prompt]
            if len(prompt) == 1:
                self.cache.add_empty(len(group))
            else:
                self.cache.add(*self._read(stem), len(prompt) - 1, len(group))
            self.rows += map(_Row, group)
            self.last += [prompt[-1]] * len(group)
            del self.waiting[: len(group)]

    def _read(self, stem: Stem) -> tuple[Cache, int]:
        """Its keys and values: a cache and a row of it. The stems that follow are read in the same pass."""
        if stem not in self.stems:
            self.stems.clear()
            batch = self._next_stems()
            cache = self._read_together(batch)
            self.stems = {each: (cache, row) for row, each in enumerate(batch)}
        return self.stems[stem]

    def _read_together(self, stems: Sequence[Stem]) -> Any:
        """The cache of a pass over them, padded on the right, where nothing looks back at a pad."""
        prompts = [self.writing.prompts[stem.prompt] for stem in stems]
        settings = [() if stem.setting is None else self.writing.settings[stem.setting] for stem in stems]
        ids, mask = pad([prompt[:-1] for prompt in prompts], 0)
        device, lengths = input_device(self.model), torch.tensor([len(prompt) for prompt in prompts])
        options: dict[str, Any] = {"logits_to_keep": 1} if takes(self.model, "logits_to_keep") else {}
        with self.wrapper.steer(*together(settings)):
            output = self.wrapper.run_pass(
                ids.to(device), mask.to(device), prompt_lengths=lengths, use_cache=True, **options
            )
        return cache_in(output)

    def _next_stems(self) -> list[Stem]:
        """Of the texts that wait, as many as go into a pass."""
        batch: dict[Stem, None] = {}
        for place in self.waiting:
            stem = self.stem_of[place]
            width = len(self.writing.prompts[place.prompt])  # the longest so far: prompts come by length
            full = len(batch) == self.size or (len(batch) + 1) * width > STEM_TOKENS
            if width == 1 or (batch and stem not in batch and full):
                break
            batch[stem] = None
        return list(batch)

    def _write_until_some_end(self) -> Iterator[tuple[Place, list[int]]]:
        """Answers that are done, in the order in which their rows are emptied."""
        settings = [self.writing.settings[row.place.setting] for row in self.rows]
        ended: list[int] = []
        with self.wrapper.steer(*together(settings)):
            while not ended:
                self.last = self._write_one_token()
                ended = [number for number, row in enumerate(self.rows) if self._ends(row, self.last[number])]
        for number in reversed(ended):
            row = self._take_out(number)
            yield row.place, row.ids

    def _write_one_token(self) -> list[int]:
        """The token that each row goes on with."""
        lengths = [len(self.writing.prompts[row.place.prompt]) for row in self.rows]
        inputs = self.cache.inputs(self.model, self.last)
        logits = self.wrapper.run_pass(**inputs, prompt_lengths=torch.tensor(lengths)).logits[:, -1]
        for number in (~logits.amax(-1).isfinite()).nonzero()[:, 0].tolist():
            setting = " and ".join(map(str, self.writing.settings[self.rows[number].place.setting]))
            check_logits(logits[number], f"under {setting or 'no steering'}")
        self.cache.advance()
        tokens: list[int] = logits.argmax(-1).tolist()
        return tokens

    def _ends(self, row: _Row, token: int) -> bool:
        """Whether a row is done with this token, which it keeps if it is no end."""
        if token in self.writing.ends:
            return True
        row.ids.append(token)
        return len(row.ids) == self.writing.max_new_tokens

    def _take_out(self, number: int) -> _Row:
        """Empty a row; the last one takes its place."""
        self.cache.remove(number)
        last, token = self.rows.pop(), self.last.pop()
        if number == len(self.rows):
            return last
        row, self.rows[number], self.last[number] = self.rows[number], last, token
        return row
