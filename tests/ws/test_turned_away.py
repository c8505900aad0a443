"""A connection for which there is no room, on both loops."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
import uvloop

from sidecar.ws.turned_away import TurnedAway

ANSWER = (
    b"HTTP/1.1 503 Service Unavailable\r\n"
    b"Connection: close\r\n"
    b"Retry-After: 1\r\n"
    b"Content-Type: text/plain; charset=utf-8\r\n"
    b"Content-Length: 21\r\n\r\n"
    b"too many connections\n"
)


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_the_answer_comes_unasked(loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    """uvloop's transports are no instances of asyncio.Transport."""

    async def turn_away() -> None:
        peers: list[object] = []
        server = await asyncio.get_running_loop().create_server(lambda: TurnedAway(peers.append), "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        try:
            async with asyncio.timeout(10):
                assert await reader.read() == ANSWER
            assert peers == [writer.get_extra_info("sockname")]
        finally:
            writer.close()
            await writer.wait_closed()
            server.close()
            await server.wait_closed()

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(turn_away())
