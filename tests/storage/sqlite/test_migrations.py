"""The making of a file, and its way from one version to the next: each step whole or not at all, wherever it is cut."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from sidecar.storage.sqlite.database import APPLICATION_ID, MIGRATIONS, open_database
from sidecar.storage.sqlite.errors import StoreUnusable
from sidecar.storage.sqlite.sealing import Seal
from tests.storage.sqlite.stage import SEAL, copied, read


def test_a_file_with_data_is_migrated(kept: Path) -> None:
    newer = (
        *MIGRATIONS,
        "ALTER TABLE contexts ADD COLUMN seen INTEGER; UPDATE contexts SET seen = id * 10;",
        "CREATE TABLE later (a);",
    )
    with closing(open_database(kept, SEAL, migrations=newer)) as connection:
        assert connection.execute("SELECT seen FROM contexts").fetchall() == [(10,), (20,)]
        assert connection.execute("PRAGMA user_version").fetchone() == (3,)
        assert connection.execute("SELECT count(*) FROM messages").fetchone() == (3,)
    with closing(open_database(kept, SEAL, migrations=newer)) as connection:
        assert connection.execute("SELECT seen FROM contexts").fetchall() == [(10,), (20,)]


def test_a_migration_is_made_whole_or_not_at_all(kept: Path) -> None:
    broken = (*MIGRATIONS, "CREATE TABLE good (a);", "DELETE FROM messages; CREATE TABLE bad (a); NOT SQL;")
    with pytest.raises(StoreUnusable):
        open_database(kept, SEAL, migrations=broken)
    with closing(sqlite3.connect(kept)) as other:
        names = {name for (name,) in other.execute("SELECT name FROM sqlite_schema")}
        assert other.execute("PRAGMA user_version").fetchone() == (2,)
        assert other.execute("SELECT count(*) FROM messages").fetchone() == (3,)
    assert "good" in names
    assert "bad" not in names


def test_an_older_file_of_another_key_is_refused(kept: Path) -> None:
    """It is migrated all the same: what is in it is as it was."""
    newer = (*MIGRATIONS, "CREATE TABLE later (a);")
    with pytest.raises(StoreUnusable) as raised:
        open_database(kept, Seal(bytes(32)), migrations=newer)
    assert str(raised.value) == "storage.key_file: must be the key that the database was made with"
    with closing(open_database(kept, SEAL, migrations=newer)) as connection:
        assert connection.execute("SELECT count(*) FROM messages").fetchone() == (3,)


class Killed(Exception):
    """Nothing more is done."""


def made_until(step: int, folder: Path) -> bool:
    """Make a file, and copy it as it is after that many statements. Whether there were so many."""
    path = folder / "making.db"
    left = [step]

    class Dying(sqlite3.Connection):
        def _count(self) -> None:
            if left[0] == 0:
                copied(path, folder / "left")
                raise Killed
            left[0] -= 1

        def execute(self, sql: str, parameters: object = (), /) -> sqlite3.Cursor:
            self._count()
            return super().execute(sql, parameters)  # type: ignore[arg-type]

        def executescript(self, sql_script: str, /) -> sqlite3.Cursor:
            cursor = self.cursor()
            for statement in sql_script.split(";"):
                self._count()
                cursor.execute(statement)
            return cursor

    connections: list[sqlite3.Connection] = []

    def factory(*arguments: object, **members: object) -> sqlite3.Connection:
        connections.append(Dying(*arguments, **members))  # type: ignore[arg-type]
        return connections[0]

    try:
        open_database(path, SEAL, factory=factory).close()
    except Killed:
        connections[0].close()
        return False
    return True


def test_the_making_may_be_cut_off_anywhere(tmp_path: Path) -> None:
    for step in range(100):
        folder = tmp_path / str(step)
        folder.mkdir()
        if made_until(step, folder):
            break
        assert read(folder / "left" / "making.db").contexts == []
    assert step > 15


def test_a_step_that_was_cut_off_in_the_middle_of_its_pages_is_undone(tmp_path: Path) -> None:
    """A journal is left: the pages in the file are not those that were committed."""
    path = tmp_path / "outbox.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as cut:
        cut.execute(f"PRAGMA application_id={APPLICATION_ID}")
        cut.execute("PRAGMA cache_size=2")
        cut.execute("BEGIN EXCLUSIVE")
        cut.execute("CREATE TABLE messages (a)")
        cut.executemany("INSERT INTO messages VALUES (?)", [(bytes(2_000),)] * 50)
        left = copied(path, tmp_path / "left")
    assert Path(f"{left}-journal").stat().st_size > 0
    assert read(left).contexts == []
    assert not Path(f"{left}-journal").exists()
