"""The composition root: builds everything from a `Config`, starts it in order, stops it in the opposite order."""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import resource
import secrets
import signal
import socket
import tempfile
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

import structlog
import uvloop

from sidecar import __version__
from sidecar.cluster.local import LocalOwnerDirectory
from sidecar.config import StartError
from sidecar.core.close_codes import CloseCode, catalogued
from sidecar.core.context_factory import ConnectionContextFactoryManager
from sidecar.core.errors import Unavailable
from sidecar.core.factory import WebSocketManagerFactory
from sidecar.core.identity import Scope
from sidecar.core.limits import Limits
from sidecar.core.message import Instant
from sidecar.core.outbox import OutboxLimits
from sidecar.core.ports import AuditEvent
from sidecar.core.statistics import SecurityCounters
from sidecar.ops.edge import OpsEdge, OpsSettings
from sidecar.rpc.server import RpcEdge, RpcPorts, RpcSettings
from sidecar.security.audit import JsonLinesAuditTrail
from sidecar.security.context_tokens import ContextTokenAuthority, ContextTokenKeys
from sidecar.security.files import SettingError
from sidecar.security.keys import KeySet, load_key_set
from sidecar.security.refusals import Refusals
from sidecar.security.revocations import RevocationList
from sidecar.security.service_auth import ServiceAuthenticator
from sidecar.security.user_tokens import IssuerSettings, UserTokenVerifier
from sidecar.storage.memory import MemoryOutboxStore
from sidecar.ws.edge import WebSocketEdge
from sidecar.ws.settings import WebSocketSettings

if TYPE_CHECKING:
    from collections.abc import Awaitable, Coroutine

    from sidecar.config import Config, UserTokenSettings
    from sidecar.development import Development

logger = structlog.get_logger("sidecar")

TICK_S: Final = 1.0
PRUNE_EVERY_TICKS: Final = 60
END_SLICE: Final = 1_000


class SystemClock:
    """The clocks of this machine."""

    monotonic = staticmethod(time.monotonic)
    time = staticmethod(time.time)


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
        clock = self._clock = SystemClock()
        self._counters = SecurityCounters()
        self._services = _services(config, development, clock)
        self._users = UserTokenVerifier(_issuers(config), clock)
        # Made where there is none: only once all that is merely read was good.
        self._keys = ContextTokenKeys(
            config.context_tokens.key_file, now=clock.time(), rotate_after_s=config.context_tokens.rotation_s
        )
        self._tokens = ContextTokenAuthority(
            self._keys,
            clock,
            issuer=config.context_tokens.issuer,
            ttl_s=config.context_tokens.ttl_s,
            revocations=_revocations(config, clock),
        )
        self.audit = JsonLinesAuditTrail(config.audit.path, clock)
        self._floods = Refusals(self.audit, clock)
        self.factory = WebSocketManagerFactory(
            _limits(config),
            store=MemoryOutboxStore(),
            owners=LocalOwnerDirectory(),
            clock=clock,
            counters=self._counters,
            randomness=random_hexadecimal,
        )
        self.ops = OpsEdge(
            OpsSettings(config.ops.address.host, config.ops.address.port), alive=lambda: True, ready=lambda: self._ready
        )
        self.rpc = self._rpc_edge()
        self.ws: WebSocketEdge | None = None

    async def start(self) -> None:
        """Open the trail, then the listeners; ready only when all of them serve."""
        try:
            self.audit.start()
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

    async def stop(self) -> None:
        """Not ready → health NOT_SERVING → sockets told and closed → calls finished → contexts ended → trail closed."""
        was_ready, self._ready = self._ready, False
        self.factory.draining = True
        await self.rpc.stop_serving()
        if self.ws is not None:
            await self.ws.close()
        await self.rpc.close(grace_s=1.0)
        await self._end_contexts()
        if self._development is not None:
            await self._development.close()
        await self.ops.close()
        await self._end_tasks()
        self._floods.tick()
        if was_ready:
            self.audit.record(AuditEvent.SIDECAR_STOPPED)
            logger.info("stopped")
        await self.audit.close()

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
        )
        return RpcEdge(settings, ports)

    def _websocket_edge(self) -> WebSocketEdge:
        return WebSocketEdge(
            _websocket_settings(self._config, self._development, self.ops.port),
            users=self._users,
            contexts=ConnectionContextFactoryManager(self._keys.isolation_secret, self.audit, random_hexadecimal),
            factory=self.factory,
            tokens=self._tokens,
            audit=self.audit,
            refusals=self._floods,
            counters=self._counters,
            clock=self._clock,
            randomness=random_hexadecimal,
        )

    async def _end_contexts(self) -> None:
        """End every context, no faster than their records can be written."""
        close = catalogued(CloseCode.RESTART)
        while self.factory.end_all(close, "sidecar_stopped", self._now(), most=END_SLICE):
            with suppress(Unavailable):
                await self.audit.grant()

    async def _end_tasks(self) -> None:
        ending = [task for task in (self._ticker, *self._tasks) if task is not None]
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
        at = self._now()
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

    def _now(self) -> Instant:
        return Instant(self._clock.monotonic(), self._clock.time())


def run(config: Config, development: bool = False) -> int:
    """Serve until SIGTERM or SIGINT. Returns the exit code; raises SettingError or StartError when it cannot start."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # memory holds payloads and keys
    with ExitStack() as stack:
        made_up: Development | None = None
        if development:
            from sidecar.development import Development

            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sidecar-dev-")))
            made_up = Development(config, folder)
            config = made_up.config
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_serve(Sidecar(config, made_up), made_up))


async def _serve(sidecar: Sidecar, development: Development | None) -> int:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    await sidecar.start()
    gc.freeze()  # what is there now stays: the collector need not walk through it for what comes and goes
    if development is not None:
        print(development.announcement(), flush=True)  # noqa: T201 - what a person at a terminal is to open
    await stopping.wait()
    await sidecar.stop()
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


def _limits(config: Config) -> Limits:
    limits, outbox = config.limits, config.outbox
    return Limits(
        managers_per_user=limits.managers_per_user,
        connections_per_manager=limits.connections_per_manager,
        max_managers=limits.max_managers,
        idle_timeout_s=limits.idle_timeout_s,
        health_check_interval_s=limits.health_check_interval_s,
        pong_timeout_s=limits.pong_timeout_s,
        slow_consumer_timeout_s=limits.slow_consumer_timeout_s,
        max_message_bytes=limits.max_message_bytes,
        queued_bytes_per_user=limits.queued_bytes_per_user,
        messages_per_second_per_user=limits.messages_per_second_per_user,
        outbox=OutboxLimits(
            max_messages=outbox.max_messages,
            max_bytes=outbox.max_bytes,
            ttl_s=outbox.ttl_s,
            critical_reserve=outbox.critical_reserve,
            critical_reserve_bytes=outbox.critical_reserve_bytes,
            resume_window_s=outbox.resume_window_s,
        ),
    )


def _websocket_settings(config: Config, development: Development | None, ops_port: int) -> WebSocketSettings:
    websocket, limits = config.websocket, config.limits
    own_pages = () if development is None else development.origins(ops_port)
    return WebSocketSettings(
        host=websocket.address.host,
        port=websocket.address.port,
        allowed_origins=(*websocket.allowed_origins, *own_pages),
        trusted_proxies=websocket.trusted_proxies,
        frames_per_second=websocket.frames_per_second,
        bytes_per_second=websocket.bytes_per_second,
        max_connections=websocket.max_connections,
        max_half_open=websocket.max_handshakes,
        handshake_timeout_s=websocket.handshake_timeout_s,
        connects_per_second_per_address=websocket.connects_per_second_per_address,
        failures_per_second_per_address=websocket.failures_per_second_per_address,
        hello_timeout_s=limits.hello_timeout_s,
        max_inbound_bytes=limits.max_inbound_bytes,
        max_message_bytes=limits.max_message_bytes,
        idle_timeout_s=limits.idle_timeout_s,
        resume_window_s=config.outbox.resume_window_s,
        client_scopes=tuple(Scope(name) for name in config.context_tokens.client_scopes),
    )


def _issuers(config: Config) -> list[IssuerSettings]:
    return [
        IssuerSettings(
            issuer=issuer.issuer,
            audience=issuer.audience,
            algorithms=issuer.algorithms,
            keys=_user_keys(issuer),
            tenants=issuer.tenants,
        )
        for issuer in config.user_tokens
    ]


def _user_keys(issuer: UserTokenSettings) -> KeySet:
    if issuer.key_file is None:
        raise SettingError("user_tokens.key_file", "is required")
    return load_key_set(issuer.key_file, issuer.algorithms, key_id=issuer.key_id)


def _services(config: Config, development: Development | None, clock: SystemClock) -> ServiceAuthenticator:
    if config.service_auth.token_file is not None:
        return ServiceAuthenticator.from_file(config.service_auth.token_file, clock)
    if development is not None:
        return ServiceAuthenticator.with_token(development.service_token)
    return ServiceAuthenticator()


def _revocations(config: Config, clock: SystemClock) -> RevocationList:
    """Beside the key file: tokens that outlive the process are revoked beyond it too."""
    key_file = config.context_tokens.key_file
    path = None if key_file is None else key_file.with_name(f"{key_file.name}.revoked")
    return RevocationList(path, now=clock.time())
