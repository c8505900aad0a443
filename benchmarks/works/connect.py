"""What it costs to let a user in."""

from __future__ import annotations

from itertools import count

from benchmarks.measure import Window, compare, quiet, window
from benchmarks.results import Result, compared_windows
from benchmarks.servers import Server, running_floor, running_sidecar
from benchmarks.sockets import CONNECTS_AT_ONCE, Crowd
from benchmarks.works.plan import Plan

CONNECTS = 1_000


async def connect(plan: Plan) -> list[Result]:
    """A token (HS256) in `hello`, manager, audit and `welcome`, beside a handshake and one frame each way."""
    connects = plan.count(CONNECTS)
    async with running_floor() as floor, running_sidecar() as ours:
        arrivals, our_arrivals = _Arrivals(floor), _Arrivals(ours)
        comparison = await compare(
            plan.triples(), lambda: arrivals.measure(connects), lambda: our_arrivals.measure(connects)
        )
    title = f"Connect, {CONNECTS_AT_ONCE} at once: CPU a connection"
    return [compared_windows("connect", title, comparison, note="closing is not counted")]


class _Arrivals:
    """Users who come, each for the first time, and all go before the next window."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._numbers = count()

    async def measure(self, connects: int) -> Window:
        """The window ends with the last answer: what is closed after it costs another time."""
        users = [f"user-{next(self._numbers)}" for _ in range(connects)]
        hellos = [self._server.dialect.hello(user) for user in users]
        crowd = Crowd(self._server)
        measured = await window(self._server.pid, connects, lambda: crowd.join_with(users, hellos))
        await crowd.leave()
        await quiet(self._server.pid)
        return measured
