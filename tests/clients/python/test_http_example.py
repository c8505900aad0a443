"""examples/http_python as a page uses it: who is signed in, whose token it is, and where the answer goes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.support.away import assert_too_much_is_asked
from tests.support.running import RunningSidecar

EXAMPLE = Path(__file__).resolve().parents[3] / "examples" / "http_python"


@pytest.fixture(scope="module")
def service_url(sidecar: RunningSidecar) -> Iterator[str]:
    """The service, in a process of its own."""
    environment = os.environ | {"SIDECAR_GRPC_ENDPOINT": sidecar.grpc_target}
    command = [sys.executable, "-W", "error", str(EXAMPLE), "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stdout is not None
            found = re.fullmatch(r"listening on (http://127\.0\.0\.1:\d+)\n", process.stdout.readline())
            assert found is not None
            yield found[1]
        finally:
            process.terminate()
        assert process.wait(20) in {0, -15}


@pytest.fixture
async def page(service_url: str) -> AsyncIterator[aiohttp.ClientSession]:
    """A page of Alice's, signed in at the service."""
    jar = aiohttp.CookieJar(unsafe=True)
    async with aiohttp.ClientSession(service_url, cookie_jar=jar) as session:
        async with session.post("/sign-in", json={"user_id": "alice"}) as answer:
            assert answer.status == 204
        yield session


async def ask(page: aiohttp.ClientSession, token: str) -> tuple[int, Any]:
    async with page.post("/ask", json={"question": "why me?"}, headers={"X-Context-Token": token}) as answer:
        return answer.status, await answer.json()


async def test_the_answer_comes_over_the_websocket(sidecar: RunningSidecar, page: aiohttp.ClientSession) -> None:
    async with sidecar.user("alice") as alice:
        status, body = await ask(page, alice.context_token)
        assert status == 202
        frames = [await alice.frame() for _ in range(5)]
    assert "".join(frame["data"] for frame in frames) == "You asked: why me? "
    assert [frame["stream"]["state"] for frame in frames] == ["open"] * 4 + ["end"]
    assert {frame["stream"]["id"] for frame in frames} == {body["stream_id"]}


async def test_somebody_elses_token_is_refused(sidecar: RunningSidecar, page: aiohttp.ClientSession) -> None:
    async with sidecar.user("mallory") as mallory:
        status, _ = await ask(page, mallory.context_token)
        assert status == 403
        assert await mallory.frames_before_answer_to("probe") == []


async def test_what_is_no_token_is_refused(page: aiohttp.ClientSession) -> None:
    assert await ask(page, "not.a.token") == (401, {"reason": "TOKEN_INVALID"})


async def test_a_context_that_has_ended_is_gone(sidecar: RunningSidecar, page: aiohttp.ClientSession) -> None:
    async with sidecar.user("alice") as alice:
        pass
    ended = alice.welcome["connection_id"]
    while ended not in [record["connection_id"] for record in await sidecar.audit_records("context_closed")]:
        pass  # each look is a call that takes its turn
    assert await ask(page, alice.context_token) == (410, {"reason": "MANAGER_GONE"})


async def test_a_client_that_is_away_and_behind_is_too_much_to_ask(
    sidecar: RunningSidecar, page: aiohttp.ClientSession
) -> None:
    await assert_too_much_is_asked(sidecar, page)


async def test_who_is_not_signed_in_may_not_ask(sidecar: RunningSidecar, service_url: str) -> None:
    async with aiohttp.ClientSession(service_url) as stranger, sidecar.user("alice") as alice:
        status, _ = await ask(stranger, alice.context_token)
        assert status == 401
        assert await alice.frames_before_answer_to("probe") == []
