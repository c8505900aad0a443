"""The coalescing sender over grpc.aio: many sends at once become few frames of one Deliver stream.

One task owns the stream; a caller that is cancelled never touches it. An idle sender writes the first message at once;
while a write is under way the next ones gather.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from types import TracebackType
from typing import Any, Final, Self, Unpack

import grpc

from sidecar_client.back_off import BackOff
from sidecar_client.calls import Stubs
from sidecar_client.errors import SidecarError, TransportError, Unavailable, error_from_call
from sidecar_client.lanes import Entry, LaneKey
from sidecar_client.messages import MessageOptions, build_message, check_token, fields
from sidecar_client.retries import BASE_S, CAP_S
from sidecar_client.sender_core import SenderCore, SenderLimits, StreamCancellation
from sidecar_client.values import Receipt

CLOSE_TIMEOUT_S: Final = 5.0
HALF_CLOSE_S: Final = 0.2
"""How long a stream on which all is answered may take to end in order: nothing is lost where it is cut off."""
_PASSING: Final = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.INTERNAL,  # grpc.aio's word where a write failed before it knew the status
}
"""Of a stream that broke without a reason: a further one may go better."""


class Sender:
    """Sends many messages fast. Made by `AsyncSidecarClient.sender`; use it in that client's event loop.

    Sends are accepted in the order in which they were begun, context by context. A stream that breaks is opened again,
    and what had no answer is sent again with the same message_id, in order, until its deadline. A message that the
    sidecar refuses is not sent again: it would come after later ones.
    """

    def __init__(
        self,
        stubs: Stubs,
        channel_ready: Callable[[], Awaitable[None]],
        limits: SenderLimits,
        *,
        timeout_s: float,
        report_acknowledged: bool,
        uniform: Callable[[], float],
        on_closed: Callable[[Sender], None],
        on_stream_cancelled: Callable[[StreamCancellation], None] | None = None,
    ) -> None:
        self._stubs = stubs
        self._channel_ready = channel_ready
        self._timeout_s = timeout_s
        self._report_acknowledged = report_acknowledged
        self._on_closed = on_closed
        self._room = asyncio.Semaphore(limits.max_in_flight)
        self._core = SenderCore(
            limits,
            report_acknowledged=report_acknowledged,
            on_left=self._left,
            on_stream_cancelled=on_stream_cancelled,
        )
        self._back_off = BackOff(BASE_S, CAP_S, uniform)
        self._work = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._closing = False
        self._streaming = False
        self._answered = asyncio.Event()  # once it closes: nothing is queued, and nothing unanswered

    def __repr__(self) -> str:
        return f"Sender({'closing' if self._closing else 'open'}, {self._core!r})"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def in_flight(self) -> int:
        """Messages that wait to be written or answered."""
        return self._core.in_flight

    async def send(
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
        """Send one message; returns when it was accepted. Waits for room first, when `max_in_flight` is reached.

        `wait_for_ack_s` (needs `report_acknowledged`): then wait that long for the client's acknowledgement, or for the
        message to be dropped; the receipt's state says how far it came. Raises the sidecar's refusal, or TransportError
        when the deadline passed. Cancelled, what was not written is not sent; what was may have been accepted.
        """
        if wait_for_ack_s is not None and not self._report_acknowledged:
            raise ValueError("wait_for_ack_s needs a sender with report_acknowledged=True")
        with fields("isolation_key"):
            message = build_message(payload, options)
            key = LaneKey(isolation_key, check_token(context_token), expected_user_id)
            isolation_key.encode(), expected_user_id.encode()
        self._core.check(message)
        entry: Entry | None = None
        loop = asyncio.get_running_loop()
        accepted: asyncio.Future[Receipt] = loop.create_future()
        final: asyncio.Future[Receipt] | None = None if wait_for_ack_s is None else loop.create_future()
        try:
            async with asyncio.timeout(self._timeout_s if timeout_s is None else timeout_s):
                await self._room.acquire()
                entry = self._begin(key, message, accepted, final)
                receipt = await accepted
            if final is None:
                return receipt
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_for_ack_s):
                    return await final
            return receipt
        except TimeoutError:
            raise TransportError(grpc.StatusCode.DEADLINE_EXCEEDED, "", "the deadline passed") from None
        finally:
            if entry is not None:
                self._core.abandon(entry)

    def _begin(self, key: LaneKey, message: Any, accepted: Any, final: Any) -> Entry:
        """Queue the message; synchronous since its place was acquired, so that the order is the callers'."""
        if self._closing:
            self._room.release()
            raise RuntimeError("the sender is closed")
        if self._task is None:
            self._task = asyncio.create_task(self._run())
        entry = self._core.add(key, message, accepted, final)
        self._work.set()
        return entry

    def _left(self) -> None:
        self._room.release()
        if self._closing and not self._core.in_flight:
            self._answered.set()

    async def close(self, timeout_s: float = CLOSE_TIMEOUT_S) -> None:
        """Take no more, write what is queued, half-close, wait for the receipts, at most `timeout_s`. Idempotent.

        At once where nothing is queued or unanswered, also while the sidecar is away. What has no answer by then fails
        with TransportError, CANCELLED.
        """
        self._closing = True
        self._work.set()
        if not self._core.in_flight:
            self._answered.set()
        try:
            if self._task is not None:
                await self._finish(self._task, timeout_s)
        finally:
            if self._task is not None:
                self._task.cancel()
                await asyncio.gather(self._task, return_exceptions=True)
            self._core.fail_all(TransportError(grpc.StatusCode.CANCELLED, "", "the sender was closed"))
            self._on_closed(self)

    async def _finish(self, task: asyncio.Task[None], timeout_s: float) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        answered = asyncio.create_task(self._answered.wait())
        try:
            await asyncio.wait({task, answered}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            answered.cancel()
        if self._answered.is_set() and self._streaming:
            await asyncio.wait({task}, timeout=max(min(HALF_CLOSE_S, deadline - loop.time()), 0.0))

    # The stream

    async def _run(self) -> None:
        """Open a stream whenever there is something to write, until the sender closes."""
        while True:
            while not self._core.has_queued:
                if self._closing:
                    return
                self._work.clear()
                await self._work.wait()
            # A frame that is handed to a stream cannot be taken back: none is while nobody is there to read it.
            await self._channel_ready()
            if not self._core.has_queued:
                continue
            error = await self._stream()
            self._core.stream_ended(error, again=is_passing(error))
            if self._closing and not self._core.in_flight:
                return
            if self._core.has_queued:
                await asyncio.sleep(self._back_off.next_s(at_least_s=error.retry_after_s or 0.0))

    async def _stream(self) -> SidecarError:
        """One stream, from its first frame to its end; why it ended. It has no deadline: its messages have."""
        deliver: Any = self._stubs.delivery.Deliver
        call = deliver()
        self._streaming = True
        writer = asyncio.create_task(self._write(call))
        try:
            await self._read(call)
        except grpc.aio.AioRpcError as failed:
            return error_from_call(failed)
        finally:
            self._streaming = False
            writer.cancel()
            call.cancel()
            await asyncio.gather(writer, return_exceptions=True)
        return TransportError(grpc.StatusCode.UNAVAILABLE, "", "the stream ended")

    async def _write(self, call: Any) -> None:
        while True:
            frames = self._core.take()
            if not frames:
                if self._closing and not self._core.has_queued:
                    await call.done_writing()
                    return
                self._work.clear()
                await self._work.wait()
            for frame in frames:
                # A write that fails says less than the read beside it, which ends with the stream's status.
                await call.write(frame)

    async def _read(self, call: Any) -> None:
        while (response := await call.read()) is not grpc.aio.EOF:
            self._core.received(response)
            self._back_off.reset()
            self._work.set()  # a lane may have become free


def is_passing(error: SidecarError) -> bool:
    """Whether a further stream may go better, so that nobody needs to be told of this one's end."""
    if isinstance(error, TransportError):
        return error.code in _PASSING
    return error.retry_after_s is not None or isinstance(error, Unavailable)
