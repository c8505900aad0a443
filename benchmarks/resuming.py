"""A user of the sidecar who comes back: what that takes, over as many sockets as it takes."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import time
from collections.abc import Sequence
from typing import Any, Final

from benchmarks.acks import AckingClient
from benchmarks.servers import Route, RunFailed, Server, SidecarDialect
from benchmarks.sockets import ANSWER_TIMEOUT_S, CONNECTS_AT_ONCE, SocketOption, Tally, dial, upgrade_request

RESET: Final[tuple[SocketOption, ...]] = ((socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)),)
"""A socket that is closed ends with RST (SO_LINGER of 0 s), as where a network or a proxy is gone."""


class ResumingUser:
    """One user, whose client acknowledges. `away` is True from `cut` until the next welcome."""

    def __init__(self, server: Server, name: str, place: int, tally: Tally) -> None:
        self.route = Route("", "")
        self.away = True
        self._server = server
        self._name = name
        self._place = place
        self._tally = tally
        self._request = upgrade_request(server)
        self._token = ""
        self._attempt = 0
        self._client: AckingClient | None = None
        self._hello = b""

    @property
    def sequence(self) -> int:
        """The last message that came."""
        return 0 if self._client is None else self._client.sequence

    def cut(self) -> None:
        """Break the connection (RST). What the next one takes is made ready."""
        assert self._client is not None
        self._client.cut()
        self.away = True
        self._prepare()

    async def come_back(self) -> float:
        """Connect and resume. Seconds from the TCP connection to the welcome.

        Raises NotLetIn or OSError when it may be tried again, RunFailed when anything that was sent meanwhile is lost.
        """
        assert self._client is not None
        last = self._client.sequence
        took, welcome = await self._connect(last)
        if welcome["recovery"] != "full" or welcome["sequence"] != last:
            raise RunFailed(f"a user came back to {welcome['recovery']} at {welcome['sequence']}")
        return took

    async def join(self) -> None:
        """Connect for the first time."""
        self._hello = self._server.dialect.hello(self._name)
        _, welcome = await self._connect(0)
        self._token = welcome["resume_token"]

    def _prepare(self) -> None:
        dialect = self._server.dialect
        assert isinstance(dialect, SidecarDialect)
        self._attempt += 1
        resume = {"token": self._token, "last_sequence": self.sequence, "attempt": self._attempt}
        self._hello = dialect.hello_again(self._name, resume)

    async def _connect(self, sequence: int) -> tuple[float, dict[str, Any]]:
        client = AckingClient(self._request, self._hello, self._tally, sequence)
        started = time.perf_counter()
        await dial(self._server.websocket_port, self._place, client, RESET)
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            answer = await client.answered
        took = time.perf_counter() - started
        self.route = self._server.dialect.route(self._name, answer)
        self._client = client
        self.away = False
        return took, json.loads(answer)


async def join_all(users: Sequence[ResumingUser]) -> None:
    """Connect them, some at once."""
    waiting = iter(users)

    async def join_some() -> None:
        for user in waiting:
            await user.join()

    async with asyncio.TaskGroup() as group:
        for _ in range(CONNECTS_AT_ONCE):
            group.create_task(join_some())
