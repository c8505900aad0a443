"""What is at the edge of a good user token: let in at each limit; none, too large, no text at all, somebody else's.

The refusals here differ from a bad token's one answer: each says what it is.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest

from tests.security import token_doors as doors
from tests.security.forge import ABSENT, Hand, read
from tests.security.token_cases import DAY_S, padded
from tests.security.token_watch import EVERY_DOOR, Watch, opened_well, refreshed_badly
from tests.support.running import RunningSidecar, refusal_of, running_sidecar

pytestmark = pytest.mark.asyncio(loop_scope="module")

MEGABYTE = "A" * 1_000_000
POINTERS = {"jku": "https://evil.test/jwks", "x5u": "file:///", "jwk": {"kty": "oct", "k": "AA"}, "x5c": ["AAAA"]}


@pytest.fixture(scope="module")
def sidecar(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningSidecar]:
    with running_sidecar(tmp_path_factory.mktemp("edges"), SIDECAR_OUTBOX__RESUME_WINDOW_S="3600") as running:
        yield running


# Let in


def dated(**offsets: int) -> Callable[[Hand], str]:
    """Dates so many seconds from now."""

    def make(hand: Hand) -> str:
        now = hand.claims()["iat"]
        assert isinstance(now, int)
        return hand.token(hand.claims(**{name: now + offset for name, offset in offsets.items()}))

    return make


GOOD: dict[str, Callable[[Hand], str]] = {
    "as usual": lambda hand: hand.token(),
    "4,096 characters": lambda hand: padded(hand, 4096),
    "no typ": lambda hand: hand.token(header=hand.head(typ=ABSENT)),
    "typ of an access token": lambda hand: hand.token(header=hand.head(typ="application/at+jwt")),
    "pointers to keys, which are not followed": lambda hand: hand.token(header=hand.head(**POINTERS)),
    "white space in its JSON": lambda hand: hand.token(hand.literal().replace(",", "\n,\t")),
    "a day": dated(iat=0, exp=DAY_S),
    "expired, but not for as long as the leeway": dated(iat=-60, exp=-10),
    "iat ahead by the leeway": dated(iat=30),
    "nbf ahead by the leeway": dated(nbf=30),
    "objects 32 deep": lambda hand: hand.token(hand.literal(z='{"a":' * 31 + "1" + "}" * 31)),
    "an integer of 2,000 digits, of no meaning here": lambda hand: hand.token(hand.literal(z="9" * 2000)),
    "exp in other letters beside it": lambda hand: hand.token(hand.literal(EXP='"never"')),
}


@pytest.mark.parametrize("name", GOOD)
async def test_a_token_at_the_limit_opens_every_door(watch: Watch, name: str) -> None:
    await watch.let_in_everywhere(GOOD[name](watch.hand), "alice", "default")


@pytest.mark.parametrize("subject", ["a", "x" * 128, "auth0|5f7c", "a.b_c:d@e-f"])
async def test_an_identifier_at_the_limit_is_the_user_s(watch: Watch, subject: str) -> None:
    token = watch.hand.token(watch.hand.claims(sub=subject, tid=subject, sid=subject))
    await watch.let_in_everywhere(token, subject, subject)


# No token


async def test_no_token_is_missing_at_every_door(watch: Watch) -> None:
    sidecar, expected = watch.sidecar, []
    for lines in ((), (b"Authorization: Bearer",), (b"Authorization: Basic YWxpY2U6eA==",), (b"Authorization: ",)):
        address = doors.new_address()
        assert await doors.request(sidecar, address, *lines) == doors.UNAUTHORIZED
        expected.append(stranger(address, "token_refused", "missing"))
    for hello in ('{"type":"hello"}', '{"type":"hello","token":""}'):
        address = doors.new_address()
        assert await first_frame(sidecar, hello, address) == (4501, "token_invalid")
        expected.append(stranger(address, "token_refused", "missing"))
    address = doors.new_address()
    assert await doors.refresh(sidecar, "", address, watch.hand.token()) == (4501, "token_invalid")
    expected += refreshed_badly(address, "TOKEN_MISSING", "missing", 4501)
    address = doors.new_address()
    assert await doors.exchange(sidecar, "", address, "c") == doors.status("TOKEN_MISSING")
    expected.append(denied(address, "TOKEN_MISSING", "missing"))
    await watch.left(expected, managers=1)


# Too large, and no text at all


def http(status: str, body: str) -> bytes:
    """A refusal before the upgrade, but for a 401."""
    length = len(body)
    head = f"HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {length}\r\n"
    return f"{head}Content-Type: text/plain; charset=utf-8\r\n\r\n{body}".encode()


TOO_LARGE = http("431 Request Header Fields Too Large", "request headers too large\n")
MALFORMED = http("400 Bad Request", "malformed request\n")


async def test_a_token_of_10_kilobytes_is_no_header(watch: Watch) -> None:
    token, expected = watch.hand.token(watch.hand.claims(sub="a" * 10_240)), []
    for door in (doors.header, doors.subprotocol):
        address = doors.new_address()
        assert await door(watch.sidecar, token, address) == TOO_LARGE
        expected.append({"event": "connect_refused", "address": address, "reason": "headers_too_large"})
    await watch.left(expected, token=token)


async def test_a_token_of_a_megabyte_is_no_frame(watch: Watch) -> None:
    address, other = doors.new_address(), doors.new_address()
    assert await doors.hello(watch.sidecar, MEGABYTE, address) == (1009, "message_too_big")
    assert await doors.refresh(watch.sidecar, MEGABYTE, other, watch.hand.token()) == (1009, "message_too_big")
    opened = [*opened_well(other), {"event": "token_minted", "scopes": "send emit stats"}]
    closed = {"event": "socket_closed", "code": 1009}
    await watch.left([stranger(address, "message_too_big"), *opened, closed], managers=1, token=MEGABYTE)


async def test_a_token_of_a_megabyte_is_refused_unread(watch: Watch) -> None:
    address = doors.new_address()
    assert await doors.exchange(watch.sidecar, MEGABYTE, address, "c") == doors.status("TOKEN_INVALID")
    await watch.left([denied(address, "TOKEN_INVALID", "too_long")], token=MEGABYTE)


SURROGATES = [b"\xed\xa0\x80", b"\xff", b"\x80\x81"]
"""Half of a pair in UTF-8, and bytes that are none: both are lone surrogates once decoded as headers are."""


@pytest.mark.parametrize("junk", SURROGATES, ids=repr)
async def test_a_header_s_lone_surrogate_is_one_more_bad_token(watch: Watch, junk: bytes) -> None:
    token, address = watch.hand.token(), doors.new_address()
    for data in (
        token.encode() + junk,
        junk + token.encode(),
        token.replace(".", "." + junk.decode("latin-1")).encode("latin-1"),
    ):
        assert await doors.header(watch.sidecar, data, address) == doors.UNAUTHORIZED
    await watch.left([stranger(address, "token_refused", "malformed")] * 3, token=token)


async def test_what_a_subprotocol_cannot_be_is_malformed(watch: Watch) -> None:
    token, expected = watch.hand.token(), []
    for junk in ("\xed\xa0\x80", "\xff", "=", " x", "/"):
        address = doors.new_address()
        assert await doors.subprotocol(watch.sidecar, token + junk, address) == MALFORMED
        expected.append({"event": "connect_refused", "address": address, "reason": "malformed"})
    await watch.left(expected, token=token)


@pytest.mark.parametrize("value", ['"{}\\ud800"', "7", "null", '["{}"]', '{{"token":"{}"}}'], ids=repr)
async def test_what_is_no_text_in_a_frame_is_a_bad_frame(watch: Watch, value: str) -> None:
    token, address, other = watch.hand.token(), doors.new_address(), doors.new_address()
    text = value.format(token)
    assert await first_frame(watch.sidecar, f'{{"type":"hello","token":{text}}}', address) == (4500, "bad_frame")
    async with doors.opened(watch.sidecar, other) as socket:
        await socket.send(json.dumps({"type": "hello", "token": token}))
        assert (await doors.next_frame(socket))["type"] == "welcome"
        await socket.send(f'{{"type":"refresh","token":{text}}}')
        assert await doors.next_frame(socket) == (4500, "bad_frame")
    opened = [*opened_well(other), {"event": "token_minted", "scopes": "send emit stats"}]
    await watch.left(
        [stranger(address, "bad_frame"), *opened, {"event": "socket_closed", "code": 4500}], managers=1, token=token
    )
    await watch.forget("alice", "default")


async def test_what_is_no_text_in_a_request_is_undecodable(watch: Watch) -> None:
    junk = b"\n\x03\xed\xa0\x80\x12\x01c"
    async with doors.channel(watch.sidecar, doors.new_address()) as own:
        call: Any = own.unary_unary("/sidecar.api.v1.ContextService/ExchangeContextToken")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(junk, metadata=(("x-service-token", watch.sidecar.service_token),), timeout=10)
    refused = refusal_of(caught.value)
    assert (refused.code, refused.reason) == ("INVALID_ARGUMENT", "BAD_REQUEST")
    await watch.left([])


# Somebody else's


ANOTHER: dict[str, dict[str, object]] = {
    "another user": {"sub": "mallory"},
    "the same user of another tenant": {"tid": "acme"},
    "another user of another tenant": {"sub": "mallory", "tid": "acme"},
    "the same letters, other case": {"sub": "Alice"},
}


@pytest.mark.parametrize("name", ANOTHER)
async def test_a_refresh_by_another_is_forbidden(watch: Watch, name: str) -> None:
    """The token is good, so it is not told to be bad: 4502, and Alice's socket has ended."""
    token, address = watch.hand.token(watch.hand.claims(**ANOTHER[name])), doors.new_address()
    assert await doors.refresh(watch.sidecar, token, address, watch.hand.token()) == (4502, "forbidden")
    await watch.left(refreshed_badly(address, "TOKEN_INVALID", "identity", 4502), managers=1, token=token)
    await watch.forget("alice", "default")


async def test_a_context_token_is_no_user_token(watch: Watch) -> None:
    """Though its signature is good: it is of another issuer and another key."""
    token = watch.other.context_token
    assert read(token, 0)["typ"] == "ctx+jwt"
    good = watch.hand.token(watch.hand.claims(sub="bob"))
    await watch.refused_everywhere(token, "issuer", "TOKEN_INVALID", EVERY_DOOR, good)


def stranger(address: str, reason: str, fault: str | None = None) -> dict[str, Any]:
    """The record of a connection refused before it was known whose it is."""
    record = {"event": "connect_refused", "address": address, "reason": reason}
    return record if fault is None else record | {"fault": fault}


def denied(address: str, reason: str, fault: str) -> dict[str, Any]:
    """The record of an exchange refused."""
    called = {"address": address, "reason": reason, "method": "ExchangeContextToken"}
    return {"event": "token_denied", **called, "fault": fault}


async def first_frame(sidecar: RunningSidecar, frame: str, address: str) -> Any:
    """What comes of a socket whose first frame is this."""
    async with doors.opened(sidecar, address) as socket:
        await socket.send(frame)
        return await doors.next_frame(socket)
