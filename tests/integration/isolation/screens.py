"""The clients' sockets: each reads all the time, and looks at every frame the moment it comes."""

from __future__ import annotations

import asyncio
import json
import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from tests.integration.isolation.model import Context, Isolation

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.integration.isolation.model import Attempt

TAKEN_OVER = 4503
PATIENCE_S = 10.0
SLOW_BUFFER_BYTES = 4_096
ABORTED = 1006


async def dial(url: str, *, slow: bool = False) -> ClientConnection:
    """A connection that offers the JSON protocol; a slow one holds little that its client did not read."""
    settings: dict[str, Any] = {"subprotocols": ["sidecar.v1.json"], "compression": None, "ping_interval": None}
    if slow:
        plain = socket.socket()
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SLOW_BUFFER_BYTES)
        plain.setblocking(False)
        host, port = url.split("/")[2].split(":")
        await asyncio.get_running_loop().sock_connect(plain, (host, int(port)))
        settings |= {"sock": plain, "max_queue": 1}
    return await connect(url, **settings)


class Screen:
    """One welcomed socket of one context: what came on it, and whether it could have."""

    def __init__(
        self,
        connection: ClientConnection,
        context: Context,
        welcome: Mapping[str, Any],
        attempts: Mapping[str, Attempt],
        *,
        mirror: bool,
        slow: bool = False,
        attempt: int = 0,
        promised: int = 0,
    ) -> None:
        """`attempt` is the resume's, 0 for none; then everything up to `promised` is known to have been accepted."""
        self.attach_id = str(welcome["attach_id"])
        self.recovery = str(welcome["recovery"])
        self.attempt = attempt
        self.mirror = mirror
        self.slow = slow
        self.last = int(welcome["sequence"])
        self.messages: dict[int, Attempt] = {}
        self.gaps: list[tuple[int, int, str]] = []
        self.fenced_from: int | None = None
        """Another had taken its place before the attempt of that number was made."""
        self.closed: int | None = None
        self.leaving = False
        self.close_codes: set[int] = set()
        self.fault: BaseException | None = None
        self._first = self.last
        self._promised = promised if self.recovery == "full" else 0
        self._connection = connection
        self._context = context
        self._attempts = attempts
        self._reading = asyncio.Event()
        self._reading.set()
        self._moved = asyncio.Event()
        self._probes: list[asyncio.Future[None]] = []
        self._task = asyncio.create_task(self._read())

    def __repr__(self) -> str:
        return f"<{'mirror' if self.mirror else 'primary'} of {self._context} at {self.last}>"

    @property
    def live(self) -> bool:
        """Neither side has begun to close."""
        return self.closed is None and not self.leaving

    @property
    def paused(self) -> bool:
        """Its client does not read."""
        return not self._reading.is_set()

    # What the client does

    def pause(self) -> None:
        """Read no more for now."""
        self._reading.clear()
        self._moved.set()

    def unpause(self) -> None:
        """Read on."""
        self._reading.set()

    async def acknowledge(self) -> None:
        """Acknowledge all that came, and wait until the sidecar has read it: it answers in order."""
        self._context.claimed = max(self._context.claimed, self.last)
        with suppress(ConnectionClosed):
            await self._connection.send(json.dumps({"type": "ack", "sequence": self.last}))
        await self.probe()

    async def probe(self) -> None:
        """Returns when all that was written here so far has come, it has closed, or its client reads no more."""
        answered = asyncio.get_running_loop().create_future()
        self._probes.append(answered)
        with suppress(ConnectionClosed):
            await self._connection.send('{"type":"probe"}')
        async with asyncio.timeout(PATIENCE_S):
            while not answered.done() and self.closed is None and not self.paused:
                await self._next_move()

    async def leave(self) -> int:
        """Close with 1000; the code that came back."""
        self.leaving = True
        self.unpause()
        await self._connection.close()
        await self.end()
        return self.closed or ABORTED

    async def abort(self) -> None:
        """Lose the connection, without a close frame."""
        self.leaving = True
        self.unpause()
        self._connection.transport.abort()
        await self.end()

    async def end(self) -> None:
        """Returns when the connection is over."""
        await asyncio.wait((self._task,), timeout=PATIENCE_S)
        if not self._task.done():
            raise Isolation(f"{self} was not closed")

    @property
    def reading(self) -> asyncio.Task[None]:
        """Done when the connection is over."""
        return self._task

    async def reached(self, sequence: int) -> None:
        """Returns when everything up to `sequence` has come, or the socket has closed."""
        try:
            async with asyncio.timeout(PATIENCE_S):
                while self.last < sequence and self.closed is None:
                    await self._next_move()
        except TimeoutError:
            raise Isolation(f"{self} was never sent {self.last + 1} to {sequence}, and not told so") from None

    async def _next_move(self) -> None:
        self._moved.clear()
        await self._moved.wait()

    # What comes

    async def _read(self) -> None:
        try:
            while True:
                await self._reading.wait()
                text = await self._connection.recv()
                try:
                    self._look_at(json.loads(text))
                except Exception as error:  # noqa: BLE001 - told by whoever asks next
                    self.fault = self.fault or error
                self._moved.set()
        except ConnectionClosed as closed:
            self.closed = ABORTED if closed.rcvd is None else closed.rcvd.code
            if not self.leaving and self.closed not in self._context.close_codes | self.close_codes:
                self.fault = self.fault or Isolation(f"{self} was closed with {self.closed}, and nobody asked for it")
        finally:
            self._moved.set()

    def _look_at(self, frame: dict[str, Any]) -> None:
        match frame["type"]:
            case "message":
                self._take(frame)
            case "gap":
                self._miss(frame)
            case "error" if frame["reason"] == "BAD_REQUEST" and self._probes:
                self._probes.pop(0).set_result(None)
            case "token_expiring":
                assert 4000 in self.close_codes | self._context.close_codes
            case kind:
                raise Isolation(f"{self} was sent a {kind}")

    def _take(self, frame: dict[str, Any]) -> None:
        data, sequence = frame["data"], frame["sequence"]
        attempt = self._attempts.get(data["uuid"])
        if attempt is None or not attempt.may_reach(self._context):
            raise Isolation(f"{self} was sent {data}, which belongs to {attempt and attempt.targets}")
        person, document = self._context.person, attempt.document
        assert data == document, f"{self} was sent {data} for {document}"
        assert data["tenant"] == person.tenant
        assert data["user"] in ({person.subject} if attempt.reach != "tenant" else {None})
        if sequence != self.last + 1:
            raise Isolation(f"{self} was sent {sequence} after {self.last}")
        if self.fenced_from is not None and attempt.number >= self.fenced_from:
            raise Isolation(f"{self} was sent {attempt}, and another had taken its place before")
        if attempt.message_id:
            assert frame["id"] == attempt.message_id
        assert frame.get("critical", False) is attempt.critical
        self.messages[sequence] = attempt
        self.last = sequence

    def _miss(self, frame: dict[str, Any]) -> None:
        if self.mirror or frame["from"] != self.last + 1 or frame["to"] < frame["from"]:
            raise Isolation(f"{self} was told of the gap {frame} after {self.last}")
        first, last, reason = frame["from"], frame["to"], frame["reason"]
        if first <= self._promised:
            raise Isolation(f"{self} was promised all up to {self._promised}, and told of the gap {frame}")
        match reason:
            case "acknowledged":
                assert last <= self._context.claimed, f"{self}: {frame}, and {self._context.claimed} was acknowledged"
            case "evicted":  # it had been written to the one before, and was lost on the way
                assert self.recovery == "gap", f"{self}: {frame}"
            case _:
                assert reason == "expired"
        self.gaps.append((first, last, reason))
        self.last = last

    @property
    def missed(self) -> dict[int, str]:
        """What was announced as not kept, and why."""
        return {sequence: reason for first, last, reason in self.gaps for sequence in range(first, last + 1)}

    def check(self) -> None:
        """What holds of all that came so far."""
        if self.fault is not None:
            raise self.fault
        missed = self.missed
        assert self.last - self._first - len(self.messages) == len(missed)
        for sequence, attempt in self.messages.items():
            assert attempt.answer == "ok", f"{self} was sent {attempt}, which was refused {attempt.answer}"
            accepted = self._context.accepted.get(sequence)
            if accepted not in {None, attempt}:
                raise Isolation(f"{sequence} on {self} is {attempt}, where the receipt was for {accepted}")
        for sequence, reason in missed.items():
            lost = self._context.accepted.get(sequence)
            if reason == "expired":
                assert lost is not None
                assert lost.ttl_s is not None, f"{lost} is announced as expired"
            if reason != "acknowledged" and lost is not None:
                assert not lost.critical
