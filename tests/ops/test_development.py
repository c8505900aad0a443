"""The development site over real HTTP: what the page gets, and who is refused."""

from __future__ import annotations

import json
import re

import pytest

from sidecar.ops.development import DevelopmentSite
from sidecar.ops.edge import OpsEdge
from sidecar.ops.http import MAX_BODY_BYTES
from tests.ops.conftest import MakeEdge
from tests.ops.raw_http import Answer, Headers, exchange, request

FILES = {
    "/": "text/html; charset=utf-8",
    "/demo.js": "text/javascript; charset=utf-8",
    "/connection.js": "text/javascript; charset=utf-8",
    "/conversation.js": "text/javascript; charset=utf-8",
    "/elements.js": "text/javascript; charset=utf-8",
    "/tabs.js": "text/javascript; charset=utf-8",
    "/ws-sidecar.min.js": "text/javascript; charset=utf-8",
    "/demo.css": "text/css; charset=utf-8",
    "/icon.svg": "image/svg+xml",
}
JSON = ("Content-Type", "application/json")


@pytest.fixture
async def edge(make_edge: MakeEdge, site: DevelopmentSite) -> OpsEdge:
    return await make_edge(development=site)


def own(edge: OpsEdge) -> tuple[str, str]:
    return ("Origin", f"http://127.0.0.1:{edge.port}")


def assert_refused(answer: Answer) -> None:
    assert (answer.status, answer.body) == (403, b"forbidden")
    assert not any(name.startswith("access-control-") for name in answer.headers)


async def mint(edge: OpsEdge, body: bytes, headers: Headers | None = None, host: str = "own") -> Answer:
    return await request(
        edge.port, "POST", "/dev/token", [JSON, own(edge)] if headers is None else headers, body, host=host
    )


@pytest.mark.parametrize(("path", "kind"), FILES.items())
async def test_serves_the_page_under_a_strict_policy(edge: OpsEdge, path: str, kind: str) -> None:
    answer = await request(edge.port, "GET", path)
    assert (answer.status, answer.headers["content-type"]) == (200, kind)
    assert answer.headers["content-security-policy"] == (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self' ws://127.0.0.1:8080; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    assert answer.headers["x-frame-options"] == "DENY"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert answer.headers["cross-origin-resource-policy"] == "same-origin"
    assert answer.headers["cache-control"] == "no-store"
    assert "server" not in answer.headers


async def test_the_page_needs_nothing_that_the_policy_forbids(edge: OpsEdge) -> None:
    page = (await request(edge.port, "GET", "/")).body.decode()
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)|javascript:", page)
    assert set(re.findall(r'(?:href|src)="(/[^"?]*)"', page)) <= FILES.keys() | {"/"}
    for script in (path for path in FILES if path.endswith(".js")):
        text = (await request(edge.port, "GET", script)).body.decode()
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function", text)


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost", "[::1]", "LOCALHOST"])
async def test_answers_under_its_own_names(edge: OpsEdge, name: str) -> None:
    host = f"{name}:{edge.port}"
    assert (await request(edge.port, "GET", "/", host=host)).status == 200
    assert (await request(edge.port, "GET", "/dev/config", host=host)).status == 200
    minted = await mint(edge, b'{"sub":"alice"}', [JSON, ("Origin", f"http://{host}")], host)
    assert minted.json() == {"token": "token-of-alice"}


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:{port}",
        "127.0.0.1",
        "localhost",
        "127.0.0.1:1",
        "127.0.0.1.evil.example:{port}",
        "localhost.:{port}",
        "127.0.0.1:{port}.evil.example",
        "evil.example@127.0.0.1:{port}",
        "0.0.0.0:{port}",
        "127.1:{port}",
        "2130706433:{port}",
        "::1:{port}",
        "",
    ],
)
@pytest.mark.parametrize("path", ["/", "/demo.js", "/dev/config"])
async def test_dns_rebinding_is_refused(edge: OpsEdge, path: str, host: str) -> None:
    named = host.format(port=edge.port)
    assert_refused(await request(edge.port, "GET", path, [("Origin", f"http://{named}")] if named else [], host=named))
    assert_refused(await mint(edge, b'{"sub":"alice"}', [JSON, ("Origin", f"http://{named}")], named))


async def test_an_absent_host_is_refused(edge: OpsEdge) -> None:
    assert_refused(await exchange(edge.port, b"GET / HTTP/1.0\r\n\r\n"))


async def test_two_hosts_are_refused(edge: OpsEdge) -> None:
    own_host = f"127.0.0.1:{edge.port}".encode()
    answer = await exchange(
        edge.port, b"GET / HTTP/1.1\r\nHost: " + own_host + b"\r\nHost: evil.example\r\nConnection: close\r\n\r\n"
    )
    assert answer.status in {400, 403}


@pytest.mark.parametrize(
    "origin",
    [
        "http://evil.example",
        "null",
        "http://127.0.0.1",
        "http://127.0.0.1:1",
        "https://127.0.0.1:{port}",
        "http://localhost:{port}",
        "http://127.0.0.1:{port}.evil.example",
        "http://127.0.0.1:{port}/",
        "",
    ],
)
async def test_another_origin_is_refused(edge: OpsEdge, origin: str) -> None:
    named = ("Origin", origin.format(port=edge.port))
    assert_refused(await mint(edge, b'{"sub":"alice"}', [JSON, named]))
    assert_refused(await request(edge.port, "GET", "/dev/config", [named]))
    assert_refused(await mint(edge, b'{"sub":"alice"}', [JSON, own(edge), named]))


async def test_minting_needs_an_origin(edge: OpsEdge) -> None:
    assert_refused(await mint(edge, b'{"sub":"alice"}', [JSON]))


@pytest.mark.parametrize("where", ["cross-site", "same-site", "none", ""])
async def test_what_the_browser_says_of_the_requests_site_counts(edge: OpsEdge, where: str) -> None:
    fetched = ("Sec-Fetch-Site", where)
    assert_refused(await mint(edge, b'{"sub":"alice"}', [JSON, own(edge), fetched]))
    assert_refused(await request(edge.port, "GET", "/dev/config", [fetched]))
    assert (await request(edge.port, "GET", "/", [fetched])).status == 200


async def test_the_page_learns_where_to_connect(edge: OpsEdge) -> None:
    answer = await request(edge.port, "GET", "/dev/config", [("Sec-Fetch-Site", "same-origin")])
    assert answer.headers["content-type"] == "application/json"
    assert answer.json() == {"websocket_url": "ws://127.0.0.1:8080/v1/connect"}


async def test_mints_for_any_identifier(edge: OpsEdge) -> None:
    for subject in ("bob", "a", "user@example.org", "x" * 128):
        answer = await mint(edge, json.dumps({"sub": subject}).encode())
        assert (answer.status, answer.json()) == (200, {"token": f"token-of-{subject}"})


@pytest.mark.parametrize(
    "subject", ["", "x" * 129, "a b", "alice\n", "<script>", "ä", "../x", None, 7, True, ["alice"], {"sub": "alice"}]
)
async def test_mints_for_nothing_else(edge: OpsEdge, subject: object) -> None:
    answer = await mint(edge, json.dumps({"sub": subject}).encode())
    assert answer.status == 400
    assert answer.json() == {"error": "sub must match [A-Za-z0-9_.:@|-]{1,128}"}


@pytest.mark.parametrize("body", [b"", b"{", b'"alice"', b"[]", b'{"sub":"\\ud800"}', b"\xff", b"{}", b"[" * 4000])
async def test_a_body_must_be_an_object_with_a_subject(edge: OpsEdge, body: bytes) -> None:
    assert (await mint(edge, body)).status == 400


async def test_a_body_must_say_that_it_is_json(edge: OpsEdge) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded"):
        answer = await mint(edge, b'{"sub":"alice"}', [("Content-Type", kind), own(edge)])
        assert answer.status == 415


async def test_a_body_is_bounded(edge: OpsEdge) -> None:
    longest = b'{"sub":"alice"}'.ljust(MAX_BODY_BYTES)
    assert (await mint(edge, longest)).status == 200
    assert (await mint(edge, longest + b" ")).status == 413


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/"), ("PUT", "/dev/token"), ("GET", "/dev/token"), ("POST", "/dev/config"), ("GET", "/static/demo.js")],
)
async def test_other_methods_and_paths_are_not_found(edge: OpsEdge, method: str, path: str) -> None:
    answer = await request(edge.port, method, path, [own(edge)])
    assert (answer.status, answer.body) == (404, b"not found")


async def test_a_site_may_open_later(make_edge: MakeEdge, site: DevelopmentSite) -> None:
    edge = await make_edge()
    assert (await request(edge.port, "GET", "/")).status == 404
    edge.open_development(site)
    assert (await request(edge.port, "GET", "/")).status == 200
    assert (await request(edge.port, "GET", "/healthz", host="anything")).status == 200
