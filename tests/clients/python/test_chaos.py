"""Both sides of the client at once while their connections are spoiled at random: everything arrives once, in order."""

from __future__ import annotations

import asyncio
from random import Random
from typing import Any

import pytest

from sidecar_client import AsyncSidecarClient, Message, Tuning, UserConnection, connect
from tests.clients.python.both import opened
from tests.support.fault_proxy import STRIKES, FaultProxy, fault_proxy
from tests.support.running import RunningSidecar

ROUNDS, A_ROUND = 25, 8
PASSING = ("cut", "cut in mid-frame", "one byte at a time", "reset", "reset in mid-frame")
"""Those that a connection does not need a timer to notice."""


async def listen(user: UserConnection, heard: list[Any], wanted: int) -> None:
    async for event in user:
        assert isinstance(event, Message), event
        assert event.sequence == len(heard) + 1
        heard.append(event.data)
        if len(heard) == wanted:
            return


def strike(proxy: FaultProxy, random: Random, names: tuple[str, ...]) -> None:
    if proxy.connections:
        connection = random.choice(proxy.connections)
        STRIKES[random.choice(names)](connection, random.choice(connection.flows), random)


@pytest.mark.parametrize("seed", range(5))
async def test_everything_arrives_once_and_in_order(sidecar: RunningSidecar, seed: int) -> None:
    random = Random(seed)
    tuning = Tuning(uniform=lambda: random.random() / 10, max_events=random.choice((1, 7, 256)))
    heard: dict[str, list[Any]] = {"alice": [], "bob": []}
    async with (
        fault_proxy(f"127.0.0.1:{sidecar.websocket_port}") as websockets,
        fault_proxy(sidecar.grpc_target) as grpc,
        AsyncSidecarClient(endpoint=grpc.target, uniform=lambda: random.random() / 10) as client,
        client.sender() as sender,
    ):
        url = f"ws://{websockets.target}/v1/connect"
        async with (
            connect(url, token=sidecar.user_token("alice"), tuning=tuning) as alice,
            connect(url, token=sidecar.user_token("bob"), tuning=tuning) as bob,
            asyncio.TaskGroup() as tasks,
        ):
            users = {"alice": alice, "bob": bob}
            for name, user in users.items():
                tasks.create_task(listen(user, heard[name], ROUNDS * A_ROUND))
            for number in range(ROUNDS):
                sends = [
                    tasks.create_task(sender.send(user.isolation_key, user.context_token, json=[name, n], timeout_s=30))
                    for n in range(number * A_ROUND, (number + 1) * A_ROUND)
                    for name, user in users.items()
                ]
                strike(websockets, random, PASSING)
                strike(grpc, random, PASSING)
                await asyncio.wait(sends, return_when=asyncio.FIRST_COMPLETED)
            websockets.calm()
            grpc.calm()
        assert websockets.accepted > 4
        assert grpc.accepted > 2
        assert sender.in_flight == 0
    for name, payloads in heard.items():
        assert payloads == [[name, n] for n in range(ROUNDS * A_ROUND)]


@pytest.mark.parametrize("seed", range(3))
async def test_threads_lose_and_double_nothing_either(sidecar: RunningSidecar, seed: int) -> None:
    random = Random(seed)
    workers, each = 8, 25
    heard: list[Any] = []
    async with (
        fault_proxy(sidecar.grpc_target) as proxy,
        opened("threads", endpoint=proxy.target, uniform=lambda: random.random() / 10) as client,
        connect(sidecar.websocket_url, token=sidecar.user_token("alice")) as alice,
    ):
        sender = client.sender()

        async def work(worker: int) -> None:
            for n in range(each):
                await sender.send(alice.isolation_key, alice.context_token, json=[worker, n], timeout_s=30)
                if random.random() < 0.15:
                    strike(proxy, random, PASSING)

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(listen(alice, heard, workers * each))
            for worker in range(workers):
                tasks.create_task(work(worker))
        assert proxy.accepted > 2
        await sender.close()
    for worker in range(workers):
        assert [n for who, n in heard if who == worker] == list(range(each))
