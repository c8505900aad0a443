"""Users who are cut off and come back, and what must not pass for it."""

from __future__ import annotations

import grpc
import pytest

from benchmarks.calls import Calls, batch_of
from benchmarks.resuming import ResumingUser, join_all
from benchmarks.servers import RunFailed, running_sidecar
from benchmarks.sockets import NotLetIn, Tally


async def test_a_user_who_is_cut_off_comes_back_to_what_was_sent_meanwhile() -> None:
    async with running_sidecar() as server, grpc.aio.insecure_channel(server.grpc_target) as channel:
        calls, tally = Calls(channel), Tally()
        users = [ResumingUser(server, name, place, tally) for place, name in enumerate(("alice", "bob"))]
        await join_all(users)
        first, second = users
        await calls.send(batch_of([first.route, second.route]))
        await tally.reach(2)
        first.cut()
        assert (first.away, second.away) == (True, False)
        await calls.wait_until_away(first.route)
        await calls.send(batch_of([first.route, second.route, first.route]))
        await tally.reach(3)
        assert await first.come_back() > 0
        await tally.reach(5)
        assert (first.away, first.sequence, second.sequence) == (False, 3, 2)
        first.cut()
        await first.come_back()
        assert (first.away, first.sequence, tally.count) == (False, 3, 5)


async def refusal_of(calls: Calls, user: ResumingUser) -> grpc.StatusCode:
    """Ask until it is refused."""
    try:
        while True:
            await calls.stats(user.route)
    except grpc.aio.AioRpcError as error:
        return error.code()


async def test_a_context_that_was_not_kept_fails_the_run() -> None:
    async with (
        running_sidecar(settings="[outbox]\nresume_window_s = 0.05\n") as server,
        grpc.aio.insecure_channel(server.grpc_target) as channel,
    ):
        user = ResumingUser(server, "alice", 0, Tally())
        await user.join()
        user.cut()
        calls = Calls(channel)
        assert await refusal_of(calls, user) is grpc.StatusCode.NOT_FOUND
        with pytest.raises(RunFailed, match="came back to denied at 0") as failed:
            await user.come_back()
        assert not isinstance(failed.value, NotLetIn)  # it is not to be tried again
