"""A model in, an address that answers out, until the process is told to stop."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import uvicorn
from starlette.middleware.trustedhost import TrustedHostMiddleware

from caa.data.chat import ChatFormat
from caa.data.sources import BUILTIN, load_behavior
from caa.extraction.doses import prompt_profiles
from caa.models.fingerprint import fingerprint
from caa.models.names import model_name
from caa.serve.app import app_of
from caa.serve.catalog import Catalog, DoseLimit, Served
from caa.serve.engine import Engine, Limits
from caa.steering.checkpoint.steered import add_steered
from caa.steering.intervention import Intervention
from caa.steering.wrapper import SteeringWrapper
from caa.vectors.vector import SteeringVector

HERE = "127.0.0.1"
GRACE = 5
"""Seconds that answers have to end in when the server stops."""


class Serving(NamedTuple):
    """What answers requests."""

    app: Any
    """ASGI."""
    engine: Engine
    """It runs until it is closed."""


def start(
    wrapper: SteeringWrapper,
    chat: ChatFormat | Any,
    vectors: Mapping[str, SteeringVector] | None = None,
    steered: Mapping[str, str | Path] | None = None,
    *,
    limits: Limits | None = None,
    dose_limit: DoseLimit | None = None,
    key: str | None = None,
) -> Serving:
    """Serve a model, its finetunes, these steered adapters and these vectors.

    The wrapper belongs to the engine until that is closed. ValueError for what does not fit the model.
    """
    chat = ChatFormat.of(chat)
    models = [Served(model_name(wrapper.model)), *(Served(name, name) for name in wrapper.adapters)]
    for name, folder in (steered or {}).items():
        wrapper.model, finetune, setting = add_steered(folder, wrapper.model, chat.tokenizer, name)
        models.append(Served(name, finetune, setting))
    for intervention in _uses(vectors or {}, models):
        wrapper.steer(intervention).close()  # layers, widths and sites are looked at
    catalog = Catalog(models, vectors or {}, _norms(wrapper, chat), dose_limit or DoseLimit())
    engine = Engine(wrapper, chat.tokenizer, limits or Limits())
    return Serving(app_of(engine, catalog, chat, fingerprint(wrapper.model), key), engine)


def _uses(vectors: Mapping[str, SteeringVector], models: list[Served]) -> list[Intervention]:
    offered = [Intervention(vector, layer) for vector in vectors.values() for layer in vector.layers]
    return [*offered, *(intervention for model in models for intervention in model.setting)]


def _norms(wrapper: SteeringWrapper, chat: ChatFormat) -> dict[int, float]:
    """layer -> the length of the base's stream at the end of a question of each built-in behavior."""
    questions = [load_behavior(name).open_questions[0].text for name in BUILTIN]
    with wrapper.finetune(None):
        profiles = prompt_profiles(wrapper.model, chat, questions)
    return {layer: profile.norm for layer, profile in profiles.items()}


def server_of(serving: Serving, host: str) -> Server:
    """For `run(sockets=[...])`. On an address of this machine alone it answers to no other name: a page of the web
    could otherwise have its own name lead here."""
    app = serving.app
    if host in (HERE, "localhost"):
        app = TrustedHostMiddleware(app, allowed_hosts=[HERE, "localhost"])
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, timeout_graceful_shutdown=GRACE, server_header=False, lifespan="off"
    )
    return Server(config, serving.engine)


class Server(uvicorn.Server):
    """uvicorn's, which lets the engine end before it waits for connections to end."""

    def __init__(self, config: uvicorn.Config, engine: Engine) -> None:
        super().__init__(config)
        self._engine = engine

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Refuse new requests, give answers a few seconds to end in, and end the others."""
        await asyncio.to_thread(self._engine.close, GRACE)
        await super().shutdown(sockets)


def listening(host: str, port: int) -> socket.socket:
    """A socket that waits for connections; OSError, in words, where the port is taken."""
    try:
        return socket.create_server((host, port), backlog=2048)
    except OSError as error:
        raise OSError(
            f"nothing can listen at {host}:{port} ({error.strerror or error}); choose another --port"
        ) from None
