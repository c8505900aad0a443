"""The doors leave nothing behind, whatever comes in."""

from __future__ import annotations

import asyncio

from tests.clients.conformance.doors import tls_door, unix_door

NOWHERE = "127.0.0.1:1"


async def test_who_never_ends_the_handshake_is_gone_with_the_door() -> None:
    async with tls_door(NOWHERE) as door:
        host, _, port = door.endpoint.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"\x16\x03\x01")  # a record's first bytes
        await writer.drain()
    assert await asyncio.wait_for(_end_of(reader), 10) == b""
    writer.close()


async def test_who_comes_as_it_closes_is_gone_too() -> None:
    async with unix_door(NOWHERE) as address:
        reader, writer = await asyncio.open_unix_connection(address.removeprefix("unix:"))
    assert await asyncio.wait_for(_end_of(reader), 10) == b""
    writer.close()


async def _end_of(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.read()
    except ConnectionError:
        return b""
