"""Every error in the shape that OpenAI's clients read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from caa.serve.catalog import UnknownModelError
from caa.serve.engine import BusyError, ClosedError

_KINDS = {401: "authentication_error", 429: "rate_limit_error", 500: "server_error", 503: "server_error"}


def shaped(status: int, message: str, *, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """The body of an error."""
    kind = _KINDS.get(status, "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def refusal(
    status: int,
    message: str,
    *,
    param: str | None = None,
    code: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    """The whole response."""
    return JSONResponse(shaped(status, message, param=param, code=code), status, headers)


def install(app: FastAPI) -> None:
    """Let the app answer all errors in this shape."""

    @app.exception_handler(RequestValidationError)
    async def wrong_body(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"] if part != "body")
        return refusal(400, f"{place or 'the body'}: {first['msg']}", param=place or None)

    @app.exception_handler(HTTPException)
    async def of_http(request: Request, error: HTTPException) -> JSONResponse:
        return refusal(error.status_code, f"{request.method} {request.url.path}: {error.detail}")

    @app.exception_handler(UnknownModelError)
    async def unknown(request: Request, error: UnknownModelError) -> JSONResponse:
        return refusal(404, str(error), param="model", code="model_not_found")

    @app.exception_handler(ValueError)
    async def refused(request: Request, error: ValueError) -> JSONResponse:
        return refusal(400, str(error))

    @app.exception_handler(BusyError)
    async def busy(request: Request, error: BusyError) -> JSONResponse:
        return refusal(429, str(error), code="queue_full", headers={"Retry-After": "1"})

    @app.exception_handler(ClosedError)
    async def closed(request: Request, error: ClosedError) -> JSONResponse:
        return refusal(503, str(error))

    @app.exception_handler(Exception)
    async def unforeseen(request: Request, error: Exception) -> JSONResponse:
        return refusal(500, f"the server failed ({type(error).__name__}); its log says more")
