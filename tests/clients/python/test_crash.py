"""Both sides of the client over a sidecar with a store on disk, killed while it is written to: nothing is lost."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from sidecar_client import AsyncSidecarClient, Durability, Message, Tuning, UserConnection, connect
from tests.support.restarting import restarting_sidecar

ROUNDS, A_ROUND = 3, 150


async def hear(user: UserConnection, wanted: int) -> list[Any]:
    """So many payloads; any other event, a gap or another context, is a failure."""
    heard: list[Any] = []
    while len(heard) < wanted:
        event = await anext(user)
        assert isinstance(event, Message), event
        assert event.sequence == len(heard) + 1
        heard.append(event.data)
    return heard


@pytest.mark.timeout(120)
async def test_what_was_sent_is_accepted_and_heard_once_and_in_order(tmp_path: Path) -> None:
    store = f'[storage]\nkind = "sqlite"\npath = "{tmp_path}/outbox.db"\nkey_file = "{tmp_path}/outbox.key"\n'
    async with (
        restarting_sidecar(tmp_path, store) as lives,
        AsyncSidecarClient(endpoint=lives.running.grpc_target) as client,
        client.sender() as sender,
        connect(
            lives.running.websocket_url,
            token=lambda: lives.running.user_token("alice"),
            tuning=Tuning(uniform=lambda: 0.0),
        ) as user,
    ):
        key = user.isolation_key
        hearing = asyncio.create_task(hear(user, ROUNDS * A_ROUND))
        for number in range(ROUNDS):
            numbers = range(number * A_ROUND, (number + 1) * A_ROUND)
            sends = [asyncio.create_task(sender.send(key, user.context_token, json=n, timeout_s=60)) for n in numbers]
            if number % 2:
                await asyncio.wait(sends, return_when=asyncio.FIRST_COMPLETED)
            await lives.kill()
            await lives.start()
            receipts = await asyncio.gather(*sends)
            assert [receipt.sequence for receipt in receipts] == [n + 1 for n in numbers]
            assert {receipt.durability for receipt in receipts} == {Durability.DISK}
        assert await hearing == list(range(ROUNDS * A_ROUND))
        assert (user.isolation_key, user.recovery) == (key, "full")
