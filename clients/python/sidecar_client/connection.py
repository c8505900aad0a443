"""The user's side: one connection to a sidecar that comes back by itself, resumes, and loses and doubles nothing.

One task owns the socket of the moment; a consumer that is cancelled never touches it.
"""

from __future__ import annotations

import asyncio
import inspect
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self
from uuid import uuid4

import grpc
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException

from sidecar_client import frames
from sidecar_client.attachment import Attachment, Wakes
from sidecar_client.back_off import BackOff
from sidecar_client.dialing import CLOSE_TIMEOUT_S, GOING_AWAY, NORMAL, Again, after_close, after_refusal, dial
from sidecar_client.errors import TransportError
from sidecar_client.events import Event, Limits, ResumeState
from sidecar_client.frames import ProtocolError, Welcome
from sidecar_client.pace import BYTES_PER_SECOND, FRAMES_PER_SECOND
from sidecar_client.session import UserSession

BASE_S: Final = 0.25
CAP_S: Final = 30.0
STABLE_S: Final = 5.0
"""A socket that lived so long was a success: the back-off begins again. One that is closed at once is none."""
WELCOME_TIMEOUT_S: Final = 10.0
PROTOCOL_ERROR: Final = 4400
"""What this side closes with when the sidecar broke the protocol: no code of the sidecar's, and it does not end the
context."""
MAX_QUESTIONS: Final = 256

TokenSource = str | Callable[[], str | Awaitable[str]]


@dataclass(frozen=True, slots=True)
class Tuning:
    """What hardly anybody changes. Sizes are bytes.

    `max_events`, `max_buffered_bytes`: what is read ahead of the consumer. `frames_per_second`, `bytes_per_second`:
    what is written at most; keep them below the sidecar's `websocket.…_per_second`. `uniform`, `pause`: the randomness
    of the back-off, numbers of [0, 1), and how it waits.
    """

    max_events: int = 256
    max_buffered_bytes: int = 4 * 1_048_576
    frames_per_second: float = FRAMES_PER_SECOND
    bytes_per_second: float = BYTES_PER_SECOND
    uniform: Callable[[], float] = random.random
    pause: Callable[[float], Awaitable[None]] = asyncio.sleep


def connect(
    url: str,
    *,
    token: TokenSource,
    resume: ResumeState | None = None,
    acknowledge: bool = True,
    open_timeout_s: float = 30.0,
    tuning: Tuning | None = None,
    **websocket: Any,
) -> UserConnection:
    """Connect as a user; to be entered with `async with` and read with `async for`.

    `url`: ws:// or wss://…/v1/connect. `token`: the user token, or what gives one, asked at each connect and before the
    old one ends. `resume`: a `resume_state` from before. `acknowledge`: taking the next event says that the one before
    was dealt with; False: say so with `acknowledge`. `open_timeout_s`: for the first welcome. `websocket`: options of
    `websockets.connect`, such as `ssl` or `proxy`.
    """
    if not url.startswith(("ws://", "wss://")):
        raise ValueError("url begins with ws:// or wss://")
    tuning = tuning or Tuning()
    session = UserSession(
        resume, max_events=tuning.max_events, max_bytes=tuning.max_buffered_bytes, acknowledges=acknowledge
    )
    return UserConnection(session, token, lambda: dial(url, open_timeout_s, websocket), open_timeout_s, tuning)


class UserConnection:
    """A user's connection, over as many sockets as it takes. Made by `connect`; one consumer reads it."""

    def __init__(
        self,
        session: UserSession,
        token: TokenSource,
        dial: Callable[[], Awaitable[ClientConnection]],
        open_timeout_s: float,
        tuning: Tuning,
    ) -> None:
        self._session = session
        self._token = token
        self._dial = dial
        self._open_timeout_s = open_timeout_s
        self._rates = (tuning.frames_per_second, tuning.bytes_per_second)
        self._back_off = BackOff(BASE_S, CAP_S, tuning.uniform)
        self._pause = tuning.pause
        self._task: asyncio.Task[None] | None = None
        self._socket: ClientConnection | None = None
        self._leaving = False
        self._end: Exception | None = None
        self._last_failure: Exception | None = None
        self._welcomed = asyncio.Event()
        self._wakes = Wakes()
        self._questions = asyncio.Semaphore(MAX_QUESTIONS)
        self._token_was_refused = False

    def __repr__(self) -> str:
        state = "left" if self._leaving else "ended" if self._end else "connected" if self._socket else "connecting"
        return f"UserConnection({state}, connection_id={self.connection_id!r})"

    # What is known

    @property
    def connection_id(self) -> str:
        """Names the context; changes with a `ContextReplaced`."""
        return self._session.connection_id

    @property
    def isolation_key(self) -> str:
        """Names the context to services."""
        return self._session.isolation_key

    @property
    def context_token(self) -> str:
        """Opens the context to a service; a secret. Renewed by the sidecar: read it each time."""
        return self._session.context_token

    @property
    def context_token_expires_at(self) -> int:
        """When the context token ends, in Unix seconds."""
        return self._session.context_token_expires_at

    @property
    def recovery(self) -> str:
        """What the last welcome said: `new`, `full`, `gap` or `denied`."""
        return self._session.recovery

    @property
    def limits(self) -> Limits | None:
        """What the last welcome said; None before the first."""
        return self._session.limits

    @property
    def resume_state(self) -> ResumeState | None:
        """What a later `connect(..., resume=state)` needs; None before the first welcome."""
        return self._session.resume_state

    # Coming and going

    async def __aenter__(self) -> Self:
        """Wait for the first welcome. Raises ConnectionEnded, TransportError when time is up, or the token's error."""
        self._task = asyncio.create_task(self._run())
        welcomed = asyncio.create_task(self._welcomed.wait())
        try:
            await asyncio.wait(
                {self._task, welcomed}, timeout=self._open_timeout_s, return_when=asyncio.FIRST_COMPLETED
            )
            if not self._welcomed.is_set():
                late = TransportError(grpc.StatusCode.DEADLINE_EXCEEDED, "", "no welcome in time")
                raise self._end or late from self._last_failure
        except BaseException:
            await self.detach() if self._session.resume_state else await self.close()
            raise
        finally:
            welcomed.cancel()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Say that this user is done: ends the context. Idempotent, bounded; after `detach` it does nothing."""
        await self._leave(NORMAL)

    async def detach(self) -> ResumeState | None:
        """Leave without ending the context, which waits for `limits.resume_window_s`; what it takes to come back.

        What was read ahead and not handed out is sent again then, and so is the last event that was handed out unless
        it was acknowledged.
        """
        await self._leave(GOING_AWAY)
        return self.resume_state

    async def _leave(self, code: int) -> None:
        if self._leaving:
            return
        self._leaving = True
        socket = self._socket
        try:
            if self._task is not None:
                self._task.cancel()
                await asyncio.gather(self._task, return_exceptions=True)
            if socket is not None:
                await self._close_socket(socket, code)
        finally:
            if socket is not None:
                socket.transport.abort()
            self._session.fail_questions("the connection was left")
            self._wakes.changed.set()

    async def _close_socket(self, socket: ClientConnection, code: int) -> None:
        """Within its time, whatever the other side does: the library waits for a stalled writer without a limit.

        What still comes is read and thrown away: the answer to the close stands behind it.
        """
        with suppress(TimeoutError, WebSocketException, OSError):
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await asyncio.gather(socket.close(code), _read_out(socket))

    # What comes

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        """The next event, in order. Safe to cancel: nothing is lost. Raises ConnectionEnded behind the last of them."""
        while self._leaving or (event := self._next()) is None:
            if self._leaving:
                raise StopAsyncIteration
            if self._end is not None:
                raise self._end
            self._session.starving = True
            self._wakes.to_write.set()
            self._wakes.changed.clear()
            await self._wakes.changed.wait()
        return event

    def _next(self) -> Event | None:
        event = self._session.next_event()
        self._wakes.room.set()
        self._wakes.to_write.set()
        return event

    def acknowledge(self, event: Event | None = None) -> None:
        """Say that everything up to that event, or to the last that was handed out, was dealt with. Idempotent.

        Raises ValueError for what was not handed out yet.
        """
        self._session.acknowledge(event)
        self._wakes.to_write.set()

    # What goes

    async def send(self, data: Any, *, event: str = "", id: str | None = None, timeout_s: float = 30.0) -> None:
        """Send one message to the agents; returns when the sidecar has accepted it.

        Asked again with the same id on a resumed socket. Raises the sidecar's refusal (NoAgent, AgentBusy, ...), and
        TransportError when the deadline passed or the context was replaced: it may have been taken then. Cancelled, the
        same.
        """
        question = None
        try:
            async with asyncio.timeout(timeout_s), self._questions:
                if self._leaving:
                    raise RuntimeError("the connection was left")
                if self._end is not None:
                    raise self._end
                answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                question = self._session.ask(id or uuid4().hex, event, data, answer)
                self._wakes.to_write.set()
                await answer
        except TimeoutError:
            raise TransportError(grpc.StatusCode.DEADLINE_EXCEEDED, "", "the deadline passed") from None
        finally:
            if question is not None:
                self._session.forget(question)

    def cancel(self, *, stream_id: str = "", id: str = "") -> None:
        """Say that a stream, or the answer to a message of one's own, is no longer wanted. Not answered."""
        self._session.cancel(frames.cancel(stream_id, id))
        self._wakes.to_write.set()

    # The sockets

    async def _run(self) -> None:
        """Socket after socket, until one ends for good."""
        try:
            while True:
                again = await self._one_socket()
                # Where the sidecar drains, it has spread its clients itself.
                await self._pause(again.after_s if again.exactly else self._back_off.next_s(at_least_s=again.after_s))
        except Exception as error:  # noqa: BLE001 - the consumer's to see, the caller's own token source included
            self._end = error
            self._session.fail_questions("the connection has ended")
        finally:
            self._wakes.changed.set()

    async def _one_socket(self) -> Again:
        """One socket, from its handshake to its end; what its end means."""
        token = await self._ask_token()
        try:
            socket = await self._dial()
        except InvalidStatus as refused:
            if refused.response.status_code == 401 and callable(self._token) and not self._token_was_refused:
                self._token_was_refused = True
                return Again()
            return after_refusal(refused)
        except (OSError, WebSocketException) as failure:
            self._last_failure = failure
            return Again()
        self._socket = socket
        try:
            await self._greet(socket, token)
            return await self._serve(socket)
        except (ProtocolError, TimeoutError) as failure:
            self._last_failure = failure
            await self._close_socket(socket, PROTOCOL_ERROR)
            return Again()
        except ConnectionClosed as closed:
            return after_close(closed)
        finally:
            self._socket = None
            if not self._leaving:
                socket.transport.abort()

    async def _ask_token(self) -> str:
        if isinstance(self._token, str):
            return self._token
        token = self._token()
        return await token if inspect.isawaitable(token) else token

    async def _greet(self, socket: ClientConnection, token: str) -> None:
        async with asyncio.timeout(WELCOME_TIMEOUT_S):
            await socket.send(self._session.hello(token))
            welcome = frames.parse(await socket.recv())
        if not isinstance(welcome, Welcome):
            raise ProtocolError("no welcome")
        self._session.welcomed(welcome)
        self._token_was_refused = False
        self._welcomed.set()
        self._wakes.changed.set()

    async def _serve(self, socket: ClientConnection) -> Again:
        loop = asyncio.get_running_loop()
        welcomed_at = loop.time()
        source = None if isinstance(self._token, str) else self._ask_token
        attachment = Attachment(socket, self._session, self._wakes, self._rates, source, self._pause)
        try:
            await attachment.run()
        except ConnectionClosed as closed:
            again = after_close(closed)
            wait_s = attachment.reconnect_after_s
            return again if wait_s is None else Again(wait_s, exactly=True)
        finally:
            if loop.time() - welcomed_at >= STABLE_S:
                self._back_off.reset()


async def _read_out(socket: ClientConnection) -> None:
    with suppress(ConnectionClosed):
        while True:
            await socket.recv()
