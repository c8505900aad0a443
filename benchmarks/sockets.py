"""WebSocket clients that cost next to nothing, so that the load is not what limits the server.

They do the handshake and the first frame each way (RFC 6455 §4.1, §5), then count what arrives and answer pings. They
acknowledge nothing, for which the floor would have no counterpart; `benchmarks.acks` has those that do.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from enum import IntEnum
from typing import NamedTuple, TypeVar, cast

from benchmarks.servers import Route, RunFailed, Server

HOST = "127.0.0.1"
CONNECTS_AT_ONCE = 50
SOURCE_ADDRESSES = 8
ANSWER_TIMEOUT_S = 30.0
ARRIVAL_TIMEOUT_S = 30.0
NORMAL_CLOSURE = (1000).to_bytes(2)

_SHORT, _TWO_BYTES, _EIGHT_BYTES = 125, 126, 127
_FINAL, _MASKED = 0x80, 0x80
_NO_MASK = bytes(4)


SocketOption = tuple[int, int, int | bytes]
"""Level, name and value of `setsockopt`."""


class NotLetIn(RunFailed):
    """The server ended a socket before it answered."""


class Opcode(IntEnum):
    """RFC 6455 §5.2."""

    TEXT = 1
    CLOSE = 8
    PING = 9
    PONG = 10


class Frame(NamedTuple):
    """A frame of the server's, and where in the data the next one begins."""

    opcode: int
    payload: bytes
    end: int


def client_frame(opcode: Opcode, payload: bytes) -> bytes:
    """A whole frame. Its masking key is zero, which masks nothing and costs nothing, at either end alike."""
    if len(payload) <= _SHORT:
        return bytes((_FINAL | opcode, _MASKED | len(payload))) + _NO_MASK + payload
    return bytes((_FINAL | opcode, _MASKED | _TWO_BYTES)) + len(payload).to_bytes(2) + _NO_MASK + payload


def read_frame(data: bytes, start: int) -> Frame | None:
    """The server's frame that begins there, unmasked and unfragmented as both servers send; None before it is whole."""
    if len(data) < start + 2:
        return None
    length, payload_start = data[start + 1], start + 2
    if length >= _TWO_BYTES:
        payload_start += 2 if length == _TWO_BYTES else 8
        length = int.from_bytes(data[start + 2 : payload_start])
    end = payload_start + length
    return Frame(data[start] & 0x0F, data[payload_start:end], end) if len(data) >= end else None


class Tally:
    """How many messages have arrived at all the sockets of a crowd, and whether one of them was lost.

    `acks` is how many frames have acknowledged them, where clients do.
    """

    def __init__(self) -> None:
        self.count = 0
        self.acks = 0
        self._goal = 0
        self._changed = asyncio.Event()
        self._lost = ""

    def add(self, messages: int) -> None:
        """So many more have arrived."""
        self.count += messages
        if self.count >= self._goal:
            self._changed.set()

    def lose(self, why: str) -> None:
        """A socket has ended that nobody closed: whoever waits is told."""
        self._lost = why
        self._changed.set()

    async def reach(self, goal: int) -> None:
        """Return once so many have arrived. Raises RunFailed when they do not, or more did."""
        self._goal = goal
        with suppress(TimeoutError):
            async with asyncio.timeout(ARRIVAL_TIMEOUT_S):
                while self.count < goal and not self._lost:
                    self._changed.clear()
                    await self._changed.wait()
        if self.count != goal or self._lost:
            raise RunFailed(self._lost or f"{self.count} messages arrived of {goal}")


class Client(asyncio.Protocol):
    """One user's socket. `answered` is the server's first frame, `closed` the end of the TCP connection."""

    _transport: asyncio.Transport

    def __init__(self, request: bytes, hello: bytes, tally: Tally) -> None:
        loop = asyncio.get_running_loop()
        self.answered: asyncio.Future[bytes] = loop.create_future()
        self.closed: asyncio.Future[None] = loop.create_future()
        self._request = request
        self._hello = hello
        self._tally = tally
        self._buffer = b""
        self._upgraded = False
        self._closing = False
        self._end = ""

    def close(self) -> None:
        """Begin the closing handshake; `closed` says when it is over."""
        self._closing = True
        self._transport.write(client_frame(Opcode.CLOSE, NORMAL_CLOSURE))

    def cut(self) -> None:
        """End the TCP connection without a word."""
        self._closing = True
        self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's has another base
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        data = self._buffer + data if self._buffer else data
        if not self._upgraded:
            data = self._finish_handshake(data)
        messages = start = 0
        last = b""
        while self._upgraded and (frame := read_frame(data, start)) is not None:
            start = frame.end
            if frame.opcode == Opcode.TEXT:
                if self._is_message(frame.payload):
                    messages += 1
                    last = frame.payload
            elif frame.opcode == Opcode.PING:
                self._transport.write(client_frame(Opcode.PONG, frame.payload))
            elif frame.opcode == Opcode.CLOSE:
                self._take_close(frame.payload)
        self._buffer = data[start:]
        if messages:
            self._took(messages, last)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.closed.done():
            self.closed.set_result(None)
        if not self.answered.done():
            refused = self._end or self._buffer[:100].decode(errors="replace")
            self.answered.set_exception(NotLetIn(f"a socket ended before it was answered: {refused}"))
        elif not self._closing:
            self._tally.lose(f"a socket was lost: {self._end or exc}")

    def _finish_handshake(self, data: bytes) -> bytes:
        """What follows the response's header, once that is whole; a refusal is left to end by itself."""
        head, end, rest = data.partition(b"\r\n\r\n")
        if not end or not head.startswith(b"HTTP/1.1 101 "):
            return data
        self._upgraded = True
        self._transport.write(client_frame(Opcode.TEXT, self._hello))
        return rest

    def _take_close(self, payload: bytes) -> None:
        """The server's own close is echoed, so that it need not wait; its answer to ours ends it."""
        self._end = f"closed with {int.from_bytes(payload[:2])} {payload[2:].decode()}"
        if not self._closing:
            self._transport.write(client_frame(Opcode.CLOSE, payload))

    def _is_message(self, payload: bytes) -> bool:
        """True for all text frames but the first, which is the answer to the client's own."""
        if self.answered.done():
            return True
        self.answered.set_result(payload)
        return False

    def _took(self, messages: int, last: bytes) -> None:
        """So many messages came in one read; `last` is the payload of the last."""
        self._tally.add(messages)


ClientOf = Callable[[bytes, bytes, Tally], Client]
"""Makes a client of its request, its first frame, and the tally that it counts in."""

C = TypeVar("C", bound=Client)


async def dial(port: int, place: int, client: C, options: Sequence[SocketOption] = ()) -> C:
    """Connect that client, in the `place`-th socket of its crowd. The options are set before it connects."""
    # Several source addresses: one has fewer free ports (ip_local_port_range) than there are sockets.
    source = (f"127.0.0.{2 + place % SOURCE_ADDRESSES}", 0)
    loop = asyncio.get_running_loop()
    if not options:
        await loop.create_connection(lambda: client, HOST, port, local_addr=source)
        return client
    made = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        made.setblocking(False)
        for option in options:
            made.setsockopt(*option)
        made.bind(source)
        await loop.sock_connect(made, (HOST, port))
        await loop.create_connection(lambda: client, sock=made)
    except BaseException:
        made.close()
        raise
    return client


class Crowd:
    """Users connected to one server, each on a socket of its own."""

    def __init__(self, server: Server, client: ClientOf = Client, options: Sequence[SocketOption] = ()) -> None:
        self.routes: list[Route] = []
        self.tally = Tally()
        self._server = server
        self._clients: list[Client] = []
        self._client_of = client
        self._options = options
        self._request = upgrade_request(server)

    async def join(self, users: Sequence[str]) -> list[float]:
        """Connect them, some at once, in order; how long each took, from the TCP connection to the first answer."""
        hellos = [self._server.dialect.hello(user) for user in users]
        return await self.join_with(users, hellos)

    async def join_with(self, users: Sequence[str], hellos: Sequence[bytes]) -> list[float]:
        """The same, with first frames that were made before."""
        waiting = iter(enumerate(zip(users, hellos, strict=True)))
        routes: list[Route] = [Route("", "")] * len(users)
        latencies: list[float] = []

        async def connect_some() -> None:
            for place, (user, hello) in waiting:
                started = time.perf_counter()
                answer = await self._connect(place, hello)
                latencies.append(time.perf_counter() - started)
                routes[place] = self._server.dialect.route(user, answer)

        async with asyncio.TaskGroup() as group:
            for _ in range(CONNECTS_AT_ONCE):
                group.create_task(connect_some())
        self.routes += routes
        return latencies

    async def leave(self) -> None:
        """Close every socket, and wait until the server has."""
        for client in self._clients:
            client.close()
        await asyncio.gather(*(client.closed for client in self._clients))
        self._clients.clear()
        self.routes.clear()

    def cut(self) -> None:
        """End every TCP connection without a word."""
        for client in self._clients:
            client.cut()

    async def _connect(self, place: int, hello: bytes) -> bytes:
        client = self._client_of(self._request, hello, self.tally)
        await dial(self._server.websocket_port, place, client, self._options)
        self._clients.append(client)
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            return await client.answered


def upgrade_request(server: Server) -> bytes:
    """The handshake of a client of that server."""
    lines = [
        "GET /v1/connect HTTP/1.1",
        f"Host: {HOST}:{server.websocket_port}",
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
        "Sec-WebSocket-Version: 13",
    ]
    if server.dialect.subprotocol is not None:
        lines.append(f"Sec-WebSocket-Protocol: {server.dialect.subprotocol}")
    return "\r\n".join([*lines, "", ""]).encode()
