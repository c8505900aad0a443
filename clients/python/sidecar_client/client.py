"""The agent's side over grpc.aio: one channel, every unary method, and senders on it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import grpc

from sidecar_client import calls
from sidecar_client.back_off import BackOff
from sidecar_client.calls import Stubs, UnaryCall
from sidecar_client.channel import DEFAULT_TIMEOUT_S, channel_options, settings_from
from sidecar_client.errors import SidecarError, TransportError, error_from_call
from sidecar_client.health import THE_WHOLE, is_serving, watch_method
from sidecar_client.messages import BatchItem, MessageOptions
from sidecar_client.retries import BASE_S, CAP_S, Retries
from sidecar_client.sender import Sender
from sidecar_client.sender_core import SenderLimits, StreamCancellation
from sidecar_client.tracing import trace_context
from sidecar_client.values import (
    BroadcastResult,
    BroadcastScope,
    ContextFacts,
    ContextGrant,
    ContextToken,
    ManagerStats,
    Receipt,
)

T = TypeVar("T")


class AsyncSidecarClient:
    """Sends to users through a sidecar, with asyncio. One a process is enough; use it in one event loop.

    Every call has a deadline, in seconds: `timeout_s` of the call, else of the client. UNAVAILABLE is tried again
    within it where that is safe (see `Retries`). Errors are `SidecarError`s; a call that was cancelled may have been
    taken.
    """

    def __init__(
        self,
        *,
        endpoint: str | None = None,
        service_token: str | None = None,
        credentials: grpc.ChannelCredentials | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        max_attempts: int = 4,
        uniform: Callable[[], float] = random.random,
    ) -> None:
        """`endpoint`: host:port or unix:/path; default $SIDECAR_GRPC_ENDPOINT, else 127.0.0.1:50051.

        `service_token`: default $SIDECAR_SERVICE_TOKEN. `credentials`: None is plain TCP or a Unix socket.
        """
        self._settings = settings_from(endpoint, service_token, credentials, timeout_s, max_attempts)
        self._uniform = uniform
        self._channel: grpc.aio.Channel | None = None
        self._stubs: Stubs | None = None
        self._closed = asyncio.Event()
        self._senders: set[Sender] = set()

    def __repr__(self) -> str:
        state = "closed" if self._closed.is_set() else "open"
        return f"AsyncSidecarClient(endpoint={self._settings.endpoint!r}, {state})"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the senders side by side, within 5 s, then the channel; calls under way then end with TransportError.

        Idempotent.
        """
        self._closed.set()
        await asyncio.gather(*(sender.close() for sender in self._senders))
        channel, self._channel, self._stubs = self._channel, None, None
        if channel is not None:
            await channel.close()

    async def wait_until_ready(self, timeout_s: float | None = None) -> None:
        """Return when the sidecar serves; it need not have been started yet. Raises TransportError when time is up."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + (self._settings.timeout_s if timeout_s is None else timeout_s)
        back_off = BackOff(BASE_S, CAP_S, self._uniform)
        watch = watch_method(self._open())
        while True:
            error = TransportError(grpc.StatusCode.DEADLINE_EXCEEDED, "", "the sidecar is not ready")
            call = watch(THE_WHOLE, timeout=max(deadline - loop.time(), 0.001), wait_for_ready=True)
            try:
                async for response in call:
                    if is_serving(response):
                        return
            except grpc.aio.AioRpcError as failed:
                if failed.code() is not grpc.StatusCode.DEADLINE_EXCEEDED:
                    error = TransportError(failed.code(), "", "the sidecar is not ready")
            except asyncio.CancelledError:
                self._check_cancelled()
                raise
            finally:
                call.cancel()
            wait_s = back_off.next_s()
            if loop.time() + wait_s >= deadline or await self._closes_within(wait_s):
                raise error

    # DeliveryService

    async def send_to_user(
        self,
        isolation_key: str,
        context_token: str,
        payload: bytes | None = None,
        *,
        expected_user_id: str = "",
        wait_for_ack_s: float | None = None,
        timeout_s: float | None = None,
        **options: Unpack[MessageOptions],
    ) -> Receipt:
        """Send one message, given as `payload` bytes or as `json=`; see `MessageOptions` for the rest.

        `wait_for_ack_s`: hold the answer until the client has acknowledged it or that long, at most 60. The deadline is
        later by as much. Repeated by itself where that is safe: the message_id stays the same.
        """
        call = calls.send_to_user(
            isolation_key,
            context_token,
            payload,
            options,
            expected_user_id=expected_user_id,
            wait_for_ack_s=wait_for_ack_s,
        )
        return await self._run(call, timeout_s)

    async def emit_critical_event(
        self,
        isolation_key: str,
        context_token: str,
        event_type: str,
        data: Any,
        *,
        message_id: str | None = None,
        expected_user_id: str = "",
        wait_for_ack_s: float | None = None,
        timeout_s: float | None = None,
    ) -> Receipt:
        """Send one critical event: never dropped for another. `data`: JSON as bytes, or any value it can say."""
        call = calls.emit_critical_event(
            isolation_key,
            context_token,
            event_type,
            data,
            message_id=message_id,
            expected_user_id=expected_user_id,
            wait_for_ack_s=wait_for_ack_s,
        )
        return await self._run(call, timeout_s)

    async def send_batch(
        self, items: Sequence[BatchItem], *, timeout_s: float | None = None
    ) -> list[Receipt | SidecarError]:
        """Send at most 1,000 messages; each stands or falls alone. The outcomes in the items' order."""
        return await self._run(calls.send_batch(items), timeout_s)

    async def broadcast(
        self,
        context_token: str,
        scope: BroadcastScope,
        payload: bytes | None = None,
        *,
        timeout_s: float | None = None,
        **options: Unpack[MessageOptions],
    ) -> BroadcastResult:
        """Send one message to every context of the token's own user or tenant. Scope `broadcast:user`, `:tenant`."""
        return await self._run(calls.broadcast(context_token, scope, payload, options), timeout_s)

    async def close_manager(
        self,
        isolation_key: str,
        context_token: str,
        *,
        code: int = 4505,
        reason: str = "",
        timeout_s: float | None = None,
    ) -> int:
        """End the context; how many sockets it had. `code`: 4505, or 4900 to 4999 with a `reason` of your own."""
        return await self._run(calls.close_manager(isolation_key, context_token, code, reason), timeout_s)

    async def get_manager_stats(
        self, isolation_key: str, context_token: str, *, timeout_s: float | None = None
    ) -> ManagerStats:
        """Read the context's counters. Scope `stats`."""
        return await self._run(calls.get_manager_stats(isolation_key, context_token), timeout_s)

    # ContextService

    async def get_context(self, context_token: str, *, timeout_s: float | None = None) -> ContextFacts:
        """Say what the token opens."""
        return await self._run(calls.get_context(context_token), timeout_s)

    async def refresh_context_token(self, context_token: str, *, timeout_s: float | None = None) -> ContextToken:
        """Get another token with the same scopes, while the context lives; the old one lives on. Not repeated."""
        return await self._run(calls.refresh_context_token(context_token), timeout_s)

    async def revoke_context_token(self, context_token: str, *, timeout_s: float | None = None) -> None:
        """End the token and all that was refreshed from it. Not repeated."""
        await self._run(calls.revoke_context_token(context_token), timeout_s)

    async def exchange_context_token(
        self,
        user_token: str,
        connection_id: str,
        scopes: Sequence[str] = (),
        *,
        timeout_s: float | None = None,
    ) -> ContextGrant:
        """Get a context token for a user's own token and one of that user's contexts, by the service token."""
        call = calls.exchange_context_token(user_token, connection_id, scopes, self._settings.service_token)
        return await self._run(call, timeout_s)

    # The fast way

    def sender(
        self,
        *,
        limits: SenderLimits | None = None,
        report_acknowledged: bool = False,
        on_stream_cancelled: Callable[[StreamCancellation], None] | None = None,
    ) -> Sender:
        """A sender for many messages: one stream, many messages a frame. Closed with the client, or before.

        `on_stream_cancelled` is called when a client wants no more of a response stream in a context that this sender
        sends to; once for each token that it sends by.
        """
        stubs = self._open_stubs()
        sender = Sender(
            stubs,
            self._open().channel_ready,
            limits or SenderLimits(),
            timeout_s=self._settings.timeout_s,
            report_acknowledged=report_acknowledged,
            uniform=self._uniform,
            on_closed=self._senders.discard,
            on_stream_cancelled=on_stream_cancelled,
        )
        self._senders.add(sender)
        return sender

    def _attach(self) -> Any:
        """A call of AgentService.Attach, with the service token: an agent's."""
        method: Any = self._open_stubs().agent.Attach
        return method(metadata=calls.as_service(self._settings.service_token))

    # Calls

    def _open(self) -> grpc.aio.Channel:
        """The channel; made at the first use, so that it belongs to the loop that uses it."""
        if self._closed.is_set():
            raise RuntimeError("the client is closed")
        if self._channel is None:
            target, options, credentials = self._settings.endpoint, channel_options(), self._settings.credentials
            self._channel = (
                grpc.aio.insecure_channel(target, options)
                if credentials is None
                else grpc.aio.secure_channel(target, credentials, options)
            )
        return self._channel

    def _open_stubs(self) -> Stubs:
        channel = self._open()
        if self._stubs is None:
            self._stubs = Stubs(channel)
        return self._stubs

    async def _run(self, call: UnaryCall[T], timeout_s: float | None) -> T:
        """Make the call until it is answered, given up or out of time. Safe to cancel."""
        method = call.method(self._open_stubs())
        loop = asyncio.get_running_loop()
        deadline = loop.time() + (self._settings.timeout_s if timeout_s is None else timeout_s) + call.held_s
        retries = Retries(
            repeatable=call.repeatable,
            deadline=deadline,
            max_attempts=self._settings.max_attempts,
            uniform=self._uniform,
        )
        metadata = call.metadata + trace_context()
        while True:
            try:
                answer = await method(call.request, metadata=metadata, timeout=max(deadline - loop.time(), 0.001))
                return call.read(answer)
            except grpc.aio.AioRpcError as failed:
                error = error_from_call(failed)
            except asyncio.CancelledError:
                self._check_cancelled()
                raise
            wait_s = retries.wait_s(error, loop.time())
            if wait_s is None or await self._closes_within(wait_s):
                raise error

    def _check_cancelled(self) -> None:
        """grpc.aio ends the calls of a channel that is closed as if their tasks had been cancelled; they were not."""
        task = asyncio.current_task()
        if self._closed.is_set() and task is not None and not task.cancelling():
            raise TransportError(grpc.StatusCode.CANCELLED, "", "the client was closed") from None

    async def _closes_within(self, wait_s: float) -> bool:
        """Wait that long, or until the client is closed."""
        try:
            async with asyncio.timeout(wait_s):
                return await self._closed.wait()
        except TimeoutError:
            return self._closed.is_set()  # by whoever had the loop since
