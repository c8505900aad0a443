"""The world that a scenario is played in: a real sidecar, the ways to it, their faults, and the tokens of its users."""

from __future__ import annotations

import asyncio
import json
import shutil
import tempfile
import threading
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Final, TypeVar

from clients.conformance.in_browser import ORIGIN
from sidecar.security.context_keys import KeyRing
from sidecar.security.jose import decode_segment, sign
from tests.clients.conformance.doors import tls_door, unix_door
from tests.support.fault_proxy import Admission, FaultProxy, fault_proxy
from tests.support.restarting import RestartingSidecar, restarting_sidecar
from tests.support.running import RunningSidecar

T = TypeVar("T")
TIMEOUT_S: Final = 60.0


class Loop:
    """An event loop in a thread of its own, for the sidecar's proxies: the driver waits for runners, and blocks."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(TIMEOUT_S)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class World:
    """One sidecar. Each scenario has ways to it of its own (`enter`), so that faults are nobody else's."""

    def __init__(self, loop: Loop, settings: str = "") -> None:
        self._loop = loop
        self._stack = AsyncExitStack()
        self._ways = AsyncExitStack()
        self._folder = Path(tempfile.mkdtemp(prefix="conformance-"))
        settings = settings.replace("$folder", str(self._folder))
        self._sidecar: RestartingSidecar = loop.run(
            self._stack.enter_async_context(
                restarting_sidecar(self._folder, settings, SIDECAR_WEBSOCKET__ALLOWED_ORIGINS=f'["{ORIGIN}"]')
            )
        )
        self._proxies: dict[str, FaultProxy] = {}
        self._tenant = ""

    @property
    def running(self) -> RunningSidecar:
        return self._sidecar.running

    @property
    def url(self) -> str:
        """Where users connect, by way of the faults."""
        return f"ws://{self._proxies['user'].target}/v1/connect"

    @property
    def endpoint(self) -> str:
        """Where services call, by way of the faults."""
        return self._proxies["service"].target

    def enter(self, tenant: str) -> None:
        """New ways to the sidecar, for a scenario whose users are of that tenant."""
        self._tenant = tenant
        self._loop.run(self._enter())

    async def _enter(self) -> None:
        running = self.running
        for side, target in (("user", f"127.0.0.1:{running.websocket_port}"), ("service", running.grpc_target)):
            self._proxies[side] = await self._ways.enter_async_context(fault_proxy(target))

    def leave(self) -> None:
        """Close the ways."""
        self._loop.run(self._ways.aclose())
        self._ways = AsyncExitStack()

    def close(self) -> None:
        """Stop the sidecar, and leave nothing of it."""
        self._loop.run(self._stack.aclose())
        shutil.rmtree(self._folder)

    def user_token(self, who: str, **claims: Any) -> str:
        return self.running.user_token(who, self._tenant, **claims)

    # What scenarios may do

    def do(self, what: str, said: dict[str, Any]) -> Any:
        """One step of the world's."""
        step: Callable[..., Any] = getattr(self, f"do_{what}")
        return step(**said)

    def do_cut(self, side: str) -> None:
        """Cut every connection of that side; a further one is let in."""
        self._now(lambda proxy: proxy.cut_all(), side)

    def do_stall(self, side: str, direction: str = "both") -> None:
        """To each end the other has fallen silent; `down`: to the client alone. Further connections are well."""

        def stall(proxy: FaultProxy) -> None:
            for connection in proxy.connections:
                connection.stall() if direction == "both" else connection.down.stall()

        self._now(stall, side)

    def do_refuse(self, side: str) -> None:
        """Reset whoever comes, until `calm`."""
        self._now(lambda proxy: setattr(proxy, "admission", Admission.RESET), side)

    def do_calm(self, side: str) -> None:
        """No faults any more."""
        self._now(lambda proxy: proxy.calm(), side)

    def _now(self, act: Callable[[FaultProxy], None], side: str) -> None:
        async def acting() -> None:
            act(self._proxies[side])

        self._loop.run(acting())

    def do_tried(self, side: str, times: int) -> None:
        """Wait until so many connections have come in all."""
        self._loop.run(self._proxies[side].connected(times))

    def do_user_token(self, who: str, ttl_s: int = 600) -> dict[str, str]:
        return {"token": self.user_token(who, ttl_s=ttl_s)}

    def do_expired_context_token(self, of: str) -> dict[str, str]:
        """The same token, but that it ended an hour ago."""
        ring = KeyRing.decode((self._folder / "context.keys").read_bytes())
        claims = json.loads(decode_segment(of.split(".")[1]))
        for name in ("iat", "nbf", "exp"):
            claims[name] -= 3_600 + 900
        return {"context_token": sign(ring.keys[-1].header, claims, ring.keys[-1].secret)}

    def do_service_token(self) -> dict[str, str]:
        return {"token": self.running.service_token}

    def do_endpoint(self, kind: str) -> dict[str, str]:
        """Another way in: `plain`, `unix` or `tls`, which say nothing of faults."""
        match kind:
            case "plain":
                return {"endpoint": self.endpoint}
            case "unix":
                return {"endpoint": self._loop.run(self._ways.enter_async_context(unix_door(self.running.grpc_target)))}
            case _:
                door = self._loop.run(self._ways.enter_async_context(tls_door(self.running.grpc_target)))
                return {"endpoint": door.endpoint, "ca_file": str(door.ca_file)}

    def do_terminate(self) -> dict[str, int]:
        """SIGTERM, and wait for the end."""
        return {"code": self._loop.run(self._sidecar.terminate())}

    def do_start(self) -> None:
        """Start it again on the same ports."""
        self._loop.run(self._sidecar.start())

    def do_kill(self) -> None:
        """kill -9."""
        self._loop.run(self._sidecar.kill())

    def do_audited(self, event: str, who: str) -> None:
        """Wait until the trail has that event of that user. Each look is a call that takes its turn."""
        self._loop.run(self._audited(event, who))

    async def _audited(self, event: str, who: str) -> None:
        mine = {"tenant_id": self._tenant, "user_id": who}.items()
        while not any(mine <= record.items() for record in await self.running.audit_records(event)):
            pass
