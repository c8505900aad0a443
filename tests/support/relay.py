"""A TCP relay whose every connection comes from a loopback address of its own: a record then says whose doing it was.

The sidecar records a stranger's refusals singly up to ten a second of one address: each case of a table needs its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from itertools import count

CHUNK_BYTES = 65_536


class Relay:
    """Hands what it gets to `target` and back, from 127.1.0.1, 127.1.0.2 and so on."""

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._upstream = (host, int(port))
        self._places = count(1)
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self.target = ""
        self.last_address = ""
        """Where the connection came from that was made last."""

    async def start(self) -> asyncio.Server:
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        host, port = server.sockets[0].getsockname()[:2]
        self.target = f"{host}:{port}"
        return server

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        place = next(self._places)
        address = self.last_address = f"127.1.{place // 250}.{place % 250 + 1}"
        upstream = await asyncio.open_connection(*self._upstream, local_addr=(address, 0))
        task = asyncio.current_task()
        assert task is not None
        writers = {writer, upstream[1]}
        self._tasks.add(task)
        self._writers |= writers
        try:
            await asyncio.gather(_pump(reader, upstream[1]), _pump(upstream[0], writer))
        finally:
            self._writers -= writers
            self._tasks.discard(task)

    async def stop(self) -> None:
        """Close what is still open; its pumps end with it."""
        for writer in tuple(self._writers):
            writer.close()
        await asyncio.gather(*self._tasks)


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        with suppress(ConnectionError):
            while data := await reader.read(CHUNK_BYTES):
                writer.write(data)
                await writer.drain()
    finally:
        writer.close()


@asynccontextmanager
async def relay_to(target: str) -> AsyncIterator[Relay]:
    """A relay in front of `target` for as long as the block lasts."""
    relay = Relay(target)
    server = await relay.start()
    try:
        yield relay
    finally:
        server.close()
        await relay.stop()
