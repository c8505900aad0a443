"""The loop's side of the store: gathers what managers accepted into batches, one under way, and answers them in order.

While a batch is written the next one gathers: commits are grouped without a timer. Acknowledgements and gaps are not
worth a commit of their own; they ride with the next, or after FLUSH_S.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from math import inf
from typing import TYPE_CHECKING, Final

import structlog

from sidecar.core.errors import ErrorReason, Unavailable
from sidecar.core.message import Durability
from sidecar.core.outbox import OutboxEntry
from sidecar.storage.sqlite.batch import Batch, NewState
from sidecar.storage.sqlite.database import load, open_database
from sidecar.storage.sqlite.errors import StoreUnusable
from sidecar.storage.sqlite.requests import (
    NOTHING,
    Adopt,
    Append,
    Context,
    Creation,
    Request,
    is_expected,
    make_append,
)
from sidecar.storage.sqlite.rows import encode_inbound
from sidecar.storage.sqlite.sealing import Seal, new_key
from sidecar.storage.sqlite.writer import Writer

if TYPE_CHECKING:
    import sqlite3
    from pathlib import Path

    from sidecar.core.message import Instant
    from sidecar.core.ports import Confirmed
    from sidecar.core.stored import MessageIdentity, StoredContext, StoredInbound, StoredState
    from sidecar.core.writes import WriteBatch

logger = structlog.get_logger("sidecar.storage")

FLUSH_S: Final = 0.2
TRUNCATE_S: Final = 20.0
"""How long after its disposal was committed a context's key may stay in the log; promised are 60 s."""
RETRY_S: Final = 1.0
MAX_BATCH_MESSAGES: Final = 2_000
MAX_BATCH_BYTES: Final = 8 * 1024 * 1024
CLOSING_FAILURES: Final = 2
"""Batches that may fail before `close` gives up: the one that was under way, and one with all that waits."""

Opening = Callable[["Path", Seal], "sqlite3.Connection"]
"""Opens the file, as `open_database` does."""


class SqliteOutboxStore:
    """Keeps contexts and what they accepted in one file. Every method but `close` is for the loop's thread.

    `start`, then `restore` once, then the port's methods; `close` writes what waits and lets go of the file.
    """

    durability = Durability.DISK
    survives = True

    def __init__(self, path: Path, key: bytes, writes: WriteBatch, opening: Opening = open_database) -> None:
        """Open the file, made where there is none. `key` has 32 bytes. Blocking. Raises StoreUnusable, StoreInUse."""
        seal = Seal(key)
        connection = opening(path, seal)
        try:
            loaded = load(connection, seal)
        except StoreUnusable:
            connection.close()
            raise
        self._loaded, self._unused, self._next_context, self._next_message = loaded
        self._writer = Writer(connection, seal, self._written)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._contexts: dict[str, Context] = {}
        self._ending: dict[int, Context] = {}
        self._requests: deque[Request] = deque()
        self._under_way: list[Request] | None = None
        self._handing_over = False
        self._idle = asyncio.Event()
        self._idle.set()
        self._changed: dict[Context, None] = {}
        self._upkeep = Batch(truncate=True)  # what a crash left in the log has its time too
        self._flush_due = False
        self._flush_timer: asyncio.TimerHandle | None = None
        self._truncate_timer: asyncio.TimerHandle | None = None
        self._failing = False
        self._writes = writes

    def restore(self, adopt: Adopt) -> None:
        """Hand over each context that the file holds, once; one that is not adopted is disposed of."""
        loaded, self._loaded = self._loaded, []
        for each in loaded:
            stored, state, messages, _ = each.restored
            context = Context(each.id, each.seal, 1, None)
            context.kept = True
            context.frames, context.identities = each.frames, each.identities
            context.released = state.released
            context.expected = max(state.head, messages[-1].sequence if messages else 0) + 1
            self._contexts[stored.isolation_key] = context
            adopted = adopt(each.restored)
            if adopted is not None:
                context.epoch, context.state = adopted
            else:
                self.dispose(stored.isolation_key)

    def start(self) -> None:
        """Begin to write. Call with the loop running."""
        self._loop = asyncio.get_running_loop()
        self._writer.start()
        self._hand_over_soon()

    async def close(self) -> None:
        """Write what waits, and refuse what cannot be written; take the log into the file and close it. Idempotent.

        Where batches fail, each that is taken back has the next one taken: in the end every request was answered.
        """
        if self._loop is None:
            self._writer.close()
            return
        self._flush()
        failures = 0
        while self._under_way is not None or (self._has_work() and failures < CLOSING_FAILURES):
            self._hand_over()
            if self._under_way is not None:
                self._idle.clear()
                await self._idle.wait()
                failures += self._failing
        for timer in (self._flush_timer, self._truncate_timer):
            if timer is not None:
                timer.cancel()
        self._loop = None
        await asyncio.to_thread(self._writer.close)

    # The port

    def create(
        self, context: StoredContext, epoch: int, state: Callable[[], StoredState], confirmed: Confirmed
    ) -> bool:
        """Kept with the next commit."""
        key = new_key()
        row = self._unused.pop() if self._unused else self._next_context
        self._next_context = max(self._next_context, row + 1)
        made = self._contexts[context.isolation_key] = Context(row, Seal(key), epoch, state)
        self._requests.append(Creation(made, key, context, confirmed))
        self._hand_over_soon()
        return False

    def append(
        self,
        isolation_key: str,
        epoch: int,
        entry: OutboxEntry,
        identity: MessageIdentity | None,
        at: Instant,
        confirmed: Confirmed,
    ) -> bool:
        """Kept with the next commit."""
        context = self._contexts[isolation_key]
        self._requests.append(make_append((context, epoch, entry, identity, at, confirmed)))
        if self._under_way is None and not self._handing_over:
            self._hand_over_soon()
        return False

    def receive(self, isolation_key: str, inbound: StoredInbound, at: Instant, confirmed: Confirmed) -> bool:
        """Kept with the next commit."""
        assert inbound.message is not None
        context, row = self._contexts[isolation_key], encode_inbound(inbound.service, inbound.message)
        entry = OutboxEntry(-inbound.number, row, len(row), inf, False)
        self._requests.append(Append(context, context.epoch, entry, inbound.identity, at, confirmed))
        self._hand_over_soon()
        return False

    def taken(self, isolation_key: str, number: int) -> None:
        """Its row goes before long, unless a repeat of it is still recognised."""
        context = self._contexts.get(isolation_key)
        if context is not None:
            context.release((-number,), self._upkeep)
            self._flush_later(FLUSH_S)

    def changed(self, isolation_key: str) -> None:
        """Written before long."""
        context = self._contexts.get(isolation_key)
        if context is not None:
            self._changed[context] = None
            self._flush_later(FLUSH_S)

    def forget(self, isolation_key: str, sequence: int) -> None:
        """Its row goes, unless its message is still to be delivered."""
        context = self._contexts[isolation_key]
        row = context.identities.pop(sequence, None)
        if row is not None and sequence not in context.frames:
            self._upkeep.deleted.append(row)
            self._flush_later(FLUSH_S)

    def dispose(self, isolation_key: str) -> None:
        """Its rows and its key go with the next commit, and out of the log TRUNCATE_S after it."""
        context = self._contexts.pop(isolation_key, None)
        if context is None:
            return
        context.disposed = True
        self._changed.pop(context, None)
        self._ending[context.id] = context
        self._upkeep.disposed.append(context.id)
        self._upkeep.deleted += {*context.frames.values(), *context.identities.values()}
        self._hand_over_soon()

    def when_written(self, done: Callable[[], None]) -> bool:
        """Done with the batch that is gathered now, or at once where nothing waits."""
        if not self._has_work():
            return True
        self._upkeep.watchers.append(done)
        self._hand_over_soon()
        return False

    # Batches

    def _has_work(self) -> bool:
        return self._under_way is not None or bool(self._requests) or self._upkeep.asks

    def _hand_over_soon(self) -> None:
        """Once a turn of the loop: what one frame brought is one batch."""
        if self._loop is not None and not self._handing_over and self._under_way is None:
            self._handing_over = True
            self._loop.call_soon(self._hand_over)

    def _hand_over(self) -> None:
        self._handing_over = False
        if self._loop is None or self._under_way is not None:
            return
        if self._flush_due:
            self._flush()
        batch, self._upkeep = self._upkeep, Batch()
        taken = self._take(batch)
        if batch.asks:
            self._under_way = taken
            self._writer.submit(batch)

    def _take(self, batch: Batch) -> list[Request]:
        """Move requests into the batch, in order; those that cannot succeed are answered at once."""
        taken: list[Request] = []
        requests, messages = self._requests, batch.messages
        size, row = 0, self._next_message
        batch.first_row = row
        while requests and len(taken) < MAX_BATCH_MESSAGES and size < MAX_BATCH_BYTES:
            request = requests.popleft()
            if isinstance(request, Creation):
                if request.context.disposed:
                    self._answer(request.confirmed, Unavailable(ErrorReason.STORAGE_UNAVAILABLE))
                else:
                    taken.append(request)
                    batch.contexts.append(request)
                continue
            context, epoch, entry, identity, _, confirmed = request
            sequence = entry.sequence
            if not is_expected(context, epoch, sequence):
                self._answer(confirmed, Unavailable(ErrorReason.STORAGE_UNAVAILABLE))
                continue
            taken.append(request)
            messages.append(request)
            context.expected += sequence > 0
            context.frames[sequence] = row
            if identity is not None:
                context.identities[sequence] = row
            row += 1
            size += len(entry.frame)
        self._next_message = row
        return taken

    def _written(self, batch: Batch, error: Unavailable | None) -> None:
        """Called by the writer, in its thread."""
        loop = self._loop
        if loop is not None:
            loop.call_soon_threadsafe(self._answer_batch, batch, error)

    def _answer_batch(self, batch: Batch, error: Unavailable | None) -> None:
        taken, self._under_way = self._under_way, None
        self._tell_health(failing=error is not None)
        for done in batch.watchers:
            done()
        if batch.truncate:
            self._truncate_later(RETRY_S)
        if error is None:
            self._free(batch)
            with self._writes:  # what one commit confirms
                for creation in batch.contexts:
                    creation.context.kept = True
                for request in taken or ():
                    self._answer(request.confirmed, None)
            if self._requests or self._flush_due or self._upkeep.asks:
                self._hand_over()
        else:
            self._take_back(batch, taken or [], error)
        if self._under_way is None:
            self._idle.set()

    def _free(self, batch: Batch) -> None:
        """What that batch disposed of has gone from the file: its places may be used again, its log is to be emptied.

        A row that was never written is not used again: rows of keys are only added at the end.
        """
        for row in batch.disposed:
            if self._ending.pop(row).kept:
                self._unused.append(row)
        if batch.disposed:
            self._truncate_later(TRUNCATE_S)

    def _take_back(self, batch: Batch, taken: list[Request], error: Unavailable) -> None:
        """Nothing of the batch is kept: upkeep is tried again, requests fail, and so does what was appended behind."""
        kept = self._upkeep
        self._upkeep = Batch(
            cleared=batch.cleared + kept.cleared,
            deleted=batch.deleted + kept.deleted,
            disposed=batch.disposed + kept.disposed,
            watchers=kept.watchers,
            truncate=kept.truncate,
        )
        gone = {state.context for state in batch.states}
        for context in self._contexts.values():
            if context.id in gone:
                self._changed[context] = None
        # With the next batch, whatever brings it: rows that are not needed where a context stands now go with it.
        self._flush_due = True
        for request in reversed(taken):
            if isinstance(request, Creation):
                request.context.expected = NOTHING
            else:
                context, sequence = request.context, request.entry.sequence
                if not request.is_inbound:
                    context.expected = sequence
                context.frames.pop(sequence, None)
                context.identities.pop(sequence, None)
        for request in taken:
            self._answer(request.confirmed, error)
        self._flush_later(RETRY_S)
        if self._requests:
            self._hand_over_soon()

    def _answer(self, confirmed: Confirmed, error: Unavailable | None) -> None:
        try:
            confirmed(error)
        except Exception as bug:  # noqa: BLE001 - the answers behind it are others'
            logger.error("an answer of the store failed", error=type(bug).__name__)

    def _tell_health(self, *, failing: bool) -> None:
        if failing and not self._failing:
            logger.error("the store cannot be written")
        elif self._failing and not failing:
            logger.info("the store can be written again")
        self._failing = failing

    # Upkeep

    def _flush_later(self, delay_s: float) -> None:
        if self._flush_timer is None and self._loop is not None:
            self._flush_timer = self._loop.call_later(delay_s, self._flush_now)

    def _flush_now(self) -> None:
        self._flush_timer = None
        self._flush_due = True
        self._hand_over_soon()

    def _flush(self) -> None:
        """Ask each context that changed where it stands; rows that are not needed for that any more go with it."""
        self._flush_due = False
        changed, self._changed = self._changed, {}
        for context in changed:
            if not context.kept:  # nothing may stand in the file of a context that does not
                self._changed[context] = None
                self._flush_later(FLUSH_S)
                continue
            assert context.state is not None
            state = context.state()
            self._upkeep.states.append(NewState(context.id, context.seal, state))
            context.release(range(context.released + 1, state.released + 1), self._upkeep)
            context.released = max(context.released, state.released)
            context.release(state.dropped, self._upkeep)

    def _truncate_later(self, delay_s: float) -> None:
        if self._loop is not None and self._truncate_timer is None:
            self._truncate_timer = self._loop.call_later(delay_s, self._truncate)

    def _truncate(self) -> None:
        self._truncate_timer = None
        self._upkeep.truncate = True
        self._hand_over_soon()
