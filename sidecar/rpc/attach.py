"""AgentService.Attach: one stream a worker. Reads its acknowledgements and credits, writes what the registry gives it.

The token that an event carries is `sidecar.rpc.answerable`'s.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

import grpc
from google.protobuf.message import DecodeError

from sidecar.api.v1 import agent_service_pb2 as pb
from sidecar.core.deliveries import Cancelled, Delivery, EventKind
from sidecar.core.errors import BadRequest, ErrorReason, PermissionDenied, SidecarError, Unavailable
from sidecar.core.identity import IDENTIFIER
from sidecar.core.message import Instant
from sidecar.core.ports import AuditEvent
from sidecar.core.workers import AgentWorker, Subscription
from sidecar.rpc.acceptance import DRAINING_RETRY_S
from sidecar.rpc.answerable import AnswerableContexts, fields_of
from sidecar.rpc.boundary import SERVICE_TOKEN_KEY, Call, CallFacts
from sidecar.rpc.wire import events_frame
from sidecar.security.audit_record import AuditRecord
from sidecar.security.service_auth import Permission

if TYPE_CHECKING:
    from sidecar.core.agents import AgentRegistry
    from sidecar.core.identity import UserExecutionContext
    from sidecar.core.ports import AuditValue, Clock, Randomness
    from sidecar.rpc.callers import Callers
    from sidecar.security.audit import JsonLinesAuditTrail
    from sidecar.security.context_tokens import ContextTokenAuthority
    from sidecar.security.service_auth import ServiceIdentity

DEFAULT_ACK_TIMEOUT_S: Final = 60.0
MAX_ACK_TIMEOUT_S: Final = 3_600.0
MAX_SUBSCRIPTIONS: Final = 1_000
MAX_ACKNOWLEDGED: Final = 10_000
MAX_CREDITS: Final = 1_000_000
MAX_FRAME_EVENTS: Final = 100
MAX_FRAME_BYTES: Final = 256 * 1024
"""Of a frame of several events; one that is larger comes alone."""
MAX_MINTED_AT_ONCE: Final = 100
TELL_S: Final = 1.0
"""How long the end of the sidecar waits for workers to be told of it."""

_ANY: Final = ("", "*")
_Event: Final = pb.AttachResponse.Event  # a nested type is looked up by name each time
_ACTS: Final = {EventKind.OPENED: "opened", EventKind.AWAY: "away", EventKind.BACK: "back"}


@dataclass(frozen=True, slots=True)
class AttachPorts:
    """What every stream is handed; one that does not register within `register_timeout_s` ends."""

    callers: Callers
    agents: AgentRegistry
    tokens: ContextTokenAuthority
    audit: JsonLinesAuditTrail
    clock: Clock
    randomness: Randomness
    register_timeout_s: float


class AttachStreams:
    """The behaviour of Attach, and the workers attached now."""

    def __init__(self, ports: AttachPorts) -> None:
        self._ports = ports
        self._open: set[AttachStream] = set()

    async def attach(self, call: Call, facts: CallFacts) -> None:
        """One worker, from its `register` to its half-close."""
        stream = AttachStream(call, facts, self._ports)
        self._open.add(stream)
        try:
            await stream.run()
        finally:
            self._open.discard(stream)

    async def close(self) -> None:
        """The sidecar stops: end every stream, so that its worker attaches elsewhere or again.

        What a worker has yet to be told, and has credits for, it is told before, within TELL_S.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(TELL_S):
                for stream in tuple(self._open):
                    await stream.at_rest.wait()
        for stream in tuple(self._open):
            stream.end(Unavailable(ErrorReason.DRAINING, retry_after_s=DRAINING_RETRY_S))

    def tick(self, at: Instant) -> None:
        """Send again what is overdue; end the streams of services whose token is good no more. Once a second."""
        self._ports.agents.tick(at)
        for stream in tuple(self._open):
            stream.check_service()


class AttachStream:
    """One Attach call."""

    def __init__(self, call: Call, facts: CallFacts, ports: AttachPorts) -> None:
        self._call = call
        self._facts = facts
        self._callers = ports.callers
        self._service = ports.callers.service(facts, Permission.ATTACH)
        self._agents = ports.agents
        self._audit = ports.audit
        self._clock = ports.clock
        self._worker_id = ports.randomness(8)
        self._register_timeout_s = ports.register_timeout_s
        self._max_frame_events = 1
        self.at_rest = asyncio.Event()
        """The worker was told all that it has credits for, or is not there."""
        self.at_rest.set()
        self._woken = asyncio.Event()
        self._answerable = AnswerableContexts(ports.tokens, ports.audit, ports.clock, lambda: self._service)
        self._worker: AgentWorker | None = None
        self._ending: SidecarError | None = None
        self._tasks: tuple[asyncio.Task[Any], ...] = ()

    async def run(self) -> None:
        """Serve until the worker half-closes, breaks a rule, or is lost; what it held then goes to others."""
        register = await self._read_register()
        worker = self._make_worker(register)
        self._max_frame_events = min(max(register.max_frame_events, 1), MAX_FRAME_EVENTS)
        self._agents.register(worker)
        self._worker = worker
        try:
            await self._audit.grant(AuditRecord(AuditEvent.AGENT_ATTACHED, None, self._fields(worker)))
            try:
                registered = pb.AttachResponse(registered=pb.AttachResponse.Registered())
                await self._call.write(registered.SerializeToString())
                await self._serve(worker)
            finally:
                self._audit.record(AuditEvent.AGENT_DETACHED, **self._fields(worker))
        finally:
            self._agents.unregister(worker, self._clock.now())

    def check_service(self) -> None:
        """End the stream when its token proves less than it was attached with; its scopes are followed at once."""
        try:
            service = self._callers.authenticate(self._facts.token(SERVICE_TOKEN_KEY))
            service.require(Permission.ATTACH)
            if self._worker is not None and not _covers(service, self._worker):
                raise PermissionDenied(ErrorReason.SERVICE_DENIED)
            if service.scopes != self._service.scopes:
                self._answerable.clear()
            self._service = service
        except SidecarError as error:
            self.end(error)

    def end(self, error: SidecarError) -> None:
        """End the stream with that, at once where it has registered. Idempotent."""
        self._ending = self._ending or error
        for task in self._tasks:
            task.cancel()

    async def _serve(self, worker: AgentWorker) -> None:
        if self._ending is not None:  # while its record was written
            raise self._ending
        reading, writing = asyncio.create_task(self._read_frames(worker)), asyncio.create_task(self._write_on(worker))
        self._tasks = reading, writing
        try:
            await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self.at_rest.set()
            for task in self._tasks:
                task.cancel()
            outcomes = await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._ending is not None:
            raise self._ending
        for outcome in outcomes:
            if isinstance(outcome, Exception):
                raise outcome

    # register

    async def _read_register(self) -> pb.AttachRequest.Register:
        try:
            async with asyncio.timeout(self._register_timeout_s):
                data = await self._call.read()
        except TimeoutError:
            raise BadRequest("frame", "register comes first, and soon") from None
        request = _parsed(data) if data is not grpc.aio.EOF else pb.AttachRequest()
        if request.WhichOneof("frame") != "register":
            raise BadRequest("frame", "register comes first")
        return request.register

    def _make_worker(self, register: pb.AttachRequest.Register) -> AgentWorker:
        _check_identifier("register.service_name", register.service_name)
        if not 1 <= len(register.subscriptions) <= MAX_SUBSCRIPTIONS:
            raise BadRequest("register.subscriptions", f"1 to {MAX_SUBSCRIPTIONS:,}")
        if register.credits > MAX_CREDITS:
            raise BadRequest("register.credits", f"at most {MAX_CREDITS:,}")
        return AgentWorker(
            self._worker_id,
            register.service_name,
            [self._subscription(each) for each in register.subscriptions],
            tenants=self._service.tenants,
            credits_left=register.credits,
            ack_timeout_s=_ack_timeout_s(register),
            wake=self._wake,
        )

    def _subscription(self, each: pb.AttachRequest.Subscription) -> Subscription:
        if each.tenant_id:
            _check_identifier("register.subscriptions.tenant_id", each.tenant_id)
            if not self._service.allows_tenant(each.tenant_id):
                raise PermissionDenied(ErrorReason.SERVICE_DENIED)
        if each.event not in _ANY:
            _check_identifier("register.subscriptions.event", each.event)
        return Subscription(each.tenant_id or None, None if each.event in _ANY else each.event)

    # What the worker says

    async def _read_frames(self, worker: AgentWorker) -> None:
        while (data := await self._call.read()) is not grpc.aio.EOF:
            request = _parsed(data)
            match request.WhichOneof("frame"):
                case "acknowledge":
                    if len(request.acknowledge.delivery_ids) > MAX_ACKNOWLEDGED:
                        raise BadRequest("acknowledge.delivery_ids", f"at most {MAX_ACKNOWLEDGED:,}")
                    self._agents.acknowledge(worker, request.acknowledge.delivery_ids)
                case "credit":
                    if worker.credits + request.credit.credits > MAX_CREDITS:
                        raise BadRequest("credit.credits", f"at most {MAX_CREDITS:,} in all")
                    self._agents.credit(worker, request.credit.credits)
                case "register":
                    raise BadRequest("frame", "register comes once")
                case _:
                    raise BadRequest("frame", "acknowledge or credit")

    # What the worker is told

    def _wake(self) -> None:
        self._woken.set()
        self.at_rest.clear()

    async def _write_on(self, worker: AgentWorker) -> None:
        """Write what gathered while the frame before was written, as many events in a frame as the worker takes."""
        agents, now, most = self._agents, self._clock.now, self._max_frame_events
        ready: list[bytes] = []
        size = 0
        while True:
            told = None if len(ready) >= most else worker.next_cancelled() or agents.next(worker, now())
            event = None if told is None else self._known_event(told)
            if ready and (event is None or size + len(event) > MAX_FRAME_BYTES):
                await self._call.write(events_frame(ready))
                ready, size = [], 0
            elif told is None:
                await self._rest()
            if told is None:
                continue
            if event is None:  # a token has to be recorded first: what was ready did not wait for that
                event = _event_of(told, await self._mint(told.context, worker))
            if isinstance(told, Delivery):
                if told.delivery_id not in worker.sent:  # it went to another while it waited here
                    worker.credits += 1
                    continue
                told.sent = True
            ready.append(event)
            size += len(event)

    async def _rest(self) -> None:
        """There is nothing to tell until somebody says so."""
        self._woken.clear()
        self.at_rest.set()
        await self._woken.wait()

    def _known_event(self, told: Delivery | Cancelled) -> bytes | None:
        """The event; None where the context needs another token first."""
        context = told.context
        if isinstance(told, Delivery) and told.closing is not None:  # there is nobody to answer any more
            self._answerable.forget(context)
            return _event_of(told, fields_of(context))
        fields = self._answerable.fields(context)
        return None if fields is None else _event_of(told, fields)

    async def _mint(self, context: UserExecutionContext, worker: AgentWorker) -> bytes:
        """Have a token to answer that context with; cancels of those that have one do not wait for it."""
        coming = [queue.context for queue in islice(worker.ready, MAX_MINTED_AT_ONCE - 1) if not queue.ended]
        minting = asyncio.create_task(self._answerable.mint(context, coming))
        minting.add_done_callback(lambda _: self._woken.set())
        try:
            while not minting.done():
                self._woken.clear()
                while (cancelled := worker.next_cancelled(self._answerable.has)) is not None:
                    event = self._known_event(cancelled)
                    assert event is not None
                    await self._call.write(events_frame([event]))
                await self._woken.wait()
            return minting.result()
        finally:
            minting.cancel()
            await asyncio.gather(minting, return_exceptions=True)

    def _fields(self, worker: AgentWorker) -> dict[str, AuditValue]:
        return {
            "service": self._service.name,
            "service_name": worker.service_name,
            "worker_id": worker.worker_id,
            "address": self._facts.address,
        }


def _event_of(told: Delivery | Cancelled, fields: bytes) -> bytes:
    """The serialised event: `fields` are its context's, and may stand before what is its own."""
    event = _Event()
    if isinstance(told, Cancelled):
        event.cancelled.stream_id, event.cancelled.message_id = told.stream_id, told.message_id
        return fields + event.SerializeToString()
    event.delivery_id = told.delivery_id
    if told.redelivered:
        event.redelivered = True
    if told.message is not None:
        message = event.message
        message.message_id, message.event_type, message.payload, content_type = told.message
        message.content_type = content_type  # type: ignore[assignment]  # the number is the proto's
    elif told.closing is not None:
        event.closed.code, event.closed.reason = told.closing
    else:
        getattr(event, _ACTS[told.kind]).SetInParent()
    return fields + event.SerializeToString()


def _parsed(data: bytes) -> pb.AttachRequest:
    try:
        return pb.AttachRequest.FromString(data)
    except DecodeError:
        raise BadRequest("request", "not an AttachRequest") from None


def _covers(service: ServiceIdentity, worker: AgentWorker) -> bool:
    """Whether that service may still have every tenant that its worker has."""
    return service.tenants is None or (worker.reach is not None and worker.reach <= service.tenants)


def _check_identifier(field: str, value: str) -> None:
    if not IDENTIFIER.fullmatch(value):
        raise BadRequest(field, "1 to 128 of A-Z a-z 0-9 _ . : @ | -")


def _ack_timeout_s(register: pb.AttachRequest.Register) -> float:
    if not register.HasField("ack_timeout"):
        return DEFAULT_ACK_TIMEOUT_S
    timeout = register.ack_timeout
    timeout_s = float(timeout.seconds + timeout.nanos / 1e9)
    # google.protobuf.Duration: less than a second of nanoseconds, and both of one sign.
    if not (timeout.seconds >= 0 and 0 <= timeout.nanos <= 999_999_999 and 0 < timeout_s <= MAX_ACK_TIMEOUT_S):
        raise BadRequest("register.ack_timeout", "more than 0 and at most one hour")
    return timeout_s
