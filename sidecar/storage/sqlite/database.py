"""The database file: whether it is ours and whole, its schema and migrations, and what it holds at the start.

A file that is not ours, is damaged or has another key is refused and left as it was: all of it is read by a connection
that cannot write first. Blocking.
"""

from __future__ import annotations

import os
import sqlite3
import stat
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Final, NamedTuple

from sidecar.core.stored import RestoredContext, StoredInbound, StoredMessage, StoredState
from sidecar.storage.sqlite.errors import StoreInUse, StoreUnusable
from sidecar.storage.sqlite.rows import Malformed, decode_context, decode_inbound, decode_message, decode_state
from sidecar.storage.sqlite.sealing import NO_KEY, Kind, Seal, Unsealable
from sidecar.storage.sqlite.wal import frames_taken, is_damaged

APPLICATION_ID: Final = 0x77736364
"""In the header of our files (sqlite.org/fileformat2.html#application_id): "wscd"."""

MIGRATIONS: Final = (
    """
    CREATE TABLE checks (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
    CREATE TABLE keys (context INTEGER PRIMARY KEY, key BLOB NOT NULL);
    CREATE TABLE contexts (id INTEGER PRIMARY KEY, identity BLOB NOT NULL);
    CREATE TABLE states (context INTEGER PRIMARY KEY, state BLOB NOT NULL);
    CREATE TABLE messages (
        id INTEGER PRIMARY KEY, context INTEGER NOT NULL, sequence INTEGER NOT NULL, identity BLOB, message BLOB
    );
    """,
)
"""From each version of the schema to the next; a file of version n has had the first n. Only ever added to.

A row of `keys` is added at the end or overwritten in its place by as many bytes, and never deleted: SQLite moves the
rows beside one that goes, and what it moved can be read where it was, whatever `secure_delete` says.
"""

_HEADER_BYTES: Final = 100
_SCHEMA: Final = "SELECT type, name, tbl_name, sql FROM sqlite_schema"
_MAGIC: Final = b"SQLite format 3\0"
_CHECK_NAME: Final = "key"
_CHECK_VALUE: Final = b"ws-sidecar outbox store"
_DAMAGED: Final = "the file is damaged; restore it, or move it away to begin anew"

_LOG_DAMAGED: Final = "the log beside the file (-wal) is damaged; restore both, or move both away to begin anew"


class LoadedContext(NamedTuple):
    """One context of the file: its row, its seal, the rows of its messages by sequence, and what they say."""

    id: int
    seal: Seal
    frames: dict[int, int]
    identities: dict[int, int]
    restored: RestoredContext


class Loaded(NamedTuple):
    """All that is in the file. `unused` are rows of `keys` without one; the next rows are beyond all that there are."""

    contexts: list[LoadedContext]
    unused: list[int]
    next_context: int
    next_message: int


_MessageRow = tuple[int, int, bytes | None, bytes | None]


def open_database(
    path: Path,
    seal: Seal,
    *,
    migrations: Sequence[str] = MIGRATIONS,
    factory: Callable[..., sqlite3.Connection] = sqlite3.Connection,
) -> sqlite3.Connection:
    """Open the file for the one process that may hold it, made (mode 0600) or migrated where need be.

    `seal` is the key file's, `factory` makes the connection that may write. Raises StoreUnusable, StoreInUse.
    """
    path = path.absolute()
    with _opening():
        if _is_ours(path, len(migrations)):
            _check_whole(path, seal, migrations)
        connection = factory(path, timeout=0.0, isolation_level=None, check_same_thread=False)
    try:
        _take(connection)
        _migrate(connection, migrations)
        if not _has_key(connection, seal):
            sealed = seal.seal(Kind.CHECK, 0, 0, _CHECK_VALUE)
            connection.execute("INSERT INTO checks VALUES (?, ?)", (_CHECK_NAME, sealed))
        _configure(connection)
    except sqlite3.DatabaseError as error:
        connection.close()
        raise _told(error) from None
    except StoreUnusable:
        connection.close()
        raise
    return connection


def is_there(path: Path) -> bool:
    """Whether the file is a database of ours, as whole as can be seen without its key; False: it has yet to be made.

    Makes and changes nothing. Raises StoreUnusable, StoreInUse.
    """
    path = path.absolute()
    with _opening():
        try:
            path.lstat()
        except FileNotFoundError:
            path.parent.stat()
            return False
        if not _is_ours(path, len(MIGRATIONS)):
            return False
        _check_whole(path, None, MIGRATIONS)
    return True


def load(connection: sqlite3.Connection, seal: Seal) -> Loaded:
    """Everything in the file. Raises StoreUnusable when any of it cannot be read, or belongs to nothing."""
    try:
        messages: defaultdict[int, list[_MessageRow]] = defaultdict(list)
        last_message = 0
        for context, row, sequence, identity, message in connection.execute(
            "SELECT context, id, sequence, identity, message FROM messages ORDER BY context, sequence"
        ):
            messages[context].append((row, sequence, identity, message))
            last_message = max(last_message, row)
        states: dict[int, bytes] = dict(connection.execute("SELECT context, state FROM states"))
        keys: dict[int, bytes] = dict(connection.execute("SELECT context, key FROM keys ORDER BY context"))
        contexts = [
            _load_context(seal, row, keys.get(row, NO_KEY), identity, states.pop(row, None), messages.pop(row, []))
            for row, identity in connection.execute("SELECT id, identity FROM contexts ORDER BY id")
        ]
    except (sqlite3.Error, Unsealable, Malformed):
        raise StoreUnusable("path", _DAMAGED) from None
    unused = [row for row, key in keys.items() if key == NO_KEY]
    if states or messages or len(contexts) + len(unused) != len(keys):
        raise StoreUnusable("path", _DAMAGED)
    return Loaded(contexts, unused, max(keys, default=0) + 1, last_message + 1)


def _load_context(
    seal: Seal, context: int, wrapped: bytes, identity: bytes, state: bytes | None, messages: list[_MessageRow]
) -> LoadedContext:
    own = Seal(seal.open(Kind.KEY, context, 0, wrapped))
    stored = decode_context(own.open(Kind.CONTEXT, context, 0, identity))
    kept: list[StoredMessage] = []
    inbound: list[StoredInbound] = []
    frames, identities = {}, {}
    for message_row, sequence, known, message in messages:
        if message is not None:
            frames[sequence] = message_row
            message = own.open(Kind.MESSAGE, context, sequence, message)  # noqa: PLW2901 - the same, readable
        if known is not None:
            identities[sequence] = message_row
            known = own.open(Kind.IDENTITY, context, sequence, known)  # noqa: PLW2901 - the same, readable
        row = decode_message(sequence, message, known)
        if sequence < 0:
            inbound.append(decode_inbound(-sequence, row))
        else:
            kept.append(row)
    if state is None:
        stands = StoredState(0, 0, 0, (), (), -1, stored.created_at)
    else:
        stands = decode_state(own.open(Kind.STATE, context, 0, state))
    return LoadedContext(context, own, frames, identities, RestoredContext(stored, stands, kept, inbound[::-1]))


@contextmanager
def _opening() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreUnusable("path", f"the file cannot be opened: {error.strerror}") from None
    except sqlite3.Error:
        raise StoreUnusable("path", "the file cannot be opened") from None


def _is_ours(path: Path, newest: int) -> bool:
    """False for a file that is empty, or made now. Raises StoreUnusable for one that is not ours, and OSError."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        return False
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise StoreUnusable("path", "must be a regular file")
        header = os.read(descriptor, _HEADER_BYTES)
    finally:
        os.close(descriptor)
    if not header:
        return False
    if len(header) < _HEADER_BYTES or not header.startswith(_MAGIC):
        raise StoreUnusable("path", "must be a database of the sidecar's own; the file is something else")
    if int.from_bytes(header[68:72], "big") != APPLICATION_ID:
        raise StoreUnusable("path", "must be a database of the sidecar's own; the file is another program's")
    _check_version(int.from_bytes(header[60:64], "big"), newest)
    return True


def _check_version(version: int, newest: int) -> None:
    if version > newest:
        raise StoreUnusable("path", "the file was written by a newer version of the sidecar")


def _check_whole(path: Path, seal: Seal | None, migrations: Sequence[str]) -> None:
    """Read-only, so that nothing of a damaged file is changed, not even by taking its write-ahead log in.

    Without a seal what needs none is checked. The version once more: the log may hold a later one than the header. An
    older file is read when it is migrated.
    """
    try:
        with (
            ExitStack() as held,
            closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", timeout=0.0, uri=True)) as connection,
        ):
            _check_log(path, connection, held)
            (answer,) = connection.execute("PRAGMA quick_check(1)").fetchone()
            if answer != "ok":
                raise StoreUnusable("path", _DAMAGED)
            version = _version(connection)
            _check_version(version, len(migrations))
            _check_schema(connection, migrations[:version])
            if seal is not None and version == len(migrations):
                _has_key(connection, seal)
                load(connection, seal)
    except sqlite3.DatabaseError as error:
        # A step of the making, or of a migration, was cut off: the connection that may write undoes it.
        if getattr(error, "sqlite_errorcode", 0) != sqlite3.SQLITE_READONLY_ROLLBACK:
            raise _told(error) from None
    except UnicodeDecodeError:  # what SQLite says of a name that is none any more
        raise StoreUnusable("path", _DAMAGED) from None


def _check_log(path: Path, connection: sqlite3.Connection, held: ExitStack) -> None:
    """Whether SQLite has taken of the log all that had been synced. The transaction stays open: nobody may write it.

    The index is closed behind the connection: closed before, it would give up the locks that the connection has on it.
    """
    connection.execute("BEGIN")
    _version(connection)
    (page_size,) = connection.execute("PRAGMA page_size").fetchone()
    taken = 0
    with suppress(FileNotFoundError):
        index = open(f"{path}-shm", "rb")  # noqa: SIM115 - see above
        taken = frames_taken(held.enter_context(index))
    if is_damaged(Path(f"{path}-wal"), page_size, taken):
        raise StoreUnusable("path", _LOG_DAMAGED)


def _check_schema(connection: sqlite3.Connection, migrations: Sequence[str]) -> None:
    """Its text is a part of the file that no seal is on."""
    with closing(sqlite3.connect(":memory:")) as good:
        good.executescript("".join(migrations))
        if not set(good.execute(_SCHEMA)) <= set(connection.execute(_SCHEMA)):
            raise StoreUnusable("path", _DAMAGED)


def _take(connection: sqlite3.Connection) -> None:
    """Nobody else may have the file from here on. An empty one gets its first page of it, and so is marked as ours."""
    connection.execute("PRAGMA locking_mode=EXCLUSIVE")
    connection.execute("PRAGMA synchronous=FULL")  # before the first commit: `_check_log` relies on each to be synced
    connection.execute("BEGIN EXCLUSIVE")
    if _version(connection) == 0:
        connection.execute(f"PRAGMA application_id={APPLICATION_ID}")
    connection.execute("COMMIT")


def _version(connection: sqlite3.Connection) -> int:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    return int(version)


def _migrate(connection: sqlite3.Connection, migrations: Sequence[str]) -> None:
    """Bring the schema up to date, each step whole or not at all."""
    version = _version(connection)
    for number, script in enumerate(migrations[version:], start=version + 1):
        connection.executescript(f"BEGIN EXCLUSIVE; {script} PRAGMA user_version={number}; COMMIT;")


def _has_key(connection: sqlite3.Connection, seal: Seal) -> bool:
    """Whether the file is this key's; False: it has yet to be anyone's. Raises StoreUnusable when it is another's."""
    row = connection.execute("SELECT value FROM checks WHERE name = ?", (_CHECK_NAME,)).fetchone()
    if row is None:
        (keys,) = connection.execute("SELECT count(*) FROM keys").fetchone()
        if keys:
            raise StoreUnusable("path", _DAMAGED)
        return False
    with suppress(Unsealable):
        if seal.open(Kind.CHECK, 0, 0, row[0]) == _CHECK_VALUE:
            return True
    raise StoreUnusable("key_file", "must be the key that the database was made with")


def _configure(connection: sqlite3.Connection) -> None:
    """sqlite.org/pragma.html. What is deleted is overwritten."""
    connection.execute("PRAGMA secure_delete=ON")
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA wal_autocheckpoint=2000")
    connection.execute("PRAGMA cache_size=-16384")
    connection.execute("PRAGMA temp_store=MEMORY")


def _told(error: sqlite3.DatabaseError) -> StoreUnusable | StoreInUse:
    """What an error of SQLite's means for the start (sqlite.org/rescode.html)."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}:
        return StoreInUse()
    if code in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR}:
        return StoreUnusable("path", _DAMAGED)
    return StoreUnusable("path", "the file cannot be opened, read and written")
