"""The README's code, run as it is written, against a real sidecar."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest

from sidecar.api.v1 import admin_service_pb2
from sidecar_client import AsyncSidecarClient
from tests.clients.python.agents import answer_of, text_of, user_of, within
from tests.support.running import RunningSidecar

README: Final = Path(__file__).resolve().parents[3] / "clients" / "python" / "README.md"
BLOCKS: Final = re.findall(r"^```(\w*)\n(.*?)^```$", README.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def test_every_block_is_run_here() -> None:
    functions = [re.findall(r"^async def (\w+)", text, re.MULTILINE) for _, text in BLOCKS]
    assert functions == [["answer"], ["greet"], ["stream_answer"], ["notify"], ["listen"]]
    assert {language for language, _ in BLOCKS} == {"python"}


def test_the_quick_start_is_ten_lines() -> None:
    assert len([line for line in BLOCKS[0][1].splitlines() if line]) <= 10


def the(name: str) -> Callable[..., Any]:
    """The function of that name, from its block."""
    (text,) = [text for _, text in BLOCKS if f"async def {name}(" in text]
    names: dict[str, Any] = {}
    exec(compile(text, str(README), "exec"), names)
    function: Callable[..., Any] = names[name]
    return function


@pytest.fixture(autouse=True)
def environment(sidecar: RunningSidecar, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIDECAR_GRPC_ENDPOINT", sidecar.grpc_target)


async def test_answer(sidecar: RunningSidecar) -> None:
    before = len(await sidecar.audit_records("agent_attached"))
    environment = os.environ | {"SIDECAR_SERVICE_TOKEN": sidecar.service_token}
    agent = await asyncio.create_subprocess_exec(sys.executable, "-W", "error", "-c", BLOCKS[0][1], env=environment)
    while len(await sidecar.audit_records("agent_attached")) == before:
        assert agent.returncode is None
    async with user_of(sidecar, "alice") as alice:
        await alice.send("why?")
        assert text_of(await answer_of(alice)) == "alice asked: why? "
    agent.terminate()
    assert await within(agent.wait()) == 0


async def test_greet(sidecar: RunningSidecar) -> None:
    async with sidecar.user("alice") as alice:
        assert await the("greet")(alice.isolation_key, alice.context_token, "alice") == 1
        assert (await alice.frame())["data"] == {"text": "hello"}


async def test_stream_answer(sidecar: RunningSidecar, capsys: pytest.CaptureFixture[str]) -> None:
    async with sidecar.user("alice") as alice:
        answering = asyncio.create_task(
            the("stream_answer")(alice.isolation_key, alice.context_token, ["it", "is", "warm"])
        )
        frames = [await alice.frame() for _ in range(4)]
        await alice.socket.send('{"type":"ack","sequence":4}')
        receipts = await answering
    assert [frame["data"] for frame in frames] == ["it", "is", "warm", ""]
    assert [receipt.sequence for receipt in receipts] == [1, 2, 3]
    assert capsys.readouterr().out == "the client has it all\n"


async def test_notify(sidecar: RunningSidecar) -> None:
    async with AsyncSidecarClient() as client:
        async with sidecar.user("alice") as alice:
            assert await the("notify")(client, alice.isolation_key, alice.context_token) == "sent"
            assert await the("notify")(client, "0" * 64, alice.context_token) == "refused"
            assert await the("notify")(client, alice.isolation_key, "x") == "get another token: TOKEN_INVALID"
        await alice.socket.wait_closed()
        assert await the("notify")(client, alice.isolation_key, alice.context_token) == "that connection has ended"


async def test_listen(sidecar: RunningSidecar) -> None:
    heard: asyncio.Queue[Any] = asyncio.Queue()
    listening = asyncio.create_task(
        the("listen")(sidecar.websocket_url, lambda: sidecar.user_token("zoe"), heard.put_nowait)
    )
    async with sidecar.service() as service, AsyncSidecarClient(service_token=sidecar.service_token) as client:
        managers: list[Any] = []
        while not managers:
            request = admin_service_pb2.ListManagersRequest(user_id="zoe")
            managers = list((await service.admin.ListManagers(request, metadata=service.as_operator)).managers)
        grant = await client.exchange_context_token(
            sidecar.user_token("zoe"), managers[0].context.connection_id, ["send", "close"]
        )
        await client.send_to_user(grant.isolation_key, grant.token.text, json="news")
        assert await heard.get() == "news"
        await client.close_manager(grant.isolation_key, grant.token.text)
    with pytest.raises(Exception, match="4505"):
        await listening
