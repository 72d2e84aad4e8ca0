"""A real headless Chromium for the tests of pages: the system's, driven by Playwright, which downloads nothing here."""

import functools
import http.server
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_ARGUMENTS = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]  # in containers; it opens our own pages only


def chromium() -> str | None:
    """The path of a Chromium, or None: $STRATA_TEST_CHROMIUM, else the first of the usual names."""
    named = os.environ.get("STRATA_TEST_CHROMIUM")
    return named or next(filter(None, map(shutil.which, _NAMES)), None)


@dataclass
class Seen:
    """What a page did that it should not, and all that it asked for."""

    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


@contextmanager
def browser() -> Iterator[Any]:
    """A Playwright browser; skips the test, with the reason, where Playwright or Chromium is missing."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs Playwright: pip install playwright")
    path = chromium()
    if path is None:
        pytest.skip(f"needs Chromium: none of {', '.join(_NAMES)} is installed")
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=path, args=_ARGUMENTS, headless=True)
        try:
            yield started
        finally:
            started.close()


@contextmanager
def page(browser: Any, **options: Any) -> Iterator[tuple[Any, Seen]]:
    """A page of its own profile, whose complaints and requests are noted."""
    context = browser.new_context(**options)
    shown, seen = context.new_page(), Seen()
    shown.on("console", lambda said: seen.errors.append(said.text) if said.type in ("error", "warning") else None)
    shown.on("pageerror", lambda error: seen.errors.append(str(error)))
    shown.on("requestfailed", lambda request: seen.errors.append(f"failed: {request.url}"))
    shown.on("request", lambda request: seen.requests.append(request.url))
    shown.on("dialog", lambda dialog: (seen.errors.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    shown.set_default_timeout(10_000)
    try:
        yield shown, seen
    finally:
        context.close()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args: Any) -> None:
        """Say nothing."""


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """A folder behind a web server on loopback; its address, without the last slash."""
    handler = functools.partial(_Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
