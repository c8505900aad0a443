"""A gRPC edge in the test's own process: real sockets and managers, a clock that the test moves, a trail on disk."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import threading
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message as ProtoMessage
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status

from sidecar.api.v1 import (
    admin_service_pb2_grpc,
    agent_service_pb2_grpc,
    context_service_pb2_grpc,
    types_pb2,
)
from sidecar.api.v1 import delivery_service_pb2 as pb
from sidecar.api.v1 import delivery_service_pb2_grpc as stubs
from sidecar.cluster.local import LocalOwnerDirectory
from sidecar.core.context_factory import ConnectionContextFactoryManager, Handshake
from sidecar.core.factory import WebSocketManagerFactory
from sidecar.core.identity import Scope, VerifiedUser
from sidecar.core.limits import Limits
from sidecar.core.manager import IsolatedWebSocketManager
from sidecar.core.message import Instant
from sidecar.core.ports import AuditEvent, OutboxStore
from sidecar.core.statistics import SecurityCounters
from sidecar.core.writes import WriteBatch
from sidecar.rpc.server import RpcEdge, RpcPorts, RpcSettings
from sidecar.security.audit import JsonLinesAuditTrail
from sidecar.security.context_keys import ContextTokenKeys
from sidecar.security.context_tokens import ContextTokenAuthority
from sidecar.security.keys import hmac_key_set
from sidecar.security.refusals import Refusals
from sidecar.security.service_auth import UNRESTRICTED, ServiceAuthenticator, ServiceCredential, ServiceIdentity
from sidecar.security.user_tokens import IssuerSettings, UserTokenVerifier, mint_user_token
from sidecar.storage.memory import MemoryOutboxStore
from tests.support.doubles import FakeClock, RecordingSocket, TextEncoder

ISSUER = "https://id.test"
AUDIENCE = "chat"
USER_SECRET = b"the shared secret of this issuer and no other"
OPERATOR = "operator-token-of-the-tests"
TIMEOUT_S = 10.0
Metadata = tuple[tuple[str, str | bytes], ...]
Request = pb.DeliverRequest
MESSAGE = types_pb2.Message(payload=b"{}")


class AuditDisk:
    """write(2), until it is full; one that is slow for as long as it is held."""

    def __init__(self) -> None:
        self.full = False
        self._asked = threading.Event()
        self._going = threading.Event()
        self._going.set()

    def hold(self) -> None:
        self._asked.clear()
        self._going.clear()

    def release(self) -> None:
        self._going.set()

    async def asked(self) -> None:
        """Once something is to be written since it is held."""
        assert await asyncio.to_thread(self._asked.wait, TIMEOUT_S)

    def write(self, descriptor: int, data: memoryview) -> int:
        self._asked.set()
        self._going.wait(TIMEOUT_S)
        if self.full:
            raise OSError(28, "no room")
        return os.write(descriptor, data)


@dataclass
class Client:
    """One user's context, its recording socket, and a context token for it."""

    manager: IsolatedWebSocketManager
    socket: RecordingSocket
    token: str = field(repr=False)

    @property
    def key(self) -> str:
        return self.manager.isolation_key

    @property
    def metadata(self) -> Metadata:
        return (("x-context-token", self.token),)

    def state(self) -> tuple[Any, ...]:
        """What nobody else's doings may change."""
        manager = self.manager
        return manager.ended, manager.messages_failed, len(manager.end_watchers), manager.connections


@dataclass(frozen=True)
class Attempt:
    """One send, by whichever way."""

    key: str
    token: str = field(repr=False)
    message: types_pb2.Message
    expected_user_id: str = ""


class Rig:
    """The edge with everything it is handed.

    `alice` is who is sent to, `carol` who is sent to beside her, `bystander` who must notice nothing.
    """

    def __init__(
        self,
        folder: Path,
        *,
        limits: Limits | None = None,
        store: OutboxStore | None = None,
        services: Iterable[tuple[str, ServiceIdentity]] = (),
        authenticator: ServiceAuthenticator | None = None,
        **settings: Any,
    ) -> None:
        self.clock = FakeClock()
        self.store = store or MemoryOutboxStore()
        self.disk = AuditDisk()
        self.audit_path = folder / f"audit-{secrets.token_hex(4)}.jsonl"
        self.audit = JsonLinesAuditTrail(self.audit_path, self.clock, write=self.disk.write)
        self.counters = SecurityCounters()
        self.floods = Refusals(self.audit, self.clock)
        keys = ContextTokenKeys(None, now=self.clock.time())
        self.tokens = ContextTokenAuthority(keys, self.clock)
        self.contexts = ConnectionContextFactoryManager(keys.isolation_secret, self.audit, secrets.token_hex)
        self.factory = WebSocketManagerFactory(
            limits or Limits(),
            store=self.store,
            owners=LocalOwnerDirectory(),
            clock=self.clock,
            counters=self.counters,
            randomness=secrets.token_hex,
            writes=WriteBatch(),
        )
        key_set = hmac_key_set(USER_SECRET)
        self.users = UserTokenVerifier([IssuerSettings(ISSUER, AUDIENCE, ("HS256",), key_set)], self.clock)
        self.services = authenticator or ServiceAuthenticator(
            ServiceCredential.of(token, identity) for token, identity in [(OPERATOR, UNRESTRICTED), *services]
        )
        self.edge = RpcEdge(
            RpcSettings(settings.pop("listen", "127.0.0.1:0"), **settings),
            RpcPorts(
                self.factory,
                self.tokens,
                self.users,
                self.services,
                self.audit,
                self.floods,
                self.counters,
                self.clock,
                self._drain,
            ),
        )
        self._sockets = 0
        self.drains: list[float | None] = []

    def _drain(self, window_s: float | None) -> int:
        """What the composition does when an operator asks for it, here only noted."""
        self.drains.append(window_s)
        return self._sockets

    async def start(self) -> None:
        self.audit.start()
        try:
            await self.edge.start()
        except BaseException:
            await self.audit.close()
            raise
        self.channel = grpc.aio.insecure_channel(self.edge.target)
        self.delivery = stubs.DeliveryServiceStub(self.channel)
        self.context = context_service_pb2_grpc.ContextServiceStub(self.channel)
        self.admin = admin_service_pb2_grpc.AdminServiceStub(self.channel)
        self.agent = agent_service_pb2_grpc.AgentServiceStub(self.channel)
        self.health: Any = health_pb2_grpc.HealthStub(self.channel)
        self.alice = self.connect("alice")
        self.bystander = self.connect("bob")
        self.carol = self.connect("carol")

    async def close(self) -> None:
        await self.channel.close()
        await self.edge.close(0.0)
        await self.audit.close()

    def at(self) -> Instant:
        return self.clock.now()

    def tick(self, seconds: float = 0.0) -> None:
        """Let time pass, then have everything look once, as the composition does."""
        at = self.clock.advance(seconds)
        self.factory.tick(at)
        self.edge.tick(at)
        self.floods.tick()
        self.audit.tick()

    def connect(
        self, user_id: str, tenant_id: str = "default", *, attached: bool = True, issuer: str = ISSUER
    ) -> Client:
        """A new context with every scope, and its socket."""
        at = self.at()
        user = VerifiedUser(tenant_id, user_id, None, issuer, None, ("chat",), int(at.unix) + 3600)
        context = self.contexts.create_context(user, Handshake("request-1", {"agent": "test"}), at)
        manager = self.factory.create_manager(context, TextEncoder(), at)
        self._sockets += 1
        socket = RecordingSocket(f"a-{self._sockets}")
        if attached:
            manager.add_connection(context, socket, at)
        return Client(manager, socket, self.mint(manager))

    def mint(self, manager: IsolatedWebSocketManager, *scopes: Scope) -> str:
        """A context token; without scopes it has all of them."""
        return self.tokens.mint(manager.context, scopes or tuple(Scope)).text

    def user_token(self, user_id: str, tenant_id: str | None = None, *, ttl_s: int = 600) -> str:
        return mint_user_token(
            USER_SECRET,
            issuer=ISSUER,
            audience=AUDIENCE,
            subject=user_id,
            tenant_id=tenant_id,
            session_id=None,
            ttl_s=ttl_s,
            now=self.clock.time(),
        )

    # Sending

    def attempt(self, client: Client | None = None, payload: bytes = b"{}", **members: Any) -> Attempt:
        """A good send to that client (alice), but for the `members` of its message."""
        client = client or self.alice
        return Attempt(client.key, client.token, types_pb2.Message(payload=payload, **members))

    async def send(self, client: Client, payload: bytes = b"{}", **members: Any) -> types_pb2.Receipt:
        """A good SendToUser; its receipt."""
        answer: pb.SendToUserResponse = await self.unary(self.attempt(client, payload, **members))
        return answer.receipt

    def unary(self, attempt: Attempt, **members: Any) -> Any:
        """The call of SendToUser, to be awaited."""
        request = pb.SendToUserRequest(
            isolation_key=attempt.key, message=attempt.message, expected_user_id=attempt.expected_user_id, **members
        )
        metadata = (("x-context-token", attempt.token),) if attempt.token else ()
        return self.delivery.SendToUser(request, metadata=metadata, timeout=TIMEOUT_S)

    async def batch(self, *attempts: Attempt) -> list[pb.SendBatchResult]:
        """SendBatch; its results."""
        items = [
            pb.SendBatchItem(
                isolation_key=attempt.key,
                context_token=attempt.token,
                message=attempt.message,
                expected_user_id=attempt.expected_user_id,
            )
            for attempt in attempts
        ]
        return list((await self.delivery.SendBatch(pb.SendBatchRequest(items=items), timeout=TIMEOUT_S)).results)

    def deliver(self) -> DeliverCall:
        """A new Deliver stream."""
        return DeliverCall(self.delivery.Deliver(timeout=TIMEOUT_S))

    # What was seen of it

    async def calls_under_way(self, count: int) -> None:
        """Once there are so many; each look is a call of its own, so the server gets on meanwhile."""
        async with asyncio.timeout(TIMEOUT_S):
            while self.edge.active_calls != count:
                await self.health.Check(health_pb2.HealthCheckRequest())

    async def records(self, event: AuditEvent | None = None) -> list[dict[str, Any]]:
        """The trail's records so far."""
        await self.audit.grant()
        records = [json.loads(line) for line in self.audit_path.read_text().splitlines()]
        return [record for record in records if event is None or record["event"] == event]

    @asynccontextmanager
    async def seen(self, *events: AuditEvent, **counted: int) -> AsyncIterator[list[dict[str, Any]]]:
        """What is done inside leaves exactly these records and counts, and the bystander's traffic goes on.

        Yields the list that the records are in afterwards.
        """
        found: list[dict[str, Any]] = []
        bystander = self.bystander
        before, counters, state = len(await self.records()), asdict(self.counters), bystander.state()
        head = bystander.manager.outbox.head
        yield found
        assert bystander.state() == state
        assert bystander.manager.outbox.head == head
        await self._see_traffic(bystander, head + 1)
        found.extend((await self.records())[before:])
        assert [record["event"] for record in found] == [event.value for event in events]
        after = asdict(self.counters)
        assert {name: after[name] - counters[name] for name in after if after[name] != counters[name]} == counted

    async def _see_traffic(self, client: Client, sequence: int) -> None:
        """The client is sent to as ever, whatever else happens; unless the store keeps the test waiting."""
        if isinstance(self.store, MemoryOutboxStore):
            receipt = (await self.unary(Attempt(client.key, self.mint(client.manager), MESSAGE))).receipt
            assert (receipt.sequence, receipt.state) == (sequence, types_pb2.DELIVERY_STATE_WRITTEN)
            assert client.socket.take() == [b"message %d %s {}" % (sequence, receipt.message_id.encode())]
            client.manager.acknowledge(client.socket.attach_id, sequence, self.at())


class DeliverCall:
    """One Deliver stream, and short ways to use it."""

    def __init__(self, call: Any) -> None:
        self.call = call

    async def write(self, **frame: Any) -> None:
        await self.call.write(Request(**frame))

    async def open(self, lane: int, attempt: Attempt, *, report_acknowledged: bool = False) -> None:
        """Ask for a lane, without waiting for the answer."""
        await self.write(
            open_lane=Request.OpenLane(
                lane=lane,
                isolation_key=attempt.key,
                context_token=attempt.token,
                expected_user_id=attempt.expected_user_id,
                report_acknowledged=report_acknowledged,
            )
        )

    async def opened(self, lane: int, attempt: Attempt) -> None:
        """Open a lane and see it answered."""
        await self.open(lane, attempt)
        answer = await self.read()
        assert answer.lane_opened.lane == lane, answer

    async def send(self, *items: tuple[int, types_pb2.Message]) -> None:
        """One frame of messages."""
        await self.write(
            messages=Request.Messages(
                items=[Request.LaneMessage(lane=lane, message=message) for lane, message in items]
            )
        )

    async def close_lane(self, lane: int) -> None:
        await self.write(close_lane=Request.CloseLane(lane=lane))

    async def read(self) -> pb.DeliverResponse:
        """The next frame."""
        answer = await asyncio.wait_for(self.call.read(), TIMEOUT_S)
        assert isinstance(answer, pb.DeliverResponse), answer
        return answer

    async def receipts(self, count: int) -> list[Any]:
        """The next receipts, so many at least; nothing else may come between."""
        found: list[Any] = []
        while len(found) < count:
            answer = await self.read()
            assert answer.WhichOneof("frame") == "receipts", answer
            found.extend(answer.receipts.items)
        return found

    async def finish(self) -> list[pb.DeliverResponse]:
        """Half-close; every frame that still comes, up to an OK."""
        await self.call.done_writing()
        frames = []
        while (answer := await asyncio.wait_for(self.call.read(), TIMEOUT_S)) is not grpc.aio.EOF:
            frames.append(answer)
        assert await self.call.code() is grpc.StatusCode.OK
        return frames


@dataclass(frozen=True)
class Refused:
    """A google.rpc.Status, taken apart."""

    code: str
    reason: str
    retry_s: float | None = None
    field: str | None = None


def status_of(error: grpc.aio.AioRpcError) -> status_pb2.Status:
    """The rich status of a refused call; it must have one."""
    status = rpc_status.from_call(error)  # type: ignore[arg-type]
    assert isinstance(status, status_pb2.Status), error
    assert status.message == error.details()
    return status


async def refused(call: Any) -> status_pb2.Status:
    """The rich status that the call must end with."""
    try:
        answer = await call
    except grpc.aio.AioRpcError as error:
        return status_of(error)
    raise AssertionError(f"not refused: {answer!r}")


async def plain_refusal(call: Any) -> grpc.aio.AioRpcError:
    """The error of a call that gRPC itself refuses, without a rich status."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    assert rpc_status.from_call(caught.value) is None  # type: ignore[arg-type]
    return caught.value


async def ended_with(call: Any) -> status_pb2.Status:
    """The rich status that a stream must end with."""
    try:
        while True:
            answer = await asyncio.wait_for(call.read(), TIMEOUT_S)
            assert answer is not grpc.aio.EOF, await call.code()
    except grpc.aio.AioRpcError as error:
        return status_of(error)


def summary(status: status_pb2.Status) -> Refused:
    """Its code, reason, retry and field; a detail of any other kind, or twice, or of another domain is an error."""
    details = [unpacked(detail) for detail in status.details]
    info = details[0]
    assert isinstance(info, error_details_pb2.ErrorInfo)
    assert info.domain == "sidecar"
    retry_s = field = None
    for detail in details[1:]:
        if isinstance(detail, error_details_pb2.RetryInfo):
            assert retry_s is None
            retry_s = detail.retry_delay.seconds + detail.retry_delay.nanos / 1e9
        else:
            assert isinstance(detail, error_details_pb2.BadRequest)
            assert field is None
            (violation,) = detail.field_violations
            assert violation.description
            field = violation.field
    names = {code.value[0]: code.name for code in grpc.StatusCode}
    return Refused(names[status.code], info.reason, retry_s, field)


def incident_id(status: status_pb2.Status) -> str:
    """The incident id of an INTERNAL, which must say nothing else."""
    (detail,) = status.details
    info = unpacked(detail)
    assert isinstance(info, error_details_pb2.ErrorInfo)
    assert (status.code, status.message) == (grpc.StatusCode.INTERNAL.value[0], "internal error")
    assert (info.domain, info.reason, list(info.metadata)) == ("sidecar", "INTERNAL", ["incident_id"])
    return str(info.metadata["incident_id"])


def unpacked(detail: Any) -> ProtoMessage:
    kinds: tuple[Any, ...] = (error_details_pb2.ErrorInfo, error_details_pb2.RetryInfo, error_details_pb2.BadRequest)
    for kind in kinds:
        if detail.Is(kind.DESCRIPTOR):
            message = kind()
            detail.Unpack(message)
            assert isinstance(message, ProtoMessage)
            return message
    raise AssertionError(f"a detail of no known kind: {detail}")


def service_metadata(token: str = OPERATOR) -> Metadata:
    return (("x-service-token", token),)
