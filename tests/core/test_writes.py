"""A step's writes: at its end, the outermost's, each socket's own."""

from __future__ import annotations

import pytest

from sidecar.core.writes import WriteBatch


class Socket:
    """Counts its flushes."""

    def __init__(self) -> None:
        self.flushed = 0

    def flush(self) -> None:
        self.flushed += 1


def test_a_step_writes_at_its_end_and_once() -> None:
    writes, socket = WriteBatch(), Socket()
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
    writes, socket = WriteBatch(), Socket()
    with writes:
        with writes:
            writes.add(socket)
        assert writes.holding
        assert socket.flushed == 0
    assert socket.flushed == 1


def test_a_step_that_fails_writes_all_the_same() -> None:
    writes, socket = WriteBatch(), Socket()

    def fail() -> None:
        with writes:
            writes.add(socket)
            raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        fail()
    assert socket.flushed == 1
    assert not writes.holding
