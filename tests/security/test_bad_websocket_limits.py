"""No room: of sockets, handshakes, contexts, of a user or an address, and a trail that cannot be written."""

from __future__ import annotations

import asyncio
import json
import resource
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, contextmanager

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
from tests.support.raw_websocket import JSON_OFFER, Answer, End, Header, RawWebSocket, request, text
from tests.support.running import RunningSidecar

pytestmark = pytest.mark.asyncio(loop_scope="module")

MAX_CONNECTIONS, MAX_HANDSHAKES, MAX_MANAGERS, ATTEMPTS = 6, 8, 3, 5


@pytest.fixture(scope="module")
def sidecar(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningSidecar]:
    environment = {
        "SIDECAR_LIMITS__MANAGERS_PER_USER": "1",
        "SIDECAR_LIMITS__MAX_MANAGERS": str(MAX_MANAGERS),
        "SIDECAR_WEBSOCKET__MAX_CONNECTIONS": str(MAX_CONNECTIONS),
        "SIDECAR_WEBSOCKET__MAX_HANDSHAKES": str(MAX_HANDSHAKES),
        "SIDECAR_WEBSOCKET__TRUSTED_PROXIES": "127.0.0.0/8",
        "SIDECAR_WEBSOCKET__CONNECTS_PER_SECOND_PER_ADDRESS": str(ATTEMPTS),
        # One failure, and none again for as long as the tests run.
        "SIDECAR_WEBSOCKET__FAILURES_PER_SECOND_PER_ADDRESS": "0.001",
    }
    with quiet_sidecar(tmp_path_factory.mktemp("limits"), **environment) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def watch(sidecar: RunningSidecar) -> AsyncIterator[Watch]:
    async with watching(sidecar) as watched:
        yield watched


def busy(status: int, body: str) -> Answer:
    """An answer that says to come again."""
    headers = {"connection": "close", "content-length": str(len(body)), "content-type": "text/plain; charset=utf-8"}
    return Answer(status, headers | {"retry-after": "1"}, body)


FULL = busy(503, "too many connections\n")
TOO_MANY = busy(429, "too many attempts\n")


def bearer(watch: Watch, user: str) -> Header:
    return "Authorization", f"Bearer {watch.sidecar.user_token(user)}"


async def says_hello(watch: Watch, client: RawWebSocket, user: str) -> End:
    """A JSON client that is not welcomed."""
    await client.upgrade(JSON_OFFER)
    client.send(text(json.dumps({"type": "hello", "token": watch.sidecar.user_token(user)})))
    return await client.end()


def left(user: str) -> list[Record]:
    return [socket_closed(user, 1000), context_closed(user, "client_closed")]


async def test_a_user_at_the_limit(watch: Watch) -> None:
    user = watch.new_user()
    async with watch.client() as first, watch.client() as second, watch.client() as third:
        await first.hello(watch.sidecar.user_token(user))
        assert await says_hello(watch, second, user) == ((), (4504, "limit_reached"))
        over = busy(429, "a limit of this user is reached\n")
        assert await third.ask(request(bearer(watch, user))) == over
        denied = [refused(client, "user_limit", user_id=user) for client in (second, third)]
        await watch.left(*opened(first, user), *denied)
        await first.leave()
        await watch.left(*left(user))


async def test_no_room_for_a_context(watch: Watch) -> None:
    users = [watch.new_user() for _ in range(MAX_MANAGERS + 1)]
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(watch.client()) for _ in users]
        room = MAX_MANAGERS - 1  # the bystander has one
        for client, user in zip(clients[:room], users, strict=False):
            await client.hello(watch.sidecar.user_token(user))
        assert await says_hello(watch, clients[room], users[room]) == ((), (1013, "overloaded"))
        assert await clients[room + 1].ask(request(bearer(watch, users[room + 1]))) == FULL
        came = [record for client, user in zip(clients[:room], users, strict=False) for record in opened(client, user)]
        json_one = refused(clients[room], "rate_limited", user_id=users[room])
        raw_one = refused(clients[room + 1], "full", user_id=users[room + 1])
        await watch.left(*came, json_one, raw_one)
        for client, user in zip(clients[:room], users, strict=False):
            await client.leave()
            await watch.left(*left(user))


async def test_no_room_for_a_socket(watch: Watch) -> None:
    """A socket that has said nothing takes a place too."""
    user = watch.new_user()
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(watch.client()) for _ in range(MAX_CONNECTIONS - 1)]
        for client in clients:
            await client.upgrade(JSON_OFFER)
        async with watch.client() as json_one, watch.client() as raw_one:
            assert await json_one.ask(request(JSON_OFFER)) == FULL
            assert await raw_one.ask(request(bearer(watch, user))) == FULL
            await watch.left(refused(json_one, "full"), refused(raw_one, "full", user_id=user))
        for client in clients:
            await client.leave()
        await watch.left()


async def test_no_room_for_a_handshake(watch: Watch) -> None:
    """Whoever says nothing takes a place until the handshake's time is up; the next one is not even read."""
    async with AsyncExitStack() as stack:
        silent = [await stack.enter_async_context(watch.client()) for _ in range(MAX_HANDSHAKES)]
        client = await stack.enter_async_context(watch.client())
        assert await client.ask(b"") == FULL
        await watch.left(refused(client, "full"))
        for one in silent:
            one.reset()
    turned_away: list[Record] = []
    while True:  # until the sidecar has seen that they are gone
        async with watch.client() as client:
            answer = await client.ask(request(JSON_OFFER))
            if answer.status == 101:
                break
            assert answer == FULL
            turned_away.append(refused(client, "full"))
    await watch.left(*turned_away)


async def test_an_address_that_tries_too_often(watch: Watch) -> None:
    """Each refusal is in the trail: ten by themselves, the others counted; another address tries as it likes."""
    forwarded: Header = ("X-Forwarded-For", "203.0.113.7")
    answers: Counter[int] = Counter()
    while not answers[429] or answers.total() < 4 * ATTEMPTS:
        async with watch.client() as client:
            answer = await client.ask(request(forwarded, line=b"GET / HTTP/1.1"))
            assert answer.status == 404 or answer == TOO_MANY
            answers[answer.status] += 1
    assert answers[404] >= ATTEMPTS
    async with watch.client() as client:
        await client.upgrade(JSON_OFFER, ("X-Forwarded-For", "203.0.113.8"))
        await client.leave()
    assert Counter(await refusals_of(watch, "203.0.113.7", answers.total())).keys() <= {"not_found", "address_limit"}


async def test_an_address_that_fails_too_often(watch: Watch) -> None:
    """After its second bad token not even a good one is looked at; in hello as in a header."""
    forwarded: Header = ("X-Forwarded-For", "203.0.113.9")
    user = watch.new_user()
    async with watch.client() as client:
        assert (await client.ask(request(forwarded, ("Authorization", "Bearer a.b.c")))).status == 401
    async with watch.client() as client:
        await client.upgrade(JSON_OFFER, forwarded)
        client.send(text('{"type":"hello","token":"a.b.c"}'))
        assert await client.end() == ((), (4501, "token_invalid"))
    async with watch.client() as client:
        assert await client.ask(request(forwarded, bearer(watch, user))) == TOO_MANY
    assert await refusals_of(watch, "203.0.113.9", 3) == ["token_refused", "token_refused", "address_limit"]
    async with watch.client() as client:
        await client.upgrade(bearer(watch, user))
        await client.leave()
        await watch.left(*opened(client, user, "raw"), *left(user))


async def refusals_of(watch: Watch, address: str, times: int) -> list[str]:
    """The reasons of an address's refusals, so many with those that were only counted; then looks from here on."""
    async with asyncio.timeout(10):
        while True:
            added = [record for record in await watch.trail.added() if record.get("address") == address]
            singles = [record["reason"] for record in added if record["event"] == "connect_refused"]
            if len(singles) + sum(record.get("count", 0) for record in added) >= times:
                break
            await watch.other.goes_on(1)
    assert len(singles) + sum(record.get("count", 0) for record in added) == times
    assert {record["event"] for record in added} <= {"connect_refused", "refusals_counted"}
    await watch.trail.mark()
    return singles


@contextmanager
def full_disk(sidecar: RunningSidecar) -> Iterator[None]:
    """No file of that process may grow beyond what its trail is now."""
    size = sidecar.audit_path.stat().st_size
    before = resource.prlimit(sidecar.process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(sidecar.process.pid, resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.prlimit(sidecar.process.pid, resource.RLIMIT_FSIZE, before)


async def test_a_trail_that_cannot_be_written(watch: Watch) -> None:
    """Nobody is let in, what is open stays open and can be sent to; afterwards everybody may come again."""
    users = [watch.new_user() for _ in range(3)]
    async with AsyncExitStack() as stack:
        member, stranger, raw = [await stack.enter_async_context(watch.client()) for _ in users]
        token = watch.sidecar.user_token(users[0])
        await member.hello(token)
        await watch.left(*opened(member, users[0]))
        with full_disk(watch.sidecar):
            assert await says_hello(watch, stranger, users[1]) == ((), (1013, "overloaded"))
            assert await raw.ask(request(bearer(watch, users[2]))) == busy(503, "unavailable\n")
            member.send(text(json.dumps({"type": "refresh", "token": token})))
            assert (await member.json())["reason"] == "AUDIT_UNAVAILABLE"
            await watch.other.goes_on()
        await member.leave()
        async with watch.client() as client:
            await client.hello(watch.sidecar.user_token(users[1]))
            await client.leave()
            await watch.left(
                {"event": "audit_interrupted", "error": "EFBIG"},
                refused(stranger, "audit_unavailable", user_id=users[1]),
                socket_closed(users[1], 1013),
                context_closed(users[1], "audit_unavailable"),
                socket_closed(users[2], 1001),
                context_closed(users[2], "audit_unavailable"),
                refused(raw, "audit_unavailable", user_id=users[2]),
                *left(users[0]),
                *opened(client, users[1]),
                *left(users[1]),
            )
