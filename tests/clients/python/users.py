"""Users of a real sidecar as the tests of their connections see them."""

from __future__ import annotations

import asyncio

from sidecar_client import AsyncSidecarClient, Message, Tuning, UserConnection
from tests.support.fault_proxy import FaultProxy

AT_ONCE = Tuning(uniform=lambda: 0.0)
"""No time is lost between two tries; the sidecar's own wishes are kept."""


def url_through(proxy: FaultProxy) -> str:
    return f"ws://{proxy.target}/v1/connect"


async def message(user: UserConnection) -> Message:
    """The next event, which is a message."""
    event = await asyncio.wait_for(anext(user), 15)
    assert isinstance(event, Message), event
    return event


async def acknowledged(service: AsyncSidecarClient, user: UserConnection) -> int:
    """How far the sidecar knows: how many messages it has let go."""
    stats = await service.get_manager_stats(user.isolation_key, user.context_token)
    return stats.messages_sent_total - stats.outbox_messages
