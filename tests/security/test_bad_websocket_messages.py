"""What a client of `sidecar.v1.json` must not say, first or later: no JSON, no frame, bad members."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import pytest_asyncio

from tests.security.websocket_watch import (
    Record,
    Watch,
    context_closed,
    opened,
    quiet_sidecar,
    refused,
    socket_closed,
    watching,
)
from tests.support.raw_websocket import (
    BINARY,
    CONTINUATION,
    JSON_OFFER,
    PING,
    PONG,
    TEXT,
    RawWebSocket,
    closing,
    frame,
    text,
)
from tests.support.running import RunningSidecar

pytestmark = pytest.mark.asyncio(loop_scope="module")

MAX_INBOUND_BYTES = 65_536
MAX_INTEGER = 2**53 - 1
BAD_FRAME = (4500, "bad_frame")
UNSUPPORTED = (1003, "unsupported_data")


@dataclass(frozen=True)
class Closed:
    """Text that ends its socket, as the first frame and after the welcome."""

    name: str
    text: str | bytes
    opcode: int = TEXT
    close: tuple[int, str] = BAD_FRAME
    reason: str = "bad_frame"


def nested(depth: int) -> str:
    """A message of which the deepest array is at that depth."""
    return '{"type":"message","id":"m","data":' + "[" * (depth - 1) + "]" * (depth - 1) + "}"


def data(value: str) -> str:
    """A message with this text as its data."""
    return f'{{"type":"message","id":"m","data":{value}}}'


NOT_FRAMES = [
    # JSON (RFC 8259)
    Closed("nothing", ""),
    Closed("white space", " \n"),
    Closed("no JSON", "hello"),
    Closed("cut short", '{"type":"ack","sequence":'),
    Closed("two values", '{"type":"ack","sequence":0}{"type":"ack","sequence":0}'),
    Closed("a comma too many", '{"type":"ack","sequence":0,}'),
    Closed("a comment", '{"type":"ack","sequence":0}//'),
    Closed("single quotes", "{'type':'ack','sequence':0}"),
    Closed("a byte order mark", '\ufeff{"type":"ack","sequence":0}'),
    Closed("NUL behind", '{"type":"ack","sequence":0}\0'),
    Closed("a control character in a string", data('"a\nb"')),
    Closed("NaN", data("NaN")),
    Closed("Infinity", data("Infinity")),
    Closed("-Infinity", data("[-Infinity]")),
    Closed("a number like none", data("01")),
    Closed("True", data("True")),
    Closed("a lone surrogate", data('"\\ud800"')),
    Closed("a lone low surrogate", data('"\\udc00"')),
    Closed("a lone surrogate in a name", data('{"\\ud800":1}')),
    Closed("surrogates the wrong way round", data('"\\udc00\\ud800"')),
    Closed("a lone surrogate as the type", '{"type":"\\ud800"}'),
    Closed("a bad escape", data('"\\x41"')),
    # depth
    Closed("depth 33", nested(33)),
    Closed("depth 33 of objects", data('{"a":' * 32 + "1" + "}" * 32)),
    Closed("depth 10,000", nested(10_000)),
    Closed("depth 30,000, never closed", "[" * 30_000),
    # an object with a type
    Closed("an array", "[]"),
    Closed("a string", '"ack"'),
    Closed("a number", "1"),
    Closed("null", "null"),
    Closed("no type", '{"sequence":0}'),
    Closed("type null", '{"type":null}'),
    Closed("type a number", '{"type":1}'),
    Closed("type a list", '{"type":["ack"]}'),
    # binary on a subprotocol of text
    Closed("binary", '{"type":"hello"}', BINARY, UNSUPPORTED, "binary_frame"),
    Closed("binary that is no text", b"\x00\xff", BINARY, UNSUPPORTED, "binary_frame"),
]


BAD_SEQUENCES = {
    "absent": None,
    "null": "null",
    "negative": "-1",
    "minus nothing and a half": "-0.5",
    "a float": "0.0",
    "a float with an exponent": "0e0",
    "a string": '"0"',
    "true": "true",
    "false": "false",
    "a list": "[0]",
    "one ahead": "1",
    "the largest": str(MAX_INTEGER),
    "past 2^53 - 1": str(MAX_INTEGER + 1),
    "2^64": str(2**64),
    "5,000 digits": "9" * 5_000,
    "beyond every float": "1e999",
}
AFTERWARDS = [
    *(
        Closed(f"ack: sequence {name}", '{"type":"ack"}' if value is None else f'{{"type":"ack","sequence":{value}}}')
        for name, value in BAD_SEQUENCES.items()
    ),
    Closed("hello again", '{"type":"hello"}'),
    Closed("hello again with a token", '{"type":"hello","token":"a.b.c"}'),
    Closed("refresh without a token", '{"type":"refresh"}'),
    Closed("refresh null", '{"type":"refresh","token":null}'),
    Closed("refresh a number", '{"type":"refresh","token":1}'),
]


@dataclass(frozen=True)
class Answered:
    """Text that is answered with one `error`, and ends nothing."""

    name: str
    text: str
    reason: str
    id: str | None = None


def bad_request(name: str, text: str, id: str | None = None) -> Answered:
    return Answered(name, text, "BAD_REQUEST", id)


def sized(size: int) -> str:
    """A message frame of exactly so many bytes."""
    return data('"' + "x" * (size - len(data('""'))) + '"')


ANSWERED = [
    bad_request("an unknown type", '{"type":"what","id":"m"}', "m"),
    bad_request("an empty type", '{"type":""}'),
    bad_request("the server's own", '{"type":"message_","id":7}'),
    bad_request("welcome", '{"type":"welcome"}'),
    bad_request("the type in capitals", '{"type":"ACK","sequence":99}'),
    bad_request("message without an id", '{"type":"message","data":1}'),
    bad_request("id null", '{"type":"message","id":null,"data":1}'),
    bad_request("id a number", '{"type":"message","id":1,"data":1}'),
    bad_request("id empty", '{"type":"message","id":"","data":1}'),
    bad_request("id of 129 characters", f'{{"type":"message","id":"{"m" * 129}","data":1}}'),
    bad_request("id with CRLF", '{"type":"message","id":"m\\r\\n","data":1}'),
    bad_request("id a wildcard", '{"type":"message","id":"a.>","data":1}'),
    bad_request("id not ASCII", '{"type":"message","id":"\u0430","data":1}'),
    bad_request("message without data", '{"type":"message","id":"m"}', "m"),
    bad_request("event null", '{"type":"message","id":"m","event":null,"data":1}', "m"),
    bad_request("event empty", '{"type":"message","id":"m","event":"","data":1}', "m"),
    bad_request("event with a slash", '{"type":"message","id":"m","event":"../x","data":1}', "m"),
    bad_request("cancel of nothing", '{"type":"cancel"}'),
    bad_request("cancel null", '{"type":"cancel","stream_id":null,"id":"m"}', "m"),
    bad_request("cancel of a bad id", '{"type":"cancel","stream_id":"s","id":"*"}'),
    bad_request("the type twice, the last counts", '{"type":"ack","sequence":9,"type":"what"}'),
    # what may be, at its limits
    Answered("id of 128 characters", f'{{"type":"message","id":"{"m" * 128}","data":1}}', "NO_AGENT", "m" * 128),
    Answered("data null", data("null"), "NO_AGENT", "m"),
    Answered("depth 32", nested(32), "NO_AGENT", "m"),
    Answered("a surrogate pair", data('"\\ud83d\\ude00"'), "NO_AGENT", "m"),
    Answered("2^64 in data", data(str(2**64)), "NO_AGENT", "m"),
    Answered("as large as may be", sized(MAX_INBOUND_BYTES), "NO_AGENT", "m"),
    Answered("the id twice, the last counts", '{"type":"message","id":"m","id":"n","data":1}', "NO_AGENT", "n"),
    Answered("unknown members", '{"type":"message","id":"m","data":1,"__proto__":null,"x":[{}]}', "NO_AGENT", "m"),
]


@pytest.fixture(scope="module")
def sidecar(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningSidecar]:
    with quiet_sidecar(tmp_path_factory.mktemp("messages")) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def watch(sidecar: RunningSidecar) -> AsyncIterator[Watch]:
    async with watching(sidecar) as watched:
        yield watched


def encoded(case: Closed) -> bytes:
    return frame(case.opcode, case.text.encode() if isinstance(case.text, str) else case.text)


@pytest.mark.parametrize("case", NOT_FRAMES, ids=[case.name for case in NOT_FRAMES])
async def test_what_is_no_frame_is_no_first_frame(watch: Watch, case: Closed) -> None:
    async with watch.client() as client:
        await client.upgrade(JSON_OFFER)
        client.send(encoded(case) + text('{"type":"what"}'))
        assert await client.end() == ((), case.close)
        await watch.left(refused(client, case.reason))


@pytest.mark.parametrize("case", NOT_FRAMES + AFTERWARDS, ids=[case.name for case in NOT_FRAMES + AFTERWARDS])
async def test_what_ends_a_socket_leaves_its_context(watch: Watch, case: Closed) -> None:
    """Nothing after it counts, and the context waits, detached."""
    user = watch.new_user()
    async with watch.client() as client:
        await client.hello(watch.sidecar.user_token(user))
        before = await watch.managers()
        client.send(encoded(case) + text('{"type":"what"}'))
        assert await client.end() == ((), case.close)
        assert await watch.managers() == before
        await watch.left(*opened(client, user), socket_closed(user, case.close[0]))


def left_well(client: RawWebSocket, user: str) -> list[Record]:
    """Somebody came and went."""
    return [*opened(client, user), socket_closed(user, 1000), context_closed(user, "client_closed")]


def error(case: Answered) -> dict[str, Any]:
    named = {} if case.id is None else {"id": case.id}
    said = {"NO_AGENT": "no agent takes this message", "BAD_REQUEST": "the request is not valid"}
    return {"type": "error", "reason": case.reason, "message": said[case.reason]} | named


WAYS = [(case, "whole") for case in ANSWERED] + [
    *((case, "in fragments") for case in ANSWERED if case.reason == "NO_AGENT"),
    *((case, "byte by byte") for case in ANSWERED[:3]),
]


@pytest.mark.parametrize(("case", "way"), WAYS, ids=[f"{case.name}, {way}" for case, way in WAYS])
async def test_what_is_answered_with_an_error(watch: Watch, case: Answered, way: str) -> None:
    user = watch.new_user()
    async with watch.client() as client:
        await client.hello(watch.sidecar.user_token(user))
        await say(client, case.text.encode(), way)
        assert await client.json() == error(case)
        assert await client.leave() == ((), (1000, ""))
        await watch.left(*left_well(client, user))


async def say(client: RawWebSocket, payload: bytes, way: str) -> None:
    """One message, however it is cut."""
    if way == "in fragments":
        half = len(payload) // 2
        client.send(frame(TEXT, payload[:half], fin=False) + frame(PING, b"p") + frame(CONTINUATION, b"", fin=False))
        client.send(frame(CONTINUATION, payload[half:]))
        assert await client.frame() == (PONG, b"p")
        return
    whole = frame(TEXT, payload)
    for part in [whole] if way == "whole" else [bytes((byte,)) for byte in whole]:
        client.send(part)
        await client.writer.drain()


@pytest.mark.parametrize("code", [1000, 1001, 1012, 3000, 4500, 4999])
async def test_a_clients_own_close_is_echoed(watch: Watch, code: int) -> None:
    user = watch.new_user()
    async with watch.client() as client:
        await client.hello(watch.sidecar.user_token(user))
        client.send(closing(code, "grüße".encode()) + text("no JSON"))
        assert await client.end() == ((), (code, "grüße"))
        ended = [context_closed(user, "client_closed")] if code == 1000 else []
        await watch.left(*opened(client, user), socket_closed(user, code), *ended)


@pytest.mark.parametrize("stage", ["request", "upgraded", "welcomed", "raw"])
async def test_a_reset_in_mid_frame(watch: Watch, stage: str) -> None:
    user = watch.new_user()
    token = watch.sidecar.user_token(user)
    records: list[Record] = []
    async with watch.client() as client:
        if stage == "upgraded":
            await client.upgrade(JSON_OFFER)
        elif stage == "welcomed":
            await client.hello(token)
            records = [*opened(client, user), socket_closed(user, 1006)]
        elif stage == "raw":
            await client.upgrade(("Authorization", f"Bearer {token}"))
            ended = context_closed(user, "socket_lost")
            records = [*opened(client, user, "raw"), socket_closed(user, 1006), ended]
        client.send(b"GET /v1/conn" if stage == "request" else frame(TEXT, b"x" * 1_000)[:500])
        await client.writer.drain()
        client.reset()
    await watch.left(*records)


@pytest.mark.parametrize(
    ("change", "close", "reason", "fault"),
    [
        ({"subject": "somebody-else"}, (4502, "forbidden"), "TOKEN_INVALID", "identity"),
        ({"tenant_id": "other"}, (4502, "forbidden"), "TOKEN_INVALID", "identity"),
        ({"now": 1_000_000_000}, (4501, "token_invalid"), "TOKEN_EXPIRED", "expired"),
    ],
    ids=["another user", "another tenant", "a bad token"],
)
async def test_a_refresh_that_is_not_its_own(
    watch: Watch, change: dict[str, Any], close: tuple[int, str], reason: str, fault: str
) -> None:
    user = watch.new_user()
    async with watch.client() as client:
        await client.hello(watch.sidecar.user_token(user))
        token = watch.sidecar.user_token(**({"subject": user} | change))
        client.send(text(json.dumps({"type": "refresh", "token": token})))
        assert await client.end() == ((), close)
        denied = {"event": "token_denied", "user_id": user, "reason": reason, "fault": fault}
        await watch.left(*opened(client, user), denied, socket_closed(user, close[0]))
