"""Every answer before the upgrade: its status, its fixed body, its one record."""

from __future__ import annotations

import asyncio

import pytest
from websockets.exceptions import InvalidStatus

from sidecar.core.limits import Limits
from sidecar.core.ports import AuditEvent
from sidecar.ws.handshake import _has_token
from tests.ws.conftest import MakeHarness
from tests.ws.harness import JSON_PROTOCOL, RAW_PROTOCOL, USUAL_HEADERS, Harness, closed, masked

Header = tuple[str, str | None]
PROTOCOL = "Sec-WebSocket-Protocol"
JSON_OFFER = (PROTOCOL, JSON_PROTOCOL)
MALFORMED = "malformed request\n"
NO_HOST = "exactly one Host is required\n"
TWO_TOKENS = "more than one user token\n"
TOKEN_IN_URL = "a user token must not stand in the URL\n"
SUBPROTOCOL = "offer the subprotocol sidecar.v1.json or sidecar.v1.raw\n"
TOKEN = "a valid user token is required\n"
ORIGIN = "origin not allowed\n"


@pytest.mark.parametrize(
    ("headers", "status", "body", "reason"),
    [
        ([("Host", None), JSON_OFFER], 400, NO_HOST, "no_host"),
        ([("Host", ""), JSON_OFFER], 400, NO_HOST, "no_host"),
        ([("Host", "a"), ("Host", "b"), JSON_OFFER], 400, NO_HOST, "no_host"),
        ([(PROTOCOL, "chat")], 400, SUBPROTOCOL, "subprotocol"),
        ([(PROTOCOL, "sidecar.v2.json")], 400, SUBPROTOCOL, "subprotocol"),
        ([(PROTOCOL, "bearer.a.b.c")], 400, SUBPROTOCOL, "subprotocol"),
        ([(PROTOCOL, "bad protocol")], 400, MALFORMED, "malformed"),
        ([("Sec-WebSocket-Key", None)], 400, MALFORMED, "malformed"),
        ([("Sec-WebSocket-Key", "short")], 400, MALFORMED, "malformed"),
        ([("Sec-WebSocket-Version", "12")], 400, MALFORMED, "malformed"),
        ([("Sec-WebSocket-Version", None)], 400, MALFORMED, "malformed"),
        ([("Origin", "https://a"), ("Origin", "https://a"), JSON_OFFER], 400, MALFORMED, "malformed"),
        ([("Upgrade", None)], 426, "a WebSocket upgrade is required\n", "upgrade_required"),
        ([("Connection", "close")], 426, "a WebSocket upgrade is required\n", "upgrade_required"),
        ([("Authorization", "Bearer a"), ("Authorization", "Bearer a"), JSON_OFFER], 400, TWO_TOKENS, "two_tokens"),
        ([("Authorization", "Bearer a"), (PROTOCOL, f"{JSON_PROTOCOL}, bearer.b")], 400, TWO_TOKENS, "two_tokens"),
        ([(PROTOCOL, f"{JSON_PROTOCOL}, bearer.a, bearer.b")], 400, TWO_TOKENS, "two_tokens"),
        ([("Origin", "https://evil.example"), JSON_OFFER], 403, ORIGIN, "origin"),
        ([("Origin", "null"), JSON_OFFER], 403, ORIGIN, "origin"),
        ([("Origin", "https://app.example:8443"), JSON_OFFER], 403, ORIGIN, "origin"),
        ([("Origin", "https://APP.example"), JSON_OFFER], 403, ORIGIN, "origin"),
        ([], 401, TOKEN, "token_refused"),
        ([(PROTOCOL, RAW_PROTOCOL)], 401, TOKEN, "token_refused"),
        ([("Authorization", "Bearer a.b.c"), JSON_OFFER], 401, TOKEN, "token_refused"),
        ([("Authorization", "Bearer"), JSON_OFFER], 401, TOKEN, "token_refused"),
        ([("Authorization", "Basic YTpi"), JSON_OFFER], 401, TOKEN, "token_refused"),
        ([("Authorization", "Bearer \xe9"), JSON_OFFER], 401, TOKEN, "token_refused"),
        ([(PROTOCOL, f"{JSON_PROTOCOL}, bearer.a.b.c")], 401, TOKEN, "token_refused"),
        ([(PROTOCOL, f"{JSON_PROTOCOL}, bearer.")], 401, TOKEN, "token_refused"),
    ],
)
async def test_refusals(
    make_edge: MakeHarness, headers: list[tuple[str, str]], status: int, body: str, reason: str
) -> None:
    edge = await make_edge(allowed_origins=("https://app.example",))
    assert await edge.ask(*headers) == (status, body)
    assert edge.trail.reasons() == [reason]
    assert [record.event for record in edge.trail.records] == [AuditEvent.CONNECT_REFUSED]
    assert edge.counters.unauthorized_access_attempts == (1 if status in {401, 403} else 0)
    assert len(edge.factory) == 0


@pytest.mark.parametrize(
    "query", ["token=x", "v=1&access_token=x", "JWT=", "x=eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhIn0.c2ln", "%74oken=1"]
)
async def test_a_token_in_the_url_is_refused(edge: Harness, query: str) -> None:
    token = ("Authorization", f"Bearer {edge.token()}")
    assert await edge.ask(token, JSON_OFFER, path=f"/v1/connect?{query}") == (400, TOKEN_IN_URL)


@pytest.mark.parametrize("path", ["/", "/v1/connect/", "/v1/Connect", "/v1/connec", "/metrics", "*"])
async def test_there_is_one_path(edge: Harness, path: str) -> None:
    assert await edge.ask(JSON_OFFER, path=path) == (404, "not found\n")
    assert edge.trail.reasons() == ["not_found"]


async def test_other_methods(edge: Harness) -> None:
    assert await edge.ask(JSON_OFFER, method="POST") == (405, "method not allowed\n")


@pytest.mark.parametrize(
    ("request_line", "status", "body"),
    [
        (b"GET /v1/connect HTTP/1.0", 505, b"HTTP/1.1 is required\n"),
        (b"GET /v1/connect HTTP/2.0", 400, MALFORMED.encode()),
        (b"nonsense", 400, MALFORMED.encode()),
        (b"GET /\xff HTTP/1.1", 400, MALFORMED.encode()),
        (b"GET /" + b"a" * 9_000 + b" HTTP/1.1", 414, b"request line too long\n"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400, MALFORMED.encode()),
    ],
)
async def test_request_lines(edge: Harness, request_line: bytes, status: int, body: bytes) -> None:
    head = "".join(f"{name}: {value}\r\n" for name, value in USUAL_HEADERS).encode()
    answer = await edge.exchange(request_line + b"\r\n" + head + b"\r\n")
    assert (answer[0], answer[2]) == (status, body)
    assert len(edge.trail.of(AuditEvent.CONNECT_REFUSED)) == 1


@pytest.mark.parametrize(
    "headers", [[("X-Long", "a" * 9_000)], [(f"X-{number}", "1") for number in range(200)]], ids=["9 KB", "200"]
)
async def test_headers_too_large(edge: Harness, headers: list[tuple[str, str]]) -> None:
    assert await edge.ask(*headers) == (431, "request headers too large\n")
    assert edge.trail.reasons() == ["headers_too_large"]


@pytest.mark.parametrize(
    "header", [("Bad Name", "1"), ("X-Bad", "a\x00b"), ("Content-Length", "5"), ("Transfer-Encoding", "chunked")]
)
async def test_malformed_headers(edge: Harness, header: tuple[str, str]) -> None:
    assert await edge.ask(JSON_OFFER, header) == (400, MALFORMED)
    assert edge.trail.reasons() == ["malformed"]


async def test_nothing_of_the_request_is_in_an_answer(make_edge: MakeHarness) -> None:
    edge = await make_edge()
    canary = "canary-7f3a"
    for headers in (
        [("Origin", f"https://{canary}"), JSON_OFFER],
        [("Upgrade", canary)],
        [("Sec-WebSocket-Version", canary)],
        [(PROTOCOL, f"{RAW_PROTOCOL}, bearer.{canary}")],
    ):
        lines = [f"{name}: {value}" for name, value in (*USUAL_HEADERS, *headers)]
        _, head, body = await edge.exchange(
            "\r\n".join([f"GET /v1/connect?{canary} HTTP/1.1", *lines, "", ""]).encode()
        )
        assert canary.encode() not in head + body
        assert b"websockets" not in head.lower(), "the server does not say what it is made of"
    assert not any(canary in str(record.fields) for record in edge.trail.records)


async def test_answers_carry_the_headers_of_their_status(edge: Harness) -> None:
    base = "\r\n".join(["GET /v1/connect HTTP/1.1", *(f"{name}: {value}" for name, value in USUAL_HEADERS), "", ""])
    _, head, _ = await edge.exchange(base.encode())
    assert b"\r\nWWW-Authenticate: Bearer\r\n" in head + b"\r\n"
    edge.factory.draining = True
    request = base.replace("\r\n\r\n", f"\r\n{PROTOCOL}: {JSON_PROTOCOL}\r\n\r\n")
    _, head, _ = await edge.exchange(request.encode())
    assert b"\r\nRetry-After: 1\r\n" in head + b"\r\n"


@pytest.mark.parametrize("origins", [("https://app.example",), ("*",), ("https://a.example", "https://app.example")])
async def test_listed_origins_are_let_in(make_edge: MakeHarness, origins: tuple[str, ...]) -> None:
    edge = await make_edge(allowed_origins=origins)
    connection = await edge.connect(JSON_PROTOCOL, origin="https://app.example")
    assert connection.subprotocol == JSON_PROTOCOL


@pytest.mark.parametrize(
    ("offers", "answer"),
    [
        ((JSON_PROTOCOL,), JSON_PROTOCOL),
        ((RAW_PROTOCOL,), RAW_PROTOCOL),
        ((RAW_PROTOCOL, JSON_PROTOCOL), JSON_PROTOCOL),
        (("chat", RAW_PROTOCOL), RAW_PROTOCOL),
        ((), None),
    ],
)
async def test_subprotocols(edge: Harness, offers: tuple[str, ...], answer: str | None) -> None:
    connection = await edge.connect(*offers, token=edge.token())
    assert connection.subprotocol == answer


@pytest.mark.parametrize("protocol", [JSON_PROTOCOL, RAW_PROTOCOL])
async def test_a_token_offered_as_subprotocol_is_not_echoed(edge: Harness, protocol: str) -> None:
    token = edge.token()
    connection = await edge.connect(f"bearer.{token}", protocol)
    assert connection.subprotocol == protocol
    assert connection.response is not None
    assert token not in str(connection.response.headers)


async def test_the_request_forgets_its_headers(edge: Harness) -> None:
    connection = await edge.connect(JSON_PROTOCOL, token=edge.token())
    (served,) = edge.edge._open
    assert served.request is not None
    assert len(served.request.headers) == 0
    assert served.admission is not None
    assert served.admission.offer.token is None
    await connection.close()


async def test_draining(edge: Harness) -> None:
    edge.factory.draining = True
    assert await edge.ask(JSON_OFFER) == (503, "draining\n")
    assert await edge.ask(("Authorization", f"Bearer {edge.token()}")) == (503, "draining\n")
    assert edge.trail.reasons() == ["draining"] * 2


async def test_full(make_edge: MakeHarness) -> None:
    edge = await make_edge(max_connections=1)
    first = await edge.client()
    assert await edge.ask(JSON_OFFER) == (503, "too many connections\n")
    assert edge.counters.resource_limit_enforcements == 1
    await first.connection.close()
    await edge.welcomed()


async def test_full_of_managers(make_edge: MakeHarness) -> None:
    edge = await make_edge(Limits(max_managers=1))
    await edge.welcomed()
    assert await edge.ask(("Authorization", f"Bearer {edge.token('bob')}")) == (503, "too many connections\n")
    client = await edge.client()
    await client.send(type="hello", token=edge.token("bob"))
    assert (await client.closed()).code == 1013  # type: ignore[union-attr]
    assert edge.trail.reasons() == ["full", "rate_limited"]


async def test_raw_user_limit(make_edge: MakeHarness) -> None:
    edge = await make_edge(Limits(managers_per_user=1))
    await edge.raw()
    token = ("Authorization", f"Bearer {edge.token()}")
    assert await edge.ask(token) == (429, "a limit of this user is reached\n")
    assert len(edge.factory) == 1
    (record,) = edge.trail.of(AuditEvent.CONNECT_REFUSED)
    assert (record.fields["user_id"], record.fields["reason"]) == ("alice", "user_limit")
    await edge.raw("bob")


async def test_raw_without_its_record(edge: Harness) -> None:
    edge.trail.failing = True
    assert await edge.ask(("Authorization", f"Bearer {edge.token()}")) == (503, "unavailable\n")
    assert len(edge.factory) == 0
    assert edge.trail.reasons() == ["audit_unavailable"]


async def test_raw_client_that_goes_while_its_record_is_written(edge: Harness) -> None:
    edge.trail.hold()
    request = "\r\n".join(
        [
            "GET /v1/connect HTTP/1.1",
            *(f"{name}: {value}" for name, value in USUAL_HEADERS),
            f"Authorization: Bearer {edge.token()}",
            "",
            "",
        ]
    )
    _, writer = await asyncio.open_connection("127.0.0.1", edge.edge.port)
    writer.write(request.encode())
    await edge.trail.until(lambda: edge.trail.waiting)
    assert len(edge.factory) == 1
    writer.transport.abort()
    edge.trail.release()
    await edge.trail.seen(AuditEvent.CONTEXT_CLOSED)
    assert len(edge.factory) == 0


async def test_raw_context_that_ends_while_its_record_is_written(edge: Harness) -> None:
    edge.trail.hold()
    connecting = asyncio.create_task(edge.raw())
    await edge.trail.until(lambda: edge.trail.waiting)
    (manager,) = edge.factory
    manager.context.cleanup_resources("test")
    edge.trail.release()
    with pytest.raises(InvalidStatus) as refused:
        await connecting
    assert refused.value.response.status_code == 503


async def test_address_limits(make_edge: MakeHarness) -> None:
    edge = await make_edge(
        trusted_proxies=("127.0.0.1",), connects_per_second_per_address=2, failures_per_second_per_address=1
    )
    alice, bob = ("X-Forwarded-For", "1.2.3.4"), ("X-Forwarded-For", "1.2.3.5")
    answers = [(await edge.ask(JSON_OFFER, alice, path="/"))[0] for _ in range(3)]
    assert answers == [404, 404, 429]
    assert await edge.ask(JSON_OFFER, alice) == (429, "too many attempts\n")
    bad = ("Authorization", "Bearer a.b.c")
    assert [(await edge.ask(bad, bob))[0] for _ in range(2)] == [401, 401]
    edge.clock.advance(0.6)
    assert (await edge.ask(bad, bob))[0] == 429
    edge.clock.advance(1)
    assert (await edge.ask(bad, bob))[0] == 401
    assert {record.fields["address"] for record in edge.trail.records} == {"1.2.3.4", "1.2.3.5"}


async def test_failed_hellos_count_as_failures_of_the_address(make_edge: MakeHarness) -> None:
    edge = await make_edge(trusted_proxies=("127.0.0.1",), failures_per_second_per_address=1)
    for _ in range(2):
        client = await edge.client(headers=[("X-Forwarded-For", "1.2.3.4")])
        await client.send(type="hello", token="x")
        await client.closed()
    assert (await edge.ask(JSON_OFFER, ("X-Forwarded-For", "1.2.3.4")))[0] == 429


async def test_metadata_and_request_id(edge: Harness) -> None:
    connection = await edge.connect(
        token=edge.token(), headers=[("X-Request-Id", "req-7")], user_agent_header="agent/1 \u00e9"
    )
    assert connection.response is not None
    context = edge.manager_of(connection.response.headers["Sidecar-Connection-Id"]).context
    assert context.request_id == "req-7"
    assert context.metadata == {"address": "127.0.0.1", "protocol": RAW_PROTOCOL, "user_agent": "agent/1 ?"}


@pytest.mark.parametrize("given", [[("X-Request-Id", "no spaces")], [("X-Request-Id", "a"), ("X-Request-Id", "b")], []])
async def test_an_unusable_request_id_is_replaced(edge: Harness, given: list[tuple[str, str]]) -> None:
    client = await edge.client(headers=given)
    await client.hello(token=edge.token())
    assert edge.manager(client.key).context.request_id.startswith("r-")


@pytest.mark.parametrize(
    "start", [b"", b"GET /v1/connect HTTP/1.1\r\nHost: a\r\nX-Ha"], ids=["silence", "half a header"]
)
async def test_handshake_timeout(make_edge: MakeHarness, start: bytes) -> None:
    edge = await make_edge(handshake_timeout_s=0.05)
    stream = await edge.stream()
    stream.writer.write(start)
    assert await stream.ended() == b""
    assert edge.trail.reasons() == ["handshake_timeout"]


async def test_half_open_handshakes_are_capped(make_edge: MakeHarness) -> None:
    edge = await make_edge(max_half_open=2)
    streams = [await asyncio.open_connection("127.0.0.1", edge.edge.port) for _ in range(3)]
    answer = await streams[2][0].read()
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert answer.endswith(b"\r\n\r\ntoo many connections\n")
    for _, writer in streams:
        writer.close()


async def test_upgraded_sockets_are_not_half_open(make_edge: MakeHarness) -> None:
    edge = await make_edge(max_half_open=1)
    for _ in range(3):
        await edge.client()
    assert edge.edge.connections == 3


async def test_raw_answers_with_its_connection_id(edge: Harness) -> None:
    connection = await edge.raw()
    assert connection.response is not None
    manager = edge.manager_of(connection.response.headers["Sidecar-Connection-Id"])
    edge.send(manager, b"1")
    assert await connection.recv() == "1"
    await connection.close()
    assert await closed(connection) is not None


@pytest.mark.parametrize("frame", [masked(0x9, b"p"), masked(0x1, b"{}"), b"\xff\xff"])
@pytest.mark.parametrize("raw", [True, False])
async def test_frames_before_the_101(edge: Harness, frame: bytes, raw: bool) -> None:
    headers = [*USUAL_HEADERS, ("Authorization", f"Bearer {edge.token()}")]
    if not raw:
        headers.append((PROTOCOL, JSON_PROTOCOL))
    lines = [f"{name}: {value}" for name, value in headers]
    request = "\r\n".join(["GET /v1/connect HTTP/1.1", *lines, "", ""]).encode()
    stream = await edge.stream()
    stream.writer.write(request + frame)
    assert await stream.ended() == b""
    assert edge.trail.reasons() == ["malformed"]
    assert len(edge.factory) == 0
    assert edge.edge.connections == 0


async def test_frames_while_a_raw_context_is_recorded(edge: Harness) -> None:
    edge.trail.hold()
    headers = [*USUAL_HEADERS, ("Authorization", f"Bearer {edge.token()}")]
    lines = [f"{name}: {value}" for name, value in headers]
    stream = await edge.stream()
    stream.writer.write("\r\n".join(["GET /v1/connect HTTP/1.1", *lines, "", ""]).encode())
    await edge.trail.until(lambda: edge.trail.waiting)
    stream.writer.write(masked(0x9, b"p"))
    assert await stream.ended() == b""
    edge.trail.release()
    await edge.trail.seen(AuditEvent.CONTEXT_CLOSED)
    assert edge.trail.reasons() == ["malformed"]
    assert len(edge.factory) == 0


def test_the_look_for_a_token_in_the_query_is_linear() -> None:
    """A look that began again at each character would take minutes, and the suite's time-out would end it."""
    assert not _has_token("a" * 300_000)
    assert _has_token("b" * 300_000 + "." + "c" * 20 + "." + "d" * 20)
