"""A browser's own WebSocket: a page in headless Chromium, of an origin that the sidecar lets in."""

from __future__ import annotations

import base64
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from playwright.async_api import Browser, ConsoleMessage, Page

from tests.clients.third_party.clients import Client

PAGE = b"""<!doctype html><title>a page</title><script>
  window.dial = (url, protocols) => {
    const socket = window.socket = new WebSocket(url, protocols);
    socket.binaryType = "arraybuffer";
    let opened = false;
    socket.onopen = () => { opened = true; tell({ opened: socket.protocol, connection_id: "" }); };
    socket.onmessage = ({ data }) => tell(
      typeof data === "string" ? { text: data } : { binary: btoa(String.fromCharCode(...new Uint8Array(data))) });
    socket.onclose = ({ code }) => { if (opened) tell({ closed: code }); };
  };
  window.sendBinary = (text) => socket.send(Uint8Array.from(atob(text), (one) => one.charCodeAt(0)));
</script>"""


class _Page(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(PAGE)

    def log_message(self, *_: Any) -> None:
        """To nobody."""


@contextmanager
def origin() -> Iterator[str]:
    """Serve the page, from loopback: a browser lets no other call what listens there."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Page) as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            serving.join()


class BrowserClient(Client):
    """A connection is a page."""

    sets_headers = False

    def __init__(self, browser: Browser, origin: str) -> None:
        super().__init__()
        self._browser = browser
        self._origin = origin
        self._page: Page

    async def dial(self, url: str, protocols: list[str], headers: dict[str, str]) -> None:
        assert not headers
        self._page = await self._browser.new_page()
        self._page.on("console", self._note)
        await self._page.expose_function("tell", self.tell)
        await self._page.goto(f"{self._origin}/")
        await self._page.evaluate("([url, protocols]) => dial(url, protocols)", [url, protocols])

    def _note(self, message: ConsoleMessage) -> None:
        """A page is told no status; its console is, and of a 401 what it means."""
        found = re.search(r"Unexpected response code: (\d+)|HTTP Authentication failed", message.text)
        if found:
            self.tell({"refused": int(found.group(1) or 401)})

    async def send(self, message: str | bytes) -> None:
        if isinstance(message, bytes):
            await self._page.evaluate("text => sendBinary(text)", base64.b64encode(message).decode())
        else:
            await self._page.evaluate("text => socket.send(text)", message)

    async def close(self, code: int = 1000) -> None:
        await self._page.evaluate("code => socket.close(code)", code)

    async def lose(self) -> None:
        """As when a tab is closed: the browser says 1001, or nothing."""
        await self._page.close()

    async def stop(self) -> None:
        """Its browser is closed by whoever opened it."""
