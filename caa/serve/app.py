"""The HTTP interface: an engine and a catalog in, an app that speaks OpenAI's language out."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from fastapi import FastAPI
from fastapi import Request as HttpRequest
from fastapi.responses import JSONResponse, Response, StreamingResponse

from caa.data.behaviors import Message
from caa.data.chat import ChatFormat
from caa.serve import errors
from caa.serve.answers import ChatShape, Envelope, Shape, TextShape, Written
from caa.serve.bodies import Body, ChatBody, TextBody
from caa.serve.catalog import Catalog
from caa.serve.engine import End, Engine, Piece, Request
from caa.serve.guard import Guard
from caa.serve.metrics import Metrics, Watch
from caa.serve.sampling import Sampling


@dataclass(frozen=True)
class Service:
    """All that answers a request."""

    engine: Engine
    catalog: Catalog
    chat: ChatFormat
    fingerprint: str
    """Of the base model."""
    metrics: Metrics


@dataclass(frozen=True)
class Call:
    """One HTTP request, understood: the texts to write, and what stands around them."""

    requests: Sequence[Request]
    envelope: Envelope
    body: Body
    logprobs: bool


def app_of(engine: Engine, catalog: Catalog, chat: ChatFormat | Any, fingerprint: str, key: str | None = None) -> Any:
    """The ASGI app. `key` is wanted of every request but those for /health."""
    service = Service(engine, catalog, ChatFormat.of(chat), fingerprint, Metrics(engine))
    app = FastAPI(title="caa serve", openapi_url=None)
    errors.install(app)
    _install(app, service)
    return Guard(app, key)


def _install(app: FastAPI, service: Service) -> None:
    @app.post("/v1/chat/completions", response_model=None)
    async def chat(body: ChatBody, http: HttpRequest) -> Response:
        return await _respond(service, _chat_call(service, body), http)

    @app.post("/v1/completions", response_model=None)
    async def complete(body: TextBody, http: HttpRequest) -> Response:
        return await _respond(service, _text_call(service, body), http)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [_listed(service, name) for name in service.catalog.models]}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        return _listed(service, service.catalog.model(name).name)

    @app.get("/health")
    async def health() -> dict[str, Any]:
        return {"status": "ok", "rows": service.engine.busy, "waiting": service.engine.waiting}

    @app.get("/metrics", response_model=None)
    async def metrics() -> Response:
        return Response(service.metrics.page(), media_type="text/plain; version=0.0.4")


def _listed(service: Service, name: str) -> dict[str, Any]:
    """A model as /v1/models tells it; with it the vectors that a request may name."""
    catalog = service.catalog
    model = catalog.models[name]
    return {
        "id": name,
        "object": "model",
        "created": 0,
        "owned_by": "caa",
        "finetune": model.finetune,
        "steering": list(map(str, model.setting)),
        "vectors": {vector: catalog.vectors[vector].layers for vector in catalog.vectors},
        "max_model_len": service.engine.context,
    }


def _chat_call(service: Service, body: ChatBody) -> Call:
    _check_count(service, body.n or 1)
    roles = {"developer": "system"}
    messages: list[Message] = [
        {"role": roles.get(message.role, message.role), "content": message.text} for message in body.messages
    ]
    return _call(service, body, [service.chat.encode_chat(messages)], ChatShape(service.chat.tokenizer), body.top)


def _text_call(service: Service, body: TextBody) -> Call:
    _check_count(service, len(body.prompts) * (body.n or 1))
    prompts = [service.chat.encode_text(prompt) if isinstance(prompt, str) else prompt for prompt in body.prompts]
    return _call(service, body, prompts, TextShape(service.chat.tokenizer), body.top)


def _check_count(service: Service, texts: int) -> None:
    """ValueError for more texts than the engine could ever take in at once, before any of them is prepared."""
    limits = service.engine.limits
    if texts > (most := limits.rows + limits.waiting):
        raise ValueError(
            f"this request asks for {texts} texts (prompts times n), and the server takes at most {most} at once: "
            "send several requests, one after the other"
        )


def _call(service: Service, body: Body, prompts: Sequence[Sequence[int]], shape: Shape, top: int | None) -> Call:
    """ValueError for a model that there is not, and for a steering that cannot be or goes too far."""
    model = service.catalog.model(body.model)
    setting, notes = service.catalog.setting(body.edits)
    requests = [
        Request(
            prompt=prompt,
            max_tokens=body.longest or service.engine.room(len(prompt)),
            finetune=model.finetune,
            setting=model.setting + setting,
            sampling=_sampling(body, choice),
            stops=body.stops,
            top_logprobs=top,
        )
        for prompt in prompts
        for choice in range(body.n or 1)
    ]
    tokens = sum(map(len, prompts))
    return Call(requests, Envelope(shape, model.name, service.fingerprint, notes, tokens), body, top is not None)


def _sampling(body: Body, choice: int) -> Sampling:
    """Choices of one prompt are drawn from seeds in a row."""
    return Sampling(
        temperature=1.0 if body.temperature is None else body.temperature,
        top_p=1.0 if body.top_p is None else body.top_p,
        seed=None if body.seed is None else body.seed + choice,
    )


class Listening:
    """The answers to one HTTP request, as the engine's thread writes them."""

    def __init__(self, engine: Engine, requests: Sequence[Request], watch: Watch) -> None:
        self.choices = [Written() for _ in requests]
        self._watch, self._loop = watch, asyncio.get_running_loop()
        self._events: asyncio.Queue[tuple[int, Piece | End]] = asyncio.Queue()
        self._jobs: list[Any] = []
        try:
            for number, request in enumerate(requests):
                self._jobs.append(engine.submit(request, partial(self._receive, number)))
        except Exception:
            self.leave()
            raise

    def _receive(self, number: int, event: Piece | End) -> None:
        with suppress(RuntimeError):  # the loop of a server that is gone
            self._loop.call_soon_threadsafe(self._events.put_nowait, (number, event))

    async def events(self) -> AsyncIterator[tuple[int, Piece | End]]:
        """What is written, each with the number of its choice, until all have ended."""
        going = len(self.choices)
        while going:
            number, event = await self._events.get()
            going -= isinstance(event, End)
            self._watch.heard()
            self.choices[number].add(event)
            yield number, event

    def leave(self) -> None:
        """Nobody listens any more: what is not written yet is not."""
        for job in self._jobs:
            job.cancel()

    def count(self, prompt_tokens: int) -> None:
        """Tell the metrics how it ended."""
        ends = [choice.end for choice in self.choices if choice.end]
        reason = ends[0].reason if len(ends) == len(self.choices) else "cancelled"
        self._watch.ended(reason, prompt_tokens, sum(end.tokens for end in ends))


async def _respond(service: Service, call: Call, http: HttpRequest) -> Response:
    watch = Watch(service.metrics, call.envelope.model)
    listening = Listening(service.engine, call.requests, watch)
    if call.body.stream:
        return _Stream(_lines(call, listening), listening, call.envelope.prompt_tokens)
    try:
        await _unless_left(_heard(listening), http)
    finally:
        listening.leave()
        listening.count(call.envelope.prompt_tokens)
    for choice in listening.choices:
        if choice.end and choice.end.error:
            return errors.refusal(_status(choice.end), choice.end.error)
    return JSONResponse(call.envelope.whole(listening.choices, logprobs=call.logprobs))


def _status(end: End) -> int:
    return {"refused": 400, "cancelled": 503}.get(end.reason, 500)


async def _heard(listening: Listening) -> None:
    async for _ in listening.events():
        pass


async def _unless_left(work: Any, http: HttpRequest) -> None:
    """Do the work, and break it off when the client leaves."""
    tasks = [asyncio.ensure_future(work), asyncio.ensure_future(_left(http))]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()


async def _left(http: HttpRequest) -> None:
    while (await http.receive())["type"] != "http.disconnect":
        pass


class _Stream(StreamingResponse):
    """Server-sent events; the texts end where the client leaves."""

    def __init__(self, lines: AsyncIterator[str], listening: Listening, prompt_tokens: int) -> None:
        super().__init__(lines, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        self._listening, self._prompt_tokens = listening, prompt_tokens

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._listening.leave()
            self._listening.count(self._prompt_tokens)


async def _lines(call: Call, listening: Listening) -> AsyncIterator[str]:
    begun: set[int] = set()
    async for number, event in listening.events():
        if isinstance(event, End) and event.error:
            yield _line(errors.shaped(_status(event), event.error))
            return
        yield _line(call.envelope.chunk(number, event, first=number not in begun))
        begun.add(number)
    if call.body.stream_options and call.body.stream_options.include_usage:
        yield _line(call.envelope.last_chunk(listening.choices))
    yield "data: [DONE]\n\n"


def _line(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"
