"""The demo page of development mode: two users in two tabs, and what happens to a send with the wrong token.

Anybody who reaches it may become any user, so it answers only a page of its own: the exact Host (DNS rebinding), the
exact Origin, and what the browser says of where a request came from (Fetch Metadata).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from typing import Final
from urllib.parse import urlsplit

import orjson
from aiohttp import hdrs, web

from sidecar.core.identity import IDENTIFIER
from sidecar.ops.http import answer, not_found

_STATIC: Final = {
    "/": ("index.html", "text/html"),
    "/demo.js": ("demo.js", "text/javascript"),
    "/connection.js": ("connection.js", "text/javascript"),
    "/conversation.js": ("conversation.js", "text/javascript"),
    "/elements.js": ("elements.js", "text/javascript"),
    "/tabs.js": ("tabs.js", "text/javascript"),
    # The client for browsers, as clients/web builds it.
    "/ws-sidecar.min.js": ("ws-sidecar.min.js", "text/javascript"),
    "/demo.css": ("demo.css", "text/css"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self' {websocket}; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


@dataclass(frozen=True, slots=True)
class DevelopmentSite:
    """What the demo page needs: where the WebSocket is (`ws://…/v1/connect`), and what mints a user token for a subject
    (one identifier)."""

    websocket_url: str
    mint_user_token: Callable[[str], str]


class DevelopmentPages:
    """Answers for the demo page: the page's own files, `GET /dev/config` and `POST /dev/token`."""

    def __init__(self, site: DevelopmentSite, port: int) -> None:
        self._site = site
        self._hosts = frozenset({f"127.0.0.1:{port}", f"localhost:{port}", f"[::1]:{port}"})
        folder = files("sidecar.ops") / "static"
        self._files = {path: ((folder / name).read_bytes(), kind) for path, (name, kind) in _STATIC.items()}
        self._headers = _page_headers(site)

    async def answer(self, request: web.BaseRequest) -> web.Response:
        """The answer for one request that is not about health."""
        hosts = request.headers.getall(hdrs.HOST, ())
        if len(hosts) != 1 or hosts[0].lower() not in self._hosts:
            return _forbidden()
        path = request.rel_url.raw_path
        if request.method in {"GET", "HEAD"} and path in self._files:
            body, kind = self._files[path]
            return answer(200, body, kind, self._headers)
        if not _from_own_page(request, hosts[0]):
            return _forbidden()
        if request.method == "GET" and path == "/dev/config":
            return _json(200, {"websocket_url": self._site.websocket_url})
        if request.method == "POST" and path == "/dev/token":
            return await self._token(request)
        return not_found()

    async def _token(self, request: web.BaseRequest) -> web.Response:
        if request.content_type != "application/json":
            return _json(415, {"error": "the body must be application/json"})
        try:
            subject = _subject(await request.read())
        except web.HTTPRequestEntityTooLarge:
            return _json(413, {"error": "the body is too long"})
        if subject is None:
            return _json(400, {"error": f"sub must match {IDENTIFIER.pattern}"})
        return _json(200, {"token": self._site.mint_user_token(subject)})


def _from_own_page(request: web.BaseRequest, host: str) -> bool:
    """True unless a page of another origin asks. A page of ours always says its Origin where something is minted."""
    origins = request.headers.getall(hdrs.ORIGIN, ())
    if request.method not in {"GET", "HEAD"} and not origins:
        return False
    same_origin = all(origin == f"http://{host}" for origin in origins)
    return same_origin and request.headers.get("Sec-Fetch-Site", "same-origin") == "same-origin"


def _subject(body: bytes) -> str | None:
    try:
        members = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    subject = members.get("sub") if isinstance(members, dict) else None
    return subject if isinstance(subject, str) and IDENTIFIER.fullmatch(subject) else None


def _page_headers(site: DevelopmentSite) -> dict[str, str]:
    policy = _POLICY.format(websocket=_origin(site.websocket_url))
    return {
        "Content-Security-Policy": policy,
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Referrer-Policy": "no-referrer",
        "X-Frame-Options": "DENY",
    }


def _origin(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"


def _json(status: int, members: dict[str, str]) -> web.Response:
    return answer(status, orjson.dumps(members), "application/json")


def _forbidden() -> web.Response:
    return answer(403, "forbidden")
