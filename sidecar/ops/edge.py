"""The operations edge: liveness and readiness for whoever runs the sidecar, and in development the demo page.

Relies on callables for what the rest of the process knows; nothing here changes it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from aiohttp import web

from sidecar.ops.development import DevelopmentPages, DevelopmentSite
from sidecar.ops.http import answer, not_found, runner


@dataclass(frozen=True, slots=True)
class OpsSettings:
    """Where to listen. Port 0 takes a free one."""

    host: str
    port: int


class OpsEdge:
    """The HTTP server of the operations port: `/healthz`, `/readyz`, and a development site if there is one.

    `alive` says whether the process still does its work, `ready` whether it takes new ones; both answer at once.
    """

    def __init__(
        self,
        settings: OpsSettings,
        *,
        alive: Callable[[], bool],
        ready: Callable[[], bool],
        development: DevelopmentSite | None = None,
    ) -> None:
        self._settings = settings
        self._alive = alive
        self._ready = ready
        self._development = development
        self._pages: DevelopmentPages | None = None
        self._runner: web.BaseRunner | None = None
        self._port = settings.port

    def __repr__(self) -> str:
        state = "serving" if self._runner is not None else "closed"
        return f"<OpsEdge {self._settings.host}:{self._port} {state}>"

    @property
    def port(self) -> int:
        """The port listened on; before `start` the one asked for."""
        return self._port

    async def start(self) -> None:
        """Listen and answer from now on. Raises OSError where the address cannot be had; then nothing is left open."""
        self._runner = runner(self._handle)
        try:
            await self._runner.setup()
            site = web.TCPSite(self._runner, self._settings.host, self._settings.port)
            await site.start()
        except BaseException:
            await self.close()
            raise
        self._port = site.port
        if self._development is not None:
            self.open_development(self._development)

    def open_development(self, site: DevelopmentSite) -> None:
        """Serve this site beside health from now on: for who needs the port before the site's addresses are known."""
        self._pages = DevelopmentPages(site, self._port)

    async def close(self) -> None:
        """Stop listening, then end the connections, in at most a few seconds. Idempotent."""
        current, self._runner = self._runner, None
        if current is not None:
            await current.cleanup()

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        path = request.rel_url.raw_path
        if request.method in {"GET", "HEAD"}:
            if path == "/healthz":
                return answer(200, "ok") if self._alive() else answer(503, "not ok")
            if path == "/readyz":
                return answer(200, "ready") if self._ready() else answer(503, "not ready")
        if self._pages is not None:
            return await self._pages.answer(request)
        return not_found()
