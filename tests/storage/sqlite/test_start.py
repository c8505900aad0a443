"""`sidecar serve` with a store that cannot be used: one line that names the setting and the rule, never a value."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from sidecar.storage.sqlite.database import MIGRATIONS, open_database
from tests.security.start_stage import CANARY, Forker, Stage, forking
from tests.storage.sqlite.stage import KEY, SEAL

SERVE = ("serve", "--config", "sidecar.toml")
KEYS = 'key_file = "context.keys"'
DAMAGED = "the file is damaged; restore it, or move it away to begin anew"
ANOTHER = "must be the key that the database was made with"


@pytest.fixture(scope="module")
def forker() -> Iterator[Forker]:
    with forking() as started:
        yield started


@pytest.fixture
def stage(tmp_path: Path, forker: Forker) -> Stage:
    return Stage(tmp_path / "stage", forker)


def furnished(stage: Stage) -> None:
    """A store that was made, with its key."""
    open_database(stage.folder / "outbox.db", SEAL).close()
    stage.write("outbox.key", KEY.hex())


def text(stage: Stage) -> None:
    stage.write("outbox.key", KEY.hex())
    stage.write("outbox.db", CANARY * 20)


def theirs(stage: Stage) -> None:
    stage.write("outbox.key", KEY.hex())
    with closing(sqlite3.connect(stage.folder / "outbox.db")) as other:
        other.execute("CREATE TABLE theirs (a)")


def folder(stage: Stage) -> None:
    (stage.folder / "outbox.db").mkdir()


def pipe(stage: Stage) -> None:
    os.mkfifo(stage.folder / "outbox.db")


def newer(stage: Stage) -> None:
    furnished(stage)
    with closing(sqlite3.connect(stage.folder / "outbox.db")) as other:
        other.execute(f"PRAGMA user_version={len(MIGRATIONS) + 1}")


def damaged(stage: Stage) -> None:
    furnished(stage)
    path = stage.folder / "outbox.db"
    data = bytearray(path.read_bytes())
    data[4096 * 2 : 4096 * 3] = bytes(4096)
    path.write_bytes(data)


def without_key(stage: Stage) -> None:
    furnished(stage)
    (stage.folder / "outbox.key").unlink()


def another_key(stage: Stage) -> None:
    furnished(stage)
    stage.write("outbox.key", "7f3a" * 16)


def open_key(stage: Stage) -> None:
    furnished(stage)
    (stage.folder / "outbox.key").chmod(0o644)


def no_key(stage: Stage) -> None:
    stage.write("outbox.key", CANARY)


OURS = "must be a database of the sidecar's own; the file is "


@pytest.mark.parametrize(
    ("prepare", "line"),
    [
        (text, f"storage.path: {OURS}something else"),
        (theirs, f"storage.path: {OURS}another program's"),
        (pipe, "storage.path: must be a regular file"),
        (newer, "storage.path: the file was written by a newer version of the sidecar"),
        (damaged, f"storage.path: {DAMAGED}"),
        (without_key, f"storage.key_file: {ANOTHER}; the file is missing"),
        (another_key, f"storage.key_file: {ANOTHER}"),
        (open_key, "storage.key_file: the file must not be open to group or others (mode 0600)"),
        (no_key, "storage.key_file: must hold 64 hexadecimal digits that the sidecar wrote"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_the_start_is_refused_and_the_files_are_left(stage: Stage, prepare: Callable[[Stage], None], line: str) -> None:
    prepare(stage)
    storage = 'kind = "sqlite"\npath = "outbox.db"\nkey_file = "outbox.key"'
    stage.settle(context_tokens=KEYS, storage=storage)
    before = {name: seen for name, seen in stage.seen().items() if name.startswith("outbox.")}
    (done,) = stage.run(SERVE)
    assert (done.code, done.out, done.lines) == (78, "", [line])
    after = {name: seen for name, seen in stage.seen().items() if name in before}
    assert after == before


@pytest.mark.parametrize(
    ("path", "key_file", "line"),
    [
        ("x" * 300, "outbox.key", "storage.path: the file cannot be opened: File name too long"),
        ("none/outbox.db", "outbox.key", "storage.path: the file cannot be opened: No such file or directory"),
        ("outbox.db", "x" * 300, "storage.key_file: the file cannot be read: File name too long"),
        ("outbox.db", "none/key", "storage.key_file: the file cannot be written: No such file or directory"),
        ("outbox.db", ".", "storage.key_file: must be a regular file"),
        (".", "outbox.key", "storage.path: must be a regular file"),
    ],
)
def test_a_path_that_leads_nowhere_is_refused(stage: Stage, path: str, key_file: str, line: str) -> None:
    stage.settle(context_tokens=KEYS, storage=f'kind = "sqlite"\npath = "{path}"\nkey_file = "{key_file}"')
    (done,) = stage.run(SERVE)
    assert (done.code, done.out, done.lines) == (78, "", [line])
    assert not any(name.startswith("outbox.") for name in stage.seen())


@pytest.mark.parametrize(
    ("prepare", "line"),
    [
        (text, f"storage.path: {OURS}something else"),
        (theirs, f"storage.path: {OURS}another program's"),
        (pipe, "storage.path: must be a regular file"),
        (newer, "storage.path: the file was written by a newer version of the sidecar"),
        (damaged, f"storage.path: {DAMAGED}"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_the_fault_of_the_file_is_told_before_that_of_its_key(
    stage: Stage, prepare: Callable[[Stage], None], line: str
) -> None:
    """A first start: whoever set a wrong path has no key file yet, and must not be sent to look for one."""
    prepare(stage)
    (stage.folder / "outbox.key").unlink(missing_ok=True)
    stage.settle(context_tokens=KEYS, storage='kind = "sqlite"\npath = "outbox.db"\nkey_file = "outbox.key"')
    before = stage.seen()["outbox.db"]
    (done,) = stage.run(SERVE)
    assert (done.code, done.out, done.lines) == (78, "", [line])
    assert stage.seen()["outbox.db"] == before
    assert "outbox.key" not in stage.seen()


def test_a_second_process_is_refused(stage: Stage) -> None:
    furnished(stage)
    stage.settle(context_tokens=KEYS, storage='kind = "sqlite"\npath = "outbox.db"\nkey_file = "outbox.key"')
    with closing(open_database(stage.folder / "outbox.db", SEAL)):
        done = stage.run_alone(*SERVE)
    assert (done.code, done.out) == (1, "")
    assert done.lines == ["storage.path: the database is in use by another process"]
