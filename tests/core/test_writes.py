"""A step's writes: at its end, the outermost's, each socket's own."""

from __future__ import annotations

import pytest

from sidecar.core.writes import WriteBatch
from tests.support.doubles import strict_writes


class Socket:
    """Counts its flushes; `bug` is raised by each."""

    def __init__(self, bug: Exception | None = None) -> None:
        self.flushed = 0
        self._bug = bug

    def flush(self) -> None:
        self.flushed += 1
        if self._bug is not None:
            raise self._bug


def test_a_step_writes_at_its_end_and_once() -> None:
    writes, socket = strict_writes(), Socket()
    assert not writes.holding
    with writes:
        assert writes.holding
        writes.add(socket)
        assert socket.flushed == 0
    assert not writes.holding
    assert socket.flushed == 1
    with writes:
        pass
    assert socket.flushed == 1


def test_the_outermost_step_decides() -> None:
    writes, socket = strict_writes(), Socket()
    with writes:
        with writes:
            writes.add(socket)
        assert writes.holding
        assert socket.flushed == 0
    assert socket.flushed == 1


def test_a_step_that_fails_writes_all_the_same() -> None:
    writes, socket = strict_writes(), Socket()

    def fail() -> None:
        with writes:
            writes.add(socket)
            raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        fail()
    assert socket.flushed == 1
    assert not writes.holding


def test_a_socket_that_fails_costs_neither_the_others_nor_the_step() -> None:
    failures: list[Exception] = []
    writes, bug, other = WriteBatch(failures.append), RuntimeError("broken"), Socket()
    with writes:
        writes.add(Socket(bug))
        writes.add(other)
    assert failures == [bug]
    assert other.flushed == 1
    with writes:
        writes.add(other)
    assert (failures, other.flushed) == ([bug], 2)
