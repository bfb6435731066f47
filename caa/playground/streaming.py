"""Prompts under a steering in, answers out that grow token by token, until they end or nobody reads on."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from queue import SimpleQueue
from threading import Event
from typing import Any, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from caa.models.batching import pad
from caa.models.blocks import decoder_blocks, end_tokens, evaluating
from caa.models.hooks import reading
from caa.serve.sampling import Sampler, Sampling
from caa.steering.wrapper import SteeringWrapper

Item = TypeVar("Item")
GREEDY = Sampling(temperature=0.0)


@dataclass(frozen=True)
class Token:
    """A token that was written."""

    id: int
    along: tuple[float, ...]
    """The cosine of the residual stream at this token with each direction."""


Step = tuple[Token | None, ...]
"""The next token of each row, None for a row that has ended."""


@dataclass
class Answer:
    """What one side says, as far as it is written. It grows."""

    tokenizer: Any = field(repr=False)
    ids: list[int] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    """What each token adds to the text, as `caa.extraction.projections.token_texts` has it."""
    along: list[Mapping[str, float]] = field(default_factory=list)
    """name of a vector -> cosine of the residual stream at this token with it, in [-1, 1]."""
    _open: int = 0
    """Where the tokens begin whose text may still change."""
    _known: int = 0
    """Where the tokens begin that have no text yet: the first bytes of a character, say."""

    @property
    def text(self) -> str:
        return "".join(self.texts).strip()

    def add(self, token: int, along: Mapping[str, float]) -> None:
        """One more token. Only the last few are decoded, so that a long answer costs no more than a short one."""
        self.ids.append(token)
        self.along.append(along)
        news = self._news()
        whole = not news.endswith("\ufffd")
        self.texts.append(news if whole else "")
        if whole:
            self._open, self._known = self._known, len(self.ids)

    def end(self) -> None:
        """No more tokens: the last one shows what is left of an unfinished character."""
        if self._known < len(self.ids):
            self.texts[-1], self._known = self._news(), len(self.ids)

    def _news(self) -> str:
        """What the tokens without text add. Decoded behind those before them: many begin with a space only there."""
        before, now = (
            self.tokenizer.decode(self.ids[self._open : end], clean_up_tokenization_spaces=False)
            for end in (self._known, len(self.ids))
        )
        return str(now[len(before) :])


def generated(
    wrapper: SteeringWrapper,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    layer: int,
    directions: Float[Tensor, "direction d_model"],
    say: Callable[[Step], None],
    stop: Event,
    sampling: Sampling = GREEDY,
) -> None:
    """Write answers, and say each token as soon as it was read, for only then is its residual stream known.

    Each row draws by the seed alone, so that rows which see the same say the same. One token more than asked for is
    generated, so that the last one is read too. The stopping criteria are called between two passes, in step with
    `reading`; a streamer would be a pass late on devices that check stops late.
    """
    device = wrapper.model.get_input_embeddings().weight.device
    ids, mask = (
        tensor.to(device) for tensor in pad(prompts, wrapper.model.generation_config.pad_token_id or 0, "left")
    )
    unit, ends = directions / directions.norm(dim=-1, keepdim=True), end_tokens(wrapper.model)
    ended = [False] * len(prompts)

    def between(so_far: Int[Tensor, "row position"], scores: Any, **_: Any) -> Tensor:
        if so_far.shape[1] > ids.shape[1] + 1:
            just_read = so_far[:, -2].tolist()
            ended[:] = [end or token in ends for end, token in zip(ended, just_read, strict=True)]
            along = _cosines(residual[layer][:, -1], unit)
            rows = zip(ended, just_read, along, strict=True)
            say(tuple(None if end else Token(token, cosines) for end, token, cosines in rows))
        return torch.full((len(so_far),), stop.is_set(), dtype=torch.bool, device=so_far.device)

    with evaluating(wrapper), reading(decoder_blocks(wrapper.model), [layer]) as residual:
        drawing = [_drawn([Sampler(sampling) for _ in prompts])] if sampling.temperature else []
        wrapper.generate(
            ids,
            mask,
            max_new_tokens=max_new_tokens + 1,
            do_sample=False,
            logits_processor=drawing,
            stopping_criteria=[between],
        )


def _drawn(samplers: Sequence[Sampler]) -> Callable[[Tensor, Tensor], Tensor]:
    """A processor of logits that leaves each row one token, the one that its sampler draws."""

    def one_left(so_far: Int[Tensor, "row position"], scores: Float[Tensor, "row vocab"]) -> Tensor:
        tokens = [sampler.token(row) for sampler, row in zip(samplers, scores, strict=True)]
        only = torch.full_like(scores, -torch.inf)
        return only.scatter(1, torch.tensor(tokens, device=scores.device)[:, None], 0.0)

    return one_left


def _cosines(resid: Float[Tensor, "row d_model"], unit: Float[Tensor, "direction d_model"]) -> list[tuple[float, ...]]:
    resid = resid.float().cpu()
    return [tuple(row) for row in (resid @ unit.T / resid.norm(dim=-1, keepdim=True)).tolist()]


def spoken(work: Callable[[Callable[[Item], None], Event], None], stop: Event | None = None) -> Generator[Item]:
    """What a job, which runs in a thread, says as it goes; its error, if it has one, at the end.

    The job is `work(say, stop)`. Whoever closes the iterator early sets `stop` and waits for the job to end.
    """
    items: SimpleQueue[Any] = SimpleQueue()
    end, stop = object(), stop or Event()
    with ThreadPoolExecutor(1, "caa-playground") as thread:
        try:
            job = thread.submit(work, items.put, stop)
            job.add_done_callback(lambda _: items.put(end))
            yield from iter(items.get, end)
            job.result()
        finally:
            stop.set()
