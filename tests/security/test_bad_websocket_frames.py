"""Frames that RFC 6455 forbids, before hello, after the welcome and on the raw protocol: each ends its own socket."""

from __future__ import annotations

import zlib
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

import pytest
import pytest_asyncio

from tests.security.websocket_watch import STAGES, Watch, at_stage, failed_at, quiet_sidecar, watching
from tests.support.raw_websocket import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    closing,
    frame,
    text,
)
from tests.support.running import RunningSidecar

pytestmark = pytest.mark.asyncio(loop_scope="module")

MAX_INBOUND_BYTES = 65_536
PROTOCOL_ERROR = (1002, "protocol_error")
INVALID_DATA = (1007, "invalid_data")
TOO_BIG = (1009, "message_too_big")


@dataclass(frozen=True)
class Case:
    """Bytes after the handshake, the frames that answer what was good in them, and the close."""

    name: str
    data: bytes
    close: tuple[int, str]
    answers: tuple[tuple[int, bytes], ...] = ()


def wrong(name: str, *frames: bytes) -> Case:
    """RFC 6455 §7.1.7: fail the connection, with 1002."""
    return Case(name, b"".join(frames), PROTOCOL_ERROR)


def not_text(name: str, *frames: bytes) -> Case:
    """RFC 6455 §8.1: text that is not UTF-8."""
    return Case(name, b"".join(frames), INVALID_DATA)


def too_big(name: str, *frames: bytes) -> Case:
    """A message over `limits.max_inbound_bytes`, announced or come."""
    return Case(name, b"".join(frames), TOO_BIG)


def announced(length: int, first: int = 0x81) -> bytes:
    """The head of a frame whose payload never comes."""
    return bytes((first, 0xFF)) + length.to_bytes(8, "big") + bytes(4)


def deflated(payload: bytes) -> bytes:
    """A message as permessage-deflate would send it (RFC 7692 §7.2.1)."""
    compressor = zlib.compressobj(wbits=-15)
    return (compressor.compress(payload) + compressor.flush(zlib.Z_SYNC_FLUSH))[:-4]


def begun(payload: bytes = b"{") -> bytes:
    """The first fragment of a text message."""
    return frame(TEXT, payload, fin=False)


CASES = [
    # masking, reserved bits, opcodes (RFC 6455 §5.1, §5.2)
    wrong("unmasked text", frame(TEXT, b"{}", mask=None)),
    wrong("unmasked ping", frame(PING, mask=None)),
    wrong("unmasked close", frame(CLOSE, b"\x03\xe8", mask=None)),
    wrong("reserved bit 1", frame(TEXT, b"{}", reserved=4)),
    wrong("reserved bit 2", frame(TEXT, b"{}", reserved=2)),
    wrong("reserved bit 3", frame(TEXT, b"{}", reserved=1)),
    wrong("reserved bits on a ping", frame(PING, reserved=7)),
    wrong("reserved bit on a continuation", begun(), frame(CONTINUATION, b"}", reserved=4)),
    *(wrong(f"opcode {opcode}", frame(opcode, b"{}")) for opcode in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15)),
    # compression, which nobody agreed to
    wrong("compressed", frame(TEXT, deflated(b'{"type":"what"}'), reserved=4)),
    wrong("compressed bomb", frame(TEXT, deflated(bytes(32 * 1024 * 1024)), reserved=4)),
    # control frames (§5.5)
    wrong("ping of 126 bytes", frame(PING, b"x" * 126)),
    wrong("pong of 126 bytes", frame(PONG, b"x" * 126)),
    wrong("close of 126 bytes", closing(1000, b"x" * 124)),
    wrong("fragmented ping", frame(PING, b"x", fin=False)),
    wrong("fragmented pong", frame(PONG, b"x", fin=False)),
    wrong("fragmented close", frame(CLOSE, b"\x03\xe8", fin=False)),
    # fragments (§5.4)
    wrong("orphan continuation", frame(CONTINUATION, b"{}")),
    wrong("orphan fragment", frame(CONTINUATION, b"{}", fin=False)),
    wrong("text in a text", begun(), text("}")),
    wrong("binary in a text", begun(), frame(BINARY, b"}")),
    wrong("close in a text", begun(), closing(1000)),
    # close (§5.5.1, §7.4)
    wrong("close of one byte", frame(CLOSE, b"\x03")),
    *(wrong(f"close {code}", closing(code)) for code in (0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 65_535)),
    # UTF-8 (§8.1)
    not_text("latin-1", frame(TEXT, b"\xff")),
    not_text("a character cut short", frame(TEXT, b'{"type":"\xe2\x82')),
    not_text("a surrogate", frame(TEXT, b'"\xed\xa0\x80"')),
    not_text("an overlong slash", frame(TEXT, b'"\xc0\xaf"')),
    not_text("beyond U+10FFFF", frame(TEXT, b'"\xf4\x90\x80\x80"')),
    not_text("across two fragments", begun(b'"\xe2'), frame(CONTINUATION, b'\x28"')),
    not_text("the close's text", closing(1000, b"\xff")),
    # size, on the sum of fragments
    too_big("2^62 bytes", announced(2**62)),
    too_big("2^63 - 1 bytes", announced(2**63 - 1)),
    too_big("ping of 2^62 bytes", announced(2**62, 0x89)),
    too_big("2^62 binary bytes", announced(2**62, 0x82)),
    too_big("one byte past the limit", frame(TEXT, b"x" * (MAX_INBOUND_BYTES + 1))),
    too_big("one byte past it in fragments", begun(b"x" * MAX_INBOUND_BYTES), frame(CONTINUATION, b"x")),
    too_big("one byte past it, announced", begun(b"x" * MAX_INBOUND_BYTES), announced(1, 0x80)[:10] + bytes(4)),
    # what was good before it is answered
    Case("after a ping", frame(PING, b"p") + frame(TEXT, b"{}", reserved=4), PROTOCOL_ERROR, ((PONG, b"p"),)),
    Case("a ping within", begun() + frame(PING, b"p") + text("}"), PROTOCOL_ERROR, ((PONG, b"p"),)),
    Case("nothing after it", frame(3) + frame(PING, b"p") * 10 + text("{}"), PROTOCOL_ERROR),
]


@pytest.fixture(scope="module")
def sidecar(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningSidecar]:
    with quiet_sidecar(tmp_path_factory.mktemp("frames")) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def watch(sidecar: RunningSidecar) -> AsyncIterator[Watch]:
    async with watching(sidecar) as watched:
        yield watched


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
async def test_a_bad_frame_ends_its_own_socket(watch: Watch, case: Case, stage: str) -> None:
    user = watch.new_user()
    async with watch.client() as client:
        await at_stage(watch, client, stage, user)
        client.send(case.data)
        assert await client.end() == (case.answers, case.close)
        await watch.left(*failed_at(client, stage, user, *case.close))
