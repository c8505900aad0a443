"""The composition root: builds everything from a `Config`, starts it in order, stops it in the opposite order."""

from __future__ import annotations

import asyncio
import errno
import gc
import math
import os
import resource
import secrets
import signal
import socket
import tempfile
import threading
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

import structlog
import uvloop

from sidecar import __version__, building
from sidecar.cluster.local import LocalOwnerDirectory
from sidecar.config import CLOSING_S, StartError
from sidecar.core.close_codes import CloseCode, catalogued
from sidecar.core.context_factory import ConnectionContextFactoryManager
from sidecar.core.errors import Unavailable
from sidecar.core.factory import WebSocketManagerFactory
from sidecar.core.message import Instant, make_instant
from sidecar.core.ports import AuditEvent
from sidecar.core.statistics import SecurityCounters
from sidecar.core.writes import WriteBatch
from sidecar.ops.edge import OpsEdge, OpsSettings
from sidecar.rpc.server import RpcEdge, RpcPorts, RpcSettings
from sidecar.security.audit import JsonLinesAuditTrail
from sidecar.security.context_tokens import ContextTokenAuthority, ContextTokenKeys
from sidecar.security.files import SettingError
from sidecar.security.refusals import Refusals
from sidecar.security.user_tokens import UserTokenVerifier
from sidecar.ws.edge import WebSocketEdge
from sidecar.ws.frames import JsonEncoder

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    from sidecar.config import Config
    from sidecar.core.stored import RestoredContext, StoredState
    from sidecar.development import Development

logger = structlog.get_logger("sidecar")

TICK_S: Final = 1.0
PRUNE_EVERY_TICKS: Final = 60
END_SLICE: Final = 1_000
_STOPPED: Final = "sidecar_stopped"
PYTHONS_COLLECTOR: Final = (700, 10, 10)
COLLECTOR: Final = (700, 2, 50)
"""Thresholds of the garbage collector: each third look at the youngest is one at the young, so that none takes long."""


class SystemClock:
    """The clocks of this machine."""

    monotonic = staticmethod(time.monotonic)
    time = staticmethod(time.time)

    def now(self) -> Instant:
        """One reading of both."""
        return make_instant((time.monotonic(), time.time()))


def random_hexadecimal(size: int) -> str:
    """`size` random bytes from the operating system, as lower-case hexadecimal."""
    return secrets.token_hex(size)


class Sidecar:
    """One running sidecar. `start` raises SettingError or StartError and leaves nothing; `stop` is idempotent."""

    def __init__(self, config: Config, development: Development | None = None) -> None:
        self._config = config
        self._development = development
        self._ready = False
        self._ticker: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._draining: asyncio.Task[None] | None = None
        self._hurry = asyncio.Event()
        self._grace_ends = math.inf
        self.drained = asyncio.Event()
        """Set once a drain has sent the last client away."""
        clock = self._clock = SystemClock()
        self._counters = SecurityCounters()
        self._services = building.services(config, development, clock)
        self._users = UserTokenVerifier(building.issuers(config), clock)
        # Made where there is none: only once all that is merely read was good.
        self._keys = ContextTokenKeys(
            config.context_tokens.key_file, now=clock.time(), rotate_after_s=config.context_tokens.rotation_s
        )
        self._tokens = ContextTokenAuthority(
            self._keys,
            clock,
            issuer=config.context_tokens.issuer,
            ttl_s=config.context_tokens.ttl_s,
            revocations=building.revocations(config, clock),
        )
        self.audit = JsonLinesAuditTrail(config.audit.path, clock)
        self._floods = Refusals(self.audit, clock)
        self._contexts = ConnectionContextFactoryManager(self._keys.isolation_secret, self.audit, random_hexadecimal)
        writes = WriteBatch()
        self._store = building.outbox_store(config, writes)
        self.factory = WebSocketManagerFactory(
            building.limits_of(config),
            store=self._store,
            owners=LocalOwnerDirectory(),
            clock=clock,
            counters=self._counters,
            randomness=random_hexadecimal,
            writes=writes,
        )
        self.ops = OpsEdge(
            OpsSettings(config.ops.address.host, config.ops.address.port), alive=lambda: True, ready=lambda: self._ready
        )
        self.rpc = self._rpc_edge()
        self.ws: WebSocketEdge | None = None

    @property
    def serving(self) -> bool:
        """Started, and not stopped yet."""
        return self._ticker is not None

    async def start(self) -> None:
        """Open the trail, then the listeners; ready only when all of them serve."""
        try:
            self.audit.start()
            self._restore_contexts()
            await _listening("ops.listen", self._config.ops.listen, self.ops.start())
            self.ws = self._websocket_edge()
            await _listening("websocket.listen", self._config.websocket.listen, self.ws.start())
            await _listening("grpc.listen", self._config.grpc.listen, self.rpc.start())
            if self._development is not None:
                await self._development.start(self.ops, self.ws.port, self.rpc.target)
        except BaseException:
            await self.stop()
            raise
        self._ticker = asyncio.create_task(self._tick_every_second())
        self.audit.record(AuditEvent.SIDECAR_STARTED, version=__version__, development=self._development is not None)
        self._ready = True
        logger.info("serving", websocket=self.ws.port, grpc=self.rpc.target, ops=self.ops.port)

    def drain(self, window_s: float | None = None) -> int:
        """Begin to stop: not ready, health NOT_SERVING, no new contexts; clients are sent away over `window_s` seconds.

        Returns how many sockets there are. A second call changes nothing. None: the configured window. `drained` is set
        when the last was sent away, at the latest in time for the rest of the stop to keep within `drain.grace_s`.
        """
        ws = self.ws
        sockets = 0 if ws is None else ws.connections
        if self._draining is None:
            settings = self._config.drain
            window_s = settings.window_s if window_s is None else window_s
            self._ready = False
            self._grace_ends = self._clock.monotonic() + settings.grace_s
            self.factory.draining = True
            self.rpc.stop_serving()
            self.audit.record(AuditEvent.SIDECAR_DRAINING, connections=sockets, window_s=window_s)
            logger.info("draining", connections=sockets, window_s=window_s)
            self._draining = asyncio.create_task(self._send_clients_away(window_s))
        return sockets

    def grace_left_s(self) -> float:
        """How many seconds of the grace are left, once it drains."""
        return max(self._grace_ends - self._clock.monotonic(), 0.0)

    def hurry(self) -> None:
        """Whoever wants the stop wants it now: the sockets that are left close at once."""
        self._hurry.set()

    async def stop(self) -> None:
        """Drain → sockets closed → calls answered → contexts ended, unless their store outlives it → files closed.

        Agents are told of those ends before their calls are over.
        """
        was_ready = self._ready or self._draining is not None
        if was_ready:
            self.drain()
            await self.drained.wait()
        if self.ws is not None:
            await self.ws.close()
        if not self.factory.survives:
            await self._tell_agents()
        await self.rpc.close(grace_s=1.0)
        if not self.factory.survives:
            await self._end_contexts()
        if self._development is not None:
            await self._development.close()
        await self.ops.close()
        await self._end_tasks()
        await self._store.close()
        self._floods.tick()
        if was_ready:
            self.audit.record(AuditEvent.SIDECAR_STOPPED)
            logger.info("stopped")
        await self.audit.close()

    async def _send_clients_away(self, window_s: float) -> None:
        loop = asyncio.get_running_loop()
        timer = loop.call_later(max(self._config.drain.grace_s - CLOSING_S, 0.0), self._hurry.set)
        try:
            if self.ws is not None:
                await self.ws.drain(window_s, self._hurry)
        finally:
            timer.cancel()
            self.drained.set()

    def _restore_contexts(self) -> None:
        """What the store kept is there again before anybody can ask for it."""
        self._store.start()
        self._store.restore(self._adopt)
        if len(self.factory):
            self.audit.record(AuditEvent.CONTEXTS_RESTORED, contexts=len(self.factory))
            logger.info("contexts restored", contexts=len(self.factory))

    def _adopt(self, kept: RestoredContext) -> tuple[int, Callable[[], StoredState]] | None:
        """The context as it was, detached from now on; a raw one has ended with its socket."""
        context = self._contexts.restore_context(kept.context)
        if kept.context.ends_with_socket:
            context.audit_log_action(AuditEvent.CONTEXT_CLOSED, reason="socket_lost", messages=kept.state.head)
            return None
        manager = self.factory.restore_manager(context, JsonEncoder(), kept, self._clock.now())
        return manager.epoch, manager.stored_state

    def _rpc_edge(self) -> RpcEdge:
        grpc = self._config.grpc
        settings = RpcSettings(
            listen=grpc.listen,
            max_receive_bytes=grpc.max_request_bytes,
            max_concurrent_calls=grpc.max_concurrent_calls,
            reflection=grpc.reflection,
        )
        ports = RpcPorts(
            factory=self.factory,
            tokens=self._tokens,
            users=self._users,
            services=self._services,
            audit=self.audit,
            floods=self._floods,
            counters=self._counters,
            clock=self._clock,
            drain=self.drain,
        )
        return RpcEdge(settings, ports)

    def _websocket_edge(self) -> WebSocketEdge:
        return WebSocketEdge(
            building.websocket_settings(self._config, self._development, self.ops.port),
            users=self._users,
            contexts=self._contexts,
            factory=self.factory,
            tokens=self._tokens,
            audit=self.audit,
            refusals=self._floods,
            counters=self._counters,
            clock=self._clock,
            randomness=random_hexadecimal,
        )

    async def _tell_agents(self) -> None:
        """Agents hear of the end of every context while they are attached: it ends with this process."""
        at = self._clock.now()
        for place, manager in enumerate(tuple(self.factory)):
            manager.conversation.end(0, _STOPPED, at)
            if place % END_SLICE == END_SLICE - 1:
                await asyncio.sleep(0)

    async def _end_contexts(self) -> None:
        """End every context, no faster than their records can be written."""
        close = catalogued(CloseCode.RESTART)
        while self.factory.end_all(close, _STOPPED, self._clock.now(), most=END_SLICE):
            with suppress(Unavailable):
                await self.audit.grant()

    async def _end_tasks(self) -> None:
        ending = [task for task in (self._ticker, self._draining, *self._tasks) if task is not None]
        self._ticker = None
        for task in ending:
            task.cancel()
        await asyncio.gather(*ending, return_exceptions=True)

    async def _tick_every_second(self) -> None:
        ticks = 0
        while True:
            await asyncio.sleep(TICK_S)
            ticks += 1
            try:
                self._tick(ticks)
            except Exception as error:  # noqa: BLE001 - time goes on for every other context
                logger.error("tick failed", error=type(error).__name__)

    def _tick(self, ticks: int) -> None:
        at = self._clock.now()
        self.factory.tick(at)
        self.rpc.tick(at)
        self._floods.tick()
        self.audit.tick()
        if ticks % PRUNE_EVERY_TICKS == 0:
            self._tokens.prune()
        self._spawn(self._look_after_files())

    def _spawn(self, coroutine: Coroutine[None, None, None]) -> None:
        if self._tasks:  # the former look at the files is not done yet
            coroutine.close()
            return
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _look_after_files(self) -> None:
        """Follow the token file, rotate the signing key; a problem is told, and what was good stays good."""
        try:
            if await asyncio.to_thread(self._services.refresh):
                logger.info("service tokens read again")
            if self._keys.rotation_due(self._clock.time()):
                key_id = await asyncio.to_thread(self._keys.rotate, self._clock.time())
                self.audit.record(AuditEvent.KEYS_ROTATED, key_id=key_id)
        except SettingError as problem:
            logger.error("a file cannot be used", setting=problem.setting, rule=problem.rule)


def run(config: Config, *, development: bool = False, demo_agent: bool = True) -> int:
    """Serve until SIGTERM or SIGINT. Returns the exit code; raises SettingError or StartError when it cannot start."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # memory holds payloads and keys
    with ExitStack() as stack:
        made_up: Development | None = None
        if development:
            from sidecar.development import Development

            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sidecar-dev-")))
            made_up = Development(config, folder, demo_agent=demo_agent)
            config = made_up.config
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_serve(Sidecar(config, made_up), made_up))


async def _serve(sidecar: Sidecar, development: Development | None) -> int:
    loop = asyncio.get_running_loop()
    stop_asked = asyncio.Event()

    def on_signal() -> None:
        if stop_asked.is_set():
            sidecar.hurry()
        elif sidecar.serving:
            sidecar.drain()
        stop_asked.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    await sidecar.start()
    if gc.get_threshold() == PYTHONS_COLLECTOR:  # other versions count otherwise
        gc.set_threshold(*COLLECTOR)
    gc.freeze()  # what is there now stays: the collector need not walk through it for what comes and goes
    if development is not None:
        print(development.announcement(), flush=True)  # noqa: T201 - what a person at a terminal is to open
    if stop_asked.is_set():  # while it started
        sidecar.drain()
    await sidecar.drained.wait()
    # A disk that hangs must not keep the process beyond its grace: what is left then is left as a crash leaves it.
    last_resort = threading.Timer(sidecar.grace_left_s(), os._exit, (1,))
    last_resort.daemon = True
    last_resort.start()
    await sidecar.stop()
    last_resort.cancel()
    return 0


async def _listening(setting: str, address: str, starting: Awaitable[None]) -> None:
    """Start one listener. Raises StartError that names the setting and the address."""
    try:
        await starting
    except OSError as error:
        in_use = error.errno == errno.EADDRINUSE
        problem = "is in use" if in_use else f"cannot be listened on: {os.strerror(error.errno or errno.EIO)}"
        if isinstance(error, socket.gaierror):
            problem = "cannot be listened on: the name is unknown"
        raise StartError(f"{setting}: {address} {problem}") from None
