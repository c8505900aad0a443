"""The thread that writes: one batch at a time, each one transaction, synced when it is answered.

SQLite's steps let go of the GIL, and a busy loop takes milliseconds to give it back: so many rows go into a statement.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from itertools import repeat
from queue import SimpleQueue
from typing import Any, Final

import structlog

from sidecar.core.errors import ErrorReason, Unavailable
from sidecar.storage.sqlite.batch import Batch
from sidecar.storage.sqlite.rows import encode_context, encode_identity, encode_message, encode_state
from sidecar.storage.sqlite.sealing import Kind, Seal, new_nonces

logger = structlog.get_logger("sidecar.storage")

_MOST_ROWS: Final = 256
"""Of one statement. A statement takes a power of two of rows: few to prepare, few to run."""
_MESSAGE: Final = Kind.MESSAGE  # reading a member of an enumeration costs more than a call

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
        keys, contexts, states = list[Any](), list[Any](), list[Any]()
        for context, key, stored, _ in batch.contexts:
            keys += (context.id, self._seal.seal(Kind.KEY, context.id, 0, key))
            contexts += (context.id, context.seal.seal(Kind.CONTEXT, context.id, 0, encode_context(stored)))
        for id_, seal, state in batch.states:
            states += (id_, seal.seal(Kind.STATE, id_, 0, encode_state(state)))
        self._insert("INSERT INTO keys VALUES ", keys, otherwise=" ON CONFLICT DO UPDATE SET key = excluded.key")
        self._insert("INSERT INTO contexts VALUES ", contexts)
        self._insert("INSERT INTO messages VALUES ", _message_values(batch), "(?,?,?,nullif(?,0),?)")
        self._insert("INSERT OR REPLACE INTO states VALUES ", states)
        self._each("UPDATE messages SET message = NULL WHERE id IN ", batch.cleared)
        self._each("DELETE FROM messages WHERE id IN ", batch.deleted)
        self._each("UPDATE keys SET key = zeroblob(60) WHERE context IN ", batch.disposed)  # sealing.NO_KEY
        self._each("DELETE FROM contexts WHERE id IN ", batch.disposed)
        self._each("DELETE FROM states WHERE context IN ", batch.disposed)

    def _insert(self, statement: str, values: Sequence[Any], row: str = "(?,?)", otherwise: str = "") -> None:
        """`values` has those of one row behind those of another."""
        width = row.count("?")
        start, left = 0, len(values) // width
        while left:
            rows = min(_MOST_ROWS, 1 << left.bit_length() - 1)
            end = start + rows * width
            self._connection.execute(_insertion(statement, row, rows, otherwise), values[start:end])
            start, left = end, left - rows

    def _each(self, statement: str, ids: Sequence[int]) -> None:
        """The last id stands for those that are missing to a power of two."""
        for start in range(0, len(ids), _MOST_ROWS):
            chunk = ids[start : start + _MOST_ROWS]
            places = 1 << (len(chunk) - 1).bit_length()
            self._connection.execute(_among(statement, places), [*chunk, *repeat(chunk[-1], places - len(chunk))])


def _message_values(batch: Batch) -> list[Any]:
    """Row, context, sequence, identity or 0, message: sqlite3 takes longer to see whether it may adapt None, or bytes,
    than to bind them.
    """
    values = list[Any]()
    nonces = new_nonces(len(batch.messages))
    for row, (context, _, entry, identity, at, _) in enumerate(batch.messages, batch.first_row):
        id_, seal, sequence = context.id, context.seal, entry.sequence
        known: bytes | int = 0
        if identity is not None:
            known = seal.seal(Kind.IDENTITY, id_, sequence, encode_identity(identity, at.unix))
        expires_at = 0.0 if entry.critical else at.unix + entry.expires_at - at.monotonic
        message = encode_message(entry.frame, entry.size, expires_at, entry.critical, entry.stream)
        values += (row, id_, sequence, known, bytearray(seal.seal(_MESSAGE, id_, sequence, message, next(nonces))))
    return values


@cache
def _insertion(statement: str, row: str, rows: int, otherwise: str) -> str:
    return statement + ",".join([row] * rows) + otherwise


@cache
def _among(statement: str, places: int) -> str:
    return f"{statement}({','.join('?' * places)})"
