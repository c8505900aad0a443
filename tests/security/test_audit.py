"""The trail as the sidecar uses it: order, grants, failing disks, restarts and the end."""

from __future__ import annotations

import asyncio
import json
import os
import stat
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path

import pytest

from sidecar.core.errors import ErrorReason, Status, Unavailable
from sidecar.core.ports import AuditEvent, AuditTrail
from sidecar.security.audit import JsonLinesAuditTrail
from sidecar.security.audit_file import AuditFile, Tail
from sidecar.security.audit_record import GENESIS, AuditFileError, AuditFileProblem, AuditRecord, Head, hash_of
from sidecar.security.audit_verify import verify_file
from sidecar.security.audit_writer import MAX_GROUP_RECORDS, AuditWriter, Entry
from tests.security.audit_doubles import KEY, NOW, Disk, make_context, numbered, read, told
from tests.security.forge import FakeClock

Open = Callable[..., JsonLinesAuditTrail]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "audit.jsonl"


@pytest.fixture
def disk() -> Disk:
    return Disk()


@pytest.fixture
async def make(path: Path, disk: Disk, clock: FakeClock) -> AsyncIterator[Open]:
    """Trails on this path and disk; what is still open at the end is closed."""
    trails: list[JsonLinesAuditTrail] = []

    def make(**options: object) -> JsonLinesAuditTrail:
        trails.append(JsonLinesAuditTrail(path, clock, **({"write": disk.write} | options)))  # type: ignore[arg-type]
        return trails[-1]

    yield make
    disk.gate.set()
    for trail in trails:
        await trail.close()
    for thread in writing_threads():
        thread.join(10)
    assert not writing_threads()


@pytest.fixture
async def trail(make: Open) -> JsonLinesAuditTrail:
    trail = make()
    trail.start()
    return trail


def writing_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "audit"]


def content_of(path: Path) -> bytes:
    return path.read_bytes()


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def store(path: Path, content: bytes) -> None:
    path.write_bytes(content)


async def refused(trail: JsonLinesAuditTrail, *records: AuditRecord) -> None:
    with pytest.raises(Unavailable) as caught:
        await trail.grant(*records or (AuditRecord(AuditEvent.CONTEXT_OPENED),))
    assert caught.value.reason is ErrorReason.AUDIT_UNAVAILABLE
    assert caught.value.status is Status.UNAVAILABLE
    assert caught.value.retry_after_s is not None


async def entered(disk: Disk) -> None:
    """Until the thread is in its write."""
    assert await asyncio.to_thread(disk.entered.wait, 10)


async def held(trail: JsonLinesAuditTrail, disk: Disk) -> asyncio.Task[None]:
    """A grant whose write does not come back until the gate is opened."""
    disk.hold()
    task = asyncio.create_task(trail.grant(AuditRecord(AuditEvent.TOKEN_MINTED)))
    await entered(disk)
    return task


def note(trail: JsonLinesAuditTrail, n: int) -> None:
    trail.record(AuditEvent.SOCKET_CLOSED, n=n)


async def test_records_are_written_in_order_with_what_they_say(
    trail: JsonLinesAuditTrail, path: Path, clock: FakeClock
) -> None:
    port: AuditTrail = trail
    port.record(AuditEvent.CONTEXT_OPENED, make_context(), recovery="new")
    clock.advance(1.5)
    port.record(AuditEvent.ADMIN_CALL, method="ListManagers", service="ops", user_id=None)
    await trail.grant()
    first, second = read(path)
    assert (first["sequence"], first["time"], first["event"]) == (1, "2027-01-15T08:00:00.000000Z", "context_opened")
    assert (first["user_id"], first["recovery"], first["previous"]) == ("alice", "new", GENESIS.hash)
    assert (second["sequence"], second["time"]) == (2, "2027-01-15T08:00:01.500000Z")
    assert (second["method"], second["user_id"], second["previous"]) == ("ListManagers", None, first["hash"])
    assert (trail.records_logged, trail.records_pending, trail.records_lost) == (2, 0, 0)
    assert trail.head == Head(2, second["hash"])
    assert trail.healthy
    assert trail.failure is None
    assert mode_of(path) == 0o600
    assert KEY.encode() not in content_of(path)


async def test_a_record_alone_is_written_without_anybody_waiting(
    trail: JsonLinesAuditTrail, path: Path, disk: Disk
) -> None:
    note(trail, 1)
    await entered(disk)
    await trail.close()
    assert told(path, "n") == [("socket_closed", 1)]


async def test_a_grant_returns_when_its_records_are_in_the_file(
    trail: JsonLinesAuditTrail, path: Path, disk: Disk
) -> None:
    note(trail, 1)
    await trail.grant(
        AuditRecord(AuditEvent.CONTEXT_OPENED, make_context()), AuditRecord(AuditEvent.TOKEN_MINTED, None, {"n": 2})
    )
    assert told(path, "n") == [("socket_closed", 1), ("context_opened",), ("token_minted", 2)]
    assert len(disk.writes) == 1


async def test_a_grant_wakes_the_thread_in_the_loops_next_turn(trail: JsonLinesAuditTrail, disk: Disk) -> None:
    task = asyncio.create_task(trail.grant(AuditRecord(AuditEvent.TOKEN_MINTED)))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert disk.entered.wait(10)  # On the loop's own thread: no timer of it can fire meanwhile.
    await task


async def test_grants_of_one_turn_share_a_write(trail: JsonLinesAuditTrail, path: Path, disk: Disk) -> None:
    await asyncio.gather(*(trail.grant(AuditRecord(AuditEvent.TOKEN_MINTED, None, {"n": n})) for n in range(5)))
    assert told(path, "n") == [("token_minted", n) for n in range(5)]
    assert len(disk.writes) == 1


async def test_a_grant_waits_for_its_write(trail: JsonLinesAuditTrail, disk: Disk) -> None:
    task = await held(trail, disk)
    assert not task.done()
    disk.gate.set()
    await task


async def test_grants_made_during_a_write_share_the_next(trail: JsonLinesAuditTrail, disk: Disk, path: Path) -> None:
    first = await held(trail, disk)
    others = [asyncio.create_task(trail.grant(AuditRecord(AuditEvent.CONTEXT_OPENED))) for _ in range(20)]
    await asyncio.sleep(0)
    disk.gate.set()
    await asyncio.gather(first, *others)
    assert len(disk.writes) == 2
    assert verify_file(path, trail.head).records == 21


async def test_a_crowd_is_written_in_bounded_groups(trail: JsonLinesAuditTrail, disk: Disk, path: Path) -> None:
    first = await held(trail, disk)
    for n in range(3 * MAX_GROUP_RECORDS):
        note(trail, n)
    disk.gate.set()
    await first
    await trail.grant()
    assert [record["n"] for record in read(path)[1:]] == list(range(3 * MAX_GROUP_RECORDS))
    assert len(disk.writes) == 4


async def test_order_under_concurrency(trail: JsonLinesAuditTrail, path: Path) -> None:
    """The file has the order of the calls, grants and records mixed, whoever waits for what."""
    order: list[int] = []

    async def work(start: int) -> None:
        for n in range(start, start + 20, 2):
            order.append(n)
            note(trail, n)
            order.append(n + 1)
            await trail.grant(AuditRecord(AuditEvent.TOKEN_MINTED, None, {"n": n + 1}))

    async with asyncio.TaskGroup() as tasks:
        for worker in range(50):
            tasks.create_task(work(worker * 20))
    assert [record["n"] for record in read(path)] == order
    assert len(order) == trail.records_logged == 1000
    assert verify_file(path, trail.head).ok


async def test_no_claim_makes_a_second_line(trail: JsonLinesAuditTrail, path: Path) -> None:
    nasty = 'a"}\r\n{"event":"forged"}\u2028\u2029\x85\ud800'
    trail.record(AuditEvent.TOKEN_DENIED, make_context(user_id=nasty), reason=nasty)
    await trail.grant()
    assert len(content_of(path).decode("ascii").splitlines()) == 1
    assert read(path)[0]["user_id"] == read(path)[0]["reason"] == nasty


async def test_long_values_are_not_kept_in_the_queue(trail: JsonLinesAuditTrail, path: Path) -> None:
    short, long = "x" * 256, "y" * 257
    references = sys.getrefcount(short), sys.getrefcount(long)
    trail.record(AuditEvent.TOKEN_DENIED, reason=short, fault=long)
    assert (sys.getrefcount(short), sys.getrefcount(long)) == (references[0] + 1, references[1])
    await trail.grant()
    assert (read(path)[0]["reason"], read(path)[0]["fault"]) == (short, long[:256])


async def test_a_saturated_loop_does_not_starve_its_grants(trail: JsonLinesAuditTrail) -> None:
    """Its turns let go of the interpreter lock for microseconds only; without help, grants were refused after 2 s."""
    loop = asyncio.get_running_loop()
    over = False

    def burn() -> None:
        end = time.perf_counter() + 0.001
        while time.perf_counter() < end:
            pass
        if not over:
            loop.call_soon(burn)

    burn()
    for _ in range(10):
        await trail.grant(AuditRecord(AuditEvent.CONTEXT_OPENED))
    over = True


# --- starting --------------------------------------------------------------------------------------------------------


async def test_a_restart_continues_the_chain(make: Open, path: Path) -> None:
    heads = []
    for _ in range(3):
        trail = make()
        trail.start()
        await trail.grant(AuditRecord(AuditEvent.SIDECAR_STARTED), AuditRecord(AuditEvent.SIDECAR_STOPPED))
        heads.append(trail.head)
        await trail.close()
    records = read(path)
    assert [record["sequence"] for record in records] == [1, 2, 3, 4, 5, 6]
    assert len({record["boot_id"] for record in records}) == 3
    assert all(len(record["boot_id"]) == 32 for record in records)
    assert all(verify_file(path, head).ok for head in heads)


async def test_a_torn_tail_is_cut_off_and_said(make: Open, path: Path) -> None:
    lines = numbered(3)
    store(path, b"".join(lines)[:-10])
    trail = make(boot_id="second")
    trail.start()
    assert trail.head == Head(2, hash_of(lines[1]))
    await trail.grant()
    assert content_of(path).startswith(b"".join(lines[:2]))
    repaired = read(path)[2]
    assert (repaired["sequence"], repaired["event"], repaired["boot_id"], repaired["bytes"]) == (
        3, "audit_tail_repaired", "second", len(lines[2]) - 10,
    )  # fmt: skip
    assert verify_file(path).ok


async def test_a_broken_file_stops_the_start(make: Open, path: Path) -> None:
    content = b"".join(numbered(2)).replace(b'"n":1', b'"n":9')
    store(path, content)
    trail = make()
    with pytest.raises(AuditFileError) as caught:
        trail.start()
    assert caught.value.problem is AuditFileProblem.BROKEN
    assert content_of(path) == content
    assert not trail.healthy
    await refused(trail)


async def test_two_trails_never_share_a_file(trail: JsonLinesAuditTrail, make: Open, path: Path) -> None:
    other = make()
    for again in (other, trail):
        with pytest.raises(AuditFileError) as caught:
            again.start()
        assert caught.value.problem is AuditFileProblem.IN_USE
    await trail.grant(AuditRecord(AuditEvent.SIDECAR_STARTED))
    await trail.close()
    other.start()
    await other.grant(AuditRecord(AuditEvent.SIDECAR_STARTED))
    assert verify_file(path, other.head).records == 2


async def test_records_may_come_before_the_start_grants_may_not(make: Open, path: Path) -> None:
    trail = make()
    note(trail, 1)
    await refused(trail)
    assert not trail.healthy
    trail.start()
    await trail.grant()
    assert told(path, "n") == [("socket_closed", 1)]


# --- failing ---------------------------------------------------------------------------------------------------------


async def test_a_full_disk(trail: JsonLinesAuditTrail, disk: Disk, path: Path) -> None:
    """Grants are refused and leave no record; the rest is kept in order, and written when there is room again."""
    await trail.grant(AuditRecord(AuditEvent.SIDECAR_STARTED))
    size = len(content_of(path))
    disk.limit = size + 100
    note(trail, 1)
    await refused(trail)
    assert (trail.healthy, trail.failure, trail.records_logged) == (False, "ENOSPC", 1)
    note(trail, 2)
    await refused(trail)
    await refused(trail, AuditRecord(AuditEvent.CONTEXT_OPENED), AuditRecord(AuditEvent.TOKEN_MINTED))
    note(trail, 3)
    assert len(content_of(path)) == size
    assert trail.records_pending == 4
    disk.limit = None
    await trail.grant(AuditRecord(AuditEvent.CONTEXT_OPENED))
    assert told(path, "n", "error") == [
        ("sidecar_started",),
        ("socket_closed", 1),
        ("audit_interrupted", "ENOSPC"),
        ("socket_closed", 2),
        ("socket_closed", 3),
        ("context_opened",),
    ]
    assert (trail.healthy, trail.failure, trail.records_pending, trail.records_lost) == (True, None, 0, 0)
    assert trail.records_logged == 6
    assert verify_file(path, trail.head).ok


async def test_a_failed_write_is_tried_again_each_second(trail: JsonLinesAuditTrail, disk: Disk, path: Path) -> None:
    """Though only grants failed, and all were refused: there is a record of the failure to be written."""
    disk.limit = 0
    await refused(trail)
    disk.error = 5
    await refused(trail)
    assert (trail.failure, trail.records_pending) == ("EIO", 1)
    disk.hold()
    disk.limit = None
    trail.tick()
    await entered(disk)
    disk.gate.set()
    await trail.close()
    assert told(path, "error") == [("audit_interrupted", "ENOSPC")]
    assert trail.records_pending == 0


async def test_a_healthy_tick_writes_nothing(trail: JsonLinesAuditTrail, disk: Disk) -> None:
    trail.tick()
    await trail.grant()
    assert sum(disk.writes) == 0


async def test_a_record_tries_again_too(trail: JsonLinesAuditTrail, disk: Disk, path: Path) -> None:
    disk.limit = 0
    await refused(trail)
    disk.limit = None
    disk.hold()
    note(trail, 1)
    await entered(disk)
    disk.gate.set()
    await trail.close()
    assert told(path) == ["audit_interrupted", "socket_closed"]


async def test_grants_behind_a_failed_group_are_refused_with_it(
    trail: JsonLinesAuditTrail, disk: Disk, path: Path
) -> None:
    first = await held(trail, disk)
    for n in range(MAX_GROUP_RECORDS):
        note(trail, n)
    late = asyncio.create_task(trail.grant(AuditRecord(AuditEvent.CONTEXT_OPENED)))
    await asyncio.sleep(0)
    note(trail, MAX_GROUP_RECORDS)
    disk.limit = 0
    disk.gate.set()
    for task in (first, late):
        with pytest.raises(Unavailable):
            await task
    disk.limit = None
    await trail.grant()
    assert told(path) == ["audit_interrupted", *["socket_closed"] * (MAX_GROUP_RECORDS + 1)]
    assert [record["n"] for record in read(path)[1:]] == list(range(MAX_GROUP_RECORDS + 1))


async def until_told(trail: JsonLinesAuditTrail, path: Path, events: list[str]) -> None:
    """Once the file holds just these: the thread may be in another try, which it takes back, when the file is read."""
    async with asyncio.timeout(10):
        while True:
            with suppress(ValueError):
                if told(path) == events:
                    return
            await refused(trail)


async def test_grants_are_refused_though_some_groups_could_be_written(make: Open, disk: Disk, path: Path) -> None:
    trail = make(grant_timeout_s=3600)
    trail.start()
    disk.limit = 0
    await refused(trail)
    for n in range(2 * MAX_GROUP_RECORDS):
        note(trail, n)
    await refused(trail)
    disk.limit = 1000  # Room for the record of the failure, not for the group that follows.
    await asyncio.gather(*(refused(trail) for _ in range(3)))
    await until_told(trail, path, ["audit_interrupted"])
    disk.limit = None
    await trail.grant()
    assert [record["n"] for record in read(path) if "n" in record] == list(range(2 * MAX_GROUP_RECORDS))
    assert [event for event in told(path) if event != "socket_closed"] == ["audit_interrupted"] * 2
    assert verify_file(path, trail.head).ok


@pytest.mark.parametrize("count", [5, 6, 9])
async def test_what_finds_no_room_is_counted_and_said(make: Open, disk: Disk, path: Path, count: int) -> None:
    trail = make(max_queued_records=5)
    trail.start()
    task = await held(trail, disk)
    for n in range(1, count):
        note(trail, n)
    assert (trail.records_pending, trail.records_lost) == (5, count - 5)
    assert not trail.healthy
    await refused(trail)  # A grant that finds no room is refused at once, and is no lost record.
    assert trail.records_lost == count - 5
    disk.gate.set()
    await task
    await trail.grant()
    note(trail, 100)
    await trail.grant()
    lost = [("audit_records_lost", count - 5)] if count > 5 else []
    assert told(path, "n", "count") == [
        ("token_minted",), *[("socket_closed", n) for n in range(1, 5)], *lost, ("socket_closed", 100),
    ]  # fmt: skip
    assert trail.records_lost == 0
    assert trail.healthy


async def test_a_tick_says_what_was_lost(make: Open, disk: Disk, path: Path) -> None:
    trail = make(max_queued_records=1)
    trail.start()
    task = await held(trail, disk)
    note(trail, 1)
    trail.tick()
    assert trail.records_lost == 1
    disk.gate.set()
    await task
    trail.tick()
    assert trail.records_lost == 0
    await trail.close()
    assert told(path, "count") == [("token_minted",), ("audit_records_lost", 1)]


async def test_a_grant_is_refused_when_it_takes_too_long(make: Open, disk: Disk, path: Path) -> None:
    """It was not being written yet, so it is dropped. (One that was is written: see a cancelled one.)"""
    trail = make(grant_timeout_s=0)
    trail.start()
    disk.hold()
    note(trail, 1)
    await entered(disk)
    await refused(trail)
    note(trail, 2)
    disk.gate.set()
    await trail.close()
    assert told(path, "n") == [("socket_closed", 1), ("socket_closed", 2)]
    assert trail.records_pending == 0


async def test_a_grant_may_be_cancelled(trail: JsonLinesAuditTrail, disk: Disk, path: Path) -> None:
    troubles: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, trouble: troubles.append(trouble))
    first = await held(trail, disk)
    second = asyncio.create_task(trail.grant(AuditRecord(AuditEvent.ADMIN_CALL)))
    await asyncio.sleep(0)
    for task in (first, second):
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    disk.gate.set()
    await trail.grant(AuditRecord(AuditEvent.CONTEXT_OPENED))
    assert told(path) == ["token_minted", "context_opened"]
    assert trail.records_pending == 0
    assert troubles == []


async def test_a_write_that_hangs_is_not_healthy(trail: JsonLinesAuditTrail, disk: Disk, clock: FakeClock) -> None:
    task = await held(trail, disk)
    clock.advance(2.0)
    assert trail.healthy
    clock.advance(0.1)
    assert not trail.healthy
    disk.gate.set()
    await task
    assert trail.healthy


async def test_its_state_is_seen(trail: JsonLinesAuditTrail) -> None:
    assert repr(trail) == "<JsonLinesAuditTrail healthy=True failure=None logged=0 pending=0 lost=0>"


# --- ending ----------------------------------------------------------------------------------------------------------


async def test_close_writes_all(trail: JsonLinesAuditTrail, disk: Disk, path: Path) -> None:
    grant = await held(trail, disk)
    for n in range(1000):
        note(trail, n)
    closing = asyncio.create_task(trail.close())
    await asyncio.sleep(0)
    note(trail, 1000)
    await refused(trail)
    assert not trail.healthy
    disk.gate.set()
    await asyncio.gather(closing, grant, trail.close())
    await trail.close()
    assert trail.records_logged == len(read(path)) == 1001
    assert trail.records_lost == 1
    assert verify_file(path, trail.head).ok


async def test_close_says_what_was_lost(make: Open, disk: Disk, path: Path) -> None:
    trail = make(max_queued_records=2)
    trail.start()
    task = await held(trail, disk)
    note(trail, 1)
    note(trail, 2)
    disk.gate.set()
    await task
    await trail.close()
    assert told(path, "n", "count") == [("token_minted",), ("socket_closed", 1), ("audit_records_lost", 1)]


async def test_close_before_the_start(make: Open, path: Path) -> None:
    trail = make()
    await trail.close()
    await trail.close()
    assert not os.listdir(path.parent)


async def test_close_does_not_wait_for_ever(make: Open, disk: Disk, path: Path) -> None:
    trail = make(close_timeout_s=0)
    trail.start()
    task = await held(trail, disk)
    note(trail, 1)
    await trail.close()
    assert trail.records_pending == 2
    disk.gate.set()
    await task
    for thread in writing_threads():
        await asyncio.to_thread(thread.join)
    assert told(path) == ["token_minted", "socket_closed"]


async def test_close_on_a_full_disk(trail: JsonLinesAuditTrail, disk: Disk, path: Path) -> None:
    disk.limit = 0
    note(trail, 1)
    await trail.close()
    assert (trail.failure, trail.records_pending, content_of(path)) == ("ENOSPC", 2, b"")


def test_the_thread_ends_though_the_loop_has_gone(path: Path, disk: Disk, clock: FakeClock) -> None:
    async def leave() -> None:
        trail = JsonLinesAuditTrail(path, clock, close_timeout_s=0, write=disk.write)
        trail.start()
        task = await held(trail, disk)
        await trail.close()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(leave())
    disk.gate.set()
    for thread in writing_threads():
        thread.join(10)
    assert not writing_threads()
    assert verify_file(path).records == 1


def test_a_flush_that_fails_at_the_end_is_seen(clock: FakeClock) -> None:
    reading, writing = os.pipe()  # fsync(2) of a pipe is EINVAL.
    ended = threading.Event()
    writer = AuditWriter("boot", clock)
    writer.start(AuditFile(writing, Tail(GENESIS, 0, 0)), lambda _waiters, _written: None, ended.set)
    writer.offer(Entry(NOW, (AuditRecord(AuditEvent.SIDECAR_STOPPED),), None))
    writer.close()
    assert ended.wait(10)
    assert (writer.failure, writer.written) == ("EINVAL", 1)
    assert os.read(reading, 4096).endswith(b"\n")
    os.close(reading)


# --- a real disk limit -----------------------------------------------------------------------------------------------

LIMITED = """
import asyncio, json, resource, sys, time
from sidecar.core.errors import Unavailable
from sidecar.core.ports import AuditEvent
from sidecar.security.audit import JsonLinesAuditTrail
from sidecar.security.audit_record import AuditRecord

def limit_files(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

class Clock:
    monotonic = staticmethod(time.monotonic)
    time = staticmethod(time.time)

async def main(path):
    trail = JsonLinesAuditTrail(path, Clock())
    trail.start()
    granted = refused = 0
    limit_files(10_000)
    for n in range(60):
        trail.record(AuditEvent.SOCKET_CLOSED, n=n)
        try:
            await trail.grant(AuditRecord(AuditEvent.CONTEXT_OPENED, None, {"n": n}))
            granted += 1
        except Unavailable:
            refused += 1
    seen = [trail.healthy, trail.failure, trail.records_pending]
    limit_files(resource.RLIM_INFINITY)
    await trail.grant(AuditRecord(AuditEvent.CONTEXT_OPENED, None, {"n": 60}))
    await trail.close()
    print(json.dumps([granted, refused, *seen, trail.failure, trail.records_logged, *trail.head]))

asyncio.run(main(sys.argv[1]))
"""


def test_a_real_write_that_fails(path: Path) -> None:
    """A file size limit: write(2) is short at first, then fails (EFBIG); the process goes on."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", LIMITED, str(path)], capture_output=True, timeout=50, check=False
    )
    assert done.stderr == b""
    granted, refused, healthy, failure, pending, failure_after, logged, *head = json.loads(done.stdout)
    assert granted > 10
    assert refused == 60 - granted > 10
    assert (healthy, failure, pending, failure_after) == (False, "EFBIG", refused + 1, None)
    report = verify_file(path, Head(*head))
    assert (report.ok, report.records) == (True, logged)
    records = read(path)
    assert [record["n"] for record in records if record["event"] == "socket_closed"] == list(range(60))
    assert [record["n"] for record in records if record["event"] == "context_opened"] == [*range(granted), 60]
    assert [record["error"] for record in records if record["event"] == "audit_interrupted"] == ["EFBIG"]
