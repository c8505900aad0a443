"""aiohttp, held to what an edge may say: answers of fixed text, no server banner, bounded bodies, nothing echoed.

What a client gets wrong before a handler runs is answered here too, and not by the library's own pages.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import Any, Final

import structlog
from aiohttp import hdrs, web

MAX_BODY_BYTES: Final = 4096
SHUTDOWN_TIMEOUT_S: Final = 2.0
KEEPALIVE_TIMEOUT_S: Final = 30.0
LINGERING_TIME_S: Final = 1.0

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]

logger = structlog.get_logger("sidecar.ops")


def answer(
    status: int, body: str | bytes, content_type: str = "text/plain", headers: Mapping[str, str] | None = None
) -> web.Response:
    """One whole response: UTF-8, never stored, never sniffed; `headers` beside those."""
    return web.Response(
        status=status,
        body=body,
        content_type=content_type,
        charset="utf-8" if content_type.startswith("text/") else None,
        headers={"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", **(headers or {})},
    )


def not_found() -> web.Response:
    """The one answer for everything that is not served."""
    return answer(404, "not found")


def runner(handler: Handler) -> web.BaseRunner:
    """A runner for one handler of every request; it installs no signal handlers and writes no access log."""
    return web.ServerRunner(
        _Server(
            handler,
            request_factory=_request,
            access_log=None,
            keepalive_timeout=KEEPALIVE_TIMEOUT_S,
            lingering_time=LINGERING_TIME_S,
        ),
        handle_signals=False,
        shutdown_timeout=SHUTDOWN_TIMEOUT_S,
    )


class _Request(web.BaseRequest):
    """A request whose answers name no server software. Every response passes here, the library's own included."""

    async def _prepare_hook(self, response: web.StreamResponse) -> None:
        """Called by the library when an answer's headers are whole and not yet written."""
        response.headers.popall(hdrs.SERVER, None)


def _request(*arguments: Any) -> web.BaseRequest:
    message, payload, protocol, writer, task = arguments
    return _Request(message, payload, protocol, writer, task, task.get_loop(), client_max_size=MAX_BODY_BYTES)


class _Connection(web.RequestHandler):
    """Answers what went wrong outside a handler's own decisions with the status's phrase and nothing else."""

    __slots__ = ()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Called by the library for a request that it cannot read, and for a handler that raised."""
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            logger.error("request_failed", status=status, exc_info=exc)
        response = answer(status, HTTPStatus(status).phrase.lower())
        response.force_close()
        return response


class _Server(web.Server):
    """Makes connections of the kind above."""

    def __call__(self) -> web.RequestHandler:
        return _Connection(self, loop=self._loop, **self._kwargs)
