"""The demo agent of examples/, as its own process on a real sidecar: what it answers, what it refuses to start with."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from sidecar_client import Message, UserConnection, connect
from tests.support.running import RunningSidecar, running_sidecar

AGENT = Path(__file__).parents[2] / "examples" / "demo_agent"


@pytest.fixture(scope="module")
def sidecar(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningSidecar]:
    with running_sidecar(tmp_path_factory.mktemp("demo-agent")) as running:
        yield running


@pytest.fixture
async def agent(sidecar: RunningSidecar) -> AsyncIterator[Process]:
    """One that has attached; it ends when its standard input does."""
    environment = os.environ | {
        "SIDECAR_GRPC_ENDPOINT": sidecar.grpc_target,
        "SIDECAR_SERVICE_TOKEN": sidecar.service_token,
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-W", "error", AGENT, stdin=PIPE, stdout=PIPE, stderr=PIPE, env=environment
    )
    assert process.stdout is not None
    assert process.stdin is not None
    assert await asyncio.wait_for(process.stdout.readline(), 20) == b"demo agent attached\n"
    yield process
    process.stdin.close()
    assert await asyncio.wait_for(process.wait(), 20) == 0


def user_of(sidecar: RunningSidecar, subject: str) -> UserConnection:
    return connect(sidecar.websocket_url, token=sidecar.user_token(subject))


async def hear(user: UserConnection) -> Message:
    """The next message."""
    event = await asyncio.wait_for(anext(user), 20)
    assert isinstance(event, Message)
    return event


async def answer_of(user: UserConnection) -> list[Message]:
    """The chunks of an answer, to its end."""
    chunks = [await hear(user)]
    while chunks[-1].stream is not None and chunks[-1].stream.state == "open":
        chunks.append(await hear(user))
    return chunks


@pytest.mark.usefixtures("agent")
async def test_answers_each_user_word_by_word(sidecar: RunningSidecar) -> None:
    async def ask(subject: str) -> list[Message]:
        async with user_of(sidecar, subject) as user:
            await user.send({"question": f"what is {subject}'s token?"}, event="ask", id="q-1")
            return await answer_of(user)

    for subject, chunks in zip(("alice", "bob"), await asyncio.gather(ask("alice"), ask("bob")), strict=True):
        text = "".join(chunk.data for chunk in chunks[:-1])
        assert text.startswith(f"Hello {subject}. You asked: “what is {subject}'s token?” A context token says")
        assert {(chunk.event, chunk.reply_to) for chunk in chunks} == {("agent.word", "q-1")}
        assert chunks[-1].stream is not None
        assert chunks[-1].stream.state == "end"
        assert len(chunks) == len(text.split()) + 1


async def test_stops_when_the_client_has_heard_enough_and_says_so(sidecar: RunningSidecar, agent: Process) -> None:
    async with user_of(sidecar, "alice") as alice:
        await alice.send({"question": "why?"}, event="ask", id="q-1")
        heard = [await hear(alice) for _ in range(3)]
        alice.cancel(id="q-1")
        while heard[-1].event == "agent.word":
            heard.append(await hear(alice))
        assert (heard[-1].event, heard[-1].reply_to) == ("agent.stopped", "q-1")
        assert heard[-1].data["words"] in {len(heard) - 1, len(heard) - 2}
    assert agent.stderr is not None
    assert (await asyncio.wait_for(agent.stderr.readline(), 10)).startswith(b"demo agent: stopped after ")


@pytest.mark.usefixtures("agent")
async def test_an_attack_is_made_with_the_callers_own_token_and_refused(sidecar: RunningSidecar) -> None:
    async with user_of(sidecar, "mallory") as mallory, sidecar.user("victim") as victim:
        for key in (victim.isolation_key, "0" * 64):
            await mallory.send({"victim_isolation_key": key}, event="attack", id=f"a-{key}")
            verdict = await hear(mallory)
            assert (verdict.event, verdict.reply_to) == ("agent.verdict", f"a-{key}")
            assert verdict.data == {"code": "PERMISSION_DENIED", "reason": "ISOLATION_VIOLATION"}
        await mallory.send({"victim_isolation_key": mallory.isolation_key}, event="attack")
        attack, verdict = await hear(mallory), await hear(mallory)
        assert (attack.event, attack.data) == ("agent.attack", {"from": "mallory"})
        assert verdict.data == {"code": "OK", "reason": ""}
        assert await victim.frames_before_answer_to("probe") == []


@pytest.mark.usefixtures("agent")
@pytest.mark.parametrize("data", [None, 7, [], {}, {"question": 7}, {"victim_isolation_key": ["x"]}, "x" * 9_000])
async def test_whatever_a_page_sends_the_agent_lives_on(sidecar: RunningSidecar, data: Any) -> None:
    async with user_of(sidecar, "alice") as alice:
        await alice.send(data, event="attack")
        assert (await hear(alice)).data == {"code": "INVALID_ARGUMENT", "reason": "BAD_REQUEST"}
        await alice.send(data, event="ask")
        chunks = await answer_of(alice)
        assert chunks[-1].stream is not None
        assert chunks[-1].stream.state == "end"


async def test_ends_on_sigterm_in_the_middle_of_an_answer_and_the_page_sees_an_end(
    sidecar: RunningSidecar, agent: Process
) -> None:
    async with user_of(sidecar, "alice") as alice:
        await alice.send({"question": "why?"}, event="ask")
        await hear(alice)
        agent.send_signal(signal.SIGTERM)
        chunks = await answer_of(alice)
        assert chunks[-1].stream is not None
        assert chunks[-1].stream.state == "error"
    assert await asyncio.wait_for(agent.wait(), 20) == 0


@pytest.mark.parametrize(
    ("settings", "code", "said"),
    [
        ({"SIDECAR_GRPC_ENDPOINT": "nowhere"}, 78, "demo agent: endpoint is host:port or unix:/path\n"),
        ({"SIDECAR_SERVICE_TOKEN": "wrong" * 8}, 69, "demo agent: not attached: TOKEN_INVALID\n"),
    ],
)
def test_says_why_it_does_not_start(sidecar: RunningSidecar, settings: dict[str, str], code: int, said: str) -> None:
    environment = os.environ | {"SIDECAR_GRPC_ENDPOINT": sidecar.grpc_target} | settings
    ended = subprocess.run(
        [sys.executable, AGENT], env=environment, capture_output=True, text=True, timeout=20, check=False
    )
    assert (ended.returncode, ended.stdout) == (code, "")
    assert ended.stderr.endswith(said)
