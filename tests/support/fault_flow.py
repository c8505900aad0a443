"""One proxied TCP connection and its two directions, each of which can be spoiled by itself at any moment.

Bytes and no frames; nothing is kept back that was not told to be, and nothing waits for a time but a delay.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum

CHUNK_BYTES = 65_536
RESET_AT_CLOSE = struct.pack("ii", 1, 0)
"""SO_LINGER with no time: close(2) sends an RST."""

Wait = Callable[[float], Awaitable[None]]


async def wait_by_timer(delay_s: float) -> None:
    """The waiter of a proxy that is given no other: the loop's own timer."""
    loop = asyncio.get_running_loop()
    over: asyncio.Future[None] = loop.create_future()

    def end() -> None:
        if not over.done():  # whoever waits may have been cancelled in this same turn of the loop
            over.set_result(None)

    timer = loop.call_later(delay_s, end)
    try:
        await over
    finally:
        timer.cancel()


class Ending(Enum):
    """How a connection ends, or ended."""

    CLOSED = "closed"
    """By its two ends: what they said was passed on."""
    CUT = "cut"
    """A FIN to both ends; what they still say is thrown away."""
    RESET = "reset"
    """An RST to both ends."""


@dataclass(frozen=True)
class Spoiling:
    """The faults that one direction of a new connection begins with. A number of bytes: that many still pass."""

    delay_s: float = 0.0
    one_byte: bool = False
    stalled: bool = False
    cut_after: int | None = None
    reset_after: int | None = None


UNSPOILED = Spoiling()


@dataclass(frozen=True)
class Plan:
    """The faults of a new connection: `up` is from the client, `down` to it."""

    up: Spoiling = UNSPOILED
    down: Spoiling = UNSPOILED


class Flow:
    """One direction of one connection. What it may do is looked up before every piece that it passes on."""

    def __init__(
        self, source: socket.socket, target: socket.socket, wait: Wait, end: Callable[[Ending], None], plan: Spoiling
    ) -> None:
        self.passed = 0
        """Bytes passed on so far."""
        self.delay_s = plan.delay_s
        self.one_byte = plan.one_byte
        self._source = source
        self._target = target
        self._wait = wait
        self._end = end
        self._left: int | None = None
        self._at_limit = Ending.RESET
        self._unstalled = asyncio.Event()
        self._moved = asyncio.Event()
        self._unstalled.set()
        if plan.stalled:
            self.stall()
        if plan.cut_after is not None:
            self.cut_after(plan.cut_after)
        if plan.reset_after is not None:
            self.reset_after(plan.reset_after)

    @property
    def stalled(self) -> bool:
        return not self._unstalled.is_set()

    def stall(self) -> None:
        """Neither read nor pass on, until `resume`; what comes fills the kernel's buffers, then the sender's."""
        self._unstalled.clear()

    def resume(self) -> None:
        """End a stall."""
        self._unstalled.set()

    def cut_after(self, count: int) -> None:
        """Pass so many bytes from now on; at the next one cut the connection."""
        self._left, self._at_limit = count, Ending.CUT

    def reset_after(self, count: int) -> None:
        """Pass so many bytes from now on; at the next one reset the connection: in mid-frame, if one is longer."""
        self._left, self._at_limit = count, Ending.RESET

    def calm(self) -> None:
        """No faults from now on."""
        self.delay_s, self.one_byte, self._left = 0.0, False, None
        self.resume()

    async def reached(self, count: int) -> None:
        """Returns once so many bytes have been passed on in all."""
        while self.passed < count:
            self._moved.clear()
            await self._moved.wait()

    async def run(self) -> None:
        """Pass on until the source's end, which is passed on too."""
        loop = asyncio.get_running_loop()
        while True:
            await self._unstalled.wait()
            try:
                data = await loop.sock_recv(self._source, CHUNK_BYTES)
            except ConnectionError:
                await self._unstalled.wait()  # a reset is held back like everything else
                raise
            if self.delay_s:
                await self._wait(self.delay_s)
            if not data:
                await self._unstalled.wait()
                self._target.shutdown(socket.SHUT_WR)
                return
            await self._pass_on(data)

    async def _pass_on(self, data: bytes) -> None:
        loop = asyncio.get_running_loop()
        while data:
            await self._unstalled.wait()
            piece = data[:1] if self.one_byte else data
            if self._left is not None:
                piece = piece[: self._left]
                self._left -= len(piece)
            if not piece:
                self._end(self._at_limit)
                return
            await loop.sock_sendall(self._target, piece)
            data = data[len(piece) :]
            self.passed += len(piece)
            self._moved.set()
            await asyncio.sleep(0)  # so that each piece is written, and read, by itself


class ProxiedConnection:
    """A client's connection and the proxy's own to the target; `up` is from the client, `down` to it."""

    def __init__(self, client: socket.socket, server: socket.socket, wait: Wait, plan: Plan) -> None:
        self.up = Flow(client, server, wait, self._end, plan.up)
        self.down = Flow(server, client, wait, self._end, plan.down)
        self.over = asyncio.Event()
        """Set once the ends have been told."""
        self.ending = Ending.CLOSED
        self._sockets = (client, server)
        self._ended = asyncio.Event()

    @property
    def flows(self) -> tuple[Flow, Flow]:
        return self.up, self.down

    def cut(self) -> None:
        """A FIN to both ends, now; what is under way in the proxy is lost."""
        self._end(Ending.CUT)

    def reset(self) -> None:
        """An RST to both ends, now; what is under way in the proxy is lost."""
        self._end(Ending.RESET)

    def stall(self) -> None:
        """Stall both directions: to each end the other has fallen silent."""
        for flow in self.flows:
            flow.stall()

    def resume(self) -> None:
        """End the stall of both directions."""
        for flow in self.flows:
            flow.resume()

    def calm(self) -> None:
        """No faults from now on, in either direction."""
        for flow in self.flows:
            flow.calm()

    def _end(self, ending: Ending) -> None:
        if not self._ended.is_set():
            self.ending = ending
            self._ended.set()

    async def run(self) -> None:
        """Pass on until both ends have ended it or it is ended; then tell the ends."""
        try:
            await self._forward()
            if self.ending is Ending.CUT:
                await self._discard()
        finally:
            if self.ending is Ending.RESET:
                for end in self._sockets:
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_AT_CLOSE)
            for end in self._sockets:
                end.close()
            self.over.set()

    async def _forward(self) -> None:
        ended = asyncio.create_task(self._ended.wait())
        flows = {asyncio.create_task(flow.run()) for flow in self.flows}
        tasks = {ended, *flows}
        try:
            while not (ended.done() or all(flow.done() for flow in flows)):
                done, tasks = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                if any(task.exception() for task in done):
                    self._end(Ending.RESET)  # one end reset it
                    return
        finally:
            for task in (ended, *flows):
                task.cancel()
            await asyncio.gather(ended, *flows, return_exceptions=True)

    async def _discard(self) -> None:
        """Tell both ends; read what they still say, for closing on unread bytes would be a reset."""
        loop = asyncio.get_running_loop()
        for end in self._sockets:
            with suppress(OSError):
                end.shutdown(socket.SHUT_WR)
        self.over.set()
        for end in self._sockets:
            with suppress(ConnectionError):
                while await loop.sock_recv(end, CHUNK_BYTES):
                    pass
