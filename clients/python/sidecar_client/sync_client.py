"""The agent's side over grpc, for threads: the same methods as `AsyncSidecarClient`."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
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
from sidecar_client.sender import CLOSE_TIMEOUT_S
from sidecar_client.sender_core import SenderLimits, StreamCancellation
from sidecar_client.sync_sender import SyncSender
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


class SidecarClient:
    """Sends to users through a sidecar, from any thread. One a process is enough; make it after a fork, not before.

    Deadlines, retries and errors are those of `AsyncSidecarClient`.
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
        target, options = self._settings.endpoint, channel_options()
        self._channel = (
            grpc.insecure_channel(target, options)
            if credentials is None
            else grpc.secure_channel(target, credentials, options)
        )
        self._stubs = Stubs(self._channel)
        self._closed = threading.Event()
        self._senders: set[SyncSender] = set()

    def __repr__(self) -> str:
        state = "closed" if self._closed.is_set() else "open"
        return f"SidecarClient(endpoint={self._settings.endpoint!r}, {state})"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the senders side by side, within 5 s, then the channel; calls under way then end with TransportError.

        Idempotent.
        """
        self._closed.set()
        senders = tuple(self._senders)
        deadline = time.monotonic() + CLOSE_TIMEOUT_S
        for sender in senders:
            sender.begin_to_close()
        for sender in senders:
            sender.close(max(deadline - time.monotonic(), 0.0))
        self._channel.close()

    def wait_until_ready(self, timeout_s: float | None = None) -> None:
        """Return when the sidecar serves; it need not have been started yet. Raises TransportError when time is up."""
        self._check_open()
        deadline = time.monotonic() + (self._settings.timeout_s if timeout_s is None else timeout_s)
        back_off = BackOff(BASE_S, CAP_S, self._uniform)
        watch = watch_method(self._channel)
        while True:
            error = TransportError(grpc.StatusCode.DEADLINE_EXCEEDED, "", "the sidecar is not ready")
            with self._may_be_closed():
                call = watch(THE_WHOLE, timeout=max(deadline - time.monotonic(), 0.001), wait_for_ready=True)
            try:
                if any(is_serving(response) for response in call):
                    return
            except grpc.RpcError as failed:
                code = error_from_call(failed).code
                if code is not grpc.StatusCode.DEADLINE_EXCEEDED:
                    error = TransportError(code, "", "the sidecar is not ready")
            finally:
                call.cancel()
            wait_s = back_off.next_s()
            if time.monotonic() + wait_s >= deadline or self._closed.wait(wait_s):
                raise error

    # DeliveryService

    def send_to_user(
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
        return self._run(call, timeout_s)

    def emit_critical_event(
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
        return self._run(call, timeout_s)

    def send_batch(self, items: Sequence[BatchItem], *, timeout_s: float | None = None) -> list[Receipt | SidecarError]:
        """Send at most 1,000 messages; each stands or falls alone. The outcomes in the items' order."""
        return self._run(calls.send_batch(items), timeout_s)

    def broadcast(
        self,
        context_token: str,
        scope: BroadcastScope,
        payload: bytes | None = None,
        *,
        timeout_s: float | None = None,
        **options: Unpack[MessageOptions],
    ) -> BroadcastResult:
        """Send one message to every context of the token's own user or tenant. Scope `broadcast:user`, `:tenant`."""
        return self._run(calls.broadcast(context_token, scope, payload, options), timeout_s)

    def close_manager(
        self,
        isolation_key: str,
        context_token: str,
        *,
        code: int = 4505,
        reason: str = "",
        timeout_s: float | None = None,
    ) -> int:
        """End the context; how many sockets it had. `code`: 4505, or 4900 to 4999 with a `reason` of your own."""
        return self._run(calls.close_manager(isolation_key, context_token, code, reason), timeout_s)

    def get_manager_stats(
        self, isolation_key: str, context_token: str, *, timeout_s: float | None = None
    ) -> ManagerStats:
        """Read the context's counters. Scope `stats`."""
        return self._run(calls.get_manager_stats(isolation_key, context_token), timeout_s)

    # ContextService

    def get_context(self, context_token: str, *, timeout_s: float | None = None) -> ContextFacts:
        """Say what the token opens."""
        return self._run(calls.get_context(context_token), timeout_s)

    def refresh_context_token(self, context_token: str, *, timeout_s: float | None = None) -> ContextToken:
        """Get another token with the same scopes, while the context lives; the old one lives on. Not repeated."""
        return self._run(calls.refresh_context_token(context_token), timeout_s)

    def revoke_context_token(self, context_token: str, *, timeout_s: float | None = None) -> None:
        """End the token and all that was refreshed from it. Not repeated."""
        self._run(calls.revoke_context_token(context_token), timeout_s)

    def exchange_context_token(
        self,
        user_token: str,
        connection_id: str,
        scopes: Sequence[str] = (),
        *,
        timeout_s: float | None = None,
    ) -> ContextGrant:
        """Get a context token for a user's own token and one of that user's contexts, by the service token."""
        call = calls.exchange_context_token(user_token, connection_id, scopes, self._settings.service_token)
        return self._run(call, timeout_s)

    # The fast way

    def sender(
        self,
        *,
        limits: SenderLimits | None = None,
        report_acknowledged: bool = False,
        on_stream_cancelled: Callable[[StreamCancellation], None] | None = None,
    ) -> SyncSender:
        """A sender for many messages from many threads: one stream. Closed with the client, or before."""
        self._check_open()
        sender = SyncSender(
            self._channel,
            self._stubs,
            limits or SenderLimits(),
            timeout_s=self._settings.timeout_s,
            report_acknowledged=report_acknowledged,
            uniform=self._uniform,
            on_closed=self._senders.discard,
            on_stream_cancelled=on_stream_cancelled,
        )
        self._senders.add(sender)
        return sender

    # Calls

    def _check_open(self) -> None:
        if self._closed.is_set():
            raise RuntimeError("the client is closed")

    @contextmanager
    def _may_be_closed(self) -> Iterator[None]:
        """A channel that another thread has closed meanwhile takes no call: gRPC raises a ValueError."""
        try:
            yield
        except ValueError:
            if not self._closed.is_set():
                raise
            raise TransportError(grpc.StatusCode.CANCELLED, "", "the client was closed") from None

    def _run(self, call: UnaryCall[T], timeout_s: float | None) -> T:
        """Make the call until it is answered, given up or out of time."""
        self._check_open()
        method = call.method(self._stubs)
        deadline = time.monotonic() + (self._settings.timeout_s if timeout_s is None else timeout_s) + call.held_s
        retries = Retries(
            repeatable=call.repeatable,
            deadline=deadline,
            max_attempts=self._settings.max_attempts,
            uniform=self._uniform,
        )
        metadata = call.metadata + trace_context()
        while True:
            left_s = max(deadline - time.monotonic(), 0.001)
            try:
                with self._may_be_closed():
                    answer = method(call.request, metadata=metadata, timeout=left_s)
                return call.read(answer)
            except grpc.RpcError as failed:
                error = error_from_call(failed)
            wait_s = retries.wait_s(error, time.monotonic())
            if wait_s is None or self._closed.wait(wait_s):
                raise error
