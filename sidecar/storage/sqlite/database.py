"""The database file: whether it is ours and whole, its schema and migrations, and what it holds at the start.

A file that is not ours, or is damaged, is refused and left as it was: it is looked at read-only first. Blocking.
"""

from __future__ import annotations

import os
import sqlite3
from collections import defaultdict
from contextlib import closing, suppress
from pathlib import Path
from typing import Final, NamedTuple

from sidecar.core.stored import RestoredContext, StoredMessage, StoredState
from sidecar.storage.sqlite.errors import StoreInUse, StoreUnusable
from sidecar.storage.sqlite.rows import Malformed, decode_context, decode_message, decode_state
from sidecar.storage.sqlite.sealing import Kind, Seal, Unsealable

APPLICATION_ID: Final = 0x77736364
"""In the header of our files (sqlite.org/fileformat2.html#application_id): "wscd"."""

MIGRATIONS: Final = (
    """
    CREATE TABLE checks (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
    CREATE TABLE contexts (id INTEGER PRIMARY KEY, key BLOB NOT NULL, identity BLOB NOT NULL);
    CREATE TABLE states (context INTEGER PRIMARY KEY, state BLOB NOT NULL);
    CREATE TABLE messages (
        id INTEGER PRIMARY KEY, context INTEGER NOT NULL, sequence INTEGER NOT NULL, identity BLOB, message BLOB
    );
    """,
)
"""From each version of the schema to the next; a file of version n has had the first n. Only ever added to."""

_HEADER_BYTES: Final = 100
_MAGIC: Final = b"SQLite format 3\0"
_CHECK_NAME: Final = "key"
_CHECK_VALUE: Final = b"ws-sidecar outbox store"
_DAMAGED: Final = "the file is damaged; restore it, or move it away to begin anew"


class LoadedContext(NamedTuple):
    """One context of the file: its row, its seal, the rows of its messages by sequence, and what they say."""

    id: int
    seal: Seal
    frames: dict[int, int]
    identities: dict[int, int]
    restored: RestoredContext


def open_database(path: Path, seal: Seal) -> sqlite3.Connection:
    """Open the file for the one process that may hold it, made (mode 0600) or migrated where need be.

    `seal` is the key file's. Raises StoreUnusable, StoreInUse.
    """
    try:
        is_new = _look_at(path)
        connection = sqlite3.connect(path, timeout=0.0, isolation_level=None, check_same_thread=False)
    except OSError as error:
        raise StoreUnusable("path", f"the file cannot be opened: {error.strerror}") from None
    except sqlite3.Error:
        raise StoreUnusable("path", "the file cannot be opened") from None
    try:
        _take(connection)
        _migrate(connection)
        _check_key(connection, seal, is_new=is_new)
        _configure(connection)
    except sqlite3.DatabaseError as error:
        connection.close()
        raise _told(error) from None
    except StoreUnusable:
        connection.close()
        raise
    return connection


def load(connection: sqlite3.Connection, seal: Seal) -> list[LoadedContext]:
    """Everything in the file. Raises StoreUnusable when any of it cannot be read."""
    try:
        rows: defaultdict[int, list[tuple[int, int, bytes | None, bytes | None]]] = defaultdict(list)
        for context, row, sequence, identity, message in connection.execute(
            "SELECT context, id, sequence, identity, message FROM messages ORDER BY context, sequence"
        ):
            rows[context].append((row, sequence, identity, message))
        states: dict[int, bytes] = dict(connection.execute("SELECT context, state FROM states"))
        return [
            _load_context(seal, row, states.get(row[0]), rows.get(row[0], []))
            for row in connection.execute("SELECT id, key, identity FROM contexts ORDER BY id")
        ]
    except (sqlite3.Error, Unsealable, Malformed):
        raise StoreUnusable("path", _DAMAGED) from None


def next_ids(connection: sqlite3.Connection) -> tuple[int, int]:
    """The first context and message rows that were never used by what is in the file."""
    (context,) = connection.execute("SELECT coalesce(max(id), 0) + 1 FROM contexts").fetchone()
    (message,) = connection.execute("SELECT coalesce(max(id), 0) + 1 FROM messages").fetchone()
    return context, message


def _load_context(
    seal: Seal,
    row: tuple[int, bytes, bytes],
    state: bytes | None,
    messages: list[tuple[int, int, bytes | None, bytes | None]],
) -> LoadedContext:
    context, wrapped, identity = row
    own = Seal(seal.open(Kind.KEY, context, 0, wrapped))
    stored = decode_context(own.open(Kind.CONTEXT, context, 0, identity))
    kept: list[StoredMessage] = []
    frames, identities = {}, {}
    for message_row, sequence, known, message in messages:
        if message is not None:
            frames[sequence] = message_row
            message = own.open(Kind.MESSAGE, context, sequence, message)  # noqa: PLW2901 - the same, readable
        if known is not None:
            identities[sequence] = message_row
            known = own.open(Kind.IDENTITY, context, sequence, known)  # noqa: PLW2901 - the same, readable
        kept.append(decode_message(sequence, message, known))
    if state is None:
        stands = StoredState(0, 0, 0, (), (), -1, stored.created_at)
    else:
        stands = decode_state(own.open(Kind.STATE, context, 0, state))
    return LoadedContext(context, own, frames, identities, RestoredContext(stored, stands, kept))


def _look_at(path: Path) -> bool:
    """Whether the file is yet to be made. Raises StoreUnusable for one that is not ours, or not whole."""
    try:
        with open(path, "rb") as file:
            header = file.read(_HEADER_BYTES)
    except FileNotFoundError:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        return True
    if not header:
        return True
    if len(header) < _HEADER_BYTES or not header.startswith(_MAGIC):
        raise StoreUnusable("path", "must be a database of the sidecar's own; the file is something else")
    if int.from_bytes(header[68:72], "big") != APPLICATION_ID:
        raise StoreUnusable("path", "must be a database of the sidecar's own; the file is another program's")
    if int.from_bytes(header[60:64], "big") > len(MIGRATIONS):
        raise StoreUnusable("path", "the file was written by a newer version of the sidecar")
    _check_whole(path)
    return False


def _check_whole(path: Path) -> None:
    """Read-only, so that nothing of a damaged file is changed, not even by taking its write-ahead log in."""
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", timeout=0.0, uri=True)) as connection:
            (answer,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.DatabaseError as error:
        raise _told(error) from None
    if answer != "ok":
        raise StoreUnusable("path", _DAMAGED)


def _take(connection: sqlite3.Connection) -> None:
    """Nobody else may have the file from here on."""
    connection.execute("PRAGMA locking_mode=EXCLUSIVE")
    connection.execute("BEGIN EXCLUSIVE")
    connection.execute("COMMIT")


def _migrate(connection: sqlite3.Connection) -> None:
    """Bring the schema up to date, each step whole or not at all."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version == 0:
        connection.execute(f"PRAGMA application_id={APPLICATION_ID}")
    for number, script in enumerate(MIGRATIONS[version:], start=version + 1):
        connection.executescript(f"BEGIN EXCLUSIVE; {script} PRAGMA user_version={number}; COMMIT;")


def _check_key(connection: sqlite3.Connection, seal: Seal, *, is_new: bool) -> None:
    row = connection.execute("SELECT value FROM checks WHERE name = ?", (_CHECK_NAME,)).fetchone()
    if row is None:
        (contexts,) = connection.execute("SELECT count(*) FROM contexts").fetchone()
        if contexts and not is_new:
            raise StoreUnusable("path", _DAMAGED)
        sealed = seal.seal(Kind.CHECK, 0, 0, _CHECK_VALUE)
        connection.execute("INSERT INTO checks VALUES (?, ?)", (_CHECK_NAME, sealed))
        return
    with suppress(Unsealable):
        if seal.open(Kind.CHECK, 0, 0, row[0]) == _CHECK_VALUE:
            return
    raise StoreUnusable("key_file", "must be the key that the database was made with")


def _configure(connection: sqlite3.Connection) -> None:
    """sqlite.org/pragma.html. Each commit is synced; what is deleted is overwritten."""
    connection.execute("PRAGMA secure_delete=ON")
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("PRAGMA wal_autocheckpoint=2000")
    connection.execute("PRAGMA cache_size=-16384")
    connection.execute("PRAGMA temp_store=MEMORY")


def _told(error: sqlite3.DatabaseError) -> StoreUnusable | StoreInUse:
    """What an error of SQLite's means for the start (sqlite.org/rescode.html)."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}:
        return StoreInUse()
    if code in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}:
        return StoreUnusable("path", _DAMAGED)
    return StoreUnusable("path", "the file cannot be opened, read and written")
