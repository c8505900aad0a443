"""Files that are not the store's, or not whole any more: refused in its own words, and left as they were."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from hashlib import sha256
from pathlib import Path

import pytest

from sidecar.core.writes import WriteBatch
from sidecar.storage.sqlite.database import MIGRATIONS, is_there, open_database
from sidecar.storage.sqlite.errors import StoreInUse, StoreUnusable
from sidecar.storage.sqlite.store import SqliteOutboxStore
from tests.storage.sqlite.stage import KEY, SEAL, copied, read

DAMAGED = "the file is damaged; restore it, or move it away to begin anew"
OURS = "must be a database of the sidecar's own; the file is "
NEWER = "the file was written by a newer version of the sidecar"


def contents(folder: Path) -> dict[str, str]:
    """What stands in the folder, but for the empty log and the index of it that whoever reads such a file makes."""
    files = (path for path in folder.glob("*") if path.is_file() and not path.name.endswith("-shm"))
    seen = {path.name: path.read_bytes() for path in files}
    return {name: sha256(data).hexdigest() for name, data in seen.items() if data or not name.endswith("-wal")}


def refused(path: Path, key: bytes = KEY) -> str:
    """The rule that a start with that file must end with, and nothing of the folder is changed."""
    before = contents(path.parent)
    with pytest.raises(StoreUnusable) as raised:
        SqliteOutboxStore(path, key, WriteBatch())
    assert contents(path.parent) == before
    assert str(raised.value) == f"{raised.value.setting}: {raised.value.rule}"
    return str(raised.value)


# Not ours


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"a text of somebody's\n" * 9, "something else"),
        (b"x", "something else"),
        (b"SQLite format 3\0", "something else"),
        (bytes(4096), "something else"),
    ],
)
def test_what_is_no_database_is_refused(tmp_path: Path, data: bytes, what: str) -> None:
    path = tmp_path / "outbox.db"
    path.write_bytes(data)
    assert refused(path) == f"storage.path: {OURS}{what}"


def test_another_programs_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "outbox.db"
    with closing(sqlite3.connect(path)) as other:
        other.execute("PRAGMA journal_mode=WAL")
        other.execute("CREATE TABLE theirs (a)")
        other.commit()
        theirs = copied(path, tmp_path / "theirs")
    assert refused(theirs) == f"storage.path: {OURS}another program's"


def test_a_folder_and_a_pipe_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe"):
        assert refused(path) == "storage.path: must be a regular file"


@pytest.mark.parametrize("name", ["missing/outbox.db", "x" * 300, "file/outbox.db", "loop"])
def test_a_path_that_leads_nowhere_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    assert refused(tmp_path / name).startswith("storage.path: the file cannot be opened: ")


@pytest.mark.parametrize("in_log", [False, True])
def test_a_newer_version_is_refused(tmp_path: Path, in_log: bool) -> None:
    """Also where its log says so and its header does not yet: an older sidecar would ruin what it does not know."""
    path = tmp_path / "outbox.db"
    with closing(open_database(path, SEAL)) as connection:
        connection.execute(f"PRAGMA user_version={len(MIGRATIONS) + 1}")
        newer = copied(path, tmp_path / "newer")
    if not in_log:
        newer = path
    assert refused(newer) == f"storage.path: {NEWER}"


# Damaged


def test_a_file_that_was_cut_off_is_refused(closed: Path, tmp_path: Path) -> None:
    whole = closed.read_bytes()
    for number, size in enumerate(range(100, len(whole), 1_000)):
        path = tmp_path / f"cut-{number}" / "outbox.db"
        path.parent.mkdir()
        path.write_bytes(whole[:size])
        assert refused(path) == f"storage.path: {DAMAGED}"


def test_a_flipped_byte_is_found_or_means_nothing(closed: Path, tmp_path: Path) -> None:
    """Every seventh that is in use: a start is refused, in our own words, or has all that there was."""
    whole = closed.read_bytes()
    path = tmp_path / "flipped" / "outbox.db"
    path.parent.mkdir()
    expected = [context.restored for context in read(closed).contexts]
    found = 0
    for at in (index for index, byte in enumerate(whole) if byte and index % 7 == 0):
        for flip in (0x01, 0xFF):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ flip]) + whole[at + 1 :])
            try:
                assert [context.restored for context in read(path).contexts] == expected, at
            except StoreUnusable:
                assert path.read_bytes()[at] == whole[at] ^ flip
                found += 1
            for beside in path.parent.iterdir():
                beside.unlink()
    assert found > 300


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE messages SET message = substr(message, 1, 20) || x'00' || substr(message, 22) WHERE id = 1",
        "UPDATE messages SET identity = x'' WHERE id = 1",
        "UPDATE messages SET message = 'a text where bytes were' WHERE id = 1",
        "UPDATE messages SET message = 7 WHERE id = 1",
        "UPDATE messages SET sequence = -1 WHERE id = 1",
        "UPDATE messages SET sequence = 'first' WHERE id = 1",
        "UPDATE messages SET context = 9 WHERE id = 1",
        "UPDATE messages SET context = 2 WHERE id = 1",
        "UPDATE keys SET context = -5 WHERE context = 1",
        "DELETE FROM keys WHERE context = 1",
        "DELETE FROM contexts WHERE id = 1",
        "DELETE FROM contexts",
        "UPDATE contexts SET id = 3 WHERE id = 1",
        "INSERT INTO states VALUES (3, x'00')",
        "DELETE FROM checks",
        "DROP TABLE checks",
        "DROP TABLE messages",
        "UPDATE messages SET identity = NULL, message = NULL WHERE id = 1",
        "UPDATE checks SET name = 'other'",
        # rows exchanged
        "UPDATE messages SET message = (SELECT other.message FROM messages AS other WHERE other.id = 4 - messages.id)"
        " WHERE id IN (1, 3)",
        "UPDATE messages SET sequence = 3 - sequence WHERE context = 2",
        "UPDATE messages SET context = 3 - context",
        "UPDATE contexts SET identity = (SELECT b.identity FROM contexts AS b WHERE b.id = 3 - contexts.id)",
        "UPDATE keys SET key = (SELECT other.key FROM keys AS other WHERE other.context = 3 - keys.context)",
        "UPDATE messages SET message = identity, identity = message WHERE id = 1",
    ],
)
def test_what_was_changed_by_others_is_refused_and_left(kept: Path, tmp_path: Path, change: str) -> None:
    with closing(sqlite3.connect(kept, isolation_level=None)) as other:
        other.execute(change)
        path = copied(kept, tmp_path / "changed")
    assert refused(path) == f"storage.path: {DAMAGED}"


def test_a_check_that_is_no_ones_is_another_key(kept: Path) -> None:
    with closing(sqlite3.connect(kept, isolation_level=None)) as other:
        other.execute("UPDATE checks SET value = 'text'")
    assert refused(kept) == "storage.key_file: must be the key that the database was made with"


def test_another_key_is_refused(kept: Path, closed: Path) -> None:
    for path in (kept, closed):
        assert refused(path, bytes(32)) == "storage.key_file: must be the key that the database was made with"
        assert len(read(path).contexts) == 2


def test_what_is_damaged_inside_an_older_version_is_refused(kept: Path) -> None:
    """It can only be read once it is migrated; the connection is closed all the same."""
    with closing(sqlite3.connect(kept, isolation_level=None)) as other:
        other.execute("UPDATE messages SET identity = x'' WHERE id = 1")
    newer = (*MIGRATIONS, "CREATE TABLE later (a);")
    with pytest.raises(StoreUnusable):
        SqliteOutboxStore(kept, KEY, WriteBatch(), lambda path, seal: open_database(path, seal, migrations=newer))
    with closing(sqlite3.connect(kept, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")


# Looked at without the key


def test_whether_it_is_there_is_said_without_its_key(kept: Path, closed: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty.db"
    empty.touch()
    for path, there in ((kept, True), (closed, True), (empty, False), (tmp_path / "none.db", False)):
        before = contents(path.parent)
        assert is_there(path) is there
        assert contents(path.parent) == before
    with closing(open_database(closed, SEAL)), pytest.raises(StoreInUse):
        is_there(closed)
