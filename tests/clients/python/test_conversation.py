"""A user's side while its socket lives: answers to its messages, tokens in the course of time; a script answers.

What the real sidecar does of this on command is in test_connection.py; the rest takes agents, minutes or full disks.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from websockets.asyncio.server import ServerConnection

from sidecar_client import Message
from sidecar_client.errors import AgentBusy, MessageIdReused
from tests.clients.python.test_dialing import read_out, say, scripted
from tests.clients.python.test_frames import MESSAGE, WELCOME

EXPIRING = {"type": "token_expiring", "expires_at": 9}


async def frames_of(socket: ServerConnection) -> AsyncIterator[dict[str, Any]]:
    """What the client says, but for acknowledgements."""
    async for text in socket:
        frame = json.loads(text)
        if frame["type"] != "ack":
            yield frame


async def test_the_context_token_is_kept_current() -> None:
    async def renew(socket: ServerConnection, hello: dict[str, Any], count: int) -> None:
        await say(socket, WELCOME, {"type": "context_token", "context_token": "t-2", "expires_at": 99}, MESSAGE)
        await read_out(socket)

    async with scripted(say=renew) as server, server.connection() as user:
        assert isinstance(await anext(user), Message)
        assert (user.context_token, user.context_token_expires_at) == ("t-2", 99)
        assert (user.connection_id, user.isolation_key) == ("c", "k")


async def test_a_message_is_accepted_under_its_id_whatever_the_order() -> None:
    async def answer_backwards(socket: ServerConnection, hello: dict[str, Any], count: int) -> None:
        await say(socket, WELCOME)
        asked = [frame async for frame in first(3, socket)]
        assert [frame["data"] for frame in asked] == [0, 1, 2]
        await say(socket, {"type": "error", "id": asked[2]["id"], "reason": "AGENT_BUSY", "message": "full"})
        await say(socket, {"type": "accepted", "id": "somebody's"})
        await say(socket, {"type": "accepted", "id": asked[1]["id"], "duplicate": True})
        await say(socket, {"type": "error", "id": asked[0]["id"], "reason": "MESSAGE_ID_REUSED", "message": "used"})
        await read_out(socket)

    async with scripted(say=answer_backwards) as server, server.connection() as user:
        answers = await asyncio.gather(*(user.send(n) for n in range(3)), return_exceptions=True)
    assert [type(answer) for answer in answers] == [MessageIdReused, type(None), AgentBusy]


async def first(count: int, socket: ServerConnection) -> AsyncIterator[dict[str, Any]]:
    async for frame in frames_of(socket):
        yield frame
        count -= 1
        if not count:
            return


async def test_a_message_without_an_answer_is_asked_again_and_only_that() -> None:
    told: list[list[str]] = []

    async def lose_the_second(socket: ServerConnection, hello: dict[str, Any], count: int) -> None:
        await say(socket, WELCOME | {"recovery": "new" if count == 1 else "full"})
        asked = [frame["id"] async for frame in first(2 if count == 1 else 1, socket)]
        told.append(asked)
        await say(socket, {"type": "accepted", "id": asked[0]})
        if count == 1:
            await socket.close(1001)
        await read_out(socket)

    async with scripted(say=lose_the_second) as server, server.connection() as user:
        await asyncio.gather(user.send(1, id="q-1"), user.send(2, id="q-2"))
    assert told == [["q-1", "q-2"], ["q-2"]]


async def test_a_cancelled_question_is_not_asked_again() -> None:
    asked = asyncio.Event()
    told: list[str] = []

    async def lose_it(socket: ServerConnection, hello: dict[str, Any], count: int) -> None:
        await say(socket, WELCOME | {"recovery": "new" if count == 1 else "full"})
        async for frame in frames_of(socket):
            told.append(frame["id"])
            if count == 1:
                asked.set()
                await socket.close(1001)
                return
            await say(socket, {"type": "accepted", "id": frame["id"]})

    async with scripted(say=lose_it) as server, server.connection() as user:
        sending = asyncio.create_task(user.send(1, id="q-1"))
        await asked.wait()
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        await user.send(2, id="q-2")
    assert told == ["q-1", "q-2"]


async def test_a_refresh_that_could_not_be_recorded_is_repeated() -> None:
    tokens = iter(["t-1", "t-2", "t-3"])
    refreshed: list[str] = []

    async def refuse_once(socket: ServerConnection, hello: dict[str, Any], count: int) -> None:
        # Said twice: one refresh is under way already.
        await say(socket, WELCOME, EXPIRING, EXPIRING)
        async for frame in frames_of(socket):
            refreshed.append(frame["token"])
            if len(refreshed) == 1:
                await say(socket, {"type": "error", "reason": "AUDIT_UNAVAILABLE", "message": "later"})
            else:
                await say(socket, {"type": "refreshed", "expires_at": 99}, MESSAGE)

    async with scripted(say=refuse_once) as server, server.connection(lambda: next(tokens)) as user:
        await anext(user)
    assert refreshed == ["t-2", "t-3"]
    assert len(server.pauses) == 1
    assert server.pauses[0] >= 1.0


class Seen(logging.Handler):
    """Tells that something was logged."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = asyncio.Event()

    def emit(self, record: logging.LogRecord) -> None:
        self.seen.set()


async def test_a_token_source_that_fails_in_between_costs_nothing_yet(caplog: pytest.LogCaptureFixture) -> None:
    def tokens() -> Iterator[str]:
        yield "t-1"
        raise LookupError("the secret reason")

    source = tokens()

    async def expire(socket: ServerConnection, hello: dict[str, Any], count: int) -> None:
        await say(socket, WELCOME, EXPIRING)
        await read_out(socket)

    told = Seen()
    logging.getLogger("sidecar_client").addHandler(told)
    async with scripted(say=expire) as server, server.connection(lambda: next(source)) as user:
        await told.seen.wait()
        assert user.resume_state is not None
        assert len(server.hellos) == 1
    logging.getLogger("sidecar_client").removeHandler(told)
    assert "LookupError" in caplog.text
    assert "secret" not in caplog.text


async def test_a_fixed_token_is_not_handed_over_again() -> None:
    told: list[dict[str, Any]] = []

    async def expire(socket: ServerConnection, hello: dict[str, Any], count: int) -> None:
        await say(socket, WELCOME, EXPIRING, MESSAGE)
        async for frame in frames_of(socket):
            told.append(frame)
            await say(socket, {"type": "accepted", "id": frame["id"]})

    async with scripted(say=expire) as server, server.connection("fixed") as user:
        await anext(user)
        await user.send("hello")
    assert [frame["type"] for frame in told] == ["message"]
    assert server.hellos[0]["token"] == "fixed"
