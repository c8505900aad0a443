"""Clients that do not go on: in the handshake, before hello, without pongs, without reading, without an end.

All of them wait side by side, from the first test of the module on; each test then looks at the end of one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass

import pytest
import pytest_asyncio

from tests.security.websocket_watch import (
    Record,
    Watch,
    assert_quiet,
    context_closed,
    facts,
    opened,
    quiet_sidecar,
    refused,
    socket_closed,
    stall,
    watching,
)
from tests.support.raw_websocket import (
    CLOSE,
    CONTINUATION,
    JSON_OFFER,
    PING,
    PONG,
    TEXT,
    End,
    RawWebSocket,
    frame,
    request,
    text,
)
from tests.support.running import RunningSidecar

pytestmark = pytest.mark.asyncio(loop_scope="module")

BROKEN_OFF = End((), (1006, ""))
REQUEST = request(JSON_OFFER)
HELLO = text('{"type":"hello","token":"a.b.c"}')


@dataclass(frozen=True)
class Waiting:
    """Somebody who does not go on, how that ends on the wire, and what is recorded of the address and the user."""

    name: str
    act: Callable[[Watch, RawWebSocket, str], Awaitable[End]]
    end: End
    records: Callable[[RawWebSocket, str], list[Record]]
    receive_buffer_bytes: int | None = None


async def drip(client: RawWebSocket, data: bytes) -> None:
    """A byte at a time, each when the one before had time to be looked at, until all are sent or nobody takes more."""
    with suppress(ConnectionError):
        for byte in data:
            client.send(bytes((byte,)))
            await client.writer.drain()
            with suppress(TimeoutError):
                async with asyncio.timeout(0.1):
                    if not await client.reader.read(1):
                        return


def in_handshake(name: str, data: bytes) -> Waiting:
    """No more than these bytes of a request."""

    async def act(watch: Watch, client: RawWebSocket, user: str) -> End:
        client.send(data)
        return await client.end()

    return Waiting(name, act, BROKEN_OFF, lambda client, _: [refused(client, "handshake_timeout")])


async def drip_request(watch: Watch, client: RawWebSocket, user: str) -> End:
    await drip(client, REQUEST)
    return await client.end()


def before_hello(name: str, data: bytes) -> Waiting:
    """No more than these bytes after the upgrade."""

    async def act(watch: Watch, client: RawWebSocket, user: str) -> End:
        await client.upgrade(JSON_OFFER)
        client.send(data)
        end = await client.end()
        return End(tuple(one for one in end.frames if one[0] != PONG), end.close)

    return Waiting(name, act, End((), (4001, "hello_timeout")), lambda client, _: [refused(client, "hello_timeout")])


async def without_pongs(watch: Watch, client: RawWebSocket, user: str) -> End:
    await client.hello(watch.sidecar.user_token(user))
    return await client.end()


async def raw_without_pongs(watch: Watch, client: RawWebSocket, user: str) -> End:
    await client.upgrade(("Authorization", f"Bearer {watch.sidecar.user_token(user)}"))
    return await client.end()


async def read_the_rest(watch: Watch, client: RawWebSocket, user: str) -> End:
    """Read on only when the sidecar must have let go: somebody whom it closed later has seen that deadline pass."""
    await watch.trail.until("socket_closed", user_id=user, code=4003)
    async with watch.client() as later:
        await silent_about_its_close(watch, later, watch.new_user())
    return End((), (await client.end()).close)


async def stalled(watch: Watch, client: RawWebSocket, user: str) -> End:
    await stall(watch.sidecar, watch.service, client, user)
    return await read_the_rest(watch, client, user)


async def stalled_with_pings(watch: Watch, client: RawWebSocket, user: str) -> End:
    """More pings than its rate allows: were they read, it would be closed for that, and their pongs be kept for it."""
    await stall(watch.sidecar, watch.service, client, user)
    client.send(frame(PING, b"x" * 125) * 5_000)
    return await read_the_rest(watch, client, user)


async def silent_about_its_close(watch: Watch, client: RawWebSocket, user: str) -> End:
    """Does not answer the sidecar's close, and keeps the connection."""
    await client.hello(watch.sidecar.user_token(user))
    client.send(text("no JSON"))
    assert await client.frame() == (CLOSE, (4500).to_bytes(2, "big") + b"bad_frame")
    return await client.end()


def with_context(code: int, *after: str) -> Callable[[RawWebSocket, str], list[Record]]:
    """The records of a context whose socket was closed so; `after`: why the context ended with it."""
    protocol = "raw" if after else "json"
    return lambda client, user: [
        *opened(client, user, protocol),
        socket_closed(user, code),
        *(context_closed(user, reason) for reason in after),
    ]


ONE_PING = ((PING, b""),)
CASES = [
    in_handshake("says nothing", b""),
    in_handshake("says one byte", b"G"),
    in_handshake("half a request line", REQUEST[:10]),
    in_handshake("half a header", REQUEST[:60]),
    in_handshake("no empty line", REQUEST[:-2]),
    in_handshake("half an empty line", REQUEST[:-1]),
    Waiting("a byte at a time", drip_request, BROKEN_OFF, lambda client, _: [refused(client, "handshake_timeout")]),
    before_hello("nothing after the upgrade", b""),
    before_hello("half a frame", HELLO[:10]),
    before_hello("a head that announces more", frame(TEXT, b"x" * 60_000)[:8]),
    before_hello("a fragment", frame(TEXT, b"{", fin=False)),
    before_hello("a fragment and more without an end", frame(TEXT, b"{", fin=False) + frame(CONTINUATION, fin=False)),
    before_hello("nothing but pings", frame(PING) * 50),
    before_hello("nothing but pongs", frame(PONG) * 50),
    Waiting("no pongs", without_pongs, End(ONE_PING, (4002, "pong_timeout")), with_context(4002)),
    Waiting(
        "no pongs, raw", raw_without_pongs, End(ONE_PING, (4002, "pong_timeout")), with_context(4002, "pong_timeout")
    ),
    Waiting("reads nothing", stalled, BROKEN_OFF, with_context(4003), receive_buffer_bytes=4_096),
    Waiting("reads nothing and pings", stalled_with_pings, BROKEN_OFF, with_context(4003), receive_buffer_bytes=4_096),
    Waiting("does not answer its close", silent_about_its_close, BROKEN_OFF, with_context(4500)),
]


@pytest.fixture(scope="module")
def sidecar(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningSidecar]:
    environment = {
        "SIDECAR_WEBSOCKET__HANDSHAKE_TIMEOUT_S": "4",
        "SIDECAR_LIMITS__HELLO_TIMEOUT_S": "4",
        "SIDECAR_LIMITS__HEALTH_CHECK_INTERVAL_S": "0.5",
        "SIDECAR_LIMITS__PONG_TIMEOUT_S": "8",
        "SIDECAR_LIMITS__SLOW_CONSUMER_TIMEOUT_S": "0.5",
    }
    with quiet_sidecar(tmp_path_factory.mktemp("waits"), **environment) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def watch(sidecar: RunningSidecar) -> AsyncIterator[Watch]:
    async with watching(sidecar) as watched:
        yield watched


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def outcomes(watch: Watch) -> AsyncIterator[dict[str, asyncio.Task[None]]]:
    """All cases, under way."""
    tasks = {case.name: asyncio.create_task(outlast(watch, case)) for case in CASES}
    yield tasks
    await asyncio.gather(*tasks.values(), return_exceptions=True)


async def outlast(watch: Watch, case: Waiting) -> None:
    """One case, from its connection to its last record."""
    user = watch.new_user()
    async with watch.client(receive_buffer_bytes=case.receive_buffer_bytes) as client:
        end = await case.act(watch, client, user)
        expected = case.records(client, user)
        seen: list[Record] = []
        async with asyncio.timeout(10):
            while len(seen) < len(expected):
                records = await watch.sidecar.audit_records()
                seen = [
                    facts(one) for one in records if client.address == one.get("address") or user == one.get("user_id")
                ]
        assert end == case.end, end
        assert seen == expected, seen


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
async def test_whoever_does_not_go_on_is_ended(
    watch: Watch, outcomes: dict[str, asyncio.Task[None]], case: Waiting
) -> None:
    await outcomes[case.name]
    await watch.other.goes_on()
    assert_quiet(watch.sidecar)


async def test_the_handshake_has_its_own_shorter_time(watch: Watch, outcomes: dict[str, asyncio.Task[None]]) -> None:
    """By the sidecar's own clock: all who began with the others are ended before the first pong is overdue."""
    await asyncio.gather(*outcomes.values())
    told = [record.get("reason", record.get("code")) for record in await watch.sidecar.audit_records()]
    assert told.index(4002) > max(place for place, what in enumerate(told) if what == "handshake_timeout")
