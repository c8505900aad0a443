"""AsyncSidecarClient against a real sidecar."""

from __future__ import annotations

import asyncio

from sidecar_client import AsyncSidecarClient
from sidecar_client.values import DeliveryState, Durability
from tests.support.running import RunningSidecar


async def test_a_message_arrives_and_the_receipt_says_how_far(
    sidecar: RunningSidecar, client: AsyncSidecarClient
) -> None:
    await client.wait_until_ready()
    async with sidecar.user("alice") as alice:
        receipt = await client.send_to_user(
            alice.isolation_key,
            alice.context_token,
            json={"hello": "Aλice", "n": [1, None]},
            event_type="greeting",
            reply_to="question-1",
            headers={"trace": "1"},
            expected_user_id="alice",
        )
        frame = await alice.frame()
    assert frame["data"] == {"hello": "Aλice", "n": [1, None]}
    assert (frame["event"], frame["reply_to"], frame["headers"]) == ("greeting", "question-1", {"trace": "1"})
    assert frame["id"] == receipt.message_id
    assert receipt.sequence == 1
    assert receipt.state is DeliveryState.WRITTEN
    assert receipt.durability is Durability.MEMORY
    assert not receipt.duplicate
    assert receipt.accepted_time > 1e9


async def test_the_sender(sidecar: RunningSidecar, client: AsyncSidecarClient) -> None:
    async with sidecar.user("fast") as user, client.sender() as sender:
        sends = [sender.send(user.isolation_key, user.context_token, json=n) for n in range(1000)]
        receipts = await asyncio.gather(*sends)
        frames = [await user.frame() for _ in range(1000)]
    assert [frame["data"] for frame in frames] == list(range(1000))
    assert [receipt.sequence for receipt in receipts] == list(range(1, 1001))
