"""Chromium for the tests that look at a page; `make test-browser` runs them."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_QUIET = (
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@contextmanager
def chromium(*more: str) -> Iterator[Any]:
    """A headless Chromium, of which there is one at a time; skips the test, and says why, where there is none.

    Args:
        more: words for its command line.
    """
    playwright = pytest.importorskip("playwright.sync_api", reason="needs pip install 'tiny-onn[browser]'")
    program = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, _NAMES)), None)
    if program is None:
        pytest.skip(f"needs Chromium: none of {', '.join(_NAMES)} is installed, and CHROMIUM names none")
    words = [*_QUIET, *more, *(["--no-sandbox"] if os.geteuid() == 0 else [])]  # Chromium has no sandbox for root
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=program, args=words)
        try:
            yield browser
        finally:
            browser.close()


def new_page(browser: Any, width: int = 1500, height: int = 950) -> Any:
    """A page of that size, which knows nothing of the others."""
    page = browser.new_page(viewport={"width": width, "height": height})
    page.set_default_timeout(60_000)  # a busy machine takes its time over MLflow's scripts
    return page
