"""examples/agent_node and examples/http_node, as a page uses them."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from playwright.async_api import Browser

from sidecar_client import Message, UserConnection
from tests.clients.node.conftest import ROOT
from tests.clients.node.programs import STRICTLY, running
from tests.clients.python.agents import answer_of, text_of, user_of
from tests.support.away import assert_too_much_is_asked
from tests.support.demo_tabs import assert_serves_the_page, browser
from tests.support.running import RunningSidecar

__all__ = ["browser"]

pytestmark = pytest.mark.timeout(180)  # the first installs the project


def example(project: Path, name: str) -> Path:
    """That example, where it finds what was packed."""
    folder = project / name
    shutil.copytree(ROOT / "examples" / name, folder, ignore=shutil.ignore_patterns("node_modules"), dirs_exist_ok=True)
    return folder


# The agent


@pytest.fixture(scope="module")
def agent(project: Path, sidecar: RunningSidecar) -> Iterator[None]:
    folder = example(project, "agent_node")
    with running(folder, sidecar, "main.js", says="demo agent attached\n"):
        yield


async def message(user: UserConnection) -> Message:
    event = await asyncio.wait_for(anext(user), 20)
    assert isinstance(event, Message), event
    return event


@pytest.mark.usefixtures("agent")
async def test_the_agent_answers_word_by_word(sidecar: RunningSidecar) -> None:
    async with user_of(sidecar, "alice") as alice:
        await alice.send({"question": "what is a token?"}, event="ask", id="q-1")
        chunks = await answer_of(alice)
    assert text_of(chunks).startswith("Hello alice. You asked: “what is a token?” A context token says")
    assert {chunk.event for chunk in chunks} == {"agent.word"}
    assert {chunk.reply_to for chunk in chunks} == {"q-1"}


@pytest.mark.usefixtures("agent")
async def test_the_agent_stops_when_it_is_told_to(sidecar: RunningSidecar) -> None:
    async with user_of(sidecar, "alice") as alice:
        await alice.send({"question": "what?"}, event="ask", id="q-1")
        await message(alice)
        await message(alice)  # behind the second the agent knows of the first: it may be cut off before its receipt
        alice.cancel(id="q-1")
        event = await message(alice)
        while event.event == "agent.word":
            event = await message(alice)
    assert (event.event, event.reply_to) == ("agent.stopped", "q-1")
    assert 1 <= event.data["words"] < 40


@pytest.mark.usefixtures("agent")
async def test_the_agents_attack_fails(sidecar: RunningSidecar) -> None:
    async with user_of(sidecar, "alice") as alice, sidecar.user("bob") as bob:
        await alice.send({"victim_isolation_key": bob.isolation_key}, event="attack")
        verdict = await message(alice)
        assert verdict.data == {"code": "PERMISSION_DENIED", "reason": "ISOLATION_VIOLATION"}
        assert await bob.frames_before_answer_to("probe") == []


@pytest.mark.browser
async def test_the_agent_behind_the_page(browser: Browser, project: Path, tmp_path: Path) -> None:
    folder = example(project, "agent_node")
    await assert_serves_the_page(browser, tmp_path, *STRICTLY, folder / "main.js")


# The HTTP service


@pytest.fixture(scope="module")
def service_url(project: Path, sidecar: RunningSidecar) -> Iterator[str]:
    folder = example(project, "http_node")
    with running(folder, sidecar, "main.js", "0", says=r"listening on (http://127\.0\.0\.1:\d+)\n") as found:
        yield found[1]


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
        assert await ask(page, mallory.context_token) == (403, {"reason": "ISOLATION_VIOLATION"})
        assert await mallory.frames_before_answer_to("probe") == []


async def test_what_is_no_token_is_refused(page: aiohttp.ClientSession) -> None:
    for token in ("not.a.token", "tökén"):
        assert await ask(page, token) == (401, {"reason": "TOKEN_INVALID"})


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
