"""A WebSocket client over a plain TCP connection: sends any bytes, and sees what is on the wire, close by close."""

from __future__ import annotations

import asyncio
import itertools
import json
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

TIMEOUT_S = 20
CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
JSON_PROTOCOL = "sidecar.v1.json"
RAW_PROTOCOL = "sidecar.v1.raw"
Header = tuple[str, str | None]
JSON_OFFER: Header = ("Sec-WebSocket-Protocol", JSON_PROTOCOL)
RAW_OFFER: Header = ("Sec-WebSocket-Protocol", RAW_PROTOCOL)
REQUEST_LINE = b"GET /v1/connect HTTP/1.1"
USUAL_HEADERS: tuple[Header, ...] = (
    ("Host", "sidecar.test"),
    ("Connection", "Upgrade"),
    ("Upgrade", "websocket"),
    ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ("Sec-WebSocket-Version", "13"),
)
_NO_CLOSE_FRAME = (1006, "")
_addresses = itertools.count()


def new_address() -> str:
    """A loopback address that nobody has used in this process: floods are counted by address."""
    number = next(_addresses)
    return f"127.{10 + number // 62_500}.{number // 250 % 250}.{1 + number % 250}"


def request(*headers: Header, line: bytes = REQUEST_LINE) -> bytes:
    """A handshake of the usual headers and these. One that is given takes the usual one's place; None leaves it out."""
    given = {name.lower() for name, _ in headers}
    all_headers = [pair for pair in USUAL_HEADERS if pair[0].lower() not in given] + list(headers)
    lines = [f"{name}: {value}".encode("latin-1") for name, value in all_headers if value is not None]
    return b"\r\n".join((line, *lines, b"", b""))


def frame(
    opcode: int, payload: bytes = b"", *, fin: bool = True, reserved: int = 0, mask: bytes | None = b"\x5a\xa5\x0f\xf0"
) -> bytes:
    """One client frame, or what a wrong client takes for one (RFC 6455 §5.2). `mask` None: not masked."""
    first = (0x80 if fin else 0) | reserved << 4 | opcode
    length, bit = len(payload), 0 if mask is None else 0x80
    if length < 126:
        head = bytes((first, bit | length))
    elif length < 65_536:
        head = bytes((first, bit | 126)) + length.to_bytes(2, "big")
    else:
        head = bytes((first, bit | 127)) + length.to_bytes(8, "big")
    if mask is None:
        return head + payload
    whole = mask * (length // 4 + 1)
    masked = int.from_bytes(payload, "big") ^ int.from_bytes(whole[:length], "big")
    return head + mask + masked.to_bytes(length, "big")


def text(payload: str) -> bytes:
    """One text frame."""
    return frame(TEXT, payload.encode())


def closing(code: int, reason: bytes = b"") -> bytes:
    """One close frame."""
    return frame(CLOSE, code.to_bytes(2, "big") + reason)


@dataclass(frozen=True)
class Answer:
    """An HTTP answer: all of its headers but Date, names in lower case."""

    status: int
    headers: dict[str, str]
    body: str


class End(NamedTuple):
    """How a connection ended: the frames before it, and the close; (1006, "") when there was no close frame."""

    frames: tuple[tuple[int, bytes], ...]
    close: tuple[int, str]


class RawWebSocket:
    """One TCP connection to the WebSocket listener. It answers nothing of itself, pings neither."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, address: str) -> None:
        self.reader = reader
        self.writer = writer
        self.address = address

    @classmethod
    async def open(cls, port: int, *, receive_buffer_bytes: int | None = None) -> RawWebSocket:
        """Connect from an address of its own; `receive_buffer_bytes` small: the peer soon finds it full."""
        address = new_address()
        plain = socket.socket()
        plain.setblocking(False)
        try:
            plain.bind((address, 0))
            if receive_buffer_bytes is not None:
                plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
            await asyncio.get_running_loop().sock_connect(plain, ("127.0.0.1", port))
            # The reader holds little, so that a client that does not read leaves the rest to the kernel.
            return cls(*await asyncio.open_connection(sock=plain, limit=4_096), address)
        except BaseException:
            plain.close()
            raise

    def send(self, data: bytes) -> None:
        """Send these bytes, whatever they are."""
        self.writer.write(data)

    async def ask(self, data: bytes) -> Answer:
        """Send a request; the whole answer. Any but a 101 ends the connection, which is waited for."""
        self.send(data)
        async with asyncio.timeout(TIMEOUT_S):
            head = await self.reader.readuntil(b"\r\n\r\n")
            body = b"" if head.startswith(b"HTTP/1.1 101 ") else await self._rest()
        status, *lines = head.decode("latin-1").split("\r\n")[:-2]
        headers = dict(line.split(": ", 1) for line in lines)
        known = {name.lower(): value for name, value in headers.items() if name != "Date"}
        return Answer(int(status.split(" ")[1]), known, body.decode())

    async def upgrade(self, *headers: Header) -> Answer:
        """A handshake that must succeed."""
        answer = await self.ask(request(*headers))
        assert answer.status == 101, answer
        return answer

    async def hello(self, token: str, **members: object) -> dict[str, Any]:
        """Upgrade to the JSON protocol and be welcomed."""
        await self.upgrade(JSON_OFFER)
        self.send(text(json.dumps({"type": "hello", "token": token} | members)))
        welcome = await self.json()
        assert welcome["type"] == "welcome", welcome
        return welcome

    async def frame(self) -> tuple[int, bytes]:
        """The server's next frame, opcode and payload; it must be whole and unmasked."""
        async with asyncio.timeout(TIMEOUT_S):
            return await self._frame()

    async def json(self) -> dict[str, Any]:
        """The next frame, which must be a JSON object."""
        opcode, payload = await self.frame()
        assert opcode == TEXT, (opcode, payload)
        value = json.loads(payload)
        assert isinstance(value, dict)
        return value

    async def end(self) -> End:
        """Everything up to the end of the TCP connection. A close frame is answered, and must be the last thing.

        The server ends the connection first (RFC 6455 §7.1.1), then this side does.
        """
        frames: list[tuple[int, bytes]] = []
        close = _NO_CLOSE_FRAME
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            async with asyncio.timeout(TIMEOUT_S):
                while (one := await self._frame())[0] != CLOSE:
                    frames.append(one)
                close = int.from_bytes(one[1][:2], "big"), one[1][2:].decode()
                self.send(frame(CLOSE, one[1]))
                assert await self._rest() == b""
        self.writer.close()
        return End(tuple(frames), close)

    async def leave(self) -> End:
        """Close with 1000, as a client that has had enough."""
        self.send(closing(1000))
        return await self.end()

    def reset(self) -> None:
        """Break off with an RST, whatever is under way."""
        plain = self.writer.get_extra_info("socket")
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    async def _frame(self) -> tuple[int, bytes]:
        first, length = await self.reader.readexactly(2)
        assert first & 0xF0 == 0x80, "the server fragments nothing and sets no reserved bit"
        if length >= 126:
            length = int.from_bytes(await self.reader.readexactly(2 if length == 126 else 8), "big")
        return first & 0x0F, await self.reader.readexactly(length)

    async def _rest(self) -> bytes:
        data = bytearray()
        with suppress(ConnectionError):
            while chunk := await self.reader.read(65_536):
                data += chunk
        return bytes(data)


@asynccontextmanager
async def raw_websocket(port: int, *, receive_buffer_bytes: int | None = None) -> AsyncIterator[RawWebSocket]:
    """A connection for a block; gone after it, however it was left."""
    client = await RawWebSocket.open(port, receive_buffer_bytes=receive_buffer_bytes)
    try:
        yield client
    finally:
        client.writer.transport.abort()
        with suppress(ConnectionError):
            await client.writer.wait_closed()
