"""The WebSocket listener: accepts, counts and ends connections, and hands each to its protocol's session."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, cast

import structlog
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from sidecar.core.close_codes import CloseCode, catalogued
from sidecar.core.events import Draining
from sidecar.ws.addresses import AddressLimiter, ClientAddresses
from sidecar.ws.admission import Doorkeeper, record_refused_stranger
from sidecar.ws.connection import EdgeConnection
from sidecar.ws.handshake import Refusal
from sidecar.ws.ports import EdgePorts
from sidecar.ws.raw import RawSession
from sidecar.ws.session import JsonSession
from sidecar.ws.socket import ClientSocket
from sidecar.ws.turned_away import TurnedAway

if TYPE_CHECKING:
    from websockets.asyncio.server import Server
    from websockets.protocol import Protocol

    from sidecar.core.context_factory import ConnectionContextFactoryManager
    from sidecar.core.factory import WebSocketManagerFactory
    from sidecar.core.ports import Clock, Randomness
    from sidecar.core.statistics import SecurityCounters
    from sidecar.security.context_tokens import ContextTokenAuthority
    from sidecar.security.refusals import Refusals
    from sidecar.security.user_tokens import UserTokenVerifier
    from sidecar.ws.ports import GrantingAuditTrail
    from sidecar.ws.settings import WebSocketSettings

_logger = structlog.get_logger("sidecar.ws")
_ATTACH_ID_BYTES: Final = 8
_BACKLOG: Final = 1_024
_DRAIN_STEP_S: Final = 0.01
RECONNECT_SPREAD_MS: Final = 5_000


class WebSocketEdge:
    """Serves `/v1/connect`. `start` once, then `close`; every method is for the loop's thread."""

    def __init__(  # noqa: PLR0913 - one argument a collaborator
        self,
        settings: WebSocketSettings,
        *,
        users: UserTokenVerifier,
        contexts: ConnectionContextFactoryManager,
        factory: WebSocketManagerFactory,
        tokens: ContextTokenAuthority,
        audit: GrantingAuditTrail,
        refusals: Refusals,
        counters: SecurityCounters,
        clock: Clock,
        randomness: Randomness,
    ) -> None:
        self._settings = settings
        self._ports = EdgePorts(
            settings=settings,
            users=users,
            contexts=contexts,
            factory=factory,
            tokens=tokens,
            audit=audit,
            refusals=refusals,
            counters=counters,
            clock=clock,
            randomness=randomness,
            addresses=ClientAddresses(settings.trusted_proxies),
            limiter=AddressLimiter(
                settings.connects_per_second_per_address,
                settings.failures_per_second_per_address,
                settings.max_addresses,
            ),
        )
        self._doorkeeper = Doorkeeper(self._ports, self._is_full)
        self._half_open: set[EdgeConnection] = set()
        self._open: set[EdgeConnection] = set()
        self._server: Server | None = None
        self._stopping = False
        self._port: int | None = None
        # Above DEBUG and INFO: the audit trail says who came and went, and at DEBUG the library logs tokens.
        self._library_logger = logging.getLogger("websockets.server")

    def __repr__(self) -> str:
        return f"<WebSocketEdge open={self.connections} half_open={len(self._half_open)} stopping={self._stopping}>"

    @property
    def port(self) -> int:
        """The port that is or was listened on, once started."""
        assert self._port is not None
        return self._port

    @property
    def connections(self) -> int:
        """How many sockets are open: upgraded, and not yet gone."""
        return len(self._open)

    async def start(self) -> None:
        """Listen. Raises OSError when the address cannot be had."""
        if self._library_logger.getEffectiveLevel() < logging.WARNING:
            self._library_logger.setLevel(logging.WARNING)
        self._server = await serve(
            cast("Any", self._serve),
            self._settings.host,
            self._settings.port,
            create_connection=cast("type[ServerConnection]", self._connect),
            process_request=cast("Any", self._doorkeeper.process_request),
            process_response=cast("Any", self._doorkeeper.process_response),
            compression=None,
            server_header=None,
            open_timeout=self._settings.handshake_timeout_s,
            logger=self._library_logger,
            backlog=_BACKLOG,
        )
        self._port = int(next(iter(self._server.sockets)).getsockname()[1])

    def stop_accepting(self) -> None:
        """Listen no more; handshakes under way are answered 503. Idempotent."""
        self._stopping = True
        if self._server is not None:
            self._server.close(close_connections=False)

    async def drain(self, window_s: float, hurry: asyncio.Event) -> None:
        """Send every client away (`draining`, then 1012), in no order, evenly over `window_s` seconds.

        Who asks meanwhile is answered 503, once the factory drains. `hurry` ends the pacing: the rest go at once.
        """
        leaving = list(self._open)
        self._shuffle(leaving)
        start, step_s = asyncio.get_running_loop().time(), max(window_s / max(len(leaving), 1), _DRAIN_STEP_S)
        steps = max(int(window_s / step_s), 1)
        for step in range(steps):
            if step:
                await _until(start + window_s * step / steps, hurry)
            for connection in leaving[step * len(leaving) // steps : (step + 1) * len(leaving) // steps]:
                if connection in self._open:  # it may have left by itself
                    self._send_away(connection)

    async def close(self) -> None:
        """Stop accepting, tell every client (`draining`, then 1012), wait for them, then cancel. Idempotent.

        Bounded by `close_timeout_s` and one second more. Contexts of the JSON protocol are left detached: ending them
        is the factory's.
        """
        self.stop_accepting()
        if self._server is None:
            return
        for connection in tuple(self._open):
            self._send_away(connection)
        for connection in tuple(self._half_open):
            if connection.request is None:
                connection.abort()
        try:
            async with asyncio.timeout(self._settings.close_timeout_s + 1.0):
                await self._server.wait_closed()
        except TimeoutError:
            # Every transport has been aborted by its own deadline: what is left waits for something else.
            for task in tuple(self._server.handler_tasks):
                task.cancel()
            await self._server.wait_closed()

    # One connection, in the order of its life

    def _connect(self, protocol: Protocol, server: Server, **settings: object) -> EdgeConnection | TurnedAway:
        """Called by the library for each TCP connection; its protocol and settings give way to the edge's own."""
        if len(self._half_open) >= self._settings.max_half_open:
            return TurnedAway(self._turned_away)
        connection = EdgeConnection(
            server,
            self._settings,
            self._ports.clock,
            self._library_logger,
            on_made=self._half_open.add,
            on_handshake_over=self._handshake_over,
            on_refused=self._refused,
        )
        attach_id = f"a-{self._ports.randomness(_ATTACH_ID_BYTES)}"
        connection.socket = ClientSocket(connection, attach_id, self._ports.clock, self._ports.factory.writes)
        return connection

    def _turned_away(self, peer: object) -> None:
        """There was no room for one more handshake: refused like others, though nobody asked what for."""
        self._ports.counters.resource_limit_enforcements += 1
        record_refused_stranger(self._ports, self._ports.addresses.of(peer, ()), Refusal.FULL.reason, None)

    def _refused(self, connection: EdgeConnection, refusal: Refusal) -> None:
        self._doorkeeper.refused(connection, refusal)
        self._end_unopened(connection)

    def _handshake_over(self, connection: EdgeConnection) -> None:
        """Upgraded, refused, given up or timed out."""
        self._half_open.discard(connection)
        if connection.is_open:
            self._open.add(connection)
        else:
            self._end_unopened(connection)

    def _end_unopened(self, connection: EdgeConnection) -> None:
        """A context made for a handshake does not outlive its failure."""
        socket = connection.socket
        if socket is not None and socket.manager is not None:
            socket.manager.end("handshake_failed", None, self._ports.clock.now())

    def _is_full(self) -> bool:
        return len(self._open) >= self._settings.max_connections

    async def _serve(self, connection: EdgeConnection) -> None:
        """Run the connection's session; return when its TCP connection has ended, and never raise."""
        socket, admission = connection.socket, connection.admission
        assert socket is not None
        assert admission is not None
        session = (RawSession if admission.offer.raw else JsonSession)(connection, socket, self._ports)
        try:
            await session.run()
        except ConnectionClosed:
            pass
        except Exception as error:  # noqa: BLE001 - one client's trouble stays its own
            _logger.error("session failed", error=type(error).__name__, attach_id=socket.attach_id)
            self._close_socket(socket, CloseCode.GOING_AWAY)  # it may come back
        finally:
            await connection.wait_closed()
            self._open.discard(connection)
            connection.let_go()

    def _send_away(self, connection: EdgeConnection) -> None:
        socket = connection.socket
        assert socket is not None
        spread = int(self._ports.randomness(4), 16) % RECONNECT_SPREAD_MS
        socket.notify(Draining(reconnect_in_ms=spread))
        self._close_socket(socket, CloseCode.RESTART)

    def _shuffle(self, connections: list[EdgeConnection]) -> None:
        """In an order that no client can choose."""
        connections.sort(key=lambda _: self._ports.randomness(4))

    def _close_socket(self, socket: ClientSocket, code: CloseCode) -> None:
        close = catalogued(code)
        if socket.manager is not None and not socket.manager.ended:
            socket.manager.close_connection(socket, close, self._ports.clock.now())
        socket.close(close)


async def _until(deadline: float, hurry: asyncio.Event) -> None:
    """Wait for that time of the loop's clock, or for `hurry`."""
    with suppress(TimeoutError):
        async with asyncio.timeout_at(deadline):
            await hurry.wait()
