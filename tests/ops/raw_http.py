"""HTTP/1.1 by hand: what goes over the wire is exactly what the test says, headers missing or twice included."""

from __future__ import annotations

import asyncio
import json
from typing import Any, NamedTuple

Headers = list[tuple[str, str]]


class Answer(NamedTuple):
    """A whole response; header names in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


async def exchange(port: int, data: bytes) -> Answer:
    """Send these bytes, read the one answer until the server closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(data)
        received = await asyncio.wait_for(reader.read(), 10)
    finally:
        writer.close()
        await writer.wait_closed()
    head, _, body = received.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines)
    return Answer(int(first.split()[1]), {name.lower(): value for name, value in headers.items()}, body)


async def request(
    port: int, method: str, path: str, headers: Headers | None = None, body: bytes = b"", *, host: str | None = "own"
) -> Answer:
    """One request on a connection of its own. `host` "own" is 127.0.0.1 and the port, None is no Host header."""
    lines = [f"{method} {path} HTTP/1.1", "Connection: close"]
    if host is not None:
        lines.append(f"Host: {f'127.0.0.1:{port}' if host == 'own' else host}")
    lines += [f"{name}: {value}" for name, value in headers or []]
    if body:
        lines.append(f"Content-Length: {len(body)}")
    return await exchange(port, "\r\n".join([*lines, "", ""]).encode() + body)
