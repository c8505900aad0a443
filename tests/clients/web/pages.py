"""Pages in a real browser, served from one origin, whose client reaches the running sidecar under a name of its own."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

from aiohttp import web
from playwright.async_api import BrowserContext, Page, async_playwright

from tests.support.running import RunningSidecar
from tests.support.tools import lacking

CHROMIUM: Final = shutil.which(os.environ.get("SIDECAR_TEST_CHROMIUM", "chromium"))
FLAGS: Final = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking")
APP: Final = "http://app.example"
URL: Final = "ws://sidecar.example/v1/connect"
SHELL: Final = """<!doctype html><meta charset="utf-8"><title>page</title>
<script type="importmap">{"imports": {"@ws-sidecar/web": "/ws-sidecar.min.js"}}</script>
<body></body><script type="module" src="/page.js"></script>"""


class Site(NamedTuple):
    """A browser's context, and what fills its pages: the module that each loads, and what may stand beside it."""

    context: BrowserContext
    files: dict[str, str]

    async def open(self, module: str, path: str = "/") -> Page:
        """A tab with a page that runs that module."""
        self.files["/page.js"] = module
        page = await self.context.new_page()
        await page.goto(f"{APP}{path}")
        return page


@asynccontextmanager
async def site(sidecar: RunningSidecar, folder: Path, token: Callable[[], str]) -> AsyncIterator[Site]:
    """Serves the built client and the pages, mints user tokens at /token, and drives Chromium."""
    if CHROMIUM is None:
        lacking("chromium")
    files: dict[str, str] = {}

    async def answer(request: web.Request) -> web.Response:
        if request.path == "/token":
            return web.Response(text=token())
        script = files.get(request.path) or _built(folder, request.path)
        if script is not None:
            return web.Response(text=script, content_type="text/javascript")
        return web.Response(text=SHELL, content_type="text/html")

    runner = web.ServerRunner(web.Server(answer))  # type: ignore[arg-type]
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    port = runner.addresses[0][1]
    names = f"MAP app.example:80 127.0.0.1:{port}, MAP sidecar.example:80 127.0.0.1:{sidecar.websocket_port}"
    try:
        async with async_playwright() as playwright:
            flags = [*FLAGS, f"--host-resolver-rules={names}"]
            browser = await playwright.chromium.launch(executable_path=CHROMIUM, headless=True, args=flags)
            try:
                yield Site(await browser.new_context(), files)
            finally:
                await browser.close()
    finally:
        await runner.cleanup()


def _built(folder: Path, path: str) -> str | None:
    known = {"/ws-sidecar.min.js": "dist/ws-sidecar.min.js", "/runner.js": "build/conformance/page.js"}
    return (folder / known[path]).read_text() if path in known else None


async def shown(page: Page, text: str) -> None:
    """Wait until the page's text is that."""
    await page.wait_for_function("text => document.body.textContent === text", arg=text, timeout=20_000)


async def value(page: Page, expression: str) -> Any:
    """Of the page's own, once it is there."""
    return await (await page.wait_for_function(expression, timeout=20_000)).json_value()
