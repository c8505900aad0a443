"""A TCP proxy on loopback between clients and a sidecar that may come and go, and whose connections can be spoiled.

Every fault is commanded by a test, or drawn from the Random that it hands in.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import Enum
from random import Random

from tests.support.fault_flow import RESET_AT_CLOSE, Flow, Plan, ProxiedConnection, Wait, wait_by_timer


class Admission(Enum):
    """What becomes of a new connection."""

    FORWARD = "forward"
    BLACKHOLE = "blackhole"
    """Accepted by the kernel, and never answered."""
    RESET = "reset"


@dataclass
class FaultProxy:
    """Stands in front of `upstream`, which may come and go. `plan` and `admission` are for connections to come.

    `buffer_bytes` small: a stall is soon felt by the one who sends. `wait` is what a delay is waited out with.
    """

    upstream: tuple[str, int]
    buffer_bytes: int | None = None
    wait: Wait = wait_by_timer
    plan: Plan = field(default_factory=Plan)
    admission: Admission = Admission.FORWARD
    plans: Iterator[Plan] = field(default_factory=lambda: iter(()))
    """Taken before `plan`, one a connection, until there are no more."""
    accepted: int = 0
    """Connections so far, whatever became of them."""
    connections: list[ProxiedConnection] = field(default_factory=list)
    """Those that are forwarded now, the newest last."""

    def __post_init__(self) -> None:
        self._listener = self._socket()
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen(128)
        self.port = int(self._listener.getsockname()[1])
        self._held: list[socket.socket] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._moved = asyncio.Event()

    @property
    def target(self) -> str:
        """host:port, for gRPC."""
        return f"127.0.0.1:{self.port}"

    @property
    def latest(self) -> ProxiedConnection:
        """The newest connection that lives."""
        return self.connections[-1]

    def cut_all(self) -> None:
        """Cut every connection."""
        for connection in self.connections:
            connection.cut()

    def reset_all(self) -> None:
        """Reset every connection."""
        for connection in self.connections:
            connection.reset()

    def calm(self) -> None:
        """No faults from now on; connections that were held unanswered are cut."""
        self.plan, self.plans, self.admission = Plan(), iter(()), Admission.FORWARD
        for connection in self.connections:
            connection.calm()
        self._let_go()

    def strike(self, random: Random) -> str:
        """One fault drawn at random, for a connection drawn at random; the fault's name, empty where none lives."""
        if not self.connections:
            return ""
        connection = random.choice(self.connections)
        flow = random.choice(connection.flows)
        name = random.choice(sorted(STRIKES))
        STRIKES[name](connection, flow, random)
        return name

    async def connected(self, count: int) -> None:
        """Returns once so many connections were accepted in all, and what is to be forwarded is."""
        while self.accepted < count:
            self._moved.clear()
            await self._moved.wait()

    async def run(self) -> None:
        """Accept until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            client, _ = await loop.sock_accept(self._listener)
            task = asyncio.create_task(self._admit(client))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """End everything. Idempotent."""
        self._listener.close()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._let_go()

    async def _admit(self, client: socket.socket) -> None:
        if self.admission is Admission.FORWARD:
            await self._serve(client)
            return
        self._count()
        self._held.append(client)
        if self.admission is Admission.RESET:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_AT_CLOSE)
            self._held.remove(client)
            client.close()

    async def _serve(self, client: socket.socket) -> None:
        server = self._socket()
        try:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await asyncio.get_running_loop().sock_connect(server, self.upstream)
            server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except BaseException as error:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_AT_CLOSE)
            client.close()
            server.close()
            self._count()
            if isinstance(error, OSError):
                return
            raise
        connection = ProxiedConnection(client, server, self.wait, next(self.plans, self.plan))
        self.connections.append(connection)
        self._count()
        try:
            await connection.run()
        finally:
            self.connections.remove(connection)

    def _count(self) -> None:
        self.accepted += 1
        self._moved.set()

    def _let_go(self) -> None:
        while self._held:
            self._held.pop().close()

    def _socket(self) -> socket.socket:
        plain = socket.socket()
        plain.setblocking(False)
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if self.buffer_bytes is not None:
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self.buffer_bytes)
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, self.buffer_bytes)
        return plain


def _delay(connection: ProxiedConnection, flow: Flow, random: Random) -> None:
    flow.delay_s = random.uniform(0.01, 0.2)


def _one_byte(connection: ProxiedConnection, flow: Flow, random: Random) -> None:
    flow.one_byte = True


STRIKES: dict[str, Callable[[ProxiedConnection, Flow, Random], None]] = {
    "cut": lambda connection, flow, random: connection.cut(),
    "cut in mid-frame": lambda connection, flow, random: flow.cut_after(random.randrange(400)),
    "delay": _delay,
    "one byte at a time": _one_byte,
    "reset": lambda connection, flow, random: connection.reset(),
    "reset in mid-frame": lambda connection, flow, random: flow.reset_after(random.randrange(400)),
    "stall": lambda connection, flow, random: flow.stall(),
    "stall both ways": lambda connection, flow, random: connection.stall(),
}
"""What can be drawn at random."""


@asynccontextmanager
async def fault_proxy(
    target: str, *, buffer_bytes: int | None = None, wait: Wait = wait_by_timer
) -> AsyncIterator[FaultProxy]:
    """A proxy in front of `target` (host:port) for as long as the block lasts."""
    host, _, port = target.rpartition(":")
    proxy = FaultProxy((host, int(port)), buffer_bytes, wait)
    task = asyncio.create_task(proxy.run())
    try:
        yield proxy
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await proxy.close()
