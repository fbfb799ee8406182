"""A real browser for tests of the page: Chromium by Playwright, and what went wrong in it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Browser, Page, ViewportSize, expect, sync_playwright

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
#: No GPU, no sandbox (containers have none), nothing that calls home.
_FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
#: Milliseconds to wait for anything; the machine may be busy.
PATIENCE = 60_000
expect.set_options(timeout=PATIENCE)
DESKTOP = ViewportSize(width=1280, height=900)
PHONE = ViewportSize(width=360, height=740)
#: Chromium says so of every other stream that was read to its end (microsoft/playwright#42742);
#: what really breaks one off is seen in the chat.
_SPURIOUS = "/v1/chat/completions net::ERR_ABORTED"

needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")


@contextmanager
def chromium() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=_FLAGS)
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def visit(
    browser: Browser,
    url: str,
    *,
    viewport: ViewportSize = DESKTOP,
    dark: bool = False,
    expected: tuple[str, ...] = (),
) -> Iterator[Page]:
    """The page at ``url``. Afterwards nothing must have gone wrong in it but what contains one of
    ``expected``: no warning on the console, no exception, no request that failed."""
    context = browser.new_context(viewport=viewport, color_scheme="dark" if dark else "light")
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    wrong: list[str] = []
    page.on("console", lambda m: wrong.append(m.text) if m.type in {"error", "warning"} else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("requestfailed", lambda request: wrong.append(f"{request.url} {request.failure}"))
    page.on("response", lambda r: wrong.append(f"{r.url} {r.status}") if r.status >= 400 else None)
    try:
        page.goto(url)
        yield page
        known = (*expected, _SPURIOUS)
        found = [each for each in wrong if not any(part in each for part in known)]
    finally:
        context.close()  # which breaks off the feed
    assert not found, found
