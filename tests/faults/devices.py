"""A user's device: connects, says what it has, reads, acknowledges now and then, and comes back whatever happens.

It is written for these tests alone, so that no client's bug can hide one of the server's.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from random import Random
from typing import Any, Protocol

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from tests.faults.history import Attach, Context, History

ABORTED = 1006
PATIENCE_S = 10.0
Person = tuple[str, str]
"""Tenant and user."""


@dataclass(frozen=True)
class Way:
    """How a device gets to its sidecar."""

    url: str
    user_token: Callable[[Person], str]
    ready: Callable[[], Awaitable[None]]
    """Returns when another try is worth it."""
    durability: str
    """What the sidecar's store gives."""
    patience_s: float = PATIENCE_S
    """How long it waits for an answer before it holds the connection for lost."""


class Receiver(Protocol):
    """What a company asks of whoever receives, whichever client that uses."""

    person: Person
    context: Context | None
    last: int
    seen: Counter[str]

    async def welcomed(self) -> None: ...
    async def reached(self, sequence: int) -> None: ...
    async def acknowledge(self) -> None: ...
    async def probe(self) -> None: ...
    async def leave(self) -> None: ...
    async def stop(self) -> None: ...


class Device:
    """One context of one user, and the next one where that has ended. `random` draws when it acknowledges."""

    def __init__(
        self, history: History, person: Person, way: Way, random: Random, *, acknowledges: float = 0.2
    ) -> None:
        self.person = person
        self.last = 0
        """Its position: everything up to here it has, or was told that it cannot have."""
        self.context: Context | None = None
        self.seen: Counter[str] = Counter()
        self.acknowledges = acknowledges
        self._history = history
        self._way = way
        self._random = random
        self.resume_token = ""
        self._attempt = 0
        self._acknowledged = 0
        self._probes: list[tuple[asyncio.Future[None], int]] = []
        self._connection: ClientConnection | None = None
        self._attach: Attach | None = None
        self._moved = asyncio.Event()
        self._leaving = False
        self._here = asyncio.Event()
        self._here.set()
        self._task = asyncio.create_task(self._live())

    def __str__(self) -> str:
        return f"the device of {'/'.join(self.person)} at {self.last}"

    @property
    def attached(self) -> bool:
        return self._attach is not None

    # What a test has it do

    async def welcomed(self, times: int = 1) -> None:
        """Returns once it has been welcomed so many times in all, and is."""
        await self._until(lambda: self.attached and self.seen["welcomes"] >= times)

    async def reached(self, sequence: int) -> None:
        """Returns once it has everything up to that sequence."""
        await self._until(lambda: self.last >= sequence)

    async def probe(self) -> None:
        """Returns when everything written to its present socket before now has come, and all it sent has been read."""
        while True:
            await self.welcomed()
            answered = self._probe()
            done, _ = await asyncio.wait((answered,), timeout=self._way.patience_s)
            if done and not answered.cancelled():
                return

    async def acknowledge(self) -> None:
        """Acknowledge everything; returns when the sidecar has read it."""
        while self._acknowledged < self.last:
            await self.welcomed()
            self._send_acknowledgement()
            await self.probe()

    def lose(self) -> None:
        """Lose the connection, without a word."""
        if self._connection is not None:
            self._connection.transport.abort()

    async def stay_away(self) -> None:
        """Lose the connection and do not come back before `come_back`; returns once it is away."""
        self._here.clear()
        self.lose()
        await self._until(lambda: not self.attached)

    def come_back(self) -> None:
        """End of that."""
        self._here.set()

    async def leave(self) -> None:
        """Close with 1000, which ends the context, and stay away."""
        await self.welcomed()
        self._leaving = True
        connection = self._connection
        assert connection is not None
        await connection.close()
        await self._task

    async def stop(self) -> None:
        """Be gone, without a word. Idempotent."""
        self._leaving = True
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    def check(self) -> None:
        """Raise what went wrong in the device itself."""
        if self._task.done() and not self._task.cancelled():
            self._task.result()

    # Its life

    async def _live(self) -> None:
        while not self._leaving:
            await self._here.wait()
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
            self.seen["not connected"] += 1
            return None

    async def _session(self, connection: ClientConnection) -> None:
        self._connection = connection
        try:
            await self._greet(connection)
            while True:
                self._take(json.loads(await self._read(connection)))
        except TimeoutError:
            self.seen["silences"] += 1
        except ConnectionClosed as closed:
            self._closed(ABORTED if closed.rcvd is None else closed.rcvd.code)
        finally:
            self._connection = self._attach = None
            for answered, _ in self._probes:
                answered.cancel()
            self._probes.clear()
            self._moved.set()
            connection.transport.abort()

    async def _greet(self, connection: ClientConnection) -> None:
        hello: dict[str, Any] = {"type": "hello", "token": self._way.user_token(self.person)}
        claimed = self.last if self.resume_token else 0
        if self.resume_token:
            self._attempt += 1
            hello["resume"] = {"token": self.resume_token, "last_sequence": claimed, "attempt": self._attempt}
            if self.context is not None:
                self._history.acknowledges(self.context, claimed)
        asked = self._history.now()
        async with asyncio.timeout(self._way.patience_s):
            await connection.send(json.dumps(hello))
            welcome = json.loads(await connection.recv())
        assert welcome["type"] == "welcome", welcome
        self._attach = self._history.welcomed(
            self.person,
            welcome,
            asked=asked,
            durability=self._way.durability,
            former=self.context,
            claimed=claimed,
        )
        if self.context is not self._attach.context:
            self._attempt = self._acknowledged = 0
        self.context = self._attach.context
        self.last = welcome["sequence"]
        self.resume_token = welcome["resume_token"]
        self._token_given(welcome["context_token"])
        self.seen["welcomes"] += 1
        self.seen[welcome["recovery"]] += 1
        self._moved.set()

    async def _read(self, connection: ClientConnection) -> str | bytes:
        """The next frame. After a silence it asks; a silence after that is the connection's end."""
        try:
            async with asyncio.timeout(self._way.patience_s):
                return await connection.recv()
        except TimeoutError:
            _ = self._probe()
        async with asyncio.timeout(self._way.patience_s):
            return await connection.recv()

    def _take(self, frame: dict[str, Any]) -> None:
        assert self._attach is not None
        match frame["type"]:
            case "message" | "gap":
                self._history.came(self._attach, frame)
                self.last = frame["to"] if frame["type"] == "gap" else frame["sequence"]
                self.seen[frame["type"]] += 1
                if self._random.random() < self.acknowledges:
                    self._send_acknowledgement()
            case "error":
                answered, acknowledged = self._probes.pop(0)
                self._acknowledged = max(self._acknowledged, acknowledged)
                if acknowledged:
                    self._history.acknowledgement_read(self._attach.context, acknowledged)
                if not answered.cancelled():
                    answered.set_result(None)
            case "context_token":
                self._token_given(frame["context_token"])
            case "draining" | "token_expiring":
                self.seen[frame["type"]] += 1
            case kind:
                raise AssertionError(f"{self} was sent a {kind}")
        self._moved.set()

    def _token_given(self, token: str) -> None:
        assert self.context is not None
        self.context.tokens.append(token)

    def _closed(self, code: int) -> None:
        self.seen[f"closed {code}"] += 1
        self._history.closed(str(self), code, self._attach)

    def _send_acknowledgement(self) -> None:
        if self._attach is not None:
            self._history.acknowledges(self._attach.context, self.last)
        self._send({"type": "ack", "sequence": self.last})
        _ = self._probe(acknowledged=self.last)

    def _probe(self, acknowledged: int = 0) -> asyncio.Future[None]:
        """Ask what is answered with an error, in order: what was sent before has been read then."""
        answered: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._probes.append((answered, acknowledged))
        self._send({"type": "probe"})
        return answered

    def _send(self, frame: dict[str, Any]) -> None:
        """Hand a frame to the transport; what is lost with the connection is noticed there."""
        connection = self._connection
        if connection is not None and connection.state.name == "OPEN":
            connection.protocol.send_text(json.dumps(frame).encode())
            connection.send_data()

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self.check()
            self._moved.clear()
            moved = asyncio.create_task(self._moved.wait())
            await asyncio.wait((moved, self._task), return_when=asyncio.FIRST_COMPLETED)
            moved.cancel()
            if self._task.done():
                self.check()
                raise AssertionError(f"{self} is gone")
