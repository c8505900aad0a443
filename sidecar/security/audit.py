"""The audit trail that the sidecar writes: JSON lines, chained by hash, off the event loop.

The loop queues records in their order; one thread writes them. A grant waits for its record, nothing else does.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Final

from sidecar.core.errors import ErrorReason, Unavailable
from sidecar.core.ports import AuditEvent, AuditTrail, AuditValue, Clock
from sidecar.security.audit_file import AuditFile, Write
from sidecar.security.audit_flush import FlushTimer
from sidecar.security.audit_record import MAX_VALUE_CHARS, AuditRecord, Head
from sidecar.security.audit_writer import AuditWriter, Entry, Waiter

if TYPE_CHECKING:
    from sidecar.core.identity import UserExecutionContext

MAX_QUEUED_RECORDS: Final = 10_000


class JsonLinesAuditTrail(AuditTrail):
    """Security events in one file of this process alone. All methods are called on the loop's thread.

    A record is written within 20 ms on a healthy disk; fsync comes at `close`. When the file cannot be written, grants
    are refused and dropped, everything else is kept, `max_queued_records` of it; what is lost beyond that is counted,
    and said in AUDIT_RECORDS_LOST {count} once writing works again. AUDIT_INTERRUPTED {error} marks the failure.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        clock: Clock,
        *,
        boot_id: str | None = None,
        grant_timeout_s: float = 2.0,
        close_timeout_s: float = 5.0,
        max_queued_records: int = MAX_QUEUED_RECORDS,
        write: Write = os.write,
    ) -> None:
        self._path = os.fspath(path)
        self._clock = clock
        self._grant_timeout_s = grant_timeout_s
        self._close_timeout_s = close_timeout_s
        self._max_queued_records = max_queued_records
        self._write = write
        self._writer = AuditWriter(boot_id or secrets.token_hex(16), clock)
        self._timer: FlushTimer | None = None
        self._ended: asyncio.Future[None] | None = None
        self._lost = 0
        self._closed = False
        self._waking = False

    def __repr__(self) -> str:
        return (
            f"<{type(self).__name__} healthy={self.healthy} failure={self.failure} logged={self.records_logged}"
            f" pending={self.records_pending} lost={self.records_lost}>"
        )

    @property
    def healthy(self) -> bool:
        """False while a grant would be refused, or wait in vain: not running, a write failed or hangs, queue full."""
        writer = self._writer
        if self._closed or not writer.running or writer.failure is not None:
            return False
        since = writer.busy_since
        hangs = since is not None and self._clock.monotonic() - since > self._grant_timeout_s
        return not hangs and writer.pending < self._max_queued_records

    @property
    def failure(self) -> str | None:
        """The errno's name of the last write when it failed (`ENOSPC`)."""
        return self._writer.failure

    @property
    def records_logged(self) -> int:
        """Records written by this process: `audit_events_logged`."""
        return self._writer.written

    @property
    def records_pending(self) -> int:
        """Records queued and neither written nor dropped; after `close`, those that could not be written."""
        return self._writer.pending

    @property
    def records_lost(self) -> int:
        """Records found no room, or came after `close`, and are not yet counted in an AUDIT_RECORDS_LOST."""
        return self._lost

    @property
    def head(self) -> Head:
        """The last written record: what is to be kept elsewhere."""
        return self._writer.head

    def start(self) -> None:
        """Open the file and start the thread; call once, with the loop running. Blocks on the file.

        Raises AuditFileError when the file cannot be used; it is then as it was. A torn last record is cut off, which
        AUDIT_TAIL_REPAIRED {bytes} says. Records may be queued before.
        """
        loop = asyncio.get_running_loop()
        file = AuditFile.open(self._path, self._write)
        self._ended = loop.create_future()
        self._timer = FlushTimer(loop.call_later, self._writer)
        self._writer.start(file, partial(_hand_over, loop), partial(_hand_over, loop, [self._ended], True))
        if file.tail.torn_bytes:
            self.record(AuditEvent.AUDIT_TAIL_REPAIRED, bytes=file.tail.torn_bytes)
        self._timer.arm()

    def record(
        self,
        event: AuditEvent,
        context: UserExecutionContext | None = None,
        /,
        **fields: AuditValue,
    ) -> None:
        """Queue one record in order, without waiting. Never raises; without room it is counted as lost."""
        for name, value in fields.items():
            if isinstance(value, str) and len(value) > MAX_VALUE_CHARS:
                fields[name] = value[:MAX_VALUE_CHARS]
        if not self._enqueue((AuditRecord(event, context, fields),), None):
            self._lost += 1

    async def grant(self, *records: AuditRecord) -> None:
        """Return once all these records are written, by one write. Raises Unavailable (AUDIT_UNAVAILABLE) if not.

        Without records it waits for those queued before. Safe to cancel. A record may stand in the file though its
        grant was refused late or given up, never the other way round.
        """
        if self._timer is None:
            raise Unavailable(ErrorReason.AUDIT_UNAVAILABLE)
        loop = asyncio.get_running_loop()
        waiter: Waiter = loop.create_future()
        if not self._enqueue(records, waiter):
            raise Unavailable(ErrorReason.AUDIT_UNAVAILABLE)
        if not self._waking:  # once a turn of the loop: who connects at the same time shares a write
            self._waking = True
            loop.call_soon(self._wake)
        try:
            async with asyncio.timeout(self._grant_timeout_s):
                await waiter
        except TimeoutError:
            raise Unavailable(ErrorReason.AUDIT_UNAVAILABLE) from None

    def _wake(self) -> None:
        self._waking = False
        self._writer.wake()

    def tick(self) -> None:
        """Call once a second: tries a failed write again and says what was lost."""
        self._tell_lost()
        if self._writer.failure is not None:
            self._writer.wake()

    async def close(self) -> None:
        """Take nothing more, write what is pending, fsync and close the file, end the thread. Idempotent.

        Bounded by `close_timeout_s`; a thread that hangs in a write then is left to the process's end.
        """
        if not self._closed:
            self._tell_lost(at_last=True)
            self._closed = True
            self._writer.close()
        if self._ended is None or self._timer is None:
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(self._close_timeout_s):
                await asyncio.shield(self._ended)
        self._timer.cancel()

    def _enqueue(self, records: tuple[AuditRecord, ...], waiter: Waiter | None) -> bool:
        self._tell_lost()
        if self._closed or self._writer.pending + len(records) > self._max_queued_records:
            return False
        self._queue(records, waiter)
        return True

    def _tell_lost(self, *, at_last: bool = False) -> None:
        """Say it where they are missing, as soon as there is room, `at_last` even without: before the next record."""
        room = at_last or self._writer.pending < self._max_queued_records
        if self._lost and not self._closed and room:
            count, self._lost = self._lost, 0
            self._queue((AuditRecord(AuditEvent.AUDIT_RECORDS_LOST, None, {"count": count}),), None)

    def _queue(self, records: tuple[AuditRecord, ...], waiter: Waiter | None) -> None:
        self._writer.offer(Entry(self._clock.time(), records, waiter))
        if self._timer is not None:
            self._timer.arm()


def _hand_over(loop: asyncio.AbstractEventLoop, waiters: list[Waiter], written: bool) -> None:
    """In the thread. The loop may be gone: then nobody waits any more."""
    with suppress(RuntimeError):
        loop.call_soon_threadsafe(_answer, waiters, written)


def _answer(waiters: list[Waiter], written: bool) -> None:
    for waiter in waiters:
        if waiter.done():
            continue
        if written:
            waiter.set_result(None)
        else:
            waiter.set_exception(Unavailable(ErrorReason.AUDIT_UNAVAILABLE))
