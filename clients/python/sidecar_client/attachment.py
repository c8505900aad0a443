"""One welcomed socket: reads into the session, writes what the session has to say, renews the user token in band.

The reader is the one that sees the socket end; the writer and the renewal end with it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import NoReturn

from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from sidecar_client import frames
from sidecar_client.back_off import BackOff
from sidecar_client.frames import (
    Accepted,
    ContextTokenFrame,
    DrainingFrame,
    ErrorFrame,
    Frame,
    GapFrame,
    MessageFrame,
    ProtocolError,
    Refreshed,
    TokenExpiring,
    Welcome,
)
from sidecar_client.pace import Pace
from sidecar_client.session import UserSession

logger = logging.getLogger("sidecar_client")


class Wakes:
    """What the tasks of one connection wait for: something came, there is room again, there is something to say."""

    def __init__(self) -> None:
        self.changed = asyncio.Event()
        self.room = asyncio.Event()
        self.to_write = asyncio.Event()


class Attachment:
    """Runs one socket from its welcome to its end."""

    def __init__(
        self,
        socket: ClientConnection,
        session: UserSession,
        wakes: Wakes,
        rates: tuple[float, float],
        ask_token: Callable[[], Awaitable[str]] | None,
        pause: Callable[[float], Awaitable[None]],
    ) -> None:
        """`ask_token` None: the user token is fixed, and has no successor."""
        self._socket = socket
        self._session = session
        self._wakes = wakes
        self._rates = rates
        self._ask_token = ask_token
        self._pause = pause
        self._renewal: asyncio.Task[None] | None = None
        self._answered = asyncio.Event()
        self._refreshed = False
        self.reconnect_after_s: float | None = None
        """What a draining sidecar asked for."""

    async def run(self) -> NoReturn:
        """Read until the socket ends, by ConnectionClosed or ProtocolError."""
        writer = asyncio.create_task(self._write())
        try:
            while True:
                text = await self._socket.recv()
                self._take(frames.parse(text), len(text))
                self._wakes.changed.set()
                while self._session.full:
                    self._wakes.room.clear()
                    await self._wakes.room.wait()
        finally:
            tasks = [task for task in (writer, self._renewal) if task is not None]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _take(self, frame: Frame | None, size: int) -> None:
        match frame:
            case MessageFrame():
                self._session.message(frame, size)
            case GapFrame():
                self._session.gap(frame)
            case Accepted() | ErrorFrame():
                self._take_answer(frame)
            case ContextTokenFrame():
                self._session.context_token = frame.context_token
                self._session.context_token_expires_at = frame.expires_at
            case _:
                self._take_notice(frame)

    def _take_answer(self, frame: Accepted | ErrorFrame) -> None:
        if isinstance(frame, Accepted):
            self._session.accepted(frame.id)
        elif not self._session.refused(frame) and not frame.id:
            self._answered.set()  # a refresh has no id; nothing else of ours is refused without one

    def _take_notice(self, frame: Frame | None) -> None:
        match frame:
            case Refreshed():
                self._refreshed = True
                self._answered.set()
            case DrainingFrame():
                self.reconnect_after_s = frame.reconnect_in_ms / 1000
            case TokenExpiring() if self._ask_token is not None and self._renewal is None:
                self._renewal = asyncio.create_task(self._renew(self._ask_token))
            case Welcome():
                raise ProtocolError("a second welcome")

    async def _write(self) -> None:
        """Say what is to be said, no faster than the sidecar takes it."""
        loop = asyncio.get_running_loop()
        pace = Pace(loop.time(), *self._rates)
        with suppress(ConnectionClosed):
            while True:
                wait_s = pace.wait_s(loop.time())
                if wait_s:
                    await asyncio.sleep(wait_s)
                text = self._session.next_frame()
                if text is None:
                    self._wakes.to_write.clear()
                    await self._wakes.to_write.wait()
                else:
                    pace.take(len(text.encode()))
                    await self._socket.send(text)

    async def _renew(self, ask_token: Callable[[], Awaitable[str]]) -> None:
        """Hand over a new user token, again where the sidecar could not record it. Else the socket ends with 4000."""
        back_off = BackOff(1.0, 10.0)
        self._refreshed = False
        try:
            while not self._refreshed:
                self._answered.clear()
                await self._socket.send(frames.refresh(await ask_token()))
                await self._answered.wait()
                if not self._refreshed:
                    await self._pause(back_off.next_s(at_least_s=1.0))
        except ConnectionClosed:
            return
        except Exception as error:  # noqa: BLE001 - the caller's own code; at the next connect it is asked again
            logger.warning("no user token to refresh with: %s", type(error).__name__)
        finally:
            self._renewal = None
