"""The works: each starts its servers, loads them, and hands back the lines of the report."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from functools import partial
from typing import Final, NamedTuple

from benchmarks.results import Result
from benchmarks.works import (
    agent_round,
    clients,
    connect,
    crowd,
    delivery,
    memory,
    resume,
    sqlite,
    stalled,
    start,
    storm,
    token_streams,
)
from benchmarks.works.plan import Plan

Run = Callable[[Plan], Coroutine[None, None, list[Result]]]

SPARE_DESCRIPTORS: Final = 200


class Work(NamedTuple):
    """What `--only` names: how long it takes, about, and how many sockets one process of it holds at once."""

    run: Run
    summary: str
    minutes: float
    sockets: int = 300

    def descriptors(self, plan: Plan) -> int:
        """How many descriptors the process with the most of them needs."""
        return plan.count(self.sockets) + SPARE_DESCRIPTORS


def _way(name: str) -> Run:
    return partial(delivery.compare_way, name=name)


def _acks(name: str) -> Run:
    return partial(delivery.compare_acks, name=name)


WORKS: Final = {
    "unary": Work(_way("unary"), "CPU of a SendToUser call", 0.7),
    "deliver-100": Work(_way("deliver-100"), "CPU of a message, 100 a Deliver frame", 0.5),
    "deliver-1": Work(_way("deliver-1"), "CPU of a message, 1 a Deliver frame", 0.7),
    "unary-acks": Work(_acks("unary"), "the same as unary, with acknowledgements", 0.7, 400),
    "deliver-100-acks": Work(_acks("deliver-100"), "the same as deliver-100, with acknowledgements", 0.5, 400),
    "sqlite": Work(sqlite.sqlite, "CPU and pace of a message that is kept on disk", 1.2),
    "resume": Work(resume.resume, "seconds until one who comes back has what was sent", 0.3),
    "storm": Work(storm.storm, "seconds until all are back who were cut off at once", 0.3, storm.USERS),
    "stalled": Work(
        stalled.stalled, "memory of those who do not read, and others' time beside them", 0.5, 2 * stalled.READERS
    ),
    "agent-round": Work(agent_round.agent_round, "how long an agent's first word takes", 2.0),
    "token-streams": Work(
        token_streams.token_streams,
        "CPU of an agent's tokens to many, and how many there may be",
        2.0,
        token_streams.USERS,
    ),
    "clients": Work(clients.clients, "messages a second through each client's sender", 2.0),
    "connect": Work(connect.connect, "CPU of a connection: token, manager, audit, welcome", 0.9, connect.CONNECTS),
    "start": Work(start.start, "seconds to SERVING, and VmRSS at rest", 0.5),
    "memory": Work(memory.memory, "memory of an idle connection", 1.5, memory.CONNECTIONS),
    "crowd": Work(
        crowd.crowd, "CPU of a message and memory with many connected, against few", 3.0, crowd.FEW + crowd.MANY
    ),
}
