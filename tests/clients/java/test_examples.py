"""examples/agent_java and examples/http_java, as their pages use them."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from playwright.async_api import Browser

from tests.clients.java.maven import FAST_START, ROOT
from tests.clients.python.agents import answer_of, text_of, user_of, within
from tests.support.away import assert_too_much_is_asked
from tests.support.demo_tabs import assert_serves_the_page, browser
from tests.support.running import RunningSidecar

__all__ = ["browser"]

pytestmark = [pytest.mark.usefixtures("built"), pytest.mark.timeout(600)]

COMMAND = ("java", *FAST_START, "-jar")


@asynccontextmanager
async def running_agent(sidecar: RunningSidecar) -> AsyncIterator[None]:
    """The agent, until its standard input closes."""
    told = {"SIDECAR_GRPC_ENDPOINT": sidecar.grpc_target, "SIDECAR_SERVICE_TOKEN": sidecar.service_token}
    jar = str(ROOT / "examples/agent_java/target/agent.jar")
    agent = await asyncio.create_subprocess_exec(*COMMAND, jar, stdin=-1, stdout=-1, env=os.environ | told)
    assert agent.stdout is not None
    assert agent.stdin is not None
    assert await within(agent.stdout.readline()) == b"demo agent attached\n"
    yield
    agent.stdin.close()
    assert await within(agent.wait()) == 0


async def test_the_agent(sidecar: RunningSidecar) -> None:
    async with running_agent(sidecar), user_of(sidecar, "alice") as alice:
        await alice.send({"question": "what is a token?"}, event="ask", id="q-1")
        chunks = await answer_of(alice)
        assert text_of(chunks).startswith("Hello alice. You asked: “what is a token?” A context token says")
        assert {chunk.event for chunk in chunks} == {"agent.word"}
        assert {chunk.reply_to for chunk in chunks} == {"q-1"}

        await alice.send({"question": "stop"}, event="ask", id="q-2")
        first: Any = await within(anext(alice))
        assert first.data == "Hello "
        await within(anext(alice))  # behind the second word the agent knows of the first
        alice.cancel(id="q-2")
        event = first
        while event.event != "agent.stopped":
            event = await within(anext(alice))
        assert event.reply_to == "q-2"
        assert event.data["words"] >= 1

        await alice.send({"victim_isolation_key": "0" * 64}, event="attack")
        verdict: Any = await within(anext(alice))
        assert verdict.event == "agent.verdict"
        assert verdict.data == {"code": "PERMISSION_DENIED", "reason": "ISOLATION_VIOLATION"}


@pytest.mark.browser
async def test_the_agent_behind_the_page(browser: Browser, tmp_path: Path) -> None:
    await assert_serves_the_page(browser, tmp_path, *COMMAND, ROOT / "examples/agent_java/target/agent.jar")


async def test_what_a_page_says_is_not_trusted_to_be_anything(sidecar: RunningSidecar) -> None:
    async with running_agent(sidecar), user_of(sidecar, "alice") as alice:
        stranger: tuple[Any, ...] = (None, {"question": {"deep": 1}})
        for strange in stranger:
            await alice.send(strange, event="ask")
            assert text_of(await answer_of(alice)).startswith("Hello alice. You asked: “” Every word")


@pytest.fixture(scope="module")
def service_url(sidecar: RunningSidecar) -> Iterator[str]:
    """The HTTP service, in a process of its own."""
    told = {"SIDECAR_GRPC_ENDPOINT": sidecar.grpc_target}
    command = [*COMMAND, str(ROOT / "examples/http_java/target/http.jar"), "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | told) as process:
        try:
            assert process.stdout is not None
            found = re.fullmatch(r"listening on (http://127\.0\.0\.1:\d+)\n", process.stdout.readline())
            assert found is not None
            yield found[1]
        finally:
            process.terminate()
        process.wait(20)


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
        return answer.status, json.loads(await answer.text())


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
