"""As much of HTTP/2 (RFC 9113) as a rude client needs, by hand: no library lets one break its rules."""

from __future__ import annotations

import asyncio

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING = 0x0, 0x1, 0x3, 0x4, 0x6
END_STREAM, END_HEADERS = 0x1, 0x4
Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """RFC 9113 §4.1."""
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def header(name: str, value: str) -> bytes:
    """A literal header field without indexing (RFC 7541 §6.2.2); name and value shorter than 127."""
    return b"\0" + bytes((len(name),)) + name.encode() + bytes((len(value),)) + value.encode()


def request_headers(path: str, stream: int, flags: int = END_HEADERS) -> bytes:
    """The HEADERS frame of a gRPC call."""
    fields = (
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "test"),
        ("te", "trailers"),
        ("content-type", "application/grpc"),
    )
    return frame(HEADERS, flags, stream, b"".join(header(*field) for field in fields))


def message(data: bytes, stream: int, flags: int = END_STREAM) -> bytes:
    """The DATA frame of one gRPC message, uncompressed."""
    return frame(DATA, flags, stream, b"\0" + len(data).to_bytes(4, "big") + data)


async def connect(target: str, settings: bytes = b"") -> Connection:
    """A connection past its preface."""
    host, _, port = target.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(PREFACE + frame(SETTINGS, 0, 0, settings))
    return reader, writer


async def connect_without_window(target: str, path: str, data: bytes) -> Connection:
    """A call of which the client takes no answer: SETTINGS_INITIAL_WINDOW_SIZE (§6.5.2) is 0."""
    reader, writer = await connect(target, (4).to_bytes(2, "big") + bytes(4))
    writer.write(request_headers(path, 1) + message(data, 1))
    await writer.drain()
    return reader, writer


async def next_frame(reader: asyncio.StreamReader) -> tuple[int, int, bytes]:
    """Kind, stream and payload of the next frame. Raises IncompleteReadError at the end."""
    head = await reader.readexactly(9)
    payload = await reader.readexactly(int.from_bytes(head[:3], "big"))
    return head[3], int.from_bytes(head[5:9], "big"), payload
