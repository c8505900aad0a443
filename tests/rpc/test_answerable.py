"""The tokens that an attached worker is given with its events."""

from __future__ import annotations

import asyncio
from typing import Any

from sidecar.api.v1 import agent_service_pb2 as pb
from sidecar.api.v1 import context_service_pb2
from tests.rpc.rig import TIMEOUT_S, Rig, service_metadata


async def event_of(stream: Any) -> Any:
    answer = await asyncio.wait_for(stream.read(), TIMEOUT_S)
    assert answer.WhichOneof("frame") == "event", answer
    return answer.event


async def test_a_worker_is_not_given_a_token_again_that_it_has_revoked(rig: Rig) -> None:
    stream = rig.agent.Attach(metadata=service_metadata())
    register = pb.AttachRequest.Register(service_name="bot", credits=3, subscriptions=[pb.AttachRequest.Subscription()])
    await stream.write(pb.AttachRequest(register=register))
    registered: Any = await asyncio.wait_for(stream.read(), TIMEOUT_S)
    assert registered.WhichOneof("frame") == "registered"
    conversation = rig.alice.manager.conversation
    conversation.announce(rig.at())
    conversation.left(rig.at(), may_come_back=True)
    first, second = await event_of(stream), await event_of(stream)
    assert first.context_token == second.context_token
    metadata = (("x-context-token", first.context_token),)
    await rig.context.RevokeContextToken(context_service_pb2.RevokeContextTokenRequest(), metadata=metadata)
    conversation.back(rig.at())
    token = (await event_of(stream)).context_token
    assert rig.tokens.verify(token).isolation_key == rig.alice.key
    stream.cancel()
