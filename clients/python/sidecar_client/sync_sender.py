"""The coalescing sender over grpc, for threads: the same core, under one lock.

Two threads serve a stream: grpc's own takes frames from here as fast as flow control lets it, this one's reads.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from types import TracebackType
from typing import Any, Final, Self, Unpack

import grpc

from sidecar_client.back_off import BackOff
from sidecar_client.calls import Stubs
from sidecar_client.errors import SidecarError, TransportError, error_from_call
from sidecar_client.lanes import LaneKey
from sidecar_client.messages import MessageOptions, build_message, check_token, fields
from sidecar_client.retries import BASE_S, CAP_S
from sidecar_client.sender import CLOSE_TIMEOUT_S, HALF_CLOSE_S, is_passing
from sidecar_client.sender_core import SenderCore, SenderLimits, StreamCancellation
from sidecar_client.values import Receipt

_ASKING_S: Final = 0.25
"""gRPC's thread that watches a channel takes up what it was asked within 0.2 s, and dies with a traceback where the
channel was closed before it did."""


class SyncSender:
    """Sends many messages fast, from any thread. Made by `SidecarClient.sender`.

    What holds for `Sender` holds here: sends are accepted in the order in which they got their place, context by
    context; what had no answer when a stream broke is sent again with the same message_id.
    """

    def __init__(
        self,
        channel: grpc.Channel,
        stubs: Stubs,
        limits: SenderLimits,
        *,
        timeout_s: float,
        report_acknowledged: bool,
        uniform: Callable[[], float],
        on_closed: Callable[[SyncSender], None],
        on_stream_cancelled: Callable[[StreamCancellation], None] | None = None,
    ) -> None:
        """`on_stream_cancelled` is called by the sender's thread, with its lock held: hand it on and return."""
        self._channel = channel
        self._stubs = stubs
        self._timeout_s = timeout_s
        self._report_acknowledged = report_acknowledged
        self._on_closed = on_closed
        self._room = threading.Semaphore(limits.max_in_flight)
        self._core = SenderCore(
            limits,
            report_acknowledged=report_acknowledged,
            on_left=self._left,
            on_stream_cancelled=on_stream_cancelled,
        )
        self._back_off = BackOff(BASE_S, CAP_S, uniform)
        # Guards the core and what is below it; notified when there is something to do.
        self._work = threading.Condition()
        self._thread: threading.Thread | None = None
        self._call: Any = None
        self._streams = 0
        self._closing = False
        self._abandoned = False

    def __repr__(self) -> str:
        return f"SyncSender({'closing' if self._closing else 'open'}, {self._core!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def in_flight(self) -> int:
        """Messages that wait to be written or answered."""
        return self._core.in_flight

    def send(
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
        """Send one message; returns when it was accepted. As `Sender.send`."""
        if wait_for_ack_s is not None and not self._report_acknowledged:
            raise ValueError("wait_for_ack_s needs a sender with report_acknowledged=True")
        with fields("isolation_key"):
            message = build_message(payload, options)
            key = LaneKey(isolation_key, check_token(context_token), expected_user_id)
            isolation_key.encode(), expected_user_id.encode()
        self._core.check(message)
        deadline = time.monotonic() + (self._timeout_s if timeout_s is None else timeout_s)
        accepted: Future[Receipt] = Future()
        final: Future[Receipt] | None = None if wait_for_ack_s is None else Future()
        if not self._room.acquire(timeout=max(deadline - time.monotonic(), 0.0)):
            raise _late()
        with self._work:
            self._begin()
            entry = self._core.add(key, message, accepted, final)
            self._work.notify_all()
        try:
            try:
                receipt = accepted.result(max(deadline - time.monotonic(), 0.0))
            except FutureTimeout:
                raise _late() from None
            if final is None:
                return receipt
            try:
                return final.result(wait_for_ack_s)
            except FutureTimeout:
                return receipt
        finally:
            with self._work:
                self._core.abandon(entry)

    def _begin(self) -> None:
        if self._closing:
            self._room.release()
            raise RuntimeError("the sender is closed")
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="sidecar-sender", daemon=True)
            self._thread.start()

    def _left(self) -> None:
        """With the lock held, as all that the core does."""
        self._room.release()
        if self._closing and not self._core.in_flight:
            self._work.notify_all()

    def begin_to_close(self) -> None:
        """Take no more and write what is queued, as `close` does, without waiting. Idempotent."""
        with self._work:
            self._closing = True
            self._work.notify_all()

    def close(self, timeout_s: float = CLOSE_TIMEOUT_S) -> None:
        """Take no more, write what is queued, half-close, wait for the receipts, at most `timeout_s`. Idempotent.

        At once where nothing is queued or unanswered, also while the sidecar is away. What has no answer by then fails
        with TransportError, CANCELLED.
        """
        deadline = time.monotonic() + timeout_s
        self.begin_to_close()
        with self._work:
            self._work.wait_for(lambda: not self._core.in_flight, timeout_s)
            thread = self._thread
        if thread is not None:
            thread.join(max(min(HALF_CLOSE_S, deadline - time.monotonic()), 0.0))
        with self._work:
            self._abandoned = True
            self._core.fail_all(TransportError(grpc.StatusCode.CANCELLED, "", "the sender was closed"))
            self._work.notify_all()
            call = self._call
        if call is not None:
            call.cancel()
        if thread is not None:
            thread.join()
        self._on_closed(self)

    # The stream

    def _run(self) -> None:
        """Open a stream whenever there is something to write, until the sender closes."""
        while self._has_work():
            # A frame that is handed to a stream cannot be taken back: none is while nobody is there to read it.
            self._wait_for_connection()
            if not self._core.has_queued:
                continue
            error = self._stream()
            with self._work:
                self._core.stream_ended(error, again=is_passing(error))
                # Only close() makes this wait shorter: what is queued meanwhile waits as well.
                wait_s = self._back_off.next_s(at_least_s=error.retry_after_s or 0.0)
                self._work.wait_for(lambda: self._abandoned or not self._core.has_queued, wait_s)

    def _has_work(self) -> bool:
        """Wait until there is something to write. False: the sender is over."""
        with self._work:
            self._work.wait_for(lambda: self._core.has_queued or self._closing)
            return self._core.has_queued

    def _wait_for_connection(self) -> None:
        """Until the channel is connected, or the sender is to end."""
        asked_at = time.monotonic()
        ready = grpc.channel_ready_future(self._channel)
        ready.add_done_callback(self._notify)
        with self._work:
            self._work.wait_for(lambda: ready.done() or self._abandoned or (self._closing and not self._core.in_flight))
        if not ready.done():
            ready.cancel()
            time.sleep(max(asked_at + _ASKING_S - time.monotonic(), 0.0))

    def _notify(self, _: object) -> None:
        with self._work:
            self._work.notify_all()

    def _stream(self) -> SidecarError:
        """One stream, from its first frame to its end; why it ended."""
        deliver: Any = self._stubs.delivery.Deliver
        with self._work:
            if self._abandoned:
                return TransportError(grpc.StatusCode.CANCELLED, "", "the sender was closed")
            self._streams += 1
            call = self._call = deliver(self._frames(self._streams))
        try:
            for response in call:
                with self._work:
                    self._core.received(response)
                    self._back_off.reset()
                    self._work.notify_all()  # a lane may have become free
        except grpc.RpcError as failed:
            return error_from_call(failed)
        finally:
            with self._work:
                self._streams += 1  # no frame goes to a stream that is over
                self._call = None
                self._work.notify_all()
        return TransportError(grpc.StatusCode.UNAVAILABLE, "", "the stream ended")

    def _frames(self, stream: int) -> Iterator[Any]:
        """What grpc's thread writes. Ends the stream's half when the sender closes and all is written."""
        while True:
            with self._work:
                frames: list[Any] = []
                while self._streams == stream and not (frames := self._core.take()):
                    if self._closing and not self._core.has_queued:
                        return
                    self._work.wait()
                if self._streams != stream:
                    return
            yield from frames


def _late() -> TransportError:
    return TransportError(grpc.StatusCode.DEADLINE_EXCEEDED, "", "the deadline passed")
