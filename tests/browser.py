"""A real Chromium without a screen, for pages that people use; screenshots go to the folder artifacts/screenshots."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SCREENSHOTS = Path(__file__).parents[1] / "artifacts" / "screenshots"
_BACKGROUND = ("quic", "background-networking", "component-update", "sync", "gpu")
FLAGS = ["--no-sandbox", "--no-first-run", *(f"--disable-{name}" for name in _BACKGROUND)]

needs_browser = pytest.mark.skipif(not CHROMIUM, reason="needs Chromium: apt-get install chromium")


@dataclass
class Window:
    """One browser window, and all that went wrong in it."""

    page: Any
    """Playwright's page."""
    troubles: list[str] = field(default_factory=list)
    """Errors and warnings of the console, uncaught errors, dialogs (a script got through), failed requests, and
    requests that left this machine."""

    def screenshot(self, name: str, *, whole: bool = True) -> Path:
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        path = SCREENSHOTS / f"{name}.png"
        self.page.screenshot(path=path, full_page=whole)
        return path


@contextmanager
def window(width: int = 1280, height: int = 900, **how: Any) -> Iterator[Window]:
    """A window that can reach this machine alone. `how` is Playwright's, e.g. color_scheme="dark"."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        try:
            context = browser.new_context(viewport={"width": width, "height": height}, **how)
            opened = Window(context.new_page())
            _watch(context, opened)
            yield opened
        finally:
            browser.close()


def _watch(context: Any, opened: Window) -> None:
    def outside(route: Any) -> None:
        opened.troubles.append(f"asked for {route.request.url}")
        route.abort()

    def dialog(found: Any) -> None:
        opened.troubles.append(f"dialog: {found.message}")
        found.dismiss()

    def said(message: Any) -> None:
        if message.type in ("error", "warning"):
            opened.troubles.append(f"{message.type}: {message.text}")

    context.route(lambda url: not url.startswith(("file:", "data:", "blob:", "http://127.0.0.1")), outside)
    opened.page.on("dialog", dialog)
    opened.page.on("console", said)
    opened.page.on("pageerror", lambda error: opened.troubles.append(f"uncaught: {error}"))
    opened.page.on("requestfailed", lambda request: opened.troubles.append(f"failed: {request.url}"))
