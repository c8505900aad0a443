"""The outermost code of every call: bytes in, bytes out, and nothing unforeseen reaches a caller.

Handlers are registered on raw bytes, because grpc.aio answers an undecodable request, and any exception, with the
exception's own text; an interceptor sees neither in time.
"""

from __future__ import annotations

import asyncio
import secrets
import traceback
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final, NoReturn, Protocol

import grpc
import structlog
from google.protobuf.message import DecodeError, Message

from sidecar.core.errors import BadRequest, ErrorReason, ResourceExhausted, SidecarError, Unsupported
from sidecar.rpc.refusals import RefusalRecorder
from sidecar.rpc.status import Incident, refuse, rich_status

logger = structlog.get_logger("sidecar.rpc")

if TYPE_CHECKING:
    from sidecar.security.context_tokens import ContextGrant

if TYPE_CHECKING:  # grpc's classes are generic to the type checker only
    Call = grpc.aio.ServicerContext[Any, Any]
    Handler = grpc.RpcMethodHandler[Any, Any]
else:
    Call = grpc.aio.ServicerContext
    Handler = grpc.RpcMethodHandler
UnaryBehaviour = Callable[[Any, "CallFacts"], Awaitable[Message]]
StreamBehaviour = Callable[[Call, "CallFacts"], Awaitable[None]]
ServerStreamBehaviour = Callable[[Any, Call, "CallFacts"], Awaitable[None]]

CONTEXT_TOKEN_KEY: Final = "x-context-token"
SERVICE_TOKEN_KEY: Final = "x-service-token"
UNREAD_BYTES: Final = 64 * 1024
"""A larger request is not parsed for a stranger: that would cost more than it costs to send."""


class Parses(Protocol):
    """A generated message class."""

    def FromString(self, data: bytes, /) -> Any:  # noqa: N802 - protobuf's name
        """Decode one message."""


class CallFacts:
    """What a handler may know of its call beside the request: the tokens in its metadata, and who is calling."""

    __slots__ = ("call", "grant", "leave", "method", "service")

    def __init__(self, call: Call, method: str) -> None:
        self.call = call
        self.method = method
        self.leave: Callable[[], None] | None = None
        """Gives the call's place back; None once that is done."""
        self.service: Any = None
        """The service that calls, once it has proved its name."""
        self.grant: Any = None
        """The verified context token, once there is one; for the record of a refusal."""

    def step_aside(self) -> None:
        """Give the call's place to others: it only waits from here on, and what it waits in has a bound of its own."""
        leave, self.leave = self.leave, None
        if leave is not None:
            leave()

    def token(self, key: str) -> str | None:
        """The value of that metadata key; None when absent. Sent twice it counts as not valid."""
        found: str | None = None
        for name, value in self.call.invocation_metadata() or ():
            if name == key:
                found = str(value) if found is None else "repeated"
        return found

    @property
    def address(self) -> str:
        """The caller's address without its port; "unix" for a Unix socket."""
        family, _, rest = (self.call.peer() or "unknown:").partition(":")
        return family if family == "unix" else rest.rpartition(":")[0].replace("%5B", "[").replace("%5D", "]")


class Boundary:
    """Wraps behaviours into raw handlers, counts the calls under way, and keeps them under a limit."""

    def __init__(self, recorder: RefusalRecorder, max_concurrent_calls: int) -> None:
        self._recorder = recorder
        self._max_concurrent_calls = max_concurrent_calls
        self.active_calls = 0
        self._active_streams = 0
        self.idle = asyncio.Event()
        """Set while no call is under way."""
        self.idle.set()

    def unary(
        self,
        method: str,
        request_type: Parses,
        behaviour: UnaryBehaviour,
        authenticate: Callable[[CallFacts], object] | None = None,
        *,
        always: bool = False,
    ) -> Handler:
        """A unary handler on bytes. `authenticate` comes before the behaviour, and before a large request is read.

        `always`: also when all places are taken; for what operators and orchestrators must be answered.
        """
        parse = request_type.FromString

        async def handle(data: bytes, call: Call) -> bytes:
            facts = CallFacts(call, method)
            try:
                self._enter(always=always)
                facts.leave = self._leave
                try:
                    if authenticate is not None and len(data) > UNREAD_BYTES:
                        authenticate(facts)
                    request = parse(data)
                    if authenticate is not None:
                        authenticate(facts)
                    response = await behaviour(request, facts)
                finally:
                    facts.step_aside()
                return response.SerializeToString()
            except Exception as error:  # noqa: BLE001 - nothing may pass: grpc would send its text
                return await self._refuse(facts, error)

        return grpc.unary_unary_rpc_method_handler(handle)

    def stream(self, method: str, behaviour: StreamBehaviour) -> Handler:
        """A handler of streams both ways, that reads and writes bytes on the call itself."""

        async def handle(_: object, call: Call) -> None:
            await self._run(CallFacts(call, method), lambda facts: behaviour(call, facts))

        return grpc.stream_stream_rpc_method_handler(handle)

    def server_stream(self, method: str, request_type: Parses, behaviour: ServerStreamBehaviour) -> Handler:
        """A handler of one request and a stream of answers, written as bytes on the call itself."""

        async def handle(data: bytes, call: Call) -> None:
            await self._run(
                CallFacts(call, method), lambda facts: behaviour(request_type.FromString(data), call, facts)
            )

        return grpc.unary_stream_rpc_method_handler(handle)

    async def _run(self, facts: CallFacts, behaviour: Callable[[CallFacts], Awaitable[None]]) -> None:
        try:
            # A stream may last: other calls keep places of their own.
            if self._active_streams >= self._max_concurrent_calls // 2:
                raise ResourceExhausted(ErrorReason.RATE_LIMITED, retry_after_s=1.0)
            self._enter()
            self._active_streams += 1
            try:
                await behaviour(facts)
            finally:
                self._active_streams -= 1
                self._leave()
        except Exception as error:  # noqa: BLE001 - nothing may pass: grpc would send its text
            await self._refuse(facts, error)

    def _enter(self, *, always: bool = False) -> None:
        if self.active_calls >= self._max_concurrent_calls and not always:
            raise ResourceExhausted(ErrorReason.RATE_LIMITED, retry_after_s=1.0)
        self.active_calls += 1
        self.idle.clear()

    def _leave(self) -> None:
        self.active_calls -= 1
        if not self.active_calls:
            self.idle.set()

    async def _refuse(self, facts: CallFacts, error: Exception) -> NoReturn:
        if isinstance(error, grpc.aio.AbortError):
            raise error
        await refuse(facts.call, rich_status(refusal_of(error, facts, self._recorder, facts.grant)))


async def unsupported(_: Message, facts: CallFacts) -> Message:
    """A unary method of the contract that this version does not serve; its caller was authenticated all the same."""
    raise Unsupported


def refusal_of(
    error: Exception, facts: CallFacts, recorder: RefusalRecorder, grant: ContextGrant | None
) -> SidecarError:
    """What the caller is told of this error, of a call or of one item in it; recorded or logged once, here."""
    if isinstance(error, DecodeError):
        error = BadRequest("request", "not a message of this method")
    if not isinstance(error, SidecarError):
        return report_incident(facts.method, error)
    recorder.note(error, facts.method, facts.address, grant)
    return error


def report_incident(method: str, error: Exception) -> Incident:
    """Log where an unforeseen error came from, never its text, which may hold a payload."""
    incident_id = secrets.token_hex(8)
    frames = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in traceback.extract_tb(error.__traceback__)]
    logger.error("incident", incident_id=incident_id, method=method, error=type(error).__name__, frames=frames[-12:])
    return Incident(incident_id)
