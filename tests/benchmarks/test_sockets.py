"""The load's WebSocket clients: frames, and what becomes of a run whose messages or sockets are lost."""

from __future__ import annotations

import asyncio

import pytest

from benchmarks.servers import RunFailed
from benchmarks.sockets import Opcode, Tally, client_frame, read_frame


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65_535])
def test_a_client_s_frame_is_masked_and_whole(size: int) -> None:
    frame = client_frame(Opcode.TEXT, b"x" * size)
    assert frame[0] == 0x81
    assert frame[1] & 0x80
    assert frame.endswith(b"\0\0\0\0" + b"x" * size)


@pytest.mark.parametrize(
    ("size", "header"),
    [
        (0, b"\x81\x00"),
        (125, b"\x81\x7d"),
        (126, b"\x81\x7e\x00\x7e"),
        (65_535, b"\x81\x7e\xff\xff"),
        (65_536, b"\x81\x7f\x00\x00\x00\x00\x00\x01\x00\x00"),
    ],
)
def test_a_server_s_frame_is_read_once_it_is_whole(size: int, header: bytes) -> None:
    data = b"before" + header + b"x" * size
    frame = read_frame(data + b"after", 6)
    assert frame == (Opcode.TEXT, b"x" * size, len(data))
    for missing in range(1, min(len(data) - 6, 12) + 1):
        assert read_frame(data[:-missing], 6) is None


async def test_a_goal_that_is_reached_is_reached_whether_before_or_later() -> None:
    tally = Tally()
    tally.add(3)
    await tally.reach(3)
    reaching = asyncio.create_task(tally.reach(5))
    tally.add(1)
    await asyncio.sleep(0)
    assert not reaching.done()
    tally.add(1)
    await reaching


async def test_more_messages_than_were_sent_fail_the_run() -> None:
    tally = Tally()
    tally.add(4)
    with pytest.raises(RunFailed, match="4 messages arrived of 3"):
        await tally.reach(3)


async def test_a_socket_that_ends_fails_whoever_waits() -> None:
    tally = Tally()
    reaching = asyncio.create_task(tally.reach(1))
    await asyncio.sleep(0)
    tally.lose("a socket was lost")
    with pytest.raises(RunFailed, match="a socket was lost"):
        await reaching
