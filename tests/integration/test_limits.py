"""The limits of one user hold at every instant, however many connect, join and leave at once.

What an observer sees in a loop are samples. The audit trail has every context's begin and end in the order in which
they were, so that it gives the count at every instant; the factory's own counters say that it leaves none out.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AsyncExitStack
from random import Random
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from sidecar.api.v1 import admin_service_pb2, delivery_service_pb2
from tests.integration.isolation.trail import managers_at_each_instant
from tests.support.running import RunningSidecar, Service, User, running_sidecar

MANAGERS = 5
SOCKETS = 10
LIMITED = 4504
CONNECTS = 100
TURNS = 4
"""How often a client comes, one time after the other, where others come and go beside it."""


@pytest.fixture(scope="module")
def sidecar(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningSidecar]:
    settings = "[limits]\nmax_managers = 60\n"
    environment = {"SIDECAR_WEBSOCKET__CONNECTS_PER_SECOND_PER_ADDRESS": "0"}
    with running_sidecar(tmp_path_factory.mktemp("sidecar"), settings, **environment) as running:
        yield running


class Visit:
    """One connect and hello: the welcome, or the close code."""

    def __init__(self, socket: ClientConnection, welcome: dict[str, Any] | None, code: int) -> None:
        self.socket = socket
        self.welcome = welcome
        self.code = code

    async def leave(self, abruptly: bool) -> None:
        if abruptly:
            self.socket.transport.abort()
            await self.socket.wait_closed()
        else:
            await self.socket.close()


async def attempt(sidecar: RunningSidecar, stack: AsyncExitStack, hello: Mapping[str, object]) -> Visit:
    """Connect and say hello."""
    socket = await stack.enter_async_context(connect(sidecar.websocket_url, subprotocols=["sidecar.v1.json"]))  # type: ignore[list-item]
    await socket.send(json.dumps({"type": "hello", **hello}))
    try:
        welcome = json.loads(await socket.recv())
    except ConnectionClosed as closed:
        return Visit(socket, None, 1006 if closed.rcvd is None else closed.rcvd.code)
    assert welcome["type"] == "welcome"
    return Visit(socket, welcome, 0)


class Answers:
    """Counts what was answered, so that somebody can stay for as long as it takes to answer others."""

    def __init__(self, clients: int) -> None:
        self._count = 0
        self._others = clients
        """Clients who neither stay nor are done: while there are any, something more will be answered."""
        self._moved = asyncio.Event()

    def answered(self) -> None:
        self._count += 1
        self._move()

    def done(self) -> None:
        """A client will ask no more."""
        self._others -= 1
        self._move()

    async def further(self, count: int) -> None:
        """Returns when so many more were answered, or nobody is left to be answered."""
        goal = self._count + count
        self.done()
        while self._count < goal and self._others:
            await self._moved.wait()
        self._others += 1

    def _move(self) -> None:
        moved, self._moved = self._moved, asyncio.Event()
        moved.set()


async def watched(tasks: list[asyncio.Task[Any]], look: Callable[[], Any]) -> int:
    """Look again and again until the tasks are done; the most that was seen."""
    most = 0
    while not all(task.done() for task in tasks):
        most = max(most, await look())
    for task in tasks:
        task.result()
    return most


async def most_managers(service: Service) -> int:
    """The most managers of any one user, as an operator sees them now."""
    request = admin_service_pb2.ListManagersRequest(page_size=1_000)
    listed = await service.admin.ListManagers(request, metadata=service.as_operator)
    users = Counter((one.context.tenant_id, one.context.user_id) for one in listed.managers)
    return max(users.values(), default=0)


async def test_a_hundred_connects_leave_five_managers(sidecar: RunningSidecar) -> None:
    async with AsyncExitStack() as stack, sidecar.service() as service:
        before, skip = await service.factory_stats(), len(await sidecar.audit_records())
        token = sidecar.user_token("alice")
        tasks = [asyncio.create_task(attempt(sidecar, stack, {"token": token})) for _ in range(CONNECTS)]
        assert 0 < await watched(tasks, lambda: most_managers(service)) <= MANAGERS
        codes = Counter(task.result().code for task in tasks)
        assert codes == {0: MANAGERS, LIMITED: CONNECTS - MANAGERS}
        stats = await service.factory_stats()
        assert stats.active_managers - before.active_managers == MANAGERS
        assert stats.resource_limit_hits - before.resource_limit_hits == CONNECTS - MANAGERS
        instants = managers_at_each_instant((await sidecar.audit_records())[skip:])
        assert [count for _, count in instants["opened"]] == [1, 2, 3, 4, 5]
        assert [count for _, count in instants["refused"]] == [MANAGERS] * (CONNECTS - MANAGERS)


@pytest.mark.parametrize("seed", range(3))
async def test_connects_while_others_leave(sidecar: RunningSidecar, seed: int) -> None:
    """Three users, two of them of one name: comings and goings in any order, and the limit at every instant."""
    random = Random(seed)
    users = [("carol", "here"), ("carol", "there"), ("dave", "here")]
    answers = Answers(CONNECTS // TURNS)

    async def visit(stack: AsyncExitStack, user: tuple[str, str], stay: int, ending: str) -> int:
        hello = {"token": sidecar.user_token(f"{user[0]}-{seed}", user[1])}
        one = await attempt(sidecar, stack, hello)
        answers.answered()
        if not one.code:
            await answers.further(stay)
            if ending != "stay":
                await one.leave(ending == "abort")
        return one.code

    async with AsyncExitStack() as stack, sidecar.service() as service:
        before, skip = await service.factory_stats(), len(await sidecar.audit_records())
        endings = ("close", "close", "abort", "stay")

        async def client(plan: list[tuple[tuple[str, str], int, str]]) -> list[int]:
            codes = [await visit(stack, *one) for one in plan]
            answers.done()
            return codes

        drawn = [
            [(random.choice(users), random.randrange(20), random.choice(endings)) for _ in range(TURNS)]
            for _ in range(CONNECTS // TURNS)
        ]
        tasks = [asyncio.create_task(client(plan)) for plan in drawn]
        assert 0 < await watched(tasks, lambda: most_managers(service)) <= MANAGERS
        codes = Counter(code for task in tasks for code in task.result())
        stats = await service.factory_stats()
        records = (await sidecar.audit_records())[skip:]
        instants = managers_at_each_instant(records)
        assert max(count for _, count in instants["opened"]) == MANAGERS
        assert {count for _, count in instants["refused"]} <= {MANAGERS}
        assert codes == +Counter({0: len(instants["opened"]), LIMITED: len(instants["refused"])})
        assert stats.total_managers_created - before.total_managers_created == len(instants["opened"])
        assert stats.managers_cleaned_up - before.managers_cleaned_up == len(instants["closed"])
        for name, tenant in users:
            request = admin_service_pb2.DisconnectUserRequest(tenant_id=tenant, user_id=f"{name}-{seed}")
            await service.admin.DisconnectUser(request, metadata=service.as_operator)


async def join(
    sidecar: RunningSidecar, stack: AsyncExitStack, user: User, answers: Answers, present: set[Visit], stay: int | None
) -> int:
    """A second screen that stays for so many further answers, or for good. It is in `present` while surely there."""
    hello = {"token": sidecar.user_token(user.subject), "mirror": {"token": user.welcome["resume_token"]}}
    one = await attempt(sidecar, stack, hello)
    answers.answered()
    if one.welcome is None:
        return one.code
    assert one.welcome["recovery"] == "mirror"
    present.add(one)
    assert 1 + len(present) <= SOCKETS
    if stay is not None:
        await answers.further(stay)
        present.discard(one)
        await one.leave(stay % 2 == 0)
    return 0


async def sockets_of(service: Service, user: User) -> int:
    """How many sockets a manager has, as its counters and its receipts tell; each is of one instant."""
    request = delivery_service_pb2.GetManagerStatsRequest(isolation_key=user.isolation_key)
    call = service.delivery.GetManagerStats(request, metadata=(("x-context-token", user.context_token),))
    receipt = await service.send(user.isolation_key, user.context_token)
    return max(int((await call).connections_managed), int(receipt.connections))


async def test_an_eleventh_socket_is_refused(sidecar: RunningSidecar) -> None:
    async with AsyncExitStack() as stack, sidecar.service() as service:
        bob = await stack.enter_async_context(sidecar.user("bob"))
        present: set[Visit] = set()
        joins = [join(sidecar, stack, bob, Answers(30), present, None) for _ in range(30)]
        tasks = [asyncio.create_task(one) for one in joins]
        assert await watched(tasks, lambda: sockets_of(service, bob)) <= SOCKETS
        assert Counter(task.result() for task in tasks) == {0: SOCKETS - 1, LIMITED: 31 - SOCKETS}
        assert await sockets_of(service, bob) == SOCKETS


@pytest.mark.parametrize("seed", range(3))
async def test_joins_while_others_leave(sidecar: RunningSidecar, seed: int) -> None:
    random = Random(seed)
    async with AsyncExitStack() as stack, sidecar.service() as service:
        erin = await stack.enter_async_context(sidecar.user(f"erin-{seed}"))
        answers, present = Answers(CONNECTS // TURNS), set[Visit]()

        async def client(stays: list[int | None]) -> list[int]:
            codes = [await join(sidecar, stack, erin, answers, present, stay) for stay in stays]
            answers.done()
            return codes

        drawn = [[random.choice([None, *range(12)]) for _ in range(TURNS)] for _ in range(CONNECTS // TURNS)]
        tasks = [asyncio.create_task(client(stays)) for stays in drawn]
        assert await watched(tasks, lambda: sockets_of(service, erin)) <= SOCKETS
        codes = Counter(code for task in tasks for code in task.result())
        assert codes.keys() == {0, LIMITED}
        assert codes[0] >= SOCKETS - 1
        async with asyncio.timeout(10):  # until the sidecar has seen those go that went without a word
            while await sockets_of(service, erin) != 1 + len(present):
                pass


async def test_a_full_sidecar_turns_others_away_and_keeps_its_own(sidecar: RunningSidecar) -> None:
    async with AsyncExitStack() as stack, sidecar.service() as service:
        others = (await service.factory_stats()).active_managers
        first = await stack.enter_async_context(sidecar.user("user-0"))
        hellos = [{"token": sidecar.user_token(f"user-{number}")} for number in range(1, 80)]
        visits = await asyncio.gather(*(attempt(sidecar, stack, hello) for hello in hellos))
        codes = Counter(one.code for one in visits)
        assert codes == {0: 59 - others, 1013: 20 + others}
        assert (await service.factory_stats()).active_managers == 60
        assert (await service.send(first.isolation_key, first.context_token, b'"served"')).sequence == 1
        assert (await first.frame())["data"] == "served"
