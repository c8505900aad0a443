"""Bad HTTP/2 and bad gRPC framing against a running sidecar, by hand where grpcio would refuse to send it.

Each case: the exact end of the call or the connection, the records that it adds, and a bystander whose traffic goes on.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

import grpc
import pytest
import pytest_asyncio

from sidecar.api.v1 import context_service_pb2 as context_pb
from tests.rpc.rig import TIMEOUT_S, plain_refusal, refused
from tests.support import http2
from tests.support.stage import OPERATOR, Stage, check_status, staged
from tests.support.ways import as_client

pytestmark = pytest.mark.asyncio(loop_scope="module")

LOOK = "/sidecar.api.v1.ContextService/GetContext"
COUNT = "/sidecar.api.v1.AdminService/GetFactoryStats"
SEND = "/sidecar.api.v1.DeliveryService/SendToUser"
DELIVER = "/sidecar.api.v1.DeliveryService/Deliver"
OK, DEADLINE, EXHAUSTED, UNIMPLEMENTED, INTERNAL, UNAUTHENTICATED = 0, 4, 8, 12, 13, 16
"""grpc-status."""
INTERNAL_ERROR = 2
"""RST_STREAM (RFC 9113 §7)."""
LARGEST = 4 * 1024 * 1024
MIB_OF_KIB = 1024


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    async with staged(tmp_path_factory.mktemp("transport")) as stage:
        yield stage


def peak_kib(stage: Stage) -> int:
    """The most memory that the process ever had resident."""
    status = (stage.sidecar.process.pid, "status")
    with open(f"/proc/{status[0]}/{status[1]}") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


async def ended(stage: Stage, *frames: bytes, acknowledge: bool = True) -> http2.Answer:
    """How the call on stream 1 ends that these frames make."""
    connection = await http2.connect(stage.relay.target)
    reader, writer = connection
    if acknowledge:
        await http2.acknowledge_settings(connection)
    writer.write(b"".join(frames))
    try:
        async with asyncio.timeout(TIMEOUT_S):
            return await http2.end_of_call(reader)
    finally:
        writer.close()
        await writer.wait_closed()


# Header fields


@dataclass(frozen=True)
class BadHeaders:
    """A call of Alice's with a good token, but for these header fields; and how it ends."""

    id: str
    status: int | None
    more: tuple[http2.Field, ...] = ()
    changed: dict[str, str | None] = field(default_factory=dict)
    reset: int | None = None


HEADERS = (
    # gRPC takes a call whatever its content type says: the token decides.
    BadHeaders("content-type text/html", OK, changed={"content_type": "text/html"}),
    BadHeaders("content-type application/json", OK, changed={"content_type": "application/json"}),
    BadHeaders("no content-type", OK, changed={"content_type": None}),
    BadHeaders("no te", None, changed={"te": None}, reset=INTERNAL_ERROR),
    BadHeaders("GET", None, changed={"method": "GET"}, reset=INTERNAL_ERROR),
    BadHeaders("PUT", None, changed={"method": "PUT"}, reset=INTERNAL_ERROR),
    BadHeaders("no path", None, changed={"path": None}, reset=INTERNAL_ERROR),
    BadHeaders("no authority", None, changed={"authority": None}, reset=INTERNAL_ERROR),
    BadHeaders("an empty path", UNIMPLEMENTED, changed={"path": ""}),
    BadHeaders("a path with NUL", UNIMPLEMENTED, changed={"path": LOOK + "\0"}),
    BadHeaders("a path upwards", UNIMPLEMENTED, changed={"path": "/../" + LOOK}),
    BadHeaders("scheme ftp", INTERNAL, changed={"scheme": "ftp"}),
    BadHeaders("a name in capitals", INTERNAL, (("X-Upper", "1"),)),
    BadHeaders("a name with NUL", INTERNAL, (("x\0y", "1"),)),
    BadHeaders("no name", INTERNAL, (("", "1"),)),
    BadHeaders("binary metadata that is not base64", INTERNAL, (("x-other-bin", "!!!!"),)),
    BadHeaders("a time-out of letters", INTERNAL, (("grpc-timeout", "abc"),)),
    BadHeaders("a time-out of 0", DEADLINE, (("grpc-timeout", "0n"),)),
    BadHeaders("an unknown encoding", INTERNAL, (("grpc-encoding", "br"),)),
    BadHeaders("16 KB of metadata", EXHAUSTED, (("x-filler", "a" * 16_384),)),
    BadHeaders("1 MB of metadata", EXHAUSTED, (("x-filler", "a" * 1_000_000),)),
    BadHeaders("300 fields", EXHAUSTED, tuple((f"x-{number}", "a") for number in range(300))),
)


@pytest.mark.parametrize("case", HEADERS, ids=lambda case: case.id)
async def test_header_fields(stage: Stage, case: BadHeaders) -> None:
    fields = http2.call_fields(LOOK, ("x-context-token", stage.alice.context_token), *case.more, **case.changed)
    # A whole call may be answered before its time-out of 0 is seen.
    body = () if case.status == DEADLINE else (http2.message(b"", 1),)
    async with stage.seen():
        answer = await ended(stage, http2.header_frames(fields, 1), *body)
    assert (answer.status, answer.reset) == (case.status, case.reset)
    assert stage.alice.context_token not in answer.message


async def test_a_byte_less_than_8_kib_of_metadata_and_no_more(stage: Stage) -> None:
    """Counted as RFC 9113 §6.5.2 does: name, value and 32 bytes each. More is refused each time, not at random."""
    fields = http2.call_fields(LOOK, ("x-context-token", stage.alice.context_token), ("x-filler", ""))
    room = 8_191 - sum(len(name) + len(value) + 32 for name, value in fields)
    async with stage.seen():
        for size, status in ((room, OK), *[(room + 1, EXHAUSTED)] * 5):
            frames = http2.header_frames([*fields[:-1], ("x-filler", "a" * size)], 1)
            assert (await ended(stage, frames, http2.message(b"", 1))).status == status


TOKENS: dict[str, Callable[[Stage], bytes]] = {
    "a lone surrogate": lambda stage: stage.alice.context_token.encode() + b"\xed\xa0\x80",
    "UTF-8": lambda stage: stage.alice.context_token.encode() + "é".encode(),
    "Latin-1": lambda stage: stage.alice.context_token.encode() + b"\xe9",
    "NUL": lambda stage: stage.alice.context_token.encode() + b"\0",
    "newline": lambda stage: stage.alice.context_token.encode() + b"\n",
    "a space before": lambda stage: b" " + stage.alice.context_token.encode(),
}


@pytest.mark.parametrize("case", TOKENS)
async def test_a_context_token_that_is_no_text(stage: Stage, case: str) -> None:
    fields = http2.call_fields(LOOK, ("x-context-token", TOKENS[case](stage)))
    async with stage.seen(token_denied=1) as records:
        answer = await ended(stage, http2.header_frames(fields, 1), http2.message(b"", 1))
        assert (answer.status, answer.message) == (UNAUTHENTICATED, "the token is not valid")
    assert (records[0]["reason"], records[0]["fault"]) == ("TOKEN_INVALID", "malformed")


@pytest.mark.parametrize("tail", [b"\xed\xa0\x80", "é".encode(), b"\xe9", b"\0", b"\n"])
async def test_a_service_token_that_is_no_text(stage: Stage, tail: bytes) -> None:
    """Nor does the log hold it in the end, though gRPC tells of a value that it cannot decode."""
    fields = http2.call_fields(COUNT, ("x-service-token", OPERATOR.encode() + tail))
    async with stage.seen(token_denied=1) as records:
        answer = await ended(stage, http2.header_frames(fields, 1), http2.message(b"", 1))
        assert (answer.status, answer.message) == (UNAUTHENTICATED, "the token is not valid")
    assert records[0]["reason"] == "TOKEN_INVALID"
    assert OPERATOR not in (stage.folder / "log.jsonl").read_text()


async def test_16_kilobytes_of_metadata_from_grpcio(stage: Stage) -> None:
    async with stage.caller() as caller, stage.seen():
        metadata = (("x-filler", "a" * 16_384), ("x-context-token", stage.alice.context_token))
        error = await plain_refusal(caller.context.GetContext(context_pb.GetContextRequest(), metadata=metadata))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


# Bodies


@dataclass(frozen=True)
class BadBody:
    """What stands where one gRPC message should, in a call of Alice's with a good token; and how it ends."""

    id: str
    body: bytes
    status: int
    more: tuple[http2.Field, ...] = ()
    end: bool = True


def length_prefixed(data: bytes, flag: int = 0) -> bytes:
    return bytes((flag,)) + len(data).to_bytes(4, "big") + data


GZIP = (("grpc-encoding", "gzip"),)
BODIES = (
    BadBody("compressed without an encoding", length_prefixed(b"ab", 1), INTERNAL),
    BadBody("not gzip", length_prefixed(b"ab", 1), INTERNAL, GZIP),
    BadBody("a length of 4 GiB", b"\0\xff\xff\xff\xffab", EXHAUSTED, end=False),
    BadBody("a length one over the limit", b"\0" + (LARGEST + 1).to_bytes(4, "big"), EXHAUSTED, end=False),
    # Read as the one message that there should be.
    BadBody("flag 2", length_prefixed(b"", 2), OK),
    BadBody("two messages", length_prefixed(b"") * 2, OK),
)


@pytest.mark.parametrize("case", BODIES, ids=lambda case: case.id)
async def test_bodies(stage: Stage, case: BadBody) -> None:
    fields = http2.call_fields(LOOK, ("x-context-token", stage.alice.context_token), *case.more)
    flags = http2.END_STREAM if case.end else 0
    async with stage.seen():
        answer = await ended(stage, http2.header_frames(fields, 1), http2.frame(http2.DATA, flags, 1, case.body))
    assert answer.status == case.status


async def test_the_largest_request_and_one_larger(stage: Stage) -> None:
    async with stage.caller() as caller, stage.seen():
        send = caller.channel.unary_unary(SEND)
        proof = as_client(stage.alice.context_token)
        assert check_status(await refused(send(b"\xff" * LARGEST, **proof))).reason == "BAD_REQUEST"
        error = await plain_refusal(send(b"\xff" * (LARGEST + 1), **proof))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def bomb(mebibytes: int) -> bytes:
    """So many zeros, as gzip."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    return b"".join(packer.compress(bytes(1 << 20)) for _ in range(mebibytes)) + packer.flush()


async def test_a_compressed_bomb_is_refused_unblown(stage: Stage) -> None:
    """48 MiB in 48 KiB are refused by their true size, and not unpacked to know it."""
    before = peak_kib(stage)
    fields = http2.call_fields(LOOK, ("x-context-token", stage.alice.context_token), *GZIP)
    data = length_prefixed(bomb(48), 1)
    parts = [data[start : start + http2.MAX_FRAME_BYTES] for start in range(0, len(data), http2.MAX_FRAME_BYTES)]
    body = b"".join(http2.frame(http2.DATA, part is parts[-1], 1, part) for part in parts)
    async with stage.seen():
        answer = await ended(stage, http2.header_frames(fields, 1), body)
    assert answer.status == EXHAUSTED
    assert peak_kib(stage) - before < 16 * MIB_OF_KIB


async def test_a_bomb_on_a_stream(stage: Stage) -> None:
    async with stage.caller() as caller, stage.seen():
        stream = caller.channel.stream_stream(DELIVER)(compression=grpc.Compression.Gzip, timeout=TIMEOUT_S)
        await stream.write(bytes(20_000_000))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stream.read()
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize("body", [b"", b"\0\0\0\0\5ab"], ids=["no message", "half a message"])
async def test_calls_without_their_message_wait_for_nobody_but_themselves(stage: Stage, body: bytes) -> None:
    """gRPC gives them no answer; they are no calls of ours yet, and end with their connection."""
    connection = await http2.connect(stage.relay.target)
    await http2.acknowledge_settings(connection)
    fields = http2.call_fields(LOOK, ("x-context-token", stage.alice.context_token))
    async with stage.seen():
        for stream in range(1, 201, 2):
            connection[1].write(http2.header_frames(fields, stream) + http2.frame(http2.DATA, 1, stream, body))
        connection[1].write(http2.header_frames(fields, 201) + http2.message(b"", 201))
        async with asyncio.timeout(TIMEOUT_S):
            assert (await http2.end_of_call(connection[0], 201)).status == OK
    connection[1].close()


# Connections


async def cut_off(stage: Stage, *data: bytes) -> list[http2.Frame]:
    """What a connection is answered before it ends."""
    host, _, port = stage.relay.target.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"".join(data))
    frames: list[http2.Frame] = []
    try:
        async with asyncio.timeout(TIMEOUT_S):
            while True:
                frames.append(await http2.whole_frame(reader))
    except asyncio.IncompleteReadError:
        return frames
    finally:
        writer.close()


PREFACE = http2.PREFACE + http2.frame(http2.SETTINGS, 0, 0, b"")
NOT_HTTP2 = {
    "HTTP/1.1": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a WebSocket's handshake": b"GET /v1/connect HTTP/1.1\r\nUpgrade: websocket\r\n\r\n",
    "zeros": bytes(10_000),
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),
    "garbage behind the preface": http2.PREFACE + b"\xff" * 100,
    "a frame of 16 MiB": PREFACE + b"\xff\xff\xff\0\0\0\0\0\1",
    "settings of 5 bytes": PREFACE + http2.frame(http2.SETTINGS, 0, 0, bytes(5)),
    "a continuation of nothing": PREFACE + http2.frame(http2.CONTINUATION, http2.END_HEADERS, 1, b""),
}


@pytest.mark.parametrize("case", NOT_HTTP2)
async def test_what_is_not_http2_is_cut_off(stage: Stage, case: str) -> None:
    async with stage.seen():
        frames = await cut_off(stage, NOT_HTTP2[case])
        assert http2.HEADERS not in {each.kind for each in frames}


async def test_a_ping_flood_is_cut_off(stage: Stage) -> None:
    async with stage.seen():
        frames = await cut_off(stage, PREFACE, http2.frame(http2.PING, 0, 0, bytes(8)) * 100)
    assert frames[-1].kind == http2.GOAWAY
    assert frames[-1].payload.endswith(b"too_many_pings")


async def test_keepalives_every_200_ms_are_cut_off(stage: Stage) -> None:
    """With a call open and nothing said on it."""
    reader, writer = await http2.connect(stage.relay.target)
    writer.write(http2.frame(http2.SETTINGS, http2.ACK, 0, b""))
    writer.write(http2.request_headers("/grpc.health.v1.Health/Watch", 1) + http2.message(b"", 1, flags=0))
    async with stage.seen(), asyncio.timeout(TIMEOUT_S):
        while (got := await keepalive(reader, writer)).kind != http2.GOAWAY:
            pass
    assert got.payload.endswith(b"too_many_pings")
    writer.close()


async def keepalive(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> http2.Frame:
    """The next frame; a ping for each 200 ms until it comes."""
    waiting = asyncio.ensure_future(http2.whole_frame(reader))
    while not (await asyncio.wait((waiting,), timeout=0.2))[0]:
        writer.write(http2.frame(http2.PING, 0, 0, b"are you?"))
    return waiting.result()


@pytest.mark.parametrize("path", [DELIVER, LOOK])
async def test_rapid_resets_leave_nothing(stage: Stage, path: str) -> None:
    """CVE-2023-44487: a thousand calls begun and reset at once."""
    async with stage.seen():
        frames = [PREFACE]
        for stream in range(1, 2_001, 2):
            frames.append(http2.request_headers(path, stream))
            frames.append(http2.frame(http2.RST_STREAM, 0, stream, (8).to_bytes(4, "big")))
        host, _, port = stage.relay.target.rpartition(":")
        _, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"".join(frames))
        await writer.drain()
        await stage.bystander.goes_on(10)
        writer.close()


async def test_more_streams_than_there_may_be_are_refused(stage: Stage) -> None:
    """1,000 calls at once on one connection; the next is not taken."""
    connection = await http2.connect(stage.relay.target)
    await http2.acknowledge_settings(connection)
    async with stage.seen():
        for stream in range(1, 2_001, 2):
            connection[1].write(http2.request_headers(LOOK, stream))
        connection[1].write(http2.request_headers(LOOK, 2_001) + http2.message(b"", 2_001))
        async with asyncio.timeout(TIMEOUT_S):
            assert (await http2.end_of_call(connection[0], 2_001)).reset is not None
    connection[1].close()


async def test_an_endless_header_is_not_kept(stage: Stage) -> None:
    """CVE-2024-27316: CONTINUATION frames without an end, each of a further field."""
    before = peak_kib(stage)
    connection = await http2.connect(stage.relay.target)
    await http2.acknowledge_settings(connection)
    filler = http2.header("x-filler", "a" * 16_000)
    async with stage.seen():
        connection[1].write(
            http2.frame(http2.HEADERS, 0, 1, b"".join(http2.header(*each) for each in http2.call_fields(LOOK)))
        )
        for _ in range(2_000):
            connection[1].write(http2.frame(http2.CONTINUATION, 0, 1, filler))
            await connection[1].drain()
        await stage.bystander.goes_on(2)
    connection[1].close()
    assert peak_kib(stage) - before < 16 * MIB_OF_KIB


async def test_a_client_that_takes_no_answer_holds_up_nobody(stage: Stage) -> None:
    """Its window holds back what has a body; a refusal has none, and is waited for: then the call has been handled."""
    async with stage.seen(token_denied=1):
        reader, writer = await http2.connect_without_window(stage.relay.target, LOOK, b"")
        writer.write(http2.request_headers("/grpc.health.v1.Health/Check", 3) + http2.message(b"", 3))
        async with asyncio.timeout(TIMEOUT_S):
            assert (await http2.end_of_call(reader, 1)).status == grpc.StatusCode.UNAUTHENTICATED.value[0]
        await stage.bystander.goes_on(2)
        writer.close()
