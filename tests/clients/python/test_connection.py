"""sidecar_client.connect against a real sidecar."""

from __future__ import annotations

from sidecar_client import AsyncSidecarClient, Message, connect
from tests.support.running import RunningSidecar


async def test_messages_come_in_order(sidecar: RunningSidecar, client: AsyncSidecarClient) -> None:
    async with connect(sidecar.websocket_url, token=sidecar.user_token("alice")) as user:
        async with client.sender(report_acknowledged=True) as sender:
            for n in range(40):
                await sender.send(user.isolation_key, user.context_token, json=n)
                event = await anext(user)
                assert isinstance(event, Message)
                assert event.data == n
        r = await client.send_to_user(user.isolation_key, user.context_token, b"[]")
        await anext(user)
        state = await user.detach()
    async with connect(sidecar.websocket_url, token=sidecar.user_token("alice"), resume=state) as user:
        print(user.recovery, user.resume_state)
        print(await anext(user))
