"""What must not pass for a measurement: a server that does not start, a user who is not let in."""

from __future__ import annotations

from contextlib import AsyncExitStack

import pytest

from benchmarks.servers import RunFailed, SidecarDialect, cores, running_floor, running_sidecar
from benchmarks.sockets import Crowd


async def test_a_server_that_does_not_start_fails_the_run_with_its_last_words() -> None:
    with pytest.raises(RunFailed, match="a server ended with 3: no, not today"):
        async with running_sidecar(("-c", "print('no, not today'); raise SystemExit(3)")):
            pass


async def test_a_server_that_ends_by_itself_fails_the_run() -> None:
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(running_sidecar())
        server.process.kill()
        await server.process.wait()
        with pytest.raises(RunFailed, match="a server ended with -9"):
            await stack.aclose()


async def test_a_user_who_is_not_let_in_fails_the_run() -> None:
    refused = pytest.RaisesExc(RunFailed, match="a socket ended before it was answered: closed with 4501 token_invalid")
    async with running_sidecar() as server:
        server.dialect = SidecarDialect("another secret, just as long as one has to be")
        with pytest.RaisesGroup(refused):
            await Crowd(server).join(["alice"])


async def test_users_come_and_go_in_order() -> None:
    async with running_floor() as server:
        crowd = Crowd(server)
        latencies = await crowd.join(["alice", "bob"])
        assert [route.isolation_key for route in crowd.routes] == ["alice", "bob"]
        assert len(latencies) == 2
        await crowd.leave()
        await crowd.join(["alice"])
        assert [route.isolation_key for route in crowd.routes] == ["alice"]


def test_server_and_load_share_a_core_only_where_there_is_one() -> None:
    found = cores()
    assert len(found.server) == 1
    assert found.server | found.load == found.all
    assert not found.server & found.load or len(found.all) == 1
