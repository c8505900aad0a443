"""A user who talks: says one thing after another, reads the answers, wants no more of some, and always comes back."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from random import Random
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from tests.faults.devices import Person, Way
from tests.faults.soak.talk import ANSWER_TO, Said, Talk, unanswered

MOST_OPEN = 3
"""Answers that a user waits for before the next thing is said."""
PASSING = {"NO_AGENT", "AGENT_BUSY", "STORAGE_UNAVAILABLE", "RATE_LIMITED", "OUTCOME_UNKNOWN"}
BEFORE_AGAIN_S = 0.1


class Talker:
    """`talks` are its contexts, the present one last."""

    def __init__(self, person: Person, way: Way, random: Random) -> None:
        self.person = person
        self.talks: list[Talk] = []
        self.seen: Counter[str] = Counter()
        self.owed: list[str] = []
        self._way = way
        self._random = random
        self._said = 0
        self._last = self._attempt = 0
        self._resume_token = ""
        self._saying: Said | None = None
        self._connection: ClientConnection | None = None
        self._moved = asyncio.Event()
        self._over = self._leaving = False
        self._tasks = [asyncio.create_task(self._live()), asyncio.create_task(self._talk())]
        for task in self._tasks:
            task.add_done_callback(lambda _: self._moved.set())

    # What a storm has it do

    async def welcomed(self) -> None:
        """Returns once it has a context."""
        await self._until(lambda: bool(self.talks))

    async def fall_silent(self) -> None:
        """Say nothing more; returns once all that was said is answered, as far as it must be.

        `owed` is what is not when this ends. One that nobody was owed may begin later, and is not waited for.
        """
        self._over = True
        try:
            await self._until(self._tasks[1].done)
            await self._until(lambda: not self.talks[-1].unfinished())
        finally:
            self.owed = unanswered(self.talks[-1])

    async def leave(self) -> None:
        """Close with 1000, which ends its context."""
        await self._until(lambda: self._connection is not None)
        self._leaving = True
        if self._connection is not None:
            await self._connection.close()
        await self._tasks[0]

    async def stop(self) -> None:
        """Be gone. Idempotent."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def check(self) -> None:
        """Raise what went wrong in it."""
        for task in self._tasks:
            if task.done() and not task.cancelled():
                task.result()

    # Saying

    async def _talk(self) -> None:
        """One thing after another, each until it was accepted or its context is no more."""
        while not self._over or not self._said:
            await self._until(lambda: self._connection is not None and len(self.talks[-1].unfinished()) < MOST_OPEN)
            self._saying = self._something()
            self.talks[-1].said[self._saying.id] = self._saying
            self._say(self._saying)
            await self._until(lambda: self._saying is None)
            await self._pause(self._random.uniform(0.0, 0.2))

    async def _pause(self, seconds: float) -> None:
        """People take a breath."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await asyncio.Event().wait()

    def _something(self) -> Said:
        random, talk = self._random, self.talks[-1]
        self._said += 1
        document = {
            "tenant": self.person[0],
            "user": self.person[1],
            "context": talk.connection_id,
            "uuid": f"{random.getrandbits(64):x}",
            "mine": random.random() < 0.3,
            "chunks": random.choice((1, 2, 5, 12)),
            "pace": random.choice((0.01, 0.1)),
            "fails": random.random() < 0.1,
        }
        return Said(f"m-{self._said}", document)

    def _say(self, one: Said) -> None:
        self._send({"type": "message", "id": one.id, "data": one.document})

    def _accepted(self, one: Said) -> None:
        one.accepted = True
        self._saying = None
        if self._random.random() < 0.15:
            self._cancel(one)

    def _cancel(self, one: Said) -> None:
        """By what it answers, or by its stream."""
        one.cancelled = True
        self.seen["cancels"] += 1
        by = {"id": one.id} if self._random.random() < 0.5 else {"stream_id": f"{ANSWER_TO}{one.id}"}
        self._send({"type": "cancel", **by})

    # Its life

    async def _live(self) -> None:
        while not self._leaving:
            await self._way.ready()
            connection = await self._dial()
            if connection is not None:
                await self._session(connection)

    async def _dial(self) -> ClientConnection | None:
        try:
            return await connect(
                self._way.url,
                subprotocols=["sidecar.v1.json"],  # type: ignore[list-item]
                compression=None,
                ping_interval=None,
                proxy=None,
                open_timeout=self._way.patience_s,
                close_timeout=self._way.patience_s,
            )
        except (OSError, EOFError, InvalidHandshake, TimeoutError):
            return None

    async def _session(self, connection: ClientConnection) -> None:
        try:
            await self._greet(connection)
            while True:
                async with asyncio.timeout(self._way.patience_s):
                    text = await connection.recv()
                self._take(json.loads(text))
        except (ConnectionClosed, TimeoutError):  # a silence is no loss for sure; it comes back all the same
            self.seen["talkers cut"] += 1
        finally:
            self._connection = None
            self._moved.set()
            connection.transport.abort()

    async def _greet(self, connection: ClientConnection) -> None:
        hello: dict[str, Any] = {"type": "hello", "token": self._way.user_token(self.person)}
        if self._resume_token:
            self._attempt += 1
            hello["resume"] = {"token": self._resume_token, "last_sequence": self._last, "attempt": self._attempt}
        async with asyncio.timeout(self._way.patience_s):
            await connection.send(json.dumps(hello))
            welcome = json.loads(await connection.recv())
        assert welcome["type"] == "welcome", welcome
        if not self.talks or welcome["connection_id"] != self.talks[-1].connection_id:
            self._begin(welcome)
        self._last, self._resume_token = welcome["sequence"], welcome["resume_token"]
        self._connection = connection
        self.seen[f"talker {welcome['recovery']}"] += 1
        if self._saying is not None:
            self._say(self._saying)
        self._moved.set()

    def _begin(self, welcome: dict[str, Any]) -> None:
        """A context of its own; what was being said in the one before was said to nobody, as far as anybody knows."""
        if self.talks:
            self.talks[-1].ended = True
        self.talks.append(Talk(self.person, welcome["connection_id"]))
        self._saying, self._attempt = None, 0

    def _take(self, frame: dict[str, Any]) -> None:
        talk, saying = self.talks[-1], self._saying
        match frame["type"]:
            case "message":
                assert frame["sequence"] == self._last + 1, f"{self.person} was sent {frame} after {self._last}"
                self._last = frame["sequence"]
                talk.came(frame)
                if self._random.random() < 0.2:
                    self._send({"type": "ack", "sequence": self._last})
            case "gap":
                assert frame["from"] == self._last + 1, f"{self.person} was sent {frame} after {self._last}"
                talk.missed += frame["to"] - self._last
                self._last = frame["to"]
            case "accepted" if saying is not None and frame["id"] == saying.id:
                self._accepted(saying)
            case "error" if saying is not None and frame.get("id") == saying.id and frame["reason"] in PASSING:
                self.seen[f"told {frame['reason']}"] += 1
                asyncio.get_running_loop().call_later(BEFORE_AGAIN_S, self._say_again, saying)
            case "accepted" | "draining" | "token_expiring" | "context_token":
                pass
            case _:
                raise AssertionError(f"{self.person} was sent {frame}")
        self._moved.set()

    def _say_again(self, one: Said) -> None:
        if self._saying is one and self._connection is not None:
            self._say(one)

    def _send(self, frame: dict[str, Any]) -> None:
        """Hand a frame to the transport; what is lost with the connection is said again, but for a cancel."""
        connection = self._connection
        if connection is not None and connection.state.name == "OPEN":
            connection.protocol.send_text(json.dumps(frame).encode())
            connection.send_data()

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self.check()
            self._moved.clear()
            await self._moved.wait()
