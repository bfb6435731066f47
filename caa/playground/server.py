"""A session in, a page that only this machine can open out."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from caa.playground.session import Session

HERE = "127.0.0.1"
_POLICY = (
    "default-src 'self' data: blob:; style-src 'self' 'unsafe-inline'; frame-ancestors 'none'; form-action 'none'; "
    "script-src 'self' 'unsafe-inline' 'unsafe-eval'"
)


_REFUSED = ("/upload", "/call/", "/proxy=", "/openapi.json")
"""What Gradio serves on any page, and this one does not use."""


class Guard:
    """ASGI: refuses uploads, programs' calls and proxied addresses, and lets the page load nothing from elsewhere."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def with_policy(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"content-security-policy", _POLICY.encode())]
            await send(message)

        if scope["type"] == "http" and any(part in scope["path"] for part in _REFUSED):
            await send({"type": "http.response.start", "status": 403, "headers": []})
            await send({"type": "http.response.body", "body": b"not on this page"})
        else:
            await self.app(scope, receive, with_policy)


@contextmanager
def serving(session: Session, port: int, longest_answer: int) -> Iterator[str]:
    """Serve the page until the block ends; yields its address. OSError if the port is taken."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read while Gradio is imported
    try:
        import gradio as gr
    except ImportError as error:
        raise ImportError("the playground needs gradio: pip install 'caa[play]'") from error
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    from caa.playground.app import build

    page = build(session, longest_answer)
    # A website that lets its name point to this machine would be asked for by that name.
    guards = [Middleware(TrustedHostMiddleware, allowed_hosts=[HERE, "localhost"]), Middleware(Guard)]
    try:
        _, address, _ = page.queue(max_size=8, default_concurrency_limit=1, api_open=False).launch(
            server_name=HERE,
            server_port=port,
            share=False,
            prevent_thread_lock=True,
            quiet=True,
            footer_links=[],
            run_history=False,
            enable_monitoring=False,
            ssr_mode=False,
            mcp_server=False,
            pwa=False,
            max_file_size=1,
            app_kwargs={"middleware": guards, "openapi_url": None},
            theme=gr.themes.Default(
                primary_hue="blue", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
            ),
            css_paths=Path(__file__).with_name("style.css"),
        )
        yield address
    finally:
        page.close()
