"""The write-ahead log: what was synced and has rotted is refused, what a crash can leave is taken."""

from __future__ import annotations

import sqlite3
import struct
from collections.abc import Callable, Iterable
from contextlib import closing
from io import BytesIO
from pathlib import Path

import pytest

from sidecar.storage.sqlite.database import open_database
from sidecar.storage.sqlite.wal import checksum, frames_taken, is_damaged
from tests.storage.sqlite.stage import SEAL, copied, read
from tests.storage.sqlite.test_refused import refused

DAMAGED = "storage.path: the log beside the file (-wal) is damaged; restore both, or move both away to begin anew"
PAGE = 4096
FRAME = 24 + PAGE
COMMITS = 5
ROWS = 150
"""Of one commit: some pages."""


def commit(connection: sqlite3.Connection, first: int, rows: int = ROWS) -> None:
    """So many keys that are none, in one commit."""
    connection.execute("BEGIN")
    connection.executemany("INSERT INTO keys VALUES (?, zeroblob(60))", ((first + n,) for n in range(rows)))
    connection.execute("COMMIT")


@pytest.fixture
def logged(tmp_path: Path) -> Path:
    """A database with COMMITS commits in its log, as a crash leaves it."""
    with closing(open_database(tmp_path / "made.db", SEAL)) as connection:
        for number in range(COMMITS):
            commit(connection, 1 + number * ROWS)
        return copied(tmp_path / "made.db", tmp_path / "logged")


def log_of(path: Path) -> Path:
    return Path(f"{path}-wal")


def ends(log: bytes) -> list[int]:
    """Where each commit's last frame begins."""
    return [at for at in range(32, len(log) - FRAME + 1, FRAME) if any(log[at + 4 : at + 8])]


def kept_rows(path: Path) -> int:
    return len(read(path).unused)


def changed(path: Path, folder: Path, change: Callable[[bytearray], None]) -> Path:
    """A copy whose log was changed."""
    copy = copied(path, folder)
    log = bytearray(log_of(copy).read_bytes())
    change(log)
    log_of(copy).write_bytes(log)
    return copy


def flipping(at: int, bits: int = 0x40) -> Callable[[bytearray], None]:
    def flip(log: bytearray) -> None:
        log[at] ^= bits

    return flip


def outcome(path: Path) -> int | None:
    """How many rows a start has, None where it is refused and nothing was changed."""
    if is_damaged(log_of(path), PAGE):
        assert refused(path) == DAMAGED
        return None
    return kept_rows(path)


def test_the_log_holds_what_these_tests_are_about(logged: Path) -> None:
    log = log_of(logged).read_bytes()
    assert len(ends(log)) == COMMITS
    assert len(log) > 32 + 3 * COMMITS * FRAME
    assert outcome(logged) == COMMITS * ROWS


def test_a_bit_that_flips_before_the_last_commit_is_refused(logged: Path, tmp_path: Path) -> None:
    """In the header, in the header of a frame, in a page; of a frame in the middle, and of one that commits."""
    log = log_of(logged).read_bytes()
    before_last = ends(log)[-2]
    frames = {32, 32 + FRAME, ends(log)[1], before_last - FRAME, before_last}
    places = [*range(32), *(frame + field for frame in frames for field in (2, 8, 15, 16, 23, 24, 24 + PAGE - 1))]
    for number, at in enumerate(places):
        path = changed(logged, tmp_path / f"flipped-{number}", flipping(at))
        assert outcome(path) is None, at


def test_sqlite_itself_goes_on_with_what_stands_before_the_damage(logged: Path, tmp_path: Path) -> None:
    """The way that docs/delivery.md gives to whoever was refused."""
    path = changed(logged, tmp_path / "flipped", flipping(ends(log_of(logged).read_bytes())[1]))
    assert outcome(path) is None
    with closing(sqlite3.connect(path)) as other:
        other.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    assert outcome(path) == ROWS


def test_whatever_flips_no_more_than_the_last_commit_is_lost(logged: Path, tmp_path: Path) -> None:
    log = log_of(logged).read_bytes()
    found = 0
    for number, at in enumerate(range(3, len(log), 1_511)):
        rows = outcome(changed(logged, tmp_path / f"flipped-{number}", flipping(at, 0xFF)))
        assert rows in {None, (COMMITS - 1) * ROWS}, at
        assert (rows is None) == (at < ends(log)[-2] + FRAME)
        found += rows is None
    assert found > 10


def test_a_log_that_was_cut_off_keeps_the_commits_that_are_whole(logged: Path, tmp_path: Path) -> None:
    log = log_of(logged).read_bytes()
    for number, size in enumerate([0, 1, 31, 32, 33, *range(100, len(log), 2_503)]):
        path = copied(logged, tmp_path / f"cut-{number}")
        log_of(path).write_bytes(log[:size])
        assert outcome(path) == sum(end + FRAME <= size for end in ends(log)) * ROWS


def test_a_last_commit_that_a_power_cut_tore_is_left_out(logged: Path, tmp_path: Path) -> None:
    """Its pages come to the disk in any order, so that its end may be there and its beginning not."""
    log = log_of(logged).read_bytes()
    for number, at in enumerate(range(ends(log)[-2] + FRAME, len(log), 512)):

        def tear(data: bytearray, at: int = at) -> None:
            data[at : at + 512] = b"\xee" * len(data[at : at + 512])

        assert outcome(changed(logged, tmp_path / f"torn-{number}", tear)) == (COMMITS - 1) * ROWS


def test_what_an_earlier_log_left_behind_is_none_of_this_one(tmp_path: Path) -> None:
    """A log that was taken into the file is written anew from its beginning; a power cut may tear its new header."""
    with closing(open_database(tmp_path / "made.db", SEAL)) as connection:
        for number in range(COMMITS):
            commit(connection, 1 + number * ROWS)
        connection.execute("PRAGMA wal_checkpoint(RESTART)").fetchall()
        taken_in = copied(tmp_path / "made.db", tmp_path / "taken-in")
        commit(connection, 1 + COMMITS * ROWS, rows=1)
        path = copied(tmp_path / "made.db", tmp_path / "anew")
    old, new = log_of(taken_in).read_bytes(), log_of(path).read_bytes()
    assert len(ends(new)) >= COMMITS
    for size in range(20, 32):  # before that the salts are the old ones: it might as well be damage, and is refused
        torn = copied(taken_in, tmp_path / f"torn-{size}")
        log_of(torn).write_bytes(new[:size] + old[size:])
        assert outcome(torn) == COMMITS * ROWS
    torn_first = changed(path, tmp_path / "torn-first", flipping(40))
    assert outcome(path) == COMMITS * ROWS + 1
    assert outcome(torn_first) == COMMITS * ROWS


def test_what_failed_commits_left_behind_is_no_damage(logged: Path, tmp_path: Path) -> None:
    """A commit whose sync failed is written over by the next, and its end may stand behind that: of several, many."""
    logs = []
    for rows in (1, 300, 600):
        path = copied(logged, tmp_path / f"tried-{rows}")
        with closing(open_database(path, SEAL)) as connection:
            commit(connection, 1 + COMMITS * ROWS, rows)
            logs.append(log_of(path).read_bytes())
    small, middle, large = logs
    assert len(small) < len(middle) < len(large)
    assert small[:32] == middle[:32] == large[:32]

    def leave(log: bytearray) -> None:
        log[:] = small + middle[len(small) :] + large[len(middle) :]

    path = changed(logged, tmp_path / "left", leave)
    assert len(ends(log_of(path).read_bytes())) == COMMITS + 3
    assert outcome(path) == COMMITS * ROWS + 1


def test_the_log_of_a_machine_of_the_other_order(logged: Path, tmp_path: Path) -> None:
    def turn(log: bytearray) -> None:
        log[3] ^= 1
        order = ">" if log[3] & 1 else "<"
        total = checksum(order, bytes(log[:24]))
        log[24:32] = struct.pack(">2I", *total)
        for at in range(32, len(log), FRAME):
            total = checksum(order, bytes(log[at : at + 8] + log[at + 24 : at + FRAME]), total)
            log[at + 16 : at + 24] = struct.pack(">2I", *total)

    turned = changed(logged, tmp_path / "turned", turn)
    damages: Iterable[int] = (0, 20, 28, 100, 32 + FRAME)
    for number, at in enumerate(damages):
        assert outcome(changed(turned, tmp_path / f"flipped-{number}", flipping(at))) is None
    assert outcome(turned) == COMMITS * ROWS


def test_the_end_of_a_commit_may_stand_there_twice(logged: Path, tmp_path: Path) -> None:
    """SQLite fills a sector with it where a disk may ruin what stands beside what it writes."""

    def fill(log: bytearray) -> None:
        again = log[-FRAME:]
        total = struct.unpack(">2I", again[16:24])
        again[16:24] = struct.pack(">2I", *checksum("<", bytes(again[:8] + again[24:]), total))
        log += again

    path = changed(logged, tmp_path / "filled", fill)
    torn = changed(path, tmp_path / "torn", flipping(ends(log_of(logged).read_bytes())[-2] + FRAME + 100))
    assert outcome(path) == COMMITS * ROWS
    assert outcome(torn) == (COMMITS - 1) * ROWS


def test_what_sqlite_has_taken_is_not_summed_again(logged: Path, tmp_path: Path) -> None:
    """Summing is slow; the index that SQLite keeps while it is open tells how far it has come itself."""
    with closing(sqlite3.connect(f"{logged.as_uri()}?mode=ro", uri=True)) as connection:
        connection.execute("BEGIN")
        connection.execute("PRAGMA user_version").fetchone()
        with Path(f"{logged}-shm").open("rb") as index:
            taken = frames_taken(index)
    log = log_of(logged).read_bytes()
    assert taken == (len(log) - 32) // FRAME
    assert frames_taken(BytesIO()) == frames_taken(BytesIO(bytes(136))) == 0
    path = changed(logged, tmp_path / "flipped", flipping(100))
    assert is_damaged(log_of(path), PAGE, 0)
    assert is_damaged(log_of(path), PAGE, taken) is False
    assert refused(path) == DAMAGED  # SQLite has taken none of it
