"""What would keep a judge's server from being asked, found before a run begins. Sends no request."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from importlib.util import find_spec
from urllib.parse import urlsplit

from caa.judges.config import JudgeConfig

PATIENCE = 3.0
"""Seconds that a judge's server has to take up a connection."""


def server_problems(judge: JudgeConfig) -> Iterator[str]:
    """The client is not installed, there is no key, or nobody listens; a proxy is trusted."""
    if not find_spec("openai"):
        yield "a judge behind a server needs openai: pip install 'caa[judge]'"
    url = judge.base_url or os.environ.get("OPENAI_BASE_URL", "")
    if not url and not os.environ.get(judge.key_variable, "").strip():
        yield (
            f"the judge has no key: put one into the environment variable {judge.key_variable}, or give the base_url "
            "of a server of your own"
        )
    behind_proxy = any(os.environ.get(name) for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"))
    if not url or behind_proxy:
        return
    parts = urlsplit(url)
    address = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    try:
        socket.create_connection(address, timeout=PATIENCE).close()
    except OSError as error:
        yield f"the judge's server at {url} takes up no connection ({error}); start it, or correct base_url"
