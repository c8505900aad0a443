"""The one thread that writes the audit trail: numbers the records, chains them and writes them in groups.

The loop's side of it is `AuditWriter`; `RecordChain` lives in the thread alone.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from queue import SimpleQueue
from threading import Event, Thread
from typing import Final, NamedTuple

from sidecar.core.ports import AuditEvent, Clock
from sidecar.security.audit_file import AuditFile, error_name
from sidecar.security.audit_record import GENESIS, AuditRecord, Head, build_record, hash_of

MAX_GROUP_RECORDS: Final = 128
"""Records in one write(2), about: 1.5 ms of encoding, during which the loop may have to wait."""

Waiter = asyncio.Future[None]
Answer = Callable[[list[Waiter], bool], None]


class Entry(NamedTuple):
    """Records that stand or fall together, when they happened (Unix seconds), and who waits for them, if anybody."""

    time: float
    records: tuple[AuditRecord, ...]
    waiter: Waiter | None


class Group(NamedTuple):
    """Entries encoded for one write, and the head of the chain once they are written."""

    entries: list[Entry]
    records: int
    data: bytes
    head: Head


class AuditWriter:
    """The queue between the loop and the thread, and the thread.

    The loop calls the public methods and reads the public attributes; the thread does the rest. Every attribute has
    one side that sets it, by single assignments.
    """

    def __init__(self, boot_id: str, clock: Clock) -> None:
        self.head = GENESIS
        self.written = 0
        self.tried = 0
        """The number of the last `wake` after which everything queued before it was tried."""
        self.failure: str | None = None
        self.busy_since: float | None = None
        self.untold = False
        """True while something is queued of which the thread was not told."""
        self._boot_id = boot_id
        self._clock = clock
        self._queued = 0
        self._settled = 0
        self._asked = 0
        self._closing = False
        self._inbox: deque[Entry] = deque()
        self._signals: SimpleQueue[None] = SimpleQueue()
        self._idle = Event()
        self._thread: Thread | None = None
        self._pending: deque[Entry] = deque()
        self._unwritten: Group | None = None
        self._without_grants = 0
        """How many entries at the left of `_pending` are known to be no grants: a failed try looks at the others."""

    @property
    def pending(self) -> int:
        """Records queued that are neither written nor dropped."""
        return self._queued - self._settled

    @property
    def behind(self) -> bool:
        """True while the thread was told to write and has not yet tried."""
        return self.tried != self._asked

    @property
    def running(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def start(self, file: AuditFile, answer: Answer, ended: Callable[[], None]) -> None:
        """Start the thread, which owns the file from now on.

        It calls `answer` with the waiters of one group and whether their records are written, and `ended` as its last
        act; both hand over to the loop.
        """
        self.head = file.tail.head
        self._thread = Thread(target=self._run, args=(file, answer, ended), name="audit", daemon=True)
        self._thread.start()

    def offer(self, entry: Entry) -> None:
        """Queue an entry. The thread writes it when it is told to, or on its way."""
        self._queued += len(entry.records)
        self._inbox.append(entry)
        self.untold = True

    def wake(self) -> None:
        """Tell the thread to write what is queued; what failed before is tried first."""
        self.untold = False
        self._asked += 1
        self._signals.put(None)

    def close(self) -> None:
        """Tell the thread to try a last time, close the file and end."""
        self._closing = True
        self.wake()

    def give_way(self, timeout_s: float) -> None:
        """Sleep until the thread has tried everything, at most so long: a sleeper has no interpreter lock."""
        self._idle.clear()
        if self.behind:
            self._idle.wait(timeout_s)

    def _run(self, file: AuditFile, answer: Answer, ended: Callable[[], None]) -> None:
        try:
            while not self._closing:
                self._signals.get()
                self._write_queued(file, answer)
            self._write_queued(file, answer)  # It may have begun to close in the middle of the last try.
        finally:
            self._close(file)
            ended()

    def _write_queued(self, file: AuditFile, answer: Answer) -> None:
        asked = self._asked
        while self._inbox:
            self._pending.append(self._inbox.popleft())
        while group := self._unwritten or self._next_group():
            try:
                self._append(file, group.data)
            except OSError as error:
                refused = self._fail(group, error_name(error))
                if refused:
                    answer(refused, False)
                break
            self._commit(group)
            if waiters := [entry.waiter for entry in group.entries if entry.waiter is not None]:
                answer(waiters, True)
        self.tried = asked
        self._idle.set()

    def _append(self, file: AuditFile, data: bytes) -> None:
        self.busy_since = self._clock.monotonic()
        try:
            file.append(data)
        finally:
            self.busy_since = None

    def _next_group(self) -> Group | None:
        """Chain what is pending, in order. What nobody waits for any more is dropped: that grant was refused."""
        entries: list[Entry] = []
        records = 0
        while self._pending and records < MAX_GROUP_RECORDS:
            entry = self._pending.popleft()
            if entry.waiter is not None and entry.waiter.done():
                self._settled += len(entry.records)
            else:
                entries.append(entry)
                records += len(entry.records)
        self._without_grants = 0
        return self._chain(entries) if entries else None

    def _chain(self, entries: list[Entry]) -> Group:
        lines: list[bytes] = []
        sequence, previous = self.head
        for time, records, _ in entries:
            for record in records:
                sequence += 1
                lines.append(build_record(sequence, self._boot_id, time, record, previous))
                previous = hash_of(lines[-1])
        return Group(entries, len(lines), b"".join(lines), Head(sequence, previous))

    def _commit(self, group: Group) -> None:
        self._unwritten = None
        self.failure = None
        self.head = group.head
        self.written += group.records
        self._settled += group.records

    def _fail(self, group: Group, failure: str) -> list[Waiter]:
        """Drop every grant and return who waits; keep the rest in order.

        The first failure leaves a record of itself, so that while writing fails there is always something to try.
        """
        refused: list[Waiter] = []
        if self.failure is None:
            interrupted = AuditRecord(AuditEvent.AUDIT_INTERRUPTED, None, {"error": failure})
            kept = [*self._without(group.entries, refused), Entry(self._clock.time(), (interrupted,), None)]
            self._settled -= 1  # The loop has not counted this one in.
            self._unwritten = self._chain(kept)
        self.failure = failure
        fresh = [self._pending.pop() for _ in range(len(self._pending) - self._without_grants)]
        self._pending.extend(self._without(reversed(fresh), refused))
        self._without_grants = len(self._pending)
        return refused

    def _without(self, entries: Iterable[Entry], refused: list[Waiter]) -> list[Entry]:
        kept = []
        for entry in entries:
            if entry.waiter is None:
                kept.append(entry)
            else:
                refused.append(entry.waiter)
                self._settled += len(entry.records)
        return kept

    def _close(self, file: AuditFile) -> None:
        try:
            file.close()
        except OSError as error:
            self.failure = error_name(error)
