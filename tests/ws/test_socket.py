"""When a socket gives its transport what: at once, or a step's frames in one write. Nothing is overtaken."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from sidecar.core.close_codes import CloseCode, catalogued
from sidecar.core.writes import WriteBatch
from sidecar.ws.socket import MAX_HELD_BYTES, ClientSocket
from tests.support.doubles import FakeClock
from tests.ws.harness import Harness

if TYPE_CHECKING:
    from sidecar.core.close_codes import Close
    from sidecar.ws.connection import EdgeConnection


class Line:
    """A connection that keeps what its transport is given, one item a write; a close is written as its code."""

    paused = False

    def __init__(self) -> None:
        self.writes: list[bytes] = []
        self.transport: Any = self

    def write(self, data: bytes) -> None:
        self.writes.append(data)

    def abort(self) -> None:
        self.writes.append(b"abort")

    def begin_close(self, close: Close) -> None:
        self.writes.append(b"close %d" % close.code)


def made(writes: WriteBatch | None = None) -> tuple[ClientSocket, Line, WriteBatch]:
    line, writes = Line(), writes or WriteBatch()
    socket = ClientSocket(cast("EdgeConnection", line), "a-1", FakeClock(), writes)
    socket.open()
    return socket, line, writes


def test_outside_a_step_each_frame_is_a_write() -> None:
    socket, line, _ = made()
    socket.write(b"1")
    socket.write(b"2")
    assert line.writes == [b"1", b"2"]


def test_the_frames_of_a_step_are_one_write() -> None:
    socket, line, writes = made()
    with writes:
        for frame in (b"1", b"2", b"3"):
            socket.write(frame)
        assert line.writes == []
    assert line.writes == [b"123"]
    socket.write(b"4")
    assert line.writes == [b"123", b"4"]


def test_each_socket_of_a_step_has_its_own() -> None:
    socket, line, writes = made()
    other, other_line, _ = made(writes)
    with writes:
        socket.write(b"1")
        other.write(b"a")
        socket.write(b"2")
    assert (line.writes, other_line.writes) == ([b"12"], [b"a"])


def test_no_more_is_held_than_the_limit() -> None:
    socket, line, writes = made()
    half = b"x" * (MAX_HELD_BYTES // 2)
    with writes:
        socket.write(half)
        socket.write(half)
        assert line.writes == []
        socket.write(b"3")
        assert line.writes == [half + half]
    assert line.writes == [half + half, b"3"]


@pytest.mark.parametrize("before", [b"", b"1"])
def test_a_frame_beyond_the_limit_is_not_held(before: bytes) -> None:
    socket, line, writes = made()
    large = b"x" * (MAX_HELD_BYTES + 1)
    with writes:
        if before:
            socket.write(before)
        socket.write(large)
        assert line.writes == [*([before] if before else []), large]
        socket.write(b"2")
    assert line.writes[-2:] == [large, b"2"]


def test_a_frame_without_a_sequence_overtakes_nothing() -> None:
    socket, line, writes = made()
    with writes:
        socket.write(b"1")
        socket.send(b"accepted")
        socket.write(b"2")
    assert line.writes == [b"1", b"accepted", b"2"]


def test_a_close_comes_behind_what_was_held() -> None:
    socket, line, writes = made()
    with writes:
        socket.write(b"1")
        socket.close(catalogued(CloseCode.TAKEN_OVER))
    assert line.writes == [b"1", b"close 4503"]


def test_nothing_is_written_to_a_connection_that_is_gone() -> None:
    socket, line, writes = made()
    with writes:
        socket.write(b"1")
        socket.connection_ended(1006)
    assert line.writes == []


def test_a_write_that_fails_costs_its_connection_and_no_other() -> None:
    socket, line, writes = made()
    other, other_line, _ = made(writes)
    with writes:
        socket.write(b"1")
        other.write(b"a")
        line.transport = SimpleNamespace(write=fail)
    assert line.writes == [b"abort"]
    assert other_line.writes == [b"a"]


def test_a_close_goes_on_where_what_is_held_cannot_be_written() -> None:
    socket, line, writes = made()
    with writes:
        socket.write(b"1")
        line.transport = SimpleNamespace(write=fail)
        socket.close(catalogued(CloseCode.TAKEN_OVER))
        assert not socket.writable
    assert line.writes == [b"abort", b"close 4503"]


def fail(_: bytes) -> None:
    raise RuntimeError("broken")


async def test_what_a_step_gathered_arrives_whole_and_in_order_before_its_close(edge: Harness) -> None:
    client = await edge.welcomed()
    manager = edge.manager(client.key)
    sizes: list[Any] = [1, 70_000, 5, 20_000, 1, 1]
    with edge.factory.writes:
        for size in sizes:
            edge.send(manager, b'"%b"' % (b"x" * size))
        manager.cleanup_all_connections(manager.context, catalogued(CloseCode.CLOSED_BY_SERVICE), "test", edge.now())
    received = [await client.receive() for _ in sizes]
    assert [(frame["sequence"], len(frame["data"])) for frame in received] == list(enumerate(sizes, start=1))
    closed = await client.closed()
    assert closed is not None
    assert closed.code == CloseCode.CLOSED_BY_SERVICE
