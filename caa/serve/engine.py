"""Requests in, their answers out as they are written: all share the model, and each is what it is alone."""

from __future__ import annotations

import copy
import logging
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from threading import Condition, Event, Thread
from typing import Any

import torch
from torch import Tensor

from caa.models.adapter_state import LAYERWISE
from caa.models.blocks import context_length, end_tokens, evaluating
from caa.models.capabilities import can_mix, can_pool
from caa.serve.rows import PooledRows, Rows, SeparateRows, Text
from caa.serve.sampling import Sampler, Sampling, TokenInfo, token_info
from caa.serve.transcript import Transcript
from caa.steering.intervention import Setting
from caa.steering.wrapper import SteeringWrapper

_LOG = logging.getLogger(__name__)
_TURN = 8
"""Tokens that one group writes before another has its turn: switching finetunes costs about as much as one token."""
_NO_MEMORY = (
    "there is no memory for this prompt beside the texts that are being written: come back later, or ask with a "
    "shorter one; fewer --rows leave more"
)
_MIXED = ""
"""In place of a finetune's name: rows that each wear their own."""


@dataclass(frozen=True)
class Limits:
    """What an engine takes in."""

    rows: int = 64
    """Texts that are written at once."""
    waiting: int = 256
    """Requests that may wait for a row."""
    prompt_tokens: int = 4096
    answer_tokens: int = 1024


@dataclass(frozen=True)
class Request:
    """A prompt in ids, and all that its answer depends on."""

    prompt: Sequence[int]
    max_tokens: int
    finetune: str | None = None
    setting: Setting = ()
    sampling: Sampling = field(default_factory=Sampling)
    stops: tuple[str, ...] = ()
    top_logprobs: int | None = None
    """How many of the most probable tokens are told at each place; None tells no log probabilities at all."""


@dataclass(frozen=True)
class Piece:
    """What one more token adds to an answer."""

    text: str
    info: TokenInfo | None = None


@dataclass(frozen=True)
class End:
    """The last that is heard of a request."""

    reason: str
    """"stop", "length", "cancelled" (nobody waits any more), "refused" (it cannot be written), or "error"."""
    tokens: int
    """Tokens that were written, the end of sequence too."""
    error: str = ""


Receive = Callable[[Piece | End], None]


class BusyError(RuntimeError):
    """As many requests wait as may."""


class ClosedError(RuntimeError):
    """The engine is closed, or is closing."""


class Job(Text):
    """A request that waits or is being written. `cancel` may be called by any thread."""

    def __init__(self, request: Request, tokenizer: Any, receive: Receive, cancelled: Callable[[], None]) -> None:
        super().__init__(request.prompt, request.finetune, request.setting)
        self.request, self.receive, self._notify = request, receive, cancelled
        self.transcript = Transcript(tokenizer, request.stops)
        self.sampler = Sampler(request.sampling)
        self.left = False
        """Whether nobody waits for the answer any more."""
        self.ended = False

    def cancel(self) -> None:
        """Nobody waits any more: its row is free before the next token."""
        self.left = True
        self._notify()

    def end(self, reason: str, error: str = "") -> None:
        """Tell the last of it; a second time nothing is told."""
        if self.ended:
            return
        self.ended = True
        if rest := self.transcript.end():
            self.receive(Piece(rest))
        if reason == "length" and self.transcript.stopped:  # in what was still held back
            reason = "stop"
        self.receive(End(reason, len(self.written), error))


@dataclass(frozen=True)
class Answer:
    """A whole answer."""

    text: str
    end: End
    infos: tuple[TokenInfo, ...] = ()


class Engine:
    """One model and a thread that writes with it. Requests join and leave while it runs.

    Texts share a cache and a pass where the model takes that, finetunes too where they are LoRAs that PEFT applies row
    by row; what cannot share takes turns. Nobody else may use the wrapper until `close`.
    """

    def __init__(self, wrapper: SteeringWrapper, tokenizer: Any, limits: Limits = Limits()) -> None:
        _check_servable(wrapper)
        self.wrapper, self.limits = wrapper, limits
        self.tokenizer = copy.deepcopy(tokenizer)  # a fast tokenizer cannot encode and decode in two threads at once
        self.context = min(context_length(wrapper.model, tokenizer), limits.prompt_tokens + limits.answer_tokens)
        self.ends = frozenset(end_tokens(wrapper.model) or [tokenizer.eos_token_id])
        self.vocabulary = int(wrapper.model.get_input_embeddings().weight.shape[0])
        self.pools = can_pool(wrapper.model, self.context)
        """Whether texts share a cache."""
        self.mixed = frozenset(name for name in wrapper.adapters if self.pools and can_mix(wrapper.model, name))
        """The adapters that rows of one pass may wear side by side."""
        self._groups: dict[tuple[str | None, bool], Rows] = {}
        self._waiting: deque[Job] = deque()
        self._changed, self._closing, self._refusing = Condition(), Event(), False
        self._thread = Thread(target=self._run, name="caa-engine", daemon=True)
        self._thread.start()

    # Asked by any thread.

    def submit(self, request: Request, receive: Receive) -> Job:
        """Let a request wait for a row. `receive` is called by the engine's thread, and must not block.

        ValueError for a prompt that is too long or empty, BusyError where too many wait, ClosedError after `close`.
        """
        self._check(request)
        job = Job(request, self.tokenizer, receive, self._notify)
        with self._changed:
            if self._refusing:
                raise ClosedError("the server is stopping")
            if len(self._waiting) >= self.limits.waiting:
                raise BusyError(f"{self.limits.waiting} requests wait already; come back later")
            self._waiting.append(job)
            self._changed.notify_all()
        return job

    def answer(self, request: Request) -> Answer:
        """Wait for the whole answer. RuntimeError where it could not be written."""
        pieces: list[Piece] = []
        ended = Event()
        ends: list[End] = []

        def receive(event: Piece | End) -> None:
            if isinstance(event, Piece):
                pieces.append(event)
            else:
                ends.append(event)
                ended.set()

        self.submit(request, receive)
        ended.wait()
        if ends[0].error:
            raise RuntimeError(ends[0].error)
        text = "".join(piece.text for piece in pieces)
        return Answer(text, ends[0], tuple(piece.info for piece in pieces if piece.info))

    def close(self, patience: float = 0.0) -> None:
        """Refuse what comes; after so many seconds end what is not written yet, and leave the model as it was."""
        with self._changed:
            self._refusing = True
            self._changed.wait_for(lambda: not self._groups and not self._waiting, patience)
        self._closing.set()
        self._notify()
        self._thread.join()

    @property
    def busy(self) -> int:
        """Texts that are being written."""
        return sum(len(rows.texts) for rows in list(self._groups.values()))

    @property
    def waiting(self) -> int:
        """Requests that wait for a row."""
        return len(self._waiting)

    def _check(self, request: Request) -> None:
        if strangers := [token for token in request.prompt if not 0 <= token < self.vocabulary]:
            raise ValueError(f"the model has no token {strangers[0]}; its tokens are 0 to {self.vocabulary - 1}")
        tokens, most = len(request.prompt), min(self.limits.prompt_tokens, self.context - 1)
        if not tokens:
            raise ValueError("the prompt has no tokens; say something")
        if tokens > most:
            raise ValueError(f"the prompt has {tokens} tokens, and at most {most} are taken; shorten it")
        room = min(self.limits.answer_tokens, self.context - tokens)
        if not 1 <= request.max_tokens <= room:
            raise ValueError(
                f"an answer behind this prompt has 1 to {room} tokens, and max_tokens is {request.max_tokens}"
            )

    def room(self, tokens: int) -> int:
        """How long an answer behind so many tokens can be: at least 1, as a prompt that is too long is refused."""
        return max(1, min(self.limits.answer_tokens, self.context - tokens))

    def _notify(self) -> None:
        with self._changed:
            self._changed.notify_all()

    # Done by the engine's own thread.

    @torch.no_grad()
    def _run(self) -> None:
        with evaluating(self.wrapper), self._adapters_on():
            while self._wait():
                self._join()
                for key, rows in list(self._groups.items()):
                    self._write(rows)
                    if not rows.texts:
                        del self._groups[key]
        for job in [*self._jobs(), *self._waiting]:
            job.end("cancelled", "the server is stopping")

    def _jobs(self) -> list[Job]:
        return [job for rows in self._groups.values() for job in rows.texts]

    @contextmanager
    def _adapters_on(self) -> Iterator[None]:
        """PEFT looks at the names of rows where its layers are not switched off."""
        with self.wrapper.finetune(next(iter(self.wrapper.adapters), None)):
            yield

    def _wait(self) -> bool:
        """Wait for something to do; False when the engine closes."""
        with self._changed:
            self._changed.notify_all()  # who closes may wait for all to be written
            self._changed.wait_for(lambda: self._groups or self._waiting or self._closing.is_set())
        return not self._closing.is_set()

    def _join(self) -> None:
        """Requests that wait longest get the rows that are free."""
        arriving: list[Job] = []
        with self._changed:
            free = self.limits.rows - self.busy
            while self._waiting and len(arriving) < free:
                job = self._waiting.popleft()
                if job.left:
                    job.end("cancelled")
                else:
                    arriving.append(job)
        arriving.sort(key=lambda job: str(self._key(job)))
        for key, jobs in groupby(arriving, self._key):
            rows = self._groups.get(key) or self._new_group(*key)
            self._groups[key] = rows
            self._guarded(rows, partial(self._take_in, rows), list(jobs))

    def _take_in(self, rows: Rows, arriving: list[Job]) -> None:
        """Where memory runs out, those end for whom there is none, and the texts that are being written go on."""
        try:
            rows.add(arriving)
        except torch.OutOfMemoryError:
            _LOG.warning("caa serve: no memory for %d more texts beside %d", len(arriving), len(rows.texts))
            for job in arriving:
                if job not in rows.texts:
                    job.end("error", _NO_MEMORY)

    def _key(self, job: Job) -> tuple[str | None, bool]:
        """Whose rows it joins: of the finetune that all of a group wear, or of mixed ones; and whether they pool."""
        pooled = self.pools and all(edit.gate is None for edit in job.setting)
        mixed = pooled and (job.finetune in self.mixed or (job.finetune is None and bool(self.mixed)))
        return (_MIXED if mixed else job.finetune), pooled

    def _new_group(self, finetune: str | None, pooled: bool) -> Rows:
        if pooled:
            return PooledRows(self.wrapper, finetune, mixed=finetune == _MIXED)
        return SeparateRows(self.wrapper, finetune)

    def _write(self, rows: Rows) -> None:
        """Tokens for the texts of a group, until some text ends or leaves, or others want their turn."""
        self._let_go(rows)
        if rows.texts:
            self._guarded(rows, self._write_while_all_stay, rows)

    def _write_while_all_stay(self, rows: Rows) -> None:
        turn = _TURN if len(self._groups) > 1 else sys.maxsize
        with rows.reading():
            ended = self._write_one_token(rows)
            while not ended and (turn := turn - 1) and not self._news(rows):
                ended = self._write_one_token(rows)
        for number in reversed(ended):
            rows.remove(number)

    def _news(self, rows: Rows) -> bool:
        return (
            self._closing.is_set()
            or (bool(self._waiting) and self.busy < self.limits.rows)
            or any(job.left for job in rows.texts)
        )

    def _let_go(self, rows: Rows) -> None:
        for number in reversed(range(len(rows.texts))):
            if rows.texts[number].left:
                rows.texts[number].end("cancelled")
                rows.remove(number)

    def _write_one_token(self, rows: Rows) -> list[int]:
        """The numbers of the rows that are done with it."""
        logits = rows.next_logits()
        greedy, finite = logits.argmax(-1).tolist(), logits.amax(-1).isfinite().tolist()
        ended = []
        for number, job in enumerate(rows.texts):
            if not finite[number]:
                job.end("refused", _no_numbers(job))
                ended.append(number)
            elif self._goes_on(job, logits[number], greedy[number]):
                continue
            else:
                ended.append(number)
        return ended

    def _goes_on(self, job: Job, logits: Tensor, greedy: int) -> bool:
        """Whether a text is not done with its next token, which is told to who waits for it."""
        token = job.sampler.token(logits) if job.request.sampling.temperature else greedy
        job.written.append(token)
        if token in self.ends:
            job.end("stop")
            return False
        count = job.request.top_logprobs
        piece = Piece(job.transcript.add(token), None if count is None else token_info(logits, token, count))
        if piece.text or piece.info:
            job.receive(piece)
        full = len(job.written) == job.request.max_tokens
        if job.transcript.stopped or full:
            job.end("stop" if job.transcript.stopped else "length")
        return not job.transcript.stopped and not full

    def _guarded(self, rows: Rows, work: Callable[[Any], None], subject: Any) -> None:
        """An error ends the texts of the group that it is of, and not the engine."""
        try:
            work(subject)
        except Exception as error:
            _LOG.exception("caa serve: a pass failed")
            self._groups = {key: group for key, group in self._groups.items() if group is not rows}
            for job in [*rows.texts, *(subject if isinstance(subject, list) else [])]:
                job.end("error", f"the model could not go on ({type(error).__name__})")


def _no_numbers(job: Job) -> str:
    edits = " and ".join(map(str, job.setting))
    return f"the logits are no numbers any more under {edits or 'no steering'}; ask with a smaller multiplier"


def _check_servable(wrapper: SteeringWrapper) -> None:
    """ValueError for finetunes that a batch cannot wear, and for a model that is steered already."""
    if checkpoints := [name for name in wrapper.finetunes if name not in wrapper.adapters]:
        raise ValueError(
            f"{checkpoints[0]!r} is a full checkpoint, which shares no batch with the base: serve it as a model of its "
            "own, `caa serve --model FOLDER`"
        )
    for name in wrapper.adapters:
        config = wrapper.model.peft_config[name]
        kind = str(getattr(config.peft_type, "value", config.peft_type))
        if kind not in LAYERWISE or getattr(config, "alora_invocation_tokens", None):
            raise ValueError(f"the adapter {name!r} acts outside of the decoder's layers, where no rows can share it")
    if wrapper.interventions:
        raise ValueError("the model is steered already, and every request would be: call wrapper.unsteer() first")
