"""When the writing thread is woken, and when the loop steps aside for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sidecar.core.ports import AuditEvent
from sidecar.security.audit_file import AuditFile
from sidecar.security.audit_flush import FLUSH_INTERVAL_S, MAX_INTERVAL_S, FlushTimer
from sidecar.security.audit_record import AuditRecord
from sidecar.security.audit_writer import AuditWriter, Entry
from tests.security.audit_doubles import NOW, Disk
from tests.security.forge import FakeClock


class FakeLoop:
    """Keeps the one timer that may be set, and fires it when told."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self.timer: asyncio.TimerHandle | None = None
        self.delays: list[float] = []

    def call_later(self, delay: float, callback: Callable[[], None]) -> asyncio.TimerHandle:
        assert not self.armed
        self.delays.append(delay)
        self.callback = callback
        self.timer = self._loop.call_later(delay, callback)
        return self.timer

    @property
    def armed(self) -> bool:
        return self.timer is not None and not self.timer.cancelled()

    def fire(self) -> None:
        assert self.timer is not None
        assert self.armed
        self.timer.cancel()
        self.callback()

    def close(self) -> None:
        self._loop.close()


class WatchedWriter(AuditWriter):
    """Counts how often the loop stepped aside."""

    stalls = 0

    def give_way(self, timeout_s: float) -> None:
        self.stalls += 1
        super().give_way(timeout_s)


class Trail:
    """A writer with its timer, and no loop."""

    def __init__(self, path: Path) -> None:
        self.loop = FakeLoop()
        self.disk = Disk()
        self.writer = WatchedWriter("boot", FakeClock())
        self.timer = FlushTimer(self.loop.call_later, self.writer)
        self._path = path
        self._file: AuditFile | None = None

    def start(self) -> None:
        file = AuditFile.open(str(self._path), self.disk.write)
        self.writer.start(file, lambda _waiters, _written: None, lambda: None)

    def queue(self) -> None:
        self.writer.offer(Entry(NOW, (AuditRecord(AuditEvent.BROADCAST),), None))
        self.timer.arm()

    def wait(self) -> None:
        """Until the thread has tried everything."""
        while self.writer.behind:
            self.writer.give_way(10.0)


@pytest.fixture
def trail(tmp_path: Path) -> Iterator[Trail]:
    trail = Trail(tmp_path / "audit.jsonl")
    yield trail
    trail.disk.gate.set()
    if trail.writer.running:
        trail.writer.close()
        trail.wait()
    trail.loop.close()


def test_a_record_wakes_the_thread_after_an_interval(trail: Trail) -> None:
    trail.start()
    trail.queue()
    trail.queue()
    assert (trail.loop.delays, trail.writer.untold, trail.writer.behind) == ([FLUSH_INTERVAL_S], True, False)
    trail.loop.fire()
    assert not trail.writer.untold
    trail.wait()
    assert trail.writer.written == 2


def test_the_timer_ends_when_there_is_nothing_to_do(trail: Trail) -> None:
    trail.timer.arm()
    trail.loop.fire()
    assert not trail.loop.armed
    trail.queue()
    assert trail.loop.delays == [FLUSH_INTERVAL_S] * 2


def test_a_thread_that_keeps_up_is_not_waited_for(trail: Trail) -> None:
    trail.start()
    for _ in range(3):
        trail.queue()
        trail.writer.wake()
        trail.wait()
    trail.writer.stalls = 0
    trail.loop.fire()
    assert trail.writer.stalls == 0
    assert not trail.loop.armed


def test_a_thread_told_a_moment_ago_is_not_late(trail: Trail) -> None:
    trail.queue()
    trail.writer.wake()
    trail.loop.fire()
    assert trail.writer.stalls == 0
    trail.loop.fire()
    assert trail.writer.stalls == 1


def test_the_loop_steps_aside_for_a_thread_that_made_no_step(trail: Trail) -> None:
    trail.queue()
    trail.loop.fire()  # Told now, and not yet late.
    assert trail.loop.delays == [FLUSH_INTERVAL_S] * 2
    assert trail.writer.behind
    trail.disk.hold()
    trail.start()
    trail.loop.fire()  # It is late: this waits for it.
    assert trail.writer.stalls == 1
    trail.disk.gate.set()
    while trail.loop.armed:
        trail.loop.fire()
    assert trail.writer.written == 1


def test_nobody_steps_aside_for_a_thread_that_has_tried(trail: Trail) -> None:
    trail.writer.give_way(1e9)


def test_where_stepping_aside_does_not_help_it_is_done_less_and_less(trail: Trail) -> None:
    trail.start()
    trail.disk.hold()
    trail.queue()
    for _ in range(12):
        trail.loop.fire()
    assert trail.loop.delays[:5] == [FLUSH_INTERVAL_S * n for n in (1, 1, 2, 4, 8)]
    assert trail.loop.delays[-2:] == [MAX_INTERVAL_S] * 2
    trail.disk.gate.set()
    trail.wait()
    trail.loop.fire()
    assert not trail.loop.armed
    trail.queue()
    assert trail.loop.delays[-1] == FLUSH_INTERVAL_S


def test_a_late_step_makes_the_interval_short_again(trail: Trail) -> None:
    trail.start()
    trail.disk.hold()
    trail.queue()
    for _ in range(5):
        trail.loop.fire()
    trail.disk.gate.set()
    trail.wait()
    trail.disk.hold()
    trail.queue()
    trail.writer.wake()
    trail.loop.fire()
    assert trail.loop.delays[-1] == FLUSH_INTERVAL_S


def test_cancel_is_idempotent(trail: Trail) -> None:
    trail.queue()
    trail.timer.cancel()
    trail.timer.cancel()
    assert not trail.loop.armed
