"""Health, readiness, and the one answer to everything else, over real HTTP."""

from __future__ import annotations

import asyncio

import pytest
import structlog

from sidecar.ops.edge import OpsEdge, OpsSettings
from tests.ops.conftest import MakeEdge
from tests.ops.raw_http import Answer, exchange, request


def assert_fixed(answer: Answer, status: int, body: bytes) -> None:
    """An answer is its status, its fixed text, and no word of what serves it."""
    assert (answer.status, answer.body) == (status, body)
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "server" not in answer.headers


@pytest.mark.parametrize(("path", "body"), [("/healthz", b"ok"), ("/readyz", b"ready")])
async def test_answers_probes(make_edge: MakeEdge, path: str, body: bytes) -> None:
    edge = await make_edge()
    assert_fixed(await request(edge.port, "GET", path), 200, body)
    head = await request(edge.port, "HEAD", path)
    assert (head.status, head.body, head.headers["content-length"]) == (200, b"", str(len(body)))


async def test_readiness_follows_what_it_was_given(make_edge: MakeEdge) -> None:
    ready = False
    edge = await make_edge(ready=lambda: ready)
    assert_fixed(await request(edge.port, "GET", "/readyz"), 503, b"not ready")
    assert_fixed(await request(edge.port, "GET", "/healthz"), 200, b"ok")
    ready = True
    assert_fixed(await request(edge.port, "GET", "/readyz"), 200, b"ready")


async def test_says_when_it_no_longer_lives(make_edge: MakeEdge) -> None:
    edge = await make_edge(alive=lambda: False)
    assert_fixed(await request(edge.port, "GET", "/healthz"), 503, b"not ok")


async def test_probes_may_use_any_host(make_edge: MakeEdge) -> None:
    edge = await make_edge()
    assert_fixed(await request(edge.port, "GET", "/healthz", host="10.0.0.7:8081"), 200, b"ok")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/healthz"),
        ("OPTIONS", "/readyz"),
        ("DELETE", "/healthz"),
        ("GET", "/"),
        ("GET", "/healthz/"),
        ("GET", "/%68ealthz"),
        ("GET", "/metrics"),
        ("GET", "/dev/config"),
        ("POST", "/dev/token"),
        ("GET", "/demo.js"),
        ("GET", "/../../etc/passwd"),
    ],
)
async def test_serves_nothing_else(make_edge: MakeEdge, method: str, path: str) -> None:
    edge = await make_edge()
    assert_fixed(await request(edge.port, method, path), 404, b"not found")


@pytest.mark.parametrize(
    "data",
    [
        b"nonsense\r\n\r\n",
        b"GET /healthz HTTP/9.9\r\nHost: a\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: a\r\nBad Header: secret-echo\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: a\r\nX: " + b"secret-echo" * 1000 + b"\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx",
    ],
)
async def test_what_is_not_http_gets_a_fixed_answer(make_edge: MakeEdge, data: bytes) -> None:
    edge = await make_edge()
    assert_fixed(await exchange(edge.port, data), 400, b"bad request")


async def test_a_bug_is_logged_and_not_told(make_edge: MakeEdge) -> None:
    def broken() -> bool:
        raise RuntimeError("secret-text")

    edge = await make_edge(ready=broken)
    with structlog.testing.capture_logs() as logs:
        answer = await request(edge.port, "GET", "/readyz")
    assert_fixed(answer, 500, b"internal server error")
    (entry,) = logs
    assert entry["event"] == "request_failed"
    assert isinstance(entry["exc_info"], RuntimeError)
    assert_fixed(await request(edge.port, "GET", "/healthz"), 200, b"ok")


async def test_a_taken_port_is_an_error_and_leaves_nothing_open(make_edge: MakeEdge) -> None:
    edge = await make_edge()
    second = OpsEdge(OpsSettings("127.0.0.1", edge.port), alive=lambda: True, ready=lambda: True)
    with pytest.raises(OSError, match="address already in use"):
        await second.start()
    assert "closed" in repr(second)
    await second.close()
    assert_fixed(await request(edge.port, "GET", "/healthz"), 200, b"ok")


async def test_close_ends_idle_connections_and_may_be_repeated() -> None:
    edge = OpsEdge(OpsSettings("127.0.0.1", 0), alive=lambda: True, ready=lambda: True)
    await edge.close()
    await edge.start()
    assert repr(edge) == f"<OpsEdge 127.0.0.1:{edge.port} serving>"
    reader, writer = await asyncio.open_connection("127.0.0.1", edge.port)
    writer.write(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n")
    assert (await reader.readuntil(b"ok")).startswith(b"HTTP/1.1 200 OK\r\n")
    async with asyncio.timeout(5):
        await edge.close()
        assert await reader.read() == b""
    writer.close()
    await writer.wait_closed()
    await edge.close()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", edge.port)
