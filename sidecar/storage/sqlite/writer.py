"""The thread that writes: one batch at a time, each one transaction, synced when it is answered.

SQLite's steps let go of the GIL, and a busy loop takes milliseconds to give it back: so many rows go into a statement.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, Final

import structlog

from sidecar.core.errors import ErrorReason, Unavailable
from sidecar.storage.sqlite.batch import Batch
from sidecar.storage.sqlite.rows import encode_context, encode_identity, encode_message, encode_state
from sidecar.storage.sqlite.sealing import Kind, Seal, new_nonces

logger = structlog.get_logger("sidecar.storage")

_CHUNKS: Final = (256, 64, 16, 4, 1)
"""How many rows a statement takes: few statements to prepare, few to run."""

Done = Callable[[Batch, Unavailable | None], None]


class Writer:
    """See the module. `done` is called from the thread, once for each batch and in order."""

    def __init__(self, connection: sqlite3.Connection, seal: Seal, done: Done) -> None:
        self._connection = connection
        self._seal = seal
        self._done = done
        self._batches: SimpleQueue[Batch | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="outbox-store", daemon=True)

    def start(self) -> None:
        """Begin to take batches."""
        self._thread.start()

    def submit(self, batch: Batch) -> None:
        """Write that batch."""
        self._batches.put(batch)

    def close(self) -> None:
        """Write what was submitted, take the log into the file, close it. Blocking."""
        if self._thread.ident is None:
            self._connection.close()
            return
        self._batches.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (batch := self._batches.get()) is not None:
            error = self._commit(batch) if batch.writes else None
            if batch.truncate:
                batch.truncate = not self._truncate()
            self._done(batch, error)
        self._truncate()
        self._connection.close()

    def _truncate(self) -> bool:
        """Take the log into the file and empty it: only then has what was deleted gone from the disk."""
        try:
            ((busy, _, _),) = self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        except sqlite3.Error:
            return False
        return not busy

    def _commit(self, batch: Batch) -> Unavailable | None:
        """None, or why nothing of the batch is kept; OUTCOME_UNKNOWN when not even that is known."""
        reason = ErrorReason.STORAGE_UNAVAILABLE
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            self._write(batch)
            reason = ErrorReason.OUTCOME_UNKNOWN
            self._connection.execute("COMMIT")
        except Exception as error:  # noqa: BLE001 - the thread must live for the batches behind
            with suppress(sqlite3.Error):
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
            code = getattr(error, "sqlite_errorcode", 0)
            logger.error("a batch was not written", error=type(error).__name__, sqlite_code=code)
            if code & 0xFF == sqlite3.SQLITE_FULL:
                # Its commit record was not written: definite. An emptied log may make room for the next.
                self._truncate()
                reason = ErrorReason.STORAGE_UNAVAILABLE
            return Unavailable(reason)
        return None

    def _write(self, batch: Batch) -> None:
        keys = [(new.id, self._seal.seal(Kind.KEY, new.id, 0, new.key)) for new in batch.contexts]
        self._insert("INSERT INTO keys VALUES ", keys, " ON CONFLICT DO UPDATE SET key = excluded.key")
        contexts = [
            (new.id, new.seal.seal(Kind.CONTEXT, new.id, 0, encode_context(new.context))) for new in batch.contexts
        ]
        self._insert("INSERT INTO contexts VALUES ", contexts)
        self._insert("INSERT INTO messages VALUES ", _message_rows(batch), place="(?,?,?,nullif(?,0),?)")
        states = [
            (new.context, new.seal.seal(Kind.STATE, new.context, 0, encode_state(new.state))) for new in batch.states
        ]
        self._insert("INSERT OR REPLACE INTO states VALUES ", states)
        self._each("UPDATE messages SET message = NULL WHERE id IN ", batch.cleared)
        self._each("DELETE FROM messages WHERE id IN ", batch.deleted)
        self._each("UPDATE keys SET key = zeroblob(60) WHERE context IN ", batch.disposed)  # sealing.NO_KEY
        self._each("DELETE FROM contexts WHERE id IN ", batch.disposed)
        self._each("DELETE FROM states WHERE context IN ", batch.disposed)

    def _insert(
        self, statement: str, rows: Sequence[tuple[Any, ...]], otherwise: str = "", *, place: str = "(?,?)"
    ) -> None:
        for chunk in _chunks(rows):
            values = [value for row in chunk for value in row]
            self._connection.execute(statement + ",".join([place] * len(chunk)) + otherwise, values)

    def _each(self, statement: str, ids: Sequence[int]) -> None:
        for chunk in _chunks(ids):
            self._connection.execute(f"{statement}({','.join('?' * len(chunk))})", chunk)


def _message_rows(batch: Batch) -> list[tuple[int, int, int, bytes | int, bytearray]]:
    """An identity that is not there is 0: sqlite3 takes longer to see whether it may adapt a None, or bytes, than to
    bind them.
    """
    rows = []
    nonces = new_nonces(len(batch.messages))
    for row, (context, _, entry, identity, at, _) in enumerate(batch.messages, batch.first_row):
        number, seal, sequence = context.id, context.seal, entry.sequence
        known: bytes | int = 0
        if identity is not None:
            known = seal.seal(Kind.IDENTITY, number, sequence, encode_identity(identity, at.unix))
        expires_at = 0.0 if entry.critical else at.unix + entry.expires_at - at.monotonic
        message = encode_message(entry.frame, entry.size, expires_at, entry.critical, entry.stream)
        sealed = seal.seal(Kind.MESSAGE, number, sequence, message, next(nonces))
        rows.append((row, number, sequence, known, bytearray(sealed)))
    return rows


def _chunks(rows: Sequence[Any]) -> Iterator[Sequence[Any]]:
    start = 0
    for size in _CHUNKS:
        while len(rows) - start >= size:
            yield rows[start : start + size]
            start += size
