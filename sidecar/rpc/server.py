"""The gRPC server: its limits, its listeners, its services, its start and its stop."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import random
import secrets
import socket
import stat
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import grpc
from google.protobuf.message import Message

from sidecar.api.v1 import (
    admin_service_pb2,
    context_service_pb2,
    delivery_service_pb2,
)
from sidecar.core.errors import Unsupported
from sidecar.rpc import health as health_service
from sidecar.rpc.acceptance import Acceptance
from sidecar.rpc.admin import AdminMethods
from sidecar.rpc.attach import AttachPorts, AttachStreams
from sidecar.rpc.boundary import Boundary, Call, CallFacts, Handler, Parses, UnaryBehaviour, unsupported
from sidecar.rpc.callers import Callers
from sidecar.rpc.context import ContextMethods
from sidecar.rpc.deliver import DeliverPorts, DeliverStreams
from sidecar.rpc.delivery import DeliveryMethods
from sidecar.rpc.health import Health
from sidecar.rpc.refusals import RefusalRecorder
from sidecar.security.files import SettingError
from sidecar.security.service_auth import Permission

if TYPE_CHECKING:
    from sidecar.core.factory import WebSocketManagerFactory
    from sidecar.core.message import Instant
    from sidecar.core.ports import Clock
    from sidecar.core.statistics import SecurityCounters
    from sidecar.security.audit import JsonLinesAuditTrail
    from sidecar.security.context_tokens import ContextTokenAuthority
    from sidecar.security.refusals import Refusals
    from sidecar.security.service_auth import ServiceAuthenticator
    from sidecar.security.user_tokens import UserTokenVerifier

PACKAGE: Final = "sidecar.api.v1"
SERVICES: Final = tuple(
    f"{PACKAGE}.{name}" for name in ("DeliveryService", "ContextService", "AgentService", "AdminService")
)
HANDLERS_END_S: Final = 1.0
MAX_METADATA_BYTES: Final = 8 * 1024
SETTINGS_TIMEOUT_MS: Final = 5_000
UNREAD_WINDOW_BYTES: Final = 256 * 1024
"""How much of one stream gRPC holds that nobody has read yet (RFC 9113 §5.2)."""
MAX_UNIX_PATH_BYTES: Final = 107
"""Linux's `sun_path` less its NUL (unix(7)); gRPC's own error does not say so."""


class _StrangersDoings(logging.Filter):
    """Keeps out of the log what gRPC would tell there, with a traceback, of what any stranger can cause.

    That a header value is not UTF-8, in full though it may hold a token; and that an answer found its call gone.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        return not str(record.msg).startswith(("Invalid encoding", "ExecuteBatchError raised in core"))


_STRANGERS_DOINGS: Final = _StrangersDoings()


@dataclass(frozen=True, slots=True)
class RpcSettings:
    """`listen` is host:port (port 0 for any) or unix:/path. Sizes in bytes, times in seconds."""

    listen: str
    max_receive_bytes: int = 4 * 1024 * 1024
    max_concurrent_calls: int = 1_000
    max_concurrent_streams: int = 1_000
    connection_age_s: float = 3600.0
    first_lane_timeout_s: float = 10.0
    """How long a stream may take to prove itself: by its first lane, or by its `register`."""
    reflection: bool = False


@dataclass(frozen=True, slots=True)
class RpcPorts:
    """What the edge is handed."""

    factory: WebSocketManagerFactory
    tokens: ContextTokenAuthority
    users: UserTokenVerifier
    services: ServiceAuthenticator
    audit: JsonLinesAuditTrail
    floods: Refusals
    counters: SecurityCounters
    clock: Clock
    drain: Callable[[float | None], int]
    """Begins to drain over so many seconds (None: the sidecar's own window); how many sockets will be closed."""


class RpcEdge:
    """The gRPC edge. `start` binds and serves; `close` is idempotent and bounded by its grace."""

    def __init__(self, settings: RpcSettings, ports: RpcPorts) -> None:
        self._settings = settings
        self._recorder = RefusalRecorder(ports.audit, ports.floods, ports.counters)
        self._boundary = Boundary(self._recorder, settings.max_concurrent_calls)
        self._callers = Callers(ports.tokens, ports.services, ports.factory)
        acceptance = Acceptance(ports.factory)
        self._delivery = DeliveryMethods(self._callers, acceptance, ports.factory, ports.clock, self._recorder)
        self._streams = DeliverStreams(
            DeliverPorts(
                self._callers,
                acceptance,
                ports.clock,
                self._recorder,
                ports.factory.writes,
                settings.first_lane_timeout_s,
            )
        )
        self._context = ContextMethods(self._callers, ports.factory, ports.tokens, ports.users, ports.audit)
        self._admin = AdminMethods(self._callers, ports.factory, ports.counters, ports.audit, ports.clock, ports.drain)
        self._attach = AttachStreams(
            AttachPorts(
                self._callers,
                ports.factory.agents,
                ports.tokens,
                ports.audit,
                ports.clock,
                secrets.token_hex,
                settings.first_lane_timeout_s,
            )
        )
        self._health = Health(SERVICES)
        self._server: grpc.aio.Server | None = None
        self.port = 0

    @property
    def target(self) -> str:
        """Where a client on this machine connects."""
        listen = self._settings.listen
        return listen if listen.startswith("unix:") else f"{listen.rpartition(':')[0]}:{self.port}"

    @property
    def active_calls(self) -> int:
        """How many calls are under way."""
        return self._boundary.active_calls

    async def start(self) -> None:
        """Bind and serve. Raises OSError (EADDRINUSE), or SettingError for a place unfit for a Unix socket."""
        logging.getLogger("grpc._cython.cygrpc").addFilter(_STRANGERS_DOINGS)
        server = grpc.aio.server(options=server_options(self._settings), compression=None)
        for service, handlers in self._handlers().items():
            server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
        if self._settings.reflection:
            from grpc_reflection.v1alpha import reflection

            reflection.enable_server_reflection((*SERVICES, health_service.SERVICE, reflection.SERVICE_NAME), server)
        self._bind(server)
        await server.start()
        self._server = server
        self._health.set_serving(True)

    def stop_serving(self) -> None:
        """Health says NOT_SERVING of the whole from now on; the services say so at `close`, as long they answer."""
        self._health.set_serving(False, "")

    async def close(self, grace_s: float) -> None:
        """Take no new call, answer those that wait for an acknowledgement, tell workers what is to be told, let the
        other calls finish for `grace_s` seconds, cancel the rest.
        """
        self._health.set_serving(False)
        self._delivery.release_waits()
        server, self._server = self._server, None
        if server is None:
            return
        await self._attach.close()
        await server.stop(grace_s)
        # gRPC tells its handlers to end and goes; what they held is let go of when they have.
        with suppress(TimeoutError):
            async with asyncio.timeout(HANDLERS_END_S):
                await self._boundary.idle.wait()

    def tick(self, at: Instant) -> None:
        """Once a second: lanes whose token has ended."""
        self._streams.tick(at)
        self._attach.tick(at)

    def _bind(self, server: grpc.aio.Server) -> None:
        listen = self._settings.listen
        if listen.startswith("unix:"):
            prepare_unix_socket(Path(listen.removeprefix("unix:")))
        else:
            check_free(listen)
        try:
            self.port = server.add_insecure_port(listen)
        except RuntimeError:
            raise OSError(errno.EADDRINUSE, "address already in use") from None

    def _handlers(self) -> dict[str, dict[str, Handler]]:
        return {
            f"{PACKAGE}.DeliveryService": self._delivery_handlers(),
            f"{PACKAGE}.ContextService": self._context_handlers(),
            f"{PACKAGE}.AgentService": {"Attach": self._boundary.stream("Attach", self._attach.attach)},
            f"{PACKAGE}.AdminService": self._admin_handlers(),
            health_service.SERVICE: self._health.handlers(self._boundary),
        }

    def _delivery_handlers(self) -> dict[str, Handler]:
        unary, pb, methods = self._boundary.unary, delivery_service_pb2, self._delivery
        handlers: dict[str, tuple[Parses, UnaryBehaviour]] = {
            "SendToUser": (pb.SendToUserRequest, methods.send_to_user),
            "EmitCriticalEvent": (pb.EmitCriticalEventRequest, methods.emit_critical_event),
            "Broadcast": (pb.BroadcastRequest, methods.broadcast),
            "CloseManager": (pb.CloseManagerRequest, methods.close_manager),
            "GetManagerStats": (pb.GetManagerStatsRequest, methods.get_manager_stats),
        }
        return {
            # Their tokens are within.
            "SendBatch": unary("SendBatch", pb.SendBatchRequest, methods.send_batch),
            "Deliver": self._boundary.stream("Deliver", self._streams.deliver),
        } | {name: unary(name, *handler, self._callers.grant) for name, handler in handlers.items()}

    def _context_handlers(self) -> dict[str, Handler]:
        unary, pb, methods = self._boundary.unary, context_service_pb2, self._context
        handlers: dict[str, tuple[Parses, UnaryBehaviour]] = {
            "GetContext": (pb.GetContextRequest, methods.get_context),
            "RefreshContextToken": (pb.RefreshContextTokenRequest, methods.refresh_context_token),
            "RevokeContextToken": (pb.RevokeContextTokenRequest, methods.revoke_context_token),
        }
        exchange = unary(
            "ExchangeContextToken",
            pb.ExchangeContextTokenRequest,
            methods.exchange_context_token,
            lambda facts: self._callers.service(facts, Permission.EXCHANGE),
        )
        return {"ExchangeContextToken": exchange} | {
            name: unary(name, *handler, self._callers.grant) for name, handler in handlers.items()
        }

    def _admin_handlers(self) -> dict[str, Handler]:
        unary, pb, methods = self._boundary.unary, admin_service_pb2, self._admin
        handlers: dict[str, tuple[Parses, UnaryBehaviour]] = {
            "GetFactoryStats": (pb.GetFactoryStatsRequest, methods.get_factory_stats),
            "GetSecurityStats": (pb.GetSecurityStatsRequest, methods.get_security_stats),
            "ListManagers": (pb.ListManagersRequest, methods.list_managers),
            "CleanupManager": (pb.CleanupManagerRequest, methods.cleanup_manager),
            "EnforceResourceLimits": (pb.EnforceResourceLimitsRequest, methods.enforce_resource_limits),
            "DisconnectUser": (pb.DisconnectUserRequest, methods.disconnect_user),
            "RevokeUser": (pb.RevokeUserRequest, unsupported),
            "Drain": (pb.DrainRequest, methods.drain),
        }
        tail = self._boundary.server_stream("TailAuditLog", pb.TailAuditLogRequest, self._tail)
        return {"TailAuditLog": tail} | {
            name: unary(name, *handler, methods.authorize, always=True) for name, handler in handlers.items()
        }

    async def _tail(self, _request: Message, _call: Call, facts: CallFacts) -> None:
        self._callers.service(facts, Permission.ADMIN)
        raise Unsupported


def server_options(settings: RpcSettings) -> list[tuple[str, Any]]:
    """What gRPC is told (grpc_types.h); the age differs from server to server."""
    age_s = settings.connection_age_s * random.uniform(0.9, 1.1)  # noqa: S311 - spreads reconnects, no secret
    return [
        # Two servers would silently share the port otherwise.
        ("grpc.so_reuseport", 0),
        ("grpc.max_receive_message_length", settings.max_receive_bytes),
        ("grpc.max_metadata_size", MAX_METADATA_BYTES),
        ("grpc.absolute_max_metadata_size", MAX_METADATA_BYTES),
        # A client is held to these limits once it has acknowledged them (RFC 9113 §6.5.3); one that does not is cut.
        ("grpc.http2.settings_timeout", SETTINGS_TIMEOUT_MS),
        ("grpc.max_concurrent_streams", settings.max_concurrent_streams),
        # Clients may ping every 10 s, with or without calls; 5 s leaves room for their clocks.
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
        # The window would grow to 16 MiB a stream, unread, with the bandwidth that a client can show.
        ("grpc.http2.bdp_probe", 0),
        ("grpc.http2.lookahead_bytes", UNREAD_WINDOW_BYTES),
        # No grace period: a connection of age takes no new call, its streams live on.
        ("grpc.max_connection_age_ms", int(age_s * 1000)),
    ]


def check_free(listen: str) -> None:
    """Raise OSError (EADDRINUSE) when somebody listens there: gRPC's own error does not say so."""
    host, _, port = listen.rpartition(":")
    if port == "0":
        return
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((host.strip("[]"), int(port)))


def prepare_unix_socket(path: Path) -> None:
    """The folder belongs to this user and lets no stranger in; a socket left over by a dead process goes away."""
    if len(os.fsencode(path)) > MAX_UNIX_PATH_BYTES:
        raise SettingError("grpc.listen", f"the path of a Unix socket is at most {MAX_UNIX_PATH_BYTES} bytes")
    folder = path.parent
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    facts = folder.stat()
    if facts.st_uid != os.getuid() or facts.st_mode & 0o027:
        raise SettingError("grpc.listen", "the folder of a Unix socket must be this user's own, mode 0700 or 0750")
    if not path.exists():
        return
    if not stat.S_ISSOCK(path.stat().st_mode):
        raise SettingError("grpc.listen", "the path of a Unix socket is taken by something else")
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
    raise OSError(errno.EADDRINUSE, "address already in use")
