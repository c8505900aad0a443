"""A whole core on a fake clock, with doubles at every port, and short ways to use it."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import Any, TypeVar

from sidecar.cluster.local import LocalOwnerDirectory
from sidecar.core.context_factory import ConnectionContextFactoryManager, Handshake
from sidecar.core.errors import SidecarError
from sidecar.core.factory import WebSocketManagerFactory
from sidecar.core.identity import UserExecutionContext, VerifiedUser
from sidecar.core.limits import Limits
from sidecar.core.manager import IsolatedWebSocketManager
from sidecar.core.message import Message, PendingReceipt, Receipt
from sidecar.core.ports import Encoder, OutboxStore, OwnerDirectory
from sidecar.core.statistics import SecurityCounters
from sidecar.core.writes import WriteBatch
from sidecar.storage.memory import MemoryOutboxStore
from tests.support.doubles import (
    CountingRandomness,
    FakeClock,
    RecordingAudit,
    RecordingSocket,
    TextEncoder,
)

SECRET = b"an isolation secret of 32 bytes."
NO_HANDSHAKE = Handshake(None, {})
Outcome = TypeVar("Outcome")


def verified(user_id: str = "alice", tenant_id: str = "acme", **changes: Any) -> VerifiedUser:
    """What a good user token of that user says."""
    values: dict[str, Any] = {
        "tenant_id": tenant_id,
        "user_id": user_id,
        "session_id": "s-1",
        "issuer": "https://issuer",
        "token_id": "t-1",
        "permissions": ("chat",),
        "expires_at": 2_000_000_000,
    }
    return VerifiedUser(**(values | changes))


def attempt(call: Callable[[], Outcome]) -> Outcome | SidecarError:
    """What the call returns, or the refusal it raises: for tests that decide afterwards which it must be."""
    try:
        return call()
    except SidecarError as error:
        return error


class Core:
    """A factory with its ports: `clock`, `audit`, `store`, `counters`, `randomness`."""

    def __init__(
        self,
        limits: Limits | None = None,
        store: OutboxStore | None = None,
        owners: OwnerDirectory | None = None,
    ) -> None:
        self.clock = FakeClock()
        self.audit = RecordingAudit()
        self.counters = SecurityCounters()
        self.randomness = CountingRandomness()
        self.encoder = TextEncoder()
        self.contexts = ConnectionContextFactoryManager(SECRET, self.audit, self.randomness)
        self.factory = WebSocketManagerFactory(
            Limits() if limits is None else limits,
            store=MemoryOutboxStore() if store is None else store,
            owners=LocalOwnerDirectory() if owners is None else owners,
            clock=self.clock,
            counters=self.counters,
            randomness=self.randomness,
            writes=WriteBatch(),
        )
        self._attach_ids = count(1)

    def context(self, user_id: str = "alice", tenant_id: str = "acme", **changes: Any) -> UserExecutionContext:
        """The context of a new connection of that user."""
        return self.contexts.create_context(verified(user_id, tenant_id, **changes), NO_HANDSHAKE, self.clock.now())

    def create(
        self, user_id: str = "alice", tenant_id: str = "acme", *, encoder: Encoder | None = None, raw: bool = False
    ) -> IsolatedWebSocketManager:
        """A manager that nothing is attached to yet."""
        context = self.context(user_id, tenant_id)
        return self.factory.create_manager(context, encoder or self.encoder, self.clock.now(), ends_with_socket=raw)

    def socket(self, *, paused: bool = False) -> RecordingSocket:
        """A socket with an attach_id of its own."""
        return RecordingSocket(f"a-{next(self._attach_ids)}", paused=paused)

    def attach(
        self,
        manager: IsolatedWebSocketManager,
        *,
        mirror: bool = False,
        paused: bool = False,
        token_life_s: float = 100_000.0,
    ) -> RecordingSocket:
        """Attach a new socket, watch it, and write to it what waits, as an edge does."""
        socket, at = self.socket(paused=paused), self.clock.now()
        manager.add_connection(manager.context, socket, at, mirror=mirror)
        manager.lifecycle.register_connection(socket, int(at.unix + token_life_s), at)
        if paused:
            manager.lifecycle.writing_paused(socket.attach_id, at)
        if not mirror:
            manager.resume_writing(at)
        return socket

    def connect(
        self, user_id: str = "alice", tenant_id: str = "acme", **attach: Any
    ) -> tuple[IsolatedWebSocketManager, RecordingSocket]:
        """A manager and its primary socket."""
        manager = self.create(user_id, tenant_id)
        return manager, self.attach(manager, **attach)

    def pause(self, manager: IsolatedWebSocketManager, socket: RecordingSocket) -> None:
        """The socket's transport takes no more."""
        socket.paused = True
        manager.lifecycle.writing_paused(socket.attach_id, self.clock.now())

    def resume(self, manager: IsolatedWebSocketManager, socket: RecordingSocket) -> None:
        """The socket's transport takes more again."""
        socket.paused = False
        manager.lifecycle.writing_resumed(socket.attach_id)
        manager.resume_writing(self.clock.now())

    def lose(self, manager: IsolatedWebSocketManager, socket: RecordingSocket, code: int = 1006) -> bool:
        """The socket is gone, with that close code."""
        return manager.remove_connection(manager.context, socket.attach_id, code, self.clock.now())

    def offer(
        self, manager: IsolatedWebSocketManager, payload: bytes = b"{}", message_id: str = "", **members: Any
    ) -> Receipt | PendingReceipt:
        """Send one message; the receipt, or the pending one of a store that answers later."""
        message = Message(message_id, members.pop("event_type", ""), payload, **members)
        return manager.send_to_user(manager.context, message, self.clock.now())

    def send(
        self, manager: IsolatedWebSocketManager, payload: bytes = b"{}", message_id: str = "", **members: Any
    ) -> Receipt:
        """Send one message that the store confirms at once; the receipt."""
        receipt = self.offer(manager, payload, message_id, **members)
        assert isinstance(receipt, Receipt)
        return receipt

    def send_later(
        self, manager: IsolatedWebSocketManager, payload: bytes = b"{}", message_id: str = "", **members: Any
    ) -> PendingReceipt:
        """Send one message that the store will answer later; the pending receipt."""
        receipt = self.offer(manager, payload, message_id, **members)
        assert isinstance(receipt, PendingReceipt)
        return receipt

    def user_bytes(self, manager: IsolatedWebSocketManager) -> int:
        """What the manager's user is held to have queued over all contexts."""
        account = self.factory._resources.account_of(manager.context.identity)
        return 0 if account is None else account.queued_bytes

    def tick(self, seconds: float = 0.0) -> None:
        """Let time pass, then have the factory look once."""
        self.factory.tick(self.clock.advance(seconds))

    def run(self, seconds: float) -> None:
        """Let that many seconds pass with a tick each, as the sidecar does."""
        for _ in range(round(seconds)):
            self.tick(1.0)
