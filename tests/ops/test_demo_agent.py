"""The demo agent of examples/, as its own process: what it asks of the sidecar, and whom it refuses."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import jwt
import pytest

from tests.ops.fake_sidecar import FakeSidecar, refused
from tests.ops.raw_http import Answer, Headers, request

AGENT = Path(__file__).parents[2] / "examples" / "demo_agent"
KEY = b"k" * 64
PAGE = "http://127.0.0.1:8081"
BAD_HEADERS = ("", "Bearer", "Bearer x.y.z", "Bearer \xff\xfe", "Basic {token}", "{token}")
BAD_CLAIMS: tuple[dict[str, Any], ...] = (
    {"key": b"x" * 64},
    {"key": None, "algorithm": "none"},
    {"algorithm": "HS512"},
    {"exp": 1},
    {"exp": None},
    {"aud": "other"},
    {"iss": "https://other.test"},
    {"sub": None},
)
BAD_BODIES = (
    b"",
    b"{",
    b"[]",
    b'{"question":7}',
    b'{"question":""}',
    b'{"question":"\\ud800"}',
    b'{"question":"why?","id":7}',
    b"[" * 10_000,
    json.dumps({"question": "x" * 2001}).encode(),
)


def environment(folder: Path, target: str) -> dict[str, str]:
    key_file = folder / "user-token.key"
    key_file.write_bytes(KEY + b"\n")
    return os.environ | {
        "SIDECAR_GRPC_ENDPOINT": target,
        "DEMO_AGENT_LISTEN": "127.0.0.1:0",
        "DEMO_AGENT_ALLOWED_ORIGINS": f"{PAGE}, http://localhost:8081",
        "DEMO_USER_TOKEN_KEY_FILE": str(key_file),
        "DEMO_USER_TOKEN_ISSUER": "https://id.test",
        "DEMO_USER_TOKEN_AUDIENCE": "chat",
    }


def user_token(user: str, key: Any = KEY, algorithm: str = "HS256", **claims: Any) -> str:
    """A good user token, unless the arguments say otherwise; None leaves a claim out."""
    whole = {"iss": "https://id.test", "aud": "chat", "sub": user, "exp": int(time.time()) + 60} | claims
    return jwt.encode({name: value for name, value in whole.items() if value is not None}, key, algorithm)


class Agent:
    """A running agent and how a page calls it."""

    def __init__(self, process: Process, port: int) -> None:
        self.process = process
        self.port = port

    async def post(self, path: str, body: object, user: str = "alice", **headers: str) -> Answer:
        """As the page of `user` does, with that user's context token."""
        given = {
            "Authorization": f"Bearer {user_token(user)}",
            "X-Context-Token": f"context-of-{user}",
            "Content-Type": "application/json",
        } | {name.replace("_", "-"): value for name, value in headers.items()}
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return await request(self.port, "POST", path, list(given.items()), data)


@pytest.fixture
async def fake() -> AsyncIterator[FakeSidecar]:
    sidecar = FakeSidecar()
    await sidecar.start()
    yield sidecar
    await sidecar.close()


@pytest.fixture
async def agent(fake: FakeSidecar, tmp_path: Path) -> AsyncIterator[Agent]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, AGENT, stdin=PIPE, stdout=PIPE, env=environment(tmp_path, fake.target)
    )
    assert process.stdout is not None
    assert process.stdin is not None
    line = (await asyncio.wait_for(process.stdout.readline(), 20)).decode()
    prefix = "demo agent listening on http://127.0.0.1:"
    assert line.startswith(prefix)
    yield Agent(process, int(line.removeprefix(prefix)))
    process.stdin.close()
    assert await asyncio.wait_for(process.wait(), 20) == 0


def words(fake: FakeSidecar, user: str) -> str:
    """What the sidecar accepted for that user, joined."""
    return "".join(
        json.loads(accepted.message.payload)["text"]
        for accepted in fake.accepted
        if accepted.lane.context_token == f"context-of-{user}" and accepted.message.event_type == "agent.word"
    )


async def test_answers_word_by_word_on_one_stream(agent: Agent, fake: FakeSidecar) -> None:
    answers = await asyncio.gather(
        agent.post("/ask", {"question": "why?", "id": "q-1"}),
        agent.post("/ask", {"question": "what?", "id": "q-2", "isolation_key": "a-key"}, user="bob"),
    )
    for user, question, answer, key in (
        ("alice", "why?", answers[0], "key-of-context-of-alice"),
        ("bob", "what?", answers[1], "a-key"),
    ):
        assert words(fake, user).startswith(f"Hello {user}. You asked: “{question}” ")
        own = [accepted for accepted in fake.accepted if accepted.lane.expected_user_id == user]
        assert {accepted.lane.isolation_key for accepted in own} == {key}
        assert {accepted.message.reply_to for accepted in own} == {"q-1" if user == "alice" else "q-2"}
        assert len({accepted.message.message_id for accepted in own}) == len(own)
        assert own[-1].message.event_type == "agent.done"
        assert answer.status == 200
        assert answer.json()["words"] == len(own) - 1
    assert len({accepted.lane.lane for accepted in fake.accepted}) == 2
    assert fake.streams == 1
    await asyncio.wait_for(fake.lanes_closed.wait(), 10)


async def test_a_broken_stream_costs_no_word(agent: Agent, fake: FakeSidecar) -> None:
    fake.break_at = {0: 5, 1: 3}
    answer = await agent.post("/ask", {"question": "why?"})
    assert answer.status == 200
    assert fake.streams == 3
    numbers = [accepted.message.message_id.rpartition(".")[2] for accepted in fake.accepted]
    count = answer.json()["words"]
    expected = [str(number) for number in range(count)]
    # What was accepted and not answered came again, with the same message_id, and nothing else did.
    assert numbers == [*expected[:5], *expected[4:7], *expected[6:], "done"]


async def test_gives_up_when_every_stream_breaks(agent: Agent, fake: FakeSidecar) -> None:
    fake.break_at = dict.fromkeys(range(10), 1)
    answer = await agent.post("/ask", {"question": "why?"})
    assert (answer.status, answer.json()) == (503, {"code": "UNAVAILABLE", "reason": ""})
    assert len({accepted.message.message_id for accepted in fake.accepted}) == 1


async def test_a_refused_lane_is_the_answer(agent: Agent, fake: FakeSidecar) -> None:
    fake.lane_refusal = refused("PERMISSION_DENIED", "ISOLATION_VIOLATION")
    answer = await agent.post("/ask", {"question": "why?"})
    assert (answer.status, answer.json()) == (403, {"code": "PERMISSION_DENIED", "reason": "ISOLATION_VIOLATION"})
    assert fake.accepted == []


async def test_a_lane_that_ends_says_why(agent: Agent, fake: FakeSidecar) -> None:
    fake.end_lanes_at = 3
    answer = await agent.post("/ask", {"question": "why?"})
    assert (answer.status, answer.json()) == (404, {"code": "NOT_FOUND", "reason": "MANAGER_GONE"})
    assert len(fake.accepted) == 3


async def test_an_attack_is_made_with_the_callers_own_token_and_name(agent: Agent, fake: FakeSidecar) -> None:
    fake.send_refusal = refused("PERMISSION_DENIED", "ISOLATION_VIOLATION")
    answer = await agent.post("/attack", {"victim_isolation_key": "key-of-bob"})
    assert (answer.status, answer.json()) == (200, {"code": "PERMISSION_DENIED", "reason": "ISOLATION_VIOLATION"})
    ((token, sent),) = fake.sent
    assert (token, sent.isolation_key, sent.expected_user_id) == ("context-of-alice", "key-of-bob", "alice")
    fake.send_refusal = None
    assert (await agent.post("/attack", {"victim_isolation_key": "own"})).json() == {"code": "OK", "reason": ""}


async def test_without_a_sidecar_it_says_so(agent: Agent, fake: FakeSidecar) -> None:
    await fake.close()
    answer = await agent.post("/ask", {"question": "why?"})
    assert (answer.status, answer.json()) == (503, {"code": "UNAVAILABLE", "reason": ""})
    assert (await agent.post("/attack", {"victim_isolation_key": "k"})).json()["code"] == "UNAVAILABLE"


async def test_authenticates_its_users_by_itself(agent: Agent, fake: FakeSidecar) -> None:
    headers = [f"Bearer {user_token('alice', **claims)}" for claims in BAD_CLAIMS]
    headers += [header.format(token=user_token("alice")) for header in BAD_HEADERS]
    for header in headers:
        for path, body in (("/ask", {"question": "why?"}), ("/attack", {"victim_isolation_key": "k"})):
            answer = await agent.post(path, body, Authorization=header)
            assert (answer.status, answer.json()) == (401, {"code": "UNAUTHENTICATED", "reason": "TOKEN_INVALID"}), (
                header
            )
    assert (fake.accepted, fake.sent) == ([], [])


async def test_a_context_token_that_is_no_token_is_refused(agent: Agent, fake: FakeSidecar) -> None:
    answer = await agent.post("/ask", {"question": "why?"}, X_Context_Token="tök\xff")
    assert (answer.status, answer.json()) == (401, {"code": "UNAUTHENTICATED", "reason": "TOKEN_INVALID"})
    assert fake.accepted == []


async def test_a_bad_body_is_refused(agent: Agent) -> None:
    for body in BAD_BODIES:
        answer = await agent.post("/ask", body)
        assert (answer.status, answer.json()) == (400, {"code": "INVALID_ARGUMENT", "reason": "BAD_REQUEST"}), body


async def test_a_body_is_bounded_json_and_the_paths_are_two(agent: Agent) -> None:
    assert (await agent.post("/ask", b" " * 16_385)).status == 413
    assert (await agent.post("/ask", {"question": "why?"}, Content_Type="text/plain")).status == 400
    assert (await agent.post("/other", {})).json()["code"] == "NOT_FOUND"
    assert (await request(agent.port, "GET", "/ask")).status == 405


async def test_answers_pages_of_its_origins_only(agent: Agent) -> None:
    asked: Headers = [("Origin", PAGE), ("Access-Control-Request-Method", "POST")]
    preflight = await request(agent.port, "OPTIONS", "/ask", asked)
    assert (preflight.status, preflight.body) == (204, b"")
    assert preflight.headers["access-control-allow-origin"] == PAGE
    assert preflight.headers["access-control-allow-headers"] == "Authorization, Content-Type, X-Context-Token"
    assert preflight.headers["vary"] == "Origin"
    assert "access-control-allow-credentials" not in preflight.headers
    for origin in ("http://evil.example", "null", f"{PAGE}1", ""):
        answer = await agent.post("/attack", {"victim_isolation_key": "k"}, Origin=origin)
        assert (answer.status, answer.json()["reason"]) == (403, "ORIGIN_NOT_ALLOWED")
        assert "access-control-allow-origin" not in answer.headers
    refusal = await agent.post("/ask", {}, Origin=PAGE)
    assert (refusal.status, refusal.headers["access-control-allow-origin"]) == (400, PAGE)


async def test_dns_rebinding_is_refused(agent: Agent) -> None:
    port = agent.port
    for host in ("evil.example", f"evil.example:{port}", "127.0.0.1", f"127.0.0.1.evil.example:{port}", None):
        answer = await request(port, "POST", "/ask", body=b"{}", host=host)
        assert answer.status == (403 if host else 400)


async def test_ends_on_sigterm_in_the_middle_of_an_answer(agent: Agent, fake: FakeSidecar) -> None:
    fake.break_at = {0: 2}
    asking = asyncio.create_task(agent.post("/ask", {"question": "why?"}))
    await asyncio.wait_for(fake.broke.wait(), 10)
    agent.process.send_signal(signal.SIGTERM)
    assert await asyncio.wait_for(agent.process.wait(), 20) == 0
    await asyncio.gather(asking, return_exceptions=True)


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        ("DEMO_AGENT_LISTEN", "0.0.0.0:0", "DEMO_AGENT_LISTEN must be host:port on loopback"),
        ("DEMO_AGENT_LISTEN", "example.org:1", "DEMO_AGENT_LISTEN must be host:port on loopback"),
        ("DEMO_AGENT_LISTEN", "127.0.0.1:65536", "DEMO_AGENT_LISTEN must be host:port on loopback"),
        ("SIDECAR_GRPC_ENDPOINT", "", "SIDECAR_GRPC_ENDPOINT must be set"),
        ("DEMO_USER_TOKEN_KEY_FILE", "", "DEMO_USER_TOKEN_KEY_FILE must be set"),
        ("DEMO_USER_TOKEN_KEY_FILE", "/nowhere", "DEMO_USER_TOKEN_KEY_FILE must be a readable file"),
    ],
)
def test_refuses_settings_by_name(tmp_path: Path, name: str, value: str, rule: str) -> None:
    env = environment(tmp_path, "127.0.0.1:1") | {name: value}
    ended = subprocess.run([sys.executable, AGENT], env=env, capture_output=True, text=True, timeout=20, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (78, "", f"demo agent: {rule}\n")
