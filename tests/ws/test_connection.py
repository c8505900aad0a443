"""One connection under bad input, floods and stalls: the exact close codes, bounded memory, a bounded end."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress

import pytest

from sidecar.core.close_codes import CloseCode, catalogued
from sidecar.core.ports import AuditEvent
from tests.ws.conftest import MakeHarness
from tests.ws.harness import JSON_PROTOCOL, Harness, Stream, masked

CONT, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA


def close_payload(code: int, text: bytes = b"") -> bytes:
    return code.to_bytes(2, "big") + text


PROTOCOL_ERRORS = {
    "unmasked": masked(TEXT, b"{}", mask=False),
    "reserved bit 1": masked(TEXT, b"{}", reserved=4),
    "reserved bit 3": masked(TEXT, b"{}", reserved=1),
    "opcode 3": masked(0x3, b"{}"),
    "opcode 15": masked(0xF, b"{}"),
    "long ping": masked(PING, b"x" * 126),
    "fragmented ping": masked(PING, b"x", fin=False),
    "long close": masked(CLOSE, close_payload(1000, b"x" * 124)),
    "orphan continuation": masked(CONT, b"{}"),
    "text in text": masked(TEXT, b"{", fin=False) + masked(TEXT, b"}"),
    "close of one byte": masked(CLOSE, b"\x03"),
    "close 1005": masked(CLOSE, close_payload(1005)),
    "close 1006": masked(CLOSE, close_payload(1006)),
    "close 999": masked(CLOSE, close_payload(999)),
    "close 2999": masked(CLOSE, close_payload(2999)),
    "close 5000": masked(CLOSE, close_payload(5000)),
    "close within a message": masked(TEXT, b"{", fin=False) + masked(CLOSE, close_payload(1000)),
    "compressed": masked(TEXT, b"\xaa\x00", reserved=4),
}


@pytest.mark.parametrize("data", PROTOCOL_ERRORS.values(), ids=PROTOCOL_ERRORS.keys())
@pytest.mark.parametrize("welcomed", [True, False])
async def test_protocol_errors(edge: Harness, data: bytes, welcomed: bool) -> None:
    stream = await edge.stream()
    if welcomed:
        await stream.hello(edge.token())
    else:
        await stream.upgrade(("Sec-WebSocket-Protocol", JSON_PROTOCOL))
    stream.writer.write(data)
    assert await stream.close_frame() == (1002, "protocol_error")
    if welcomed:
        (record,) = await edge.trail.seen(AuditEvent.SOCKET_CLOSED)
        assert record.fields["code"] == 1002
        assert len(edge.factory) == 1, "the context is detached, not ended"
    assert await stream.ended() == b""


INVALID_DATA = {
    "latin-1": masked(TEXT, b"\xff"),
    "cut character": masked(TEXT, b"\xe2\x82"),
    "surrogate": masked(TEXT, b"\xed\xa0\x80"),
    "overlong": masked(TEXT, b"\xc0\xaf"),
    "in the second fragment": masked(TEXT, b"\xe2", fin=False) + masked(CONT, b"\x28"),
    "close text": masked(CLOSE, close_payload(1000, b"\xff")),
}


@pytest.mark.parametrize("data", INVALID_DATA.values(), ids=INVALID_DATA.keys())
async def test_invalid_data(edge: Harness, data: bytes) -> None:
    stream = await edge.stream()
    await stream.hello(edge.token())
    stream.writer.write(data)
    assert await stream.close_frame() == (1007, "invalid_data")
    (record,) = await edge.trail.seen(AuditEvent.SOCKET_CLOSED)
    assert record.fields["code"] == 1007


def message_of(size: int) -> bytes:
    """A message frame's payload of exactly `size` bytes."""
    empty = b'{"type":"message","id":"a","data":""}'
    return empty[:-2] + b"x" * (size - len(empty)) + empty[-2:]


async def test_message_size_at_the_limit_and_past_it(make_edge: MakeHarness) -> None:
    edge = await make_edge(max_inbound_bytes=1_000)
    stream = await edge.stream()
    await stream.hello(edge.token())
    stream.writer.write(masked(TEXT, message_of(1_000)))
    assert json.loads((await stream.frame())[1])["reason"] == "NO_AGENT"
    stream.writer.write(masked(TEXT, message_of(1_001)))
    assert await stream.close_frame() == (1009, "message_too_big")


TOO_BIG = {
    "2^62": b"\x81\xff" + (2**62).to_bytes(8, "big") + bytes(4),
    "sum of fragments": masked(TEXT, b"x" * 600, fin=False) + masked(CONT, b"x" * 401),
}


@pytest.mark.parametrize("data", TOO_BIG.values(), ids=TOO_BIG.keys())
async def test_too_big(make_edge: MakeHarness, data: bytes) -> None:
    edge = await make_edge(max_inbound_bytes=1_000)
    stream = await edge.stream()
    await stream.hello(edge.token())
    stream.writer.write(data)
    assert await stream.close_frame() == (1009, "message_too_big")


async def test_one_byte_at_a_time(edge: Harness) -> None:
    stream = await edge.stream()
    await stream.hello(edge.token())
    for byte in masked(TEXT, b'{"type":"what"}'):
        stream.writer.write(bytes((byte,)))
        await stream.writer.drain()
    assert json.loads((await stream.frame())[1])["reason"] == "BAD_REQUEST"


async def test_fragments_are_one_message(edge: Harness) -> None:
    stream = await edge.stream()
    await stream.hello(edge.token())
    stream.writer.write(masked(TEXT, b'{"type":', fin=False) + masked(PING, b"p") + masked(CONT, b'"what"}'))
    assert await stream.frame() == (PONG, b"p")
    assert json.loads((await stream.frame())[1])["reason"] == "BAD_REQUEST"


FLOODS = {
    "pings": masked(PING, b"x" * 125) * 101,
    "pongs": masked(PONG) * 101,
    "empty fragments": masked(TEXT, b"", fin=False) + masked(CONT, b"", fin=False) * 10_000,
    "messages": masked(TEXT, b'{"type":"cancel","id":"a"}') * 101,
}


@pytest.mark.parametrize("data", FLOODS.values(), ids=FLOODS.keys())
async def test_frame_rate(edge: Harness, data: bytes) -> None:
    stream = await edge.stream()
    welcome = await stream.hello(edge.token())
    edge.clock.advance(1)
    manager = edge.manager(welcome["isolation_key"])
    stream.writer.write(data)
    assert await stream.close_frame() == (4005, "rate_limited")
    (record,) = await edge.trail.seen(AuditEvent.SOCKET_CLOSED)
    assert record.fields["code"] == CloseCode.RATE_LIMITED
    assert manager.primary is None


async def test_frame_rate_at_the_limit(edge: Harness) -> None:
    stream = await edge.stream()
    await stream.hello(edge.token())
    edge.clock.advance(1)
    for _ in range(3):
        stream.writer.write(masked(PING, b"x") * 100)
        for _ in range(100):
            assert await stream.frame() == (PONG, b"x")
        edge.clock.advance(1)


async def test_byte_rate(make_edge: MakeHarness) -> None:
    edge = await make_edge(max_inbound_bytes=1_000, bytes_per_second=1_000)
    stream = await edge.stream()
    await stream.hello(edge.token())
    edge.clock.advance(1)
    stream.writer.write(masked(PONG, b"x" * 94) * 10)  # 100 bytes each
    stream.writer.write(masked(TEXT, b'{"type":"what"}'))
    assert await stream.close_frame() == (4005, "rate_limited")


async def test_a_flood_is_answered_up_to_the_rate_and_no_further(edge: Harness) -> None:
    stream = await edge.stream()
    await stream.hello(edge.token())
    edge.clock.advance(1)
    stream.writer.write(masked(PING, b"x") * 30_000)
    answered = await stream.ended()
    assert answered.count(b"\x8a\x01x") <= 100


async def stalled(edge: Harness) -> tuple[Stream, str]:
    """A client that reads no more, with so much sent to it that its transport takes no more."""
    stream = await edge.stream(receive_buffer_bytes=4_096)
    welcome = await stream.hello(edge.token())
    key = str(welcome["isolation_key"])
    manager = edge.manager(key)
    payload = b'"' + b"x" * 200_000 + b'"'
    while manager.primary is not None and manager.primary.writable:
        edge.send(manager, payload)
    return stream, key


async def test_a_stalled_reader_is_a_slow_consumer(make_edge: MakeHarness) -> None:
    edge = await make_edge(close_timeout_s=0.05)
    stream, key = await stalled(edge)
    manager = edge.manager(key)
    head = manager.outbox.head
    edge.send(manager, b'"waits"')
    assert manager.outbox.cursor == head
    edge.advance(29.9)
    assert manager.primary is not None
    edge.advance(0.1)
    assert manager.primary is None
    assert not manager.ended
    (record,) = edge.trail.of(AuditEvent.SOCKET_CLOSED)
    assert record.fields["code"] == CloseCode.SLOW_CONSUMER
    await edge.edge.close()  # once it has waited for the connection, the transport was aborted
    assert edge.edge.connections == 0
    assert b"slow_consumer" not in await stream.ended(), "the client sees 1006"


async def test_the_librarys_own_close_does_not_wait_for_a_stalled_reader(make_edge: MakeHarness) -> None:
    edge = await make_edge(close_timeout_s=0.05)
    await stalled(edge)
    (served,) = edge.edge._open
    async with asyncio.timeout(2):
        await served.close()


async def test_a_reader_that_goes_on_gets_the_rest_in_order(edge: Harness) -> None:
    stream, key = await stalled(edge)
    manager = edge.manager(key)
    edge.send(manager, b'"last"')
    expected = manager.outbox.head
    edge.advance(20)
    sequences: list[int] = []
    while len(sequences) < expected:
        _, payload = await stream.frame()
        sequences.append(json.loads(payload)["sequence"])
    assert sequences == list(range(1, expected + 1))
    assert manager.primary is not None
    assert manager.primary.writable
    edge.advance(29)
    assert manager.primary is not None, "no longer slow"


async def test_a_stalled_reader_cannot_have_pongs_queued(make_edge: MakeHarness) -> None:
    """Reading stops while writing is paused, rates aside."""
    edge = await make_edge(frames_per_second=0, bytes_per_second=0, close_timeout_s=0.05)
    stream = await edge.stream(receive_buffer_bytes=4_096)
    await stream.upgrade(("Authorization", f"Bearer {edge.token()}"))
    (manager,) = edge.factory
    while manager.primary is not None and manager.primary.writable:
        edge.send(manager, b'"' + b"x" * 200_000 + b'"')
    (served,) = edge.edge._open
    buffered = served.transport.get_write_buffer_size()
    assert not served.transport.is_reading()
    flood = asyncio.create_task(_flood(stream))
    for _ in range(200):
        await asyncio.sleep(0)
    assert served.transport.get_write_buffer_size() <= buffered
    edge.advance(30)
    await edge.trail.seen(AuditEvent.CONTEXT_CLOSED)
    await flood


async def _flood(stream: Stream) -> None:
    with suppress(ConnectionError):
        while True:
            stream.writer.write(masked(PING, b"x" * 125) * 1_000)
            await stream.writer.drain()


@pytest.mark.parametrize("answers", [True, False])
async def test_a_client_that_does_not_finish_closing_is_cut_off(make_edge: MakeHarness, answers: bool) -> None:
    edge = await make_edge(close_timeout_s=0.05)
    stream = await edge.stream()
    welcome = await stream.hello(edge.token())
    manager = edge.manager(welcome["isolation_key"])
    edge.factory.cleanup_manager(manager.isolation_key, catalogued(CloseCode.REPLACED), "test", edge.now())
    assert await stream.close_frame() == (4508, "replaced")
    if answers:
        stream.writer.write(masked(CLOSE, close_payload(4508)))
    await stream.ended()
    await edge.edge.close()
    assert edge.edge.connections == 0


@pytest.mark.parametrize("code", [1000, 1001, 3000, 4999])
async def test_a_clients_own_code_is_echoed(edge: Harness, code: int) -> None:
    stream = await edge.stream()
    await stream.hello(edge.token())
    stream.writer.write(masked(CLOSE, close_payload(code, b"bye")))
    assert await stream.close_frame() == (code, "bye")
    (record,) = await edge.trail.seen(AuditEvent.SOCKET_CLOSED)
    assert record.fields["code"] == code
    assert len(edge.factory) == (0 if code == 1000 else 1)


@pytest.mark.parametrize(("data", "code"), [(masked(CLOSE), 1005), (b"", 1006)], ids=["no code", "no close"])
async def test_a_client_that_says_no_code_is_detached(edge: Harness, data: bytes, code: int) -> None:
    stream = await edge.stream()
    await stream.hello(edge.token())
    stream.writer.write(data)
    stream.writer.write_eof()
    (record,) = await edge.trail.seen(AuditEvent.SOCKET_CLOSED)
    assert record.fields["code"] == code
    (manager,) = edge.factory
    assert manager.detached_at is not None


async def test_a_reset_in_mid_frame(edge: Harness) -> None:
    stream = await edge.stream()
    await stream.hello(edge.token())
    stream.writer.write(b"\x81\xff")
    await stream.writer.drain()
    stream.abort()
    (record,) = await edge.trail.seen(AuditEvent.SOCKET_CLOSED)
    assert record.fields["code"] == 1006
