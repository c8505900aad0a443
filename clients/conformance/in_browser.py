"""Runs the web client's runner in a page of a real browser: its lines go in and out of this process's own streams."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from pathlib import Path
from typing import Final

from playwright.async_api import Page, Route, async_playwright

ROOT: Final = Path(__file__).resolve().parents[2]
SCRIPT: Final = ROOT / "clients" / "web" / "build" / "conformance" / "page.js"
ORIGIN: Final = "http://127.0.0.1:9"
"""Nobody listens there: the page and its script are answered before anything is asked. Sidecars must allow it."""

CHROMIUM_FLAGS: Final = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
"""It calls nobody but whom a page calls, and runs where there is no display."""

FLAGS: Final = (
    *CHROMIUM_FLAGS,
    # A page that no server gave is of no address space; a browser lets such a page call nobody on loopback.
    "--disable-features=LocalNetworkAccessChecks,LocalNetworkAccessChecksWebSockets",
)
LINE_BYTES: Final = 64 * 1_048_576


class InPage:
    """Commands into the page; answers out of it, each when it is done."""

    def __init__(self, page: Page) -> None:
        self._page = page
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Until the input ends."""
        reader = asyncio.StreamReader(limit=LINE_BYTES)
        loop = asyncio.get_running_loop()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        while line := await reader.readline():
            task = asyncio.create_task(self._answer(line.decode()))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _answer(self, line: str) -> None:
        answer = await self._page.evaluate("(line) => globalThis.handle(line)", line)
        sys.stdout.write(f"{answer}\n")
        sys.stdout.flush()


async def main() -> None:
    """A browser with one page, until the input ends."""
    async with async_playwright() as playwright:
        chromium = shutil.which(os.environ.get("SIDECAR_TEST_CHROMIUM", "chromium"))
        browser = await playwright.chromium.launch(executable_path=chromium, headless=True, args=FLAGS)
        page = await browser.new_page()
        await page.route(f"{ORIGIN}/**", _answered)
        await page.goto(f"{ORIGIN}/")
        await page.wait_for_function("() => globalThis.handle !== undefined")
        await InPage(page).run()
        await browser.close()


async def _answered(route: Route) -> None:
    if route.request.url.endswith("/page.js"):
        await route.fulfill(content_type="text/javascript", body=SCRIPT.read_text(encoding="utf-8"))
    else:
        body = '<!doctype html><script type="module" src="/page.js"></script>'
        await route.fulfill(content_type="text/html", body=body)


if __name__ == "__main__":
    asyncio.run(main())
