"""As much of HTTP/2 (RFC 9113) as a rude client needs, by hand: no library lets one break its rules."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable
from typing import NamedTuple

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0x0, 0x1, 0x3, 0x4, 0x6, 0x7, 0x8, 0x9
ACK, END_STREAM, END_HEADERS = 0x1, 0x1, 0x4
MAX_FRAME_BYTES = 16_384
Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Field = tuple[str | bytes, str | bytes]


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """RFC 9113 §4.1."""
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def text(value: str | bytes) -> bytes:
    """A string literal, not Huffman coded (RFC 7541 §5.2)."""
    data = value.encode() if isinstance(value, str) else value
    if len(data) < 127:
        return bytes((len(data),)) + data
    length, rest = b"\x7f", len(data) - 127
    while rest >= 128:
        length, rest = length + bytes((rest % 128 + 128,)), rest // 128
    return length + bytes((rest,)) + data


def header(name: str | bytes, value: str | bytes) -> bytes:
    """A literal header field without indexing (RFC 7541 §6.2.2)."""
    return b"\0" + text(name) + text(value)


def call_fields(path: str, /, *more: Field, **changed: str | None) -> list[Field]:
    """The header fields of a gRPC call; `changed` by name with _ for - and without the colon, None leaves one out."""
    usual = (
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "test"),
        ("te", "trailers"),
        ("content-type", "application/grpc"),
    )
    fields: list[Field] = []
    for name, value in usual:
        instead = changed.get(name.strip(":").replace("-", "_"), value)
        if instead is not None:
            fields.append((name, instead))
    return [*fields, *more]


def header_frames(fields: Iterable[Field], stream: int, flags: int = 0) -> bytes:
    """A HEADERS frame and, where the fields do not fit into it, CONTINUATION frames (RFC 9113 §6.10)."""
    block = b"".join(header(*field) for field in fields)
    parts = [block[start : start + MAX_FRAME_BYTES] for start in range(0, len(block), MAX_FRAME_BYTES)]
    kinds = [HEADERS] + [CONTINUATION] * (len(parts) - 1)
    ends = [0] * (len(parts) - 1) + [END_HEADERS]
    first = [flags] + [0] * (len(parts) - 1)
    return b"".join(
        frame(kind, end | own, stream, part) for kind, end, own, part in zip(kinds, ends, first, parts, strict=True)
    )


def request_headers(path: str, stream: int, flags: int = END_HEADERS) -> bytes:
    """The HEADERS frame of a gRPC call."""
    return frame(HEADERS, flags, stream, b"".join(header(*field) for field in call_fields(path)))


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


async def acknowledge_settings(connection: Connection) -> None:
    """Agree to the server's settings (§6.5.3): gRPC holds a client to its limits from then on only."""
    reader, writer = connection
    while (await whole_frame(reader)).kind != SETTINGS:
        pass
    writer.write(frame(SETTINGS, ACK, 0, b""))


class Frame(NamedTuple):
    """One frame as it came."""

    kind: int
    flags: int
    stream: int
    payload: bytes


async def whole_frame(reader: asyncio.StreamReader) -> Frame:
    """The next frame. Raises IncompleteReadError at the end."""
    head = await reader.readexactly(9)
    payload = await reader.readexactly(int.from_bytes(head[:3], "big"))
    return Frame(head[3], head[4], int.from_bytes(head[5:9], "big"), payload)


async def next_frame(reader: asyncio.StreamReader) -> tuple[int, int, bytes]:
    """Kind, stream and payload of the next frame. Raises IncompleteReadError at the end."""
    kind, _, stream, payload = await whole_frame(reader)
    return kind, stream, payload


class Answer(NamedTuple):
    """How a call ended: `grpc-status`, or the code of its RST_STREAM; and the fields of its trailers, undecoded."""

    status: int | None
    reset: int | None
    trailers: bytes

    @property
    def message(self) -> str:
        """`grpc-message`, which this far is not Huffman coded by the server."""
        found = re.search(rb"grpc-message[\x00-\x7f]([ -~]*)", self.trailers)
        return found[1].decode() if found else ""


async def end_of_call(reader: asyncio.StreamReader, stream: int = 1) -> Answer:
    """Wait for the end of that call. Raises IncompleteReadError when the connection ends before."""
    while True:
        got = await whole_frame(reader)
        if got.stream != stream:
            continue
        if got.kind == RST_STREAM:
            return Answer(None, int.from_bytes(got.payload, "big"), b"")
        if got.kind == HEADERS and got.flags & END_STREAM:
            # A fresh connection's first grpc-status is a literal field with a literal name (RFC 7541 §6.2).
            found = re.search(rb"grpc-status[\x01\x02](\d+)", got.payload)
            assert found is not None, got.payload
            return Answer(int(found[1]), None, got.payload)
