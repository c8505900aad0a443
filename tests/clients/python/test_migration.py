"""The code of docs/migration.md: every block compiles, and all but the one that needs a web framework run."""

from __future__ import annotations

import asyncio
import re
import warnings
from datetime import date, timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import pytest

from sidecar_client import Agent, AsyncSidecarClient
from sidecar_client.errors import IsolationViolation
from sidecar_client.legacy import (
    COMPATIBILITY_OFF,
    DEPRECATED,
    REMOVED,
    ContextRequired,
    WebSocketManagerAdapter,
    get_websocket_manager,
)
from tests.clients.python.agents import answer_of, attached, text_of, user_of, within
from tests.support.running import RunningSidecar

PAGE: Final = (Path(__file__).resolve().parents[3] / "docs" / "migration.md").read_text(encoding="utf-8")
BLOCKS: Final = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
TIMELINE: Final = [line for line in PAGE.partition("\n## ")[0].splitlines() if line.startswith("|")]
ONE_DAY: Final = timedelta(days=1)
BEFORE, STEP_1, STEP_2, FRAMEWORK, CLIENT, AGENT = range(6)
ANSWER: Final = {"type": "answer", "text": "You asked: why?"}


def names_of(block: int) -> dict[str, Any]:
    """What the block defines."""
    language, text = BLOCKS[block]
    assert language == "python"
    names: dict[str, Any] = {}
    exec(compile(text, "migration.md", "exec"), names)
    return names


@pytest.fixture(autouse=True)
def environment(sidecar: RunningSidecar, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("SIDECAR_GRPC_ENDPOINT", sidecar.grpc_target)
    monkeypatch.setenv("SIDECAR_SERVICE_TOKEN", sidecar.service_token)
    monkeypatch.setenv("SIDECAR_LEGACY_STRICT", "0")
    get_websocket_manager.cache_clear()
    yield
    get_websocket_manager.cache_clear()


def test_every_block_compiles() -> None:
    assert len(BLOCKS) == 6
    for language, text in BLOCKS:
        assert language == "python"
        compile(text, "migration.md", "exec")


def test_the_dates_are_the_codes() -> None:
    heading, _, *rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in TIMELINE]
    assert heading[:3] == ["step", "from", "`sidecar_client.legacy`"]
    assert [row[:2] for row in rows] == [
        ["1 deprecated", str(DEPRECATED)],
        ["2 strict", str(COMPATIBILITY_OFF)],
        ["3 removed", str(REMOVED)],
    ]


def test_a_step_begins_on_its_date() -> None:
    """The day before it the step before holds, where the environment says nothing."""

    def strict_on(day: date) -> bool:
        return WebSocketManagerAdapter(today=lambda: day, environment={}).strict

    deprecated, strict, removed = (date.fromisoformat(line.split("|")[2].strip()) for line in TIMELINE[2:])
    assert deprecated < strict < removed
    assert [strict_on(day) for day in (deprecated, strict - ONE_DAY, strict, removed)] == [False, False, True, True]


async def test_before() -> None:
    said: list[Any] = []

    class Socket:
        """Of the service's own."""

        async def send_json(self, message: Any) -> None:
            said.append(message)

    names = names_of(BEFORE)
    names["manager"].sockets["alice"] = Socket()
    await names["answer"]("alice", "why?")
    assert said == [ANSWER]


async def test_step_1_the_calls_stay_and_warn(sidecar: RunningSidecar) -> None:
    names = names_of(STEP_1)

    async def service() -> None:
        async with sidecar.user("alice") as alice, sidecar.service() as service:
            while not get_websocket_manager().get_stats()["total_connections"]:
                await service.factory_stats()
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                await names["answer"]("alice", "why?")
            assert [each.category for each in caught] == [DeprecationWarning]
            assert (await alice.frame())["data"] == ANSWER

    await within(names["serve"](service))


async def test_step_2_the_context_comes_with_the_request(
    sidecar: RunningSidecar, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SIDECAR_LEGACY_STRICT", "1")
    answer = names_of(STEP_2)["answer"]
    async with get_websocket_manager(), sidecar.user("alice") as alice, sidecar.user("bob") as bob:
        await answer("alice", "why?", alice.isolation_key, alice.context_token)
        assert (await alice.frame())["data"] == ANSWER
        for user_id, key, token in (
            ("alice", bob.isolation_key, alice.context_token),
            ("alice", bob.isolation_key, bob.context_token),
            ("bob", alice.isolation_key, alice.context_token),
        ):
            with pytest.raises(IsolationViolation):
                await answer(user_id, "why?", key, token)
        with pytest.raises(ContextRequired):
            await names_of(STEP_1)["answer"]("alice", "why?")
        assert await alice.frames_before_answer_to("probe") == await bob.frames_before_answer_to("probe") == []


@pytest.mark.stands_in("test_every_block_compiles")
@pytest.mark.skipif(find_spec("starlette") is None, reason="starlette is not installed: the block is compiled only")
async def test_step_2_in_a_web_framework() -> None:
    assert [route.path for route in names_of(FRAMEWORK)["app"].routes] == ["/ask"]


async def test_step_3_the_client(sidecar: RunningSidecar) -> None:
    answer = names_of(CLIENT)["answer"]
    async with AsyncSidecarClient() as client, sidecar.user("alice") as alice:
        await answer(client, "alice", "why?", alice.isolation_key, alice.context_token)
        frame = await alice.frame()
    assert (frame["event"], frame["data"]) == ("answer", ANSWER)


async def test_step_3_an_agent(sidecar: RunningSidecar) -> None:
    agent = names_of(AGENT)["agent"]
    assert isinstance(agent, Agent)
    async with attached(agent), user_of(sidecar, "alice") as alice:
        await asyncio.wait_for(alice.send("why?", event="question"), 10)
        assert text_of(await answer_of(alice)) == "You asked: why?"
