"""Handshakes that are refused: status, body and headers of the one answer, its one record, and the end of it.

Cases differ from a good request in one thing; `test_a_good_handshake_is_let_in` shows what is still good.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass

import pytest
import pytest_asyncio

from tests.security.websocket_watch import (
    Watch,
    context_closed,
    opened,
    quiet_sidecar,
    refused,
    socket_closed,
    watching,
)
from tests.support.raw_websocket import (
    JSON_OFFER,
    JSON_PROTOCOL,
    RAW_OFFER,
    RAW_PROTOCOL,
    Answer,
    Header,
    frame,
    request,
)
from tests.support.running import RunningSidecar

pytestmark = pytest.mark.asyncio(loop_scope="module")

ORIGIN = "https://app.example"
PROTOCOL = "Sec-WebSocket-Protocol"
BODIES = {
    "headers_too_large": (431, "request headers too large\n"),
    "http_version": (505, "HTTP/1.1 is required\n"),
    "malformed": (400, "malformed request\n"),
    "method": (405, "method not allowed\n"),
    "no_host": (400, "exactly one Host is required\n"),
    "not_found": (404, "not found\n"),
    "origin": (403, "origin not allowed\n"),
    "subprotocol": (400, "offer the subprotocol sidecar.v1.json or sidecar.v1.raw\n"),
    "token_in_url": (400, "a user token must not stand in the URL\n"),
    "token_refused": (401, "a valid user token is required\n"),
    "two_tokens": (400, "more than one user token\n"),
    "upgrade_required": (426, "a WebSocket upgrade is required\n"),
    "url_too_long": (414, "request line too long\n"),
}
FURTHER_HEADERS = {401: {"www-authenticate": "Bearer"}, 405: {"allow": "GET"}, 426: {"upgrade": "websocket"}}


@dataclass(frozen=True)
class Case:
    """A request made of a good user token, and why it is refused; `fault` is the trail's word for a bad token."""

    name: str
    reason: str
    make: Callable[[str], bytes]
    fault: str | None = None


def answer(reason: str) -> Answer:
    """All that there is to be seen of a refusal."""
    status, body = BODIES[reason]
    headers = {
        "connection": "close",
        "content-length": str(len(body)),
        "content-type": "text/plain; charset=utf-8",
    }
    return Answer(status, headers | FURTHER_HEADERS.get(status, {}), body)


def json_with(name: str, reason: str, *headers: Header) -> Case:
    """The JSON protocol, otherwise good."""
    given = any(header[0] == PROTOCOL for header in headers)
    return Case(name, reason, lambda _: request(*headers, *(() if given else (JSON_OFFER,))))


def line(name: str, reason: str, text: bytes) -> Case:
    """Another request line."""
    return Case(name, reason, lambda _: request(JSON_OFFER, line=text))


def data(name: str, reason: str, sent: bytes) -> Case:
    """These bytes."""
    return Case(name, reason, lambda _: sent)


def with_token(name: str, reason: str, *templates: tuple[str, str], fault: str | None = None) -> Case:
    """Headers in which `{token}` is a good user token."""
    return Case(
        name, reason, lambda token: request(*((key, value.format(token=token)) for key, value in templates)), fault
    )


def in_url(name: str, query: str) -> Case:
    """A good token in the header, and one in the URL, or what looks like one."""

    def make(token: str) -> bytes:
        target = f"GET /v1/connect?{query.format(token=token)} HTTP/1.1".encode()
        return request(("Authorization", f"Bearer {token}"), line=target)

    return Case(name, "token_in_url", make)


RAW = (PROTOCOL, RAW_PROTOCOL)
BEARER = ("Authorization", "Bearer {token}")
KEY = "Sec-WebSocket-Key"
VERSION = "Sec-WebSocket-Version"
LINE_BYTES = 8_192
MANY = tuple((f"X-{number}", "1") for number in range(123))
"""With the usual five 128 headers, which is the most there may be."""

CASES = [
    # Host (RFC 9112 §3.2)
    json_with("no Host", "no_host", ("Host", None)),
    json_with("empty Host", "no_host", ("Host", "")),
    json_with("two Hosts", "no_host", ("Host", "a"), ("Host", "b")),
    json_with("the same Host twice", "no_host", ("Host", "a"), ("Host", "a")),
    # the upgrade (RFC 6455 §4.2.1)
    json_with("no Upgrade", "upgrade_required", ("Upgrade", None)),
    json_with("Upgrade to another", "upgrade_required", ("Upgrade", "h2c")),
    json_with("Upgrade to two", "upgrade_required", ("Upgrade", "websocket, h2c")),
    json_with("no Connection", "upgrade_required", ("Connection", None)),
    json_with("Connection: close", "upgrade_required", ("Connection", "close")),
    json_with("no key", "malformed", (KEY, None)),
    json_with("empty key", "malformed", (KEY, "")),
    json_with("key of 15 bytes", "malformed", (KEY, "AAAAAAAAAAAAAAAAAAAA")),
    json_with("key of 17 bytes", "malformed", (KEY, "AAAAAAAAAAAAAAAAAAAAAAA=")),
    json_with("key not base64", "malformed", (KEY, "*" * 24)),
    json_with("two keys", "malformed", *2 * [(KEY, "dGhlIHNhbXBsZSBub25jZQ==")]),
    json_with("no version", "malformed", (VERSION, None)),
    json_with("version 8", "malformed", (VERSION, "8")),
    json_with("two versions", "malformed", (VERSION, "13"), (VERSION, "13")),
    # Origin, exact (RFC 6454 §7)
    json_with("another origin", "origin", ("Origin", "https://evil.example")),
    json_with("the origin of a file", "origin", ("Origin", "null")),
    json_with("an empty origin", "origin", ("Origin", "")),
    json_with("the origin on another port", "origin", ("Origin", f"{ORIGIN}:8443")),
    json_with("the origin on its own port", "origin", ("Origin", f"{ORIGIN}:443")),
    json_with("the origin without TLS", "origin", ("Origin", "http://app.example")),
    json_with("the origin in capitals", "origin", ("Origin", "https://APP.example")),
    json_with("the origin with a path", "origin", ("Origin", f"{ORIGIN}/")),
    json_with("the origin as a prefix", "origin", ("Origin", f"{ORIGIN}.evil.example")),
    json_with("the origin as a suffix", "origin", ("Origin", "https://evil-app.example")),
    json_with("a part of the origin", "origin", ("Origin", "https://app.exampl")),
    json_with("a list of origins", "origin", ("Origin", f"{ORIGIN} https://evil.example")),
    json_with("two origins", "malformed", ("Origin", ORIGIN), ("Origin", "https://evil.example")),
    json_with("the origin twice", "malformed", ("Origin", ORIGIN), ("Origin", ORIGIN)),
    with_token("another origin, a good token", "origin", BEARER, ("Origin", "https://evil.example")),
    with_token("another origin, a bad token", "origin", ("Authorization", "Bearer x"), ("Origin", "null")),
    # the subprotocol
    json_with("an unknown subprotocol", "subprotocol", (PROTOCOL, "chat")),
    json_with("the next version", "subprotocol", (PROTOCOL, "sidecar.v2.json")),
    json_with("the subprotocol in capitals", "subprotocol", (PROTOCOL, "SIDECAR.V1.JSON")),
    json_with("no name in it", "malformed", (PROTOCOL, "")),
    json_with("two words in a name", "malformed", (PROTOCOL, "sidecar.v1.json chat")),
    with_token("bearer alone", "subprotocol", (PROTOCOL, "bearer.{token}")),
    with_token("bearer beside an unknown one", "subprotocol", (PROTOCOL, "chat, bearer.{token}")),
    with_token("the token itself as a name", "subprotocol", (PROTOCOL, "{token}")),
    # the token: none, bad, two, in the wrong place
    with_token("raw without a token", "token_refused", RAW, fault="missing"),
    with_token("no subprotocol, no token", "token_refused", fault="missing"),
    with_token("JSON with a bad token", "token_refused", ("Authorization", "Bearer a.b.c"), (PROTOCOL, JSON_PROTOCOL)),
    with_token("raw with a bad token", "token_refused", ("Authorization", "Bearer a.b.c"), RAW),
    with_token("a bad token offered", "token_refused", (PROTOCOL, f"{JSON_PROTOCOL}, bearer.a.b.c")),
    with_token("an empty token offered", "token_refused", (PROTOCOL, f"{JSON_PROTOCOL}, bearer."), fault="missing"),
    with_token("Bearer and nothing", "token_refused", ("Authorization", "Bearer"), RAW, fault="missing"),
    with_token("another scheme", "token_refused", ("Authorization", "Basic {token}"), RAW, fault="missing"),
    with_token("no scheme", "token_refused", ("Authorization", "{token}"), RAW, fault="missing"),
    with_token("a token and a word", "token_refused", ("Authorization", "Bearer {token} x"), RAW),
    with_token("not ASCII", "token_refused", ("Authorization", "Bearer \xe9"), RAW),
    with_token("in a cookie", "token_refused", ("Cookie", "token={token}"), RAW, fault="missing"),
    with_token("for a proxy", "token_refused", ("Proxy-Authorization", "Bearer {token}"), fault="missing"),
    with_token("for services", "token_refused", ("X-Context-Token", "{token}"), fault="missing"),
    with_token("two headers", "two_tokens", BEARER, BEARER),
    with_token("two offers", "two_tokens", (PROTOCOL, f"{JSON_PROTOCOL}, bearer.{{token}}, bearer.{{token}}")),
    with_token("a header and an offer", "two_tokens", BEARER, (PROTOCOL, f"{JSON_PROTOCOL}, bearer.{{token}}")),
    with_token("two bad ones", "two_tokens", ("Authorization", "a"), ("Authorization", "b")),
    in_url("as token", "token={token}"),
    in_url("as access_token, last", "v=1&access_token={token}"),
    in_url("as jwt, without a value", "jwt"),
    in_url("under an escaped name", "%74oken=x"),
    in_url("under a name in capitals", "Authorization=x"),
    in_url("under any name", "x={token}"),
    in_url("as a name", "{token}"),
    # the path, the method, the version (RFC 9112 §3)
    line("another path", "not_found", b"GET / HTTP/1.1"),
    line("the path with a slash", "not_found", b"GET /v1/connect/ HTTP/1.1"),
    line("the path in capitals", "not_found", b"GET /V1/CONNECT HTTP/1.1"),
    line("the path twice escaped", "not_found", b"GET /v1/%2e%2e/v1/connect HTTP/1.1"),
    line("a whole URL", "not_found", b"GET http://sidecar.test/v1/connect HTTP/1.1"),
    line("POST", "method", b"POST /v1/connect HTTP/1.1"),
    line("CONNECT", "method", b"CONNECT /v1/connect HTTP/1.1"),
    line("HTTP/1.0", "http_version", b"GET /v1/connect HTTP/1.0"),
    line("HTTP/2.0", "malformed", b"GET /v1/connect HTTP/2.0"),
    line("HTTP/0.9", "malformed", b"GET /v1/connect"),
    line("two spaces", "malformed", b"GET  /v1/connect HTTP/1.1"),
    line("not ASCII", "malformed", b"GET /v1/connect?\xff HTTP/1.1"),
    line("a line past the limit", "url_too_long", b"GET /v1/connect?" + b"a" * LINE_BYTES + b" HTTP/1.1"),
    data("nothing but a line", "malformed", b"\r\n\r\n"),
    data("TLS", "malformed", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n"),
    data("HTTP/2 from the start", "malformed", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    # headers, how many and how long
    json_with("a header of 9 KB", "headers_too_large", ("X-Long", "a" * 9 * 1024)),
    json_with("a header past the limit", "headers_too_large", ("X-Long", "a" * (LINE_BYTES - len("X-Long: \r\n") + 1))),
    json_with("200 headers", "headers_too_large", *((f"X-{number}", "1") for number in range(200))),
    json_with("one header too many", "headers_too_large", *MANY),
    json_with("a space in a name", "malformed", ("Bad Name", "1")),
    json_with("a space before the colon", "malformed", ("X-Name ", "1")),
    json_with("a folded header", "malformed", ("X-Name", "1\r\n folded")),
    json_with("NUL in a value", "malformed", ("X-Name", "a\0b")),
    json_with("a header without a colon", "malformed", ("X-Name\r\nnothing", "1")),
    json_with("a body announced", "malformed", ("Content-Length", "5")),
    json_with("a body in chunks", "malformed", ("Transfer-Encoding", "chunked")),
    data("no line ends but \\n", "malformed", request(JSON_OFFER).replace(b"\r\n", b"\n") + b"\n"),
]
"""`fault` is "malformed" wherever a token was there and none is said."""


@pytest.fixture(scope="module")
def sidecar(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningSidecar]:
    settings = {"SIDECAR_WEBSOCKET__ALLOWED_ORIGINS": ORIGIN, "SIDECAR_LIMITS__MANAGERS_PER_USER": "1"}
    with quiet_sidecar(tmp_path_factory.mktemp("handshake"), **settings) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def watch(sidecar: RunningSidecar) -> AsyncIterator[Watch]:
    async with watching(sidecar) as watched:
        yield watched


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
async def test_a_bad_handshake_gets_one_fixed_answer(watch: Watch, case: Case) -> None:
    token = watch.sidecar.user_token(watch.new_user())
    async with watch.client() as client:
        assert await client.ask(case.make(token)) == answer(case.reason)
        fault = {"fault": case.fault or "malformed"} if case.reason == "token_refused" else {}
        await watch.left(refused(client, case.reason, **fault))


@pytest.mark.parametrize("name", ["ping", "message", "no frame at all"])
@pytest.mark.parametrize("offer", [JSON_OFFER, RAW_OFFER], ids=["json", "raw"])
async def test_frames_before_the_answer_end_the_connection(watch: Watch, offer: Header, name: str) -> None:
    """RFC 6455 §4.1: the client waits for the 101."""
    early = {"ping": frame(0x9, b"p"), "message": frame(0x1, b"{}"), "no frame at all": b"\xff\xff"}[name]
    user = watch.new_user()
    token = watch.sidecar.user_token(user)
    async with watch.client() as client:
        client.send(request(offer, ("Authorization", f"Bearer {token}")) + early)
        assert await client.end() == ((), (1006, ""))
        if offer is JSON_OFFER:
            await watch.left(refused(client, "malformed"))
        else:  # the request was good: its context was being made, and ends with the connection
            ended = [socket_closed(user, 1001), context_closed(user, "handshake_failed")]
            await watch.left(refused(client, "malformed"), *opened(client, user, "raw"), *ended)


GOOD: dict[str, tuple[Header, ...]] = {
    "no origin": (),
    "the origin": (("Origin", ORIGIN),),
    "websocket in capitals": (("Upgrade", "WebSocket"),),
    "keep-alive beside": (("Connection", "keep-alive, Upgrade"),),
    "a header at the limit": (("X-Long", "a" * (LINE_BYTES - len("X-Long: \r\n"))),),
    "as many headers as may be": MANY[:-1],
    "an unknown subprotocol beside": ((PROTOCOL, f"chat, {JSON_PROTOCOL}"),),
    "a subprotocol a line": ((PROTOCOL, "chat"), (PROTOCOL, JSON_PROTOCOL)),
    "compression offered": (("Sec-WebSocket-Extensions", "permessage-deflate; client_max_window_bits"),),
    "an unknown extension": (("Sec-WebSocket-Extensions", "x-unheard-of"),),
    "a bad request id": (("X-Request-Id", "no identifier"),),
}


@pytest.mark.parametrize("headers", GOOD.values(), ids=GOOD.keys())
async def test_a_good_handshake_is_let_in(watch: Watch, headers: tuple[Header, ...]) -> None:
    """No extension is agreed to, nothing but the one subprotocol is named; who leaves before hello leaves no record."""
    given = any(name == PROTOCOL for name, _ in headers)
    async with watch.client() as client:
        let_in = await client.upgrade(*headers, *(() if given else (JSON_OFFER,)))
        assert let_in.headers == {
            "upgrade": "websocket",
            "connection": "Upgrade",
            "sec-websocket-accept": "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=",
            "sec-websocket-protocol": JSON_PROTOCOL,
        }
        assert await client.leave() == ((), (1000, ""))
        await watch.left()


@pytest.mark.parametrize("offers", [(), (RAW_OFFER,)], ids=["none offered", "raw offered"])
async def test_a_second_raw_client_of_a_user_at_the_limit(watch: Watch, offers: tuple[Header, ...]) -> None:
    user = watch.new_user()
    bearer = ("Authorization", f"Bearer {watch.sidecar.user_token(user)}")
    async with watch.client() as first, watch.client() as second:
        let_in = await first.upgrade(bearer, *offers)
        assert let_in.headers["sidecar-connection-id"]
        refusal = await second.ask(request(bearer, *offers))
        body = "a limit of this user is reached\n"
        assert (refusal.status, refusal.headers["retry-after"], refusal.body) == (429, "1", body)
        await watch.left(*opened(first, user, "raw"), refused(second, "user_limit", user_id=user))
        assert await first.leave() == ((), (1000, ""))
        await watch.left(socket_closed(user, 1000), context_closed(user, "client_closed"))


async def test_nothing_of_a_request_is_repeated(watch: Watch) -> None:
    """Whatever a request holds where, no answer and no record has a word of it."""
    canary = "canary-7f3a"
    asked = [
        request(("Origin", f"https://{canary}"), JSON_OFFER),
        request(("Upgrade", canary)),
        request(("Connection", canary)),
        request((VERSION, canary)),
        request((KEY, canary)),
        request((PROTOCOL, f"{canary}, chat")),
        request((PROTOCOL, f"{RAW_PROTOCOL}, bearer.{canary}")),
        request((PROTOCOL, f"{canary} {canary}")),
        request((f"{canary} {canary}", "1")),
        request(("Sec-WebSocket-Extensions", f"{canary}; {canary}=")),
        request(line=f"{canary} /v1/connect HTTP/1.1".encode()),
        request(line=f"GET /{canary} HTTP/1.1".encode()),
        request(line=f"GET /v1/connect HTTP/{canary}".encode()),
    ]
    for sent in asked:
        assert canary.encode() in sent
        async with watch.client() as client:
            client.send(sent)
            told = await client.reader.read()
            assert told.startswith(b"HTTP/1.1 4")
            assert canary.encode() not in told
            assert b"websockets" not in told.lower(), "nor what the server is made of"
    assert canary not in watch.sidecar.audit_path.read_text()
    await watch.trail.mark()
