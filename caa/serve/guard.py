"""ASGI around the app: a key where one is set, JSON alone, and bodies of bounded length."""

from __future__ import annotations

import hmac
from typing import Any

from fastapi import HTTPException
from fastapi.responses import JSONResponse

from caa.serve.errors import refusal

LONGEST_BODY = 4 * 2**20
"""Bytes."""
TOO_LONG = f"a body has at most {LONGEST_BODY:,} bytes"
OPEN = ("/health",)
"""Paths that need no key."""


class Guard:
    """Refuses requests before they are read. The key is compared in constant time, and never written anywhere."""

    def __init__(self, app: Any, key: str | None) -> None:
        self.app, self._expected = app, None if key is None else f"Bearer {key}".encode()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
        elif refused := self._refused(scope):
            await refused(scope, receive, send)
        else:
            await self.app(scope, _bounded(receive), send)

    def _refused(self, scope: Any) -> JSONResponse | None:
        headers = dict(scope["headers"])
        if self._expected and scope["path"] not in OPEN:
            given = headers.get(b"authorization", b"")
            if not hmac.compare_digest(given, self._expected):
                return refusal(401, "this server wants its key: Authorization: Bearer KEY", code="invalid_api_key")
        if scope["method"] == "POST" and not headers.get(b"content-type", b"").startswith(b"application/json"):
            return refusal(415, "send JSON, with the header Content-Type: application/json")
        if int(headers.get(b"content-length", b"0")) > LONGEST_BODY:
            return refusal(413, TOO_LONG)
        return None


def _bounded(receive: Any) -> Any:
    """Who reads a body without a length gets an HTTPException of status 413 where it is too long, and nothing of it."""
    left = LONGEST_BODY

    async def bounded() -> Any:
        nonlocal left
        message = await receive()
        left -= len(message.get("body", b""))
        if message["type"] == "http.request" and left < 0:
            raise HTTPException(413, TOO_LONG)
        return message

    return bounded
