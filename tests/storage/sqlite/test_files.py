"""The database and its key file: made private, taken by one process, refused where they cannot be used."""

from __future__ import annotations

import os
import sqlite3
import stat
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from sidecar.core.writes import WriteBatch
from sidecar.security.files import SettingError
from sidecar.security.storage_key import KEY_BYTES, load_storage_key
from sidecar.storage.sqlite.database import APPLICATION_ID, open_database
from sidecar.storage.sqlite.errors import StoreInUse, StoreUnusable
from sidecar.storage.sqlite.store import SqliteOutboxStore
from tests.storage.sqlite.stage import KEY, SEAL, error, read


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# Made


def test_the_files_are_made_private(tmp_path: Path) -> None:
    path = tmp_path / "outbox.db"
    before = os.umask(0)
    try:
        with closing(open_database(path, SEAL)) as connection:
            connection.execute("UPDATE checks SET name = name")
            assert {file.name: mode(file) for file in tmp_path.iterdir()} == {
                "outbox.db": 0o600,
                "outbox.db-wal": 0o600,
            }
    finally:
        os.umask(before)
    assert [file.name for file in tmp_path.iterdir()] == ["outbox.db"]


def test_an_empty_file_is_as_good_as_none(tmp_path: Path) -> None:
    path = tmp_path / "outbox.db"
    path.touch()
    assert read(path).contexts == []


def test_a_name_is_a_file_of_that_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To SQLite some are none: a store in memory would say DISK and keep nothing."""
    monkeypatch.chdir(tmp_path)
    for name in (":memory:", "file:outbox.db?mode=memory", "a b%3f#.db"):
        open_database(Path(name), SEAL).close()
        assert (tmp_path / name).stat().st_size > 0
        assert read(Path(name)).contexts == []


def test_each_commit_is_synced_and_what_is_deleted_is_overwritten(tmp_path: Path) -> None:
    with closing(open_database(tmp_path / "outbox.db", SEAL)) as connection:

        def said(pragma: str) -> object:
            return connection.execute(f"PRAGMA {pragma}").fetchone()[0]

        assert [said(name) for name in ("synchronous", "secure_delete", "journal_mode")] == [2, 1, "wal"]
        assert [said(name) for name in ("locking_mode", "temp_store", "application_id")] == [
            "exclusive",
            2,
            APPLICATION_ID,
        ]


# One process


def test_a_second_store_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "outbox.db"
    with closing(open_database(path, SEAL)), pytest.raises(StoreInUse):
        SqliteOutboxStore(path, KEY, WriteBatch())


def test_whoever_reads_the_file_meanwhile_has_it(kept: Path) -> None:
    with closing(sqlite3.connect(kept, isolation_level=None)) as other:
        other.execute("BEGIN")
        other.execute("SELECT * FROM messages").fetchall()
        with pytest.raises(StoreInUse):
            SqliteOutboxStore(kept, KEY, WriteBatch())
        other.execute("COMMIT")
    assert len(read(kept).contexts) == 2


# A disk that fails


class FailingConnection(sqlite3.Connection):
    """One whose disk fails as soon as it is written to."""

    def execute(self, sql: str, parameters: Any = (), /) -> sqlite3.Cursor:
        if sql.startswith(("BEGIN", "INSERT")):
            raise error(sqlite3.SQLITE_IOERR)
        return super().execute(sql, parameters)


def unable(*_: Any, **__: Any) -> sqlite3.Connection:
    raise error(sqlite3.SQLITE_CANTOPEN)


@pytest.mark.parametrize(
    ("factory", "rule"),
    [(unable, "the file cannot be opened"), (FailingConnection, "the file cannot be opened, read and written")],
)
def test_a_disk_that_fails_is_told(tmp_path: Path, factory: Callable[..., sqlite3.Connection], rule: str) -> None:
    path = tmp_path / "outbox.db"
    with pytest.raises(StoreUnusable) as raised:
        open_database(path, SEAL, factory=factory)
    assert str(raised.value) == f"storage.path: {rule}"
    assert read(path).contexts == []


# The key's file


def test_a_key_is_made_once_and_private(tmp_path: Path) -> None:
    path = tmp_path / "outbox.key"
    before = os.umask(0)
    try:
        key = load_storage_key(path, store_exists=lambda: False)
    finally:
        os.umask(before)
    assert len(key) == KEY_BYTES
    assert mode(path) == 0o600
    assert (
        load_storage_key(path, store_exists=lambda: True) == load_storage_key(path, store_exists=lambda: False) == key
    )
    other = load_storage_key(tmp_path / "other.key", store_exists=lambda: False)
    assert other != key
    assert sorted(file.name for file in tmp_path.iterdir()) == ["other.key", "outbox.key"]


@pytest.mark.parametrize(
    ("text", "permissions", "rule"),
    [
        ("5a" * 32, 0o640, "the file must not be open to group or others (mode 0600)"),
        ("5a" * 32, 0o604, "the file must not be open to group or others (mode 0600)"),
        ("", 0o600, "must hold 64 hexadecimal digits that the sidecar wrote"),
        ("5a" * 31, 0o600, "must hold 64 hexadecimal digits that the sidecar wrote"),
        ("5a" * 33, 0o600, "must hold 64 hexadecimal digits that the sidecar wrote"),
        ("5g" * 32, 0o600, "must hold 64 hexadecimal digits that the sidecar wrote"),
        ("é" * 64, 0o600, "must hold 64 hexadecimal digits that the sidecar wrote"),
        ("5a" * 200_000, 0o600, "the file must be at most 262144 bytes"),
    ],
)
def test_a_key_file_that_is_not_good_is_refused(tmp_path: Path, text: str, permissions: int, rule: str) -> None:
    path = tmp_path / "outbox.key"
    path.write_text(text)
    path.chmod(permissions)
    with pytest.raises(SettingError) as raised:
        load_storage_key(path, store_exists=lambda: False)
    assert str(raised.value) == f"storage.key_file: {rule}"
    assert path.read_text() == text


def prepare_nothing(path: Path) -> None: ...


def prepare_file_above(path: Path) -> None:
    path.parent.rmdir()
    path.parent.touch()


@pytest.mark.parametrize(
    ("prepare", "name"),
    [(prepare_nothing, "x" * 300), (prepare_nothing, "missing/outbox.key"), (prepare_file_above, "outbox.key")],
)
def test_a_key_file_that_cannot_be_made_is_refused(tmp_path: Path, prepare: Callable[[Path], None], name: str) -> None:
    folder = tmp_path / "keys"
    folder.mkdir()
    prepare(folder / name)
    with pytest.raises(SettingError) as raised:
        load_storage_key(folder / name, store_exists=lambda: False)
    assert raised.value.setting == "storage.key_file"
    assert raised.value.rule.startswith("the file cannot be ")


def test_a_key_that_is_gone_is_not_made_anew(tmp_path: Path) -> None:
    with pytest.raises(SettingError) as raised:
        load_storage_key(tmp_path / "outbox.key", store_exists=lambda: True)
    assert raised.value.rule == "must be the key that the database was made with; the file is missing"
    assert not (tmp_path / "outbox.key").exists()
