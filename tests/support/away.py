"""A user who is away, and whose outbox is full."""

from __future__ import annotations

import json

import aiohttp
import grpc

from sidecar.api.v1.types_pb2 import CONTENT_TYPE_TEXT as TEXT
from tests.support.running import RunningSidecar, Service, User, refusal_of

SIZES = (256 * 1024, 8 * 1024, 1)
"""Of payloads, one after the other until no more fits: in the end not even the smallest."""


async def full_outbox(sidecar: RunningSidecar, user: User) -> None:
    """Cut the user's connection and send until there is no room: nothing that was not written gives way.

    It has acknowledged something, for of a client that never does what was written gives way.
    """
    async with sidecar.service() as service:
        await service.send(user.isolation_key, user.context_token)
        await user.socket.send(json.dumps({"type": "ack", "sequence": (await user.frame())["sequence"]}))
        await user.frames_before_answer_to("probe")
        user.socket.transport.abort()
        for size in SIZES:
            assert await _refused(service, user, b"1" * size) == "OUTBOX_FULL"


async def _refused(service: Service, user: User, payload: bytes) -> str:
    while True:
        try:
            await service.send(user.isolation_key, user.context_token, payload, content_type=TEXT)
        except grpc.aio.AioRpcError as error:
            return refusal_of(error).reason


async def assert_too_much_is_asked(sidecar: RunningSidecar, page: aiohttp.ClientSession) -> None:
    """An HTTP example, asked by a page of Alice's who is away, answers 429 and says when to ask again."""
    async with sidecar.user("alice") as alice:
        await full_outbox(sidecar, alice)
        headers = {"X-Context-Token": alice.context_token}
        async with page.post("/ask", json={"question": "why me?"}, headers=headers) as answer:
            assert (answer.status, await answer.json()) == (429, {"reason": "OUTBOX_FULL"})
            assert answer.headers["Retry-After"] == "1"
