"""The limits of one user hold at every instant, however many connect at once."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping
from contextlib import AsyncExitStack

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from sidecar.api.v1 import admin_service_pb2
from tests.support.running import RunningSidecar, running_sidecar


@pytest.fixture(scope="module")
def sidecar(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningSidecar]:
    settings = "[limits]\nmax_managers = 60\n"
    environment = {"SIDECAR_WEBSOCKET__CONNECTS_PER_SECOND_PER_ADDRESS": "0"}
    with running_sidecar(tmp_path_factory.mktemp("sidecar"), settings, **environment) as running:
        yield running


async def attempt(sidecar: RunningSidecar, stack: AsyncExitStack, hello: Mapping[str, object]) -> int:
    """Connect and say hello: 0 when welcomed, else the close code."""
    socket = await stack.enter_async_context(connect(sidecar.websocket_url, subprotocols=["sidecar.v1.json"]))  # type: ignore[list-item]
    await socket.send(json.dumps({"type": "hello", **hello}))
    try:
        return 0 if json.loads(await socket.recv())["type"] == "welcome" else -1
    except ConnectionClosed as closed:
        return 1006 if closed.rcvd is None else closed.rcvd.code


async def test_a_hundred_connects_leave_five_managers(sidecar: RunningSidecar) -> None:
    async with AsyncExitStack() as stack, sidecar.service() as service:
        token = sidecar.user_token("alice")
        attempts = [asyncio.create_task(attempt(sidecar, stack, {"token": token})) for _ in range(100)]
        most = 0
        while not all(task.done() for task in attempts):
            listed = await service.admin.ListManagers(
                admin_service_pb2.ListManagersRequest(user_id="alice"), metadata=service.as_operator
            )
            most = max(most, len(listed.managers))
        codes = [task.result() for task in attempts]
        assert codes.count(0) == 5
        assert codes.count(4504) == 95
        assert 0 < most <= 5
        stats = await service.factory_stats()
        assert stats.active_managers == 5
        assert stats.resource_limit_hits == 95


async def test_an_eleventh_socket_is_refused(sidecar: RunningSidecar) -> None:
    async with AsyncExitStack() as stack:
        bob = await stack.enter_async_context(sidecar.user("bob"))
        hello: dict[str, object] = {
            "token": sidecar.user_token("bob"),
            "mirror": {"token": bob.welcome["resume_token"]},
        }
        codes = await asyncio.gather(*(attempt(sidecar, stack, hello) for _ in range(30)))
        assert codes.count(0) == 9
        assert codes.count(4504) == 21


async def test_a_full_sidecar_turns_others_away_and_keeps_its_own(sidecar: RunningSidecar) -> None:
    async with AsyncExitStack() as stack, sidecar.service() as service:
        first = await stack.enter_async_context(sidecar.user("user-0"))
        hellos = [{"token": sidecar.user_token(f"user-{number}")} for number in range(1, 80)]
        codes = await asyncio.gather(*(attempt(sidecar, stack, hello) for hello in hellos))
        assert set(codes) == {0, 1013}
        assert (await service.factory_stats()).active_managers == 60
        assert (await service.send(first.isolation_key, first.context_token, b'"served"')).sequence == 1
        assert (await first.frame())["data"] == "served"
