"""What refused handshakes and odd servers mean to a user: connect again, later, or never. Real sockets throughout."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from websockets.asyncio.server import ServerConnection, serve
from websockets.datastructures import Headers
from websockets.http11 import Request, Response

from sidecar_client import ConnectionEnded, Gap, Message, Tuning, UserConnection, connect
from tests.clients.python.test_frames import MESSAGE, WELCOME

Say = Callable[[ServerConnection, dict[str, Any], int], Any]
Refusal = tuple[int, dict[str, str]] | None


class Scripted:
    """A WebSocket server that refuses handshakes by a list, and then says to each hello what it is told to."""

    def __init__(self, refusals: list[Refusal], say: Say) -> None:
        self.hellos: list[dict[str, Any]] = []
        self.handshakes = 0
        self.pauses: list[float] = []
        self.url = ""
        self._refusals = refusals
        self._say = say

    def connection(self, token: Any = "jwt", max_events: int = 256, **settings: Any) -> UserConnection:
        """A connection to it that notes how long it would wait, and does not."""

        async def pause(wait_s: float) -> None:
            self.pauses.append(wait_s)

        tuning = Tuning(max_events=max_events, uniform=lambda: 0.5, pause=pause)
        return connect(self.url, token=token, tuning=tuning, **settings)

    async def refuse(self, socket: ServerConnection, request: Request) -> Response | None:
        self.handshakes += 1
        refusal = self._refusals.pop(0) if self._refusals else None
        return None if refusal is None else Response(refusal[0], "no", Headers(refusal[1]), b"no")

    async def handle(self, socket: ServerConnection) -> None:
        hello = json.loads(await socket.recv())
        self.hellos.append(hello)
        await self._say(socket, hello, len(self.hellos))


async def say(socket: ServerConnection, *frames: dict[str, Any]) -> None:
    for frame in frames:
        await socket.send(json.dumps(frame))


async def read_out(socket: ServerConnection) -> None:
    """Until the client closes: unread, its acknowledgements would fill up and keep the close from being seen."""
    async for _ in socket:
        pass


async def greet(socket: ServerConnection, hello: dict[str, Any], count: int) -> None:
    await say(socket, WELCOME, MESSAGE)
    await read_out(socket)


@asynccontextmanager
async def scripted(*refusals: Refusal, say: Say = greet, **settings: Any) -> AsyncIterator[Scripted]:
    made = Scripted(list(refusals), say)
    given: dict[str, Any] = {"subprotocols": ["sidecar.v1.json"], "compression": None} | settings
    async with serve(made.handle, "127.0.0.1", 0, process_request=made.refuse, **given) as server:
        made.url = f"ws://127.0.0.1:{next(iter(server.sockets)).getsockname()[1]}/v1/connect"
        yield made


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
async def test_a_refusal_that_may_pass_is_waited_out(status: int) -> None:
    refused: Refusal = (status, {"Retry-After": "7"})
    async with scripted(refused, refused) as server, server.connection() as user:
        assert isinstance(await anext(user), Message)
    assert server.pauses == [7.125, 7.25]


@pytest.mark.parametrize("retry_after", ["soon", "-1", "1e9", "٣", ""])
async def test_a_strange_retry_after_is_none(retry_after: str) -> None:
    async with scripted((503, {"Retry-After": retry_after.encode().decode("latin-1")})) as server, server.connection():
        assert server.pauses == [0.125]


async def test_a_long_retry_after_is_cut() -> None:
    async with scripted((503, {"Retry-After": "99999999"})) as server, server.connection():
        assert server.pauses == [300.125]


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 414, 426, 431, 505])
async def test_a_refusal_for_good_ends(status: int) -> None:
    async with scripted(*[(status, {})] * 5) as server:
        with pytest.raises(ConnectionEnded) as ended:
            async with server.connection():
                pass
    assert ended.value.code == status
    assert server.handshakes == 1


async def test_after_401_the_token_is_asked_for_once_more() -> None:
    tokens = iter(["old", "new", "newest"])
    async with scripted((401, {})) as server, server.connection(lambda: next(tokens)):
        assert [hello["token"] for hello in server.hellos] == ["new"]
    tokens = iter(["old", "new", "newest"])
    async with scripted((401, {}), (401, {}), (401, {})) as server:
        with pytest.raises(ConnectionEnded):
            async with server.connection(lambda: next(tokens)):
                pass
    assert server.handshakes == 2


async def test_a_redirect_is_not_followed_with_a_token() -> None:
    async with scripted() as elsewhere, scripted((302, {"Location": elsewhere.url})) as server:
        with pytest.raises(ConnectionEnded) as ended:
            async with server.connection():
                pass
    assert ended.value.code == 302
    assert elsewhere.handshakes == 0


async def test_what_is_no_sidecar_is_not_told_the_token() -> None:
    async with scripted(subprotocols=None) as server:
        with pytest.raises(ConnectionEnded) as ended:
            async with server.connection():
                pass
    assert ended.value.code == 1002
    assert server.hellos == []


@pytest.mark.parametrize("code", [1001, 1012, 1013, 3000, 4000, 4001, 4002, 4003, 4005])
async def test_below_4500_it_comes_back(code: int) -> None:
    async def close_once(socket: ServerConnection, hello: dict[str, Any], count: int) -> None:
        if count == 1:
            await say(socket, WELCOME)
            await socket.close(code)
        else:
            await say(socket, WELCOME | {"recovery": "full"}, MESSAGE)
            await read_out(socket)

    async with scripted(say=close_once) as server, server.connection() as user:
        assert isinstance(await anext(user), Message)
    assert server.hellos[1]["resume"] == {"token": "r", "last_sequence": 0, "attempt": 1}
    assert server.pauses == [1.125 if code == 1013 else 0.125]


@pytest.mark.parametrize("code", [1000, 1002, 1003, 1007, 1009, 4500, 4503, 4507, 4508, 4900, 4999])
async def test_from_4500_on_it_does_not(code: int) -> None:
    async def close(socket: ServerConnection, hello: dict[str, Any], count: int) -> None:
        await say(socket, WELCOME, MESSAGE)
        await socket.close(code, "why")

    async with scripted(say=close) as server, server.connection() as user:
        assert isinstance(await anext(user), Message)
        with pytest.raises(ConnectionEnded) as ended:
            await anext(user)
    assert (ended.value.code, ended.value.reason) == (code, "why")
    assert server.pauses == []


async def test_a_draining_sidecar_says_how_long() -> None:
    async def drain(socket: ServerConnection, hello: dict[str, Any], count: int) -> None:
        await say(socket, WELCOME | {"recovery": "full"})
        if count == 1:
            await say(socket, {"type": "draining", "reconnect_in_ms": 2_730})
            await socket.close(1012)
        else:
            await say(socket, MESSAGE)
            await read_out(socket)

    async with scripted(say=drain) as server, server.connection() as user:
        await anext(user)
    assert server.pauses == [2.73]


async def test_a_socket_that_is_closed_at_once_is_no_success() -> None:
    async def close(socket: ServerConnection, hello: dict[str, Any], count: int) -> None:
        await say(socket, WELCOME | {"recovery": "full"})
        await socket.close(4005 if count < 5 else 4900)

    async with scripted(say=close) as server, server.connection() as user:
        with pytest.raises(ConnectionEnded):
            await anext(user)
    assert server.pauses == [0.125, 0.25, 0.5, 1.0]


async def test_a_hole_is_resumed_over_and_nothing_is_acknowledged_past_it() -> None:
    async def skip_once(socket: ServerConnection, hello: dict[str, Any], count: int) -> None:
        if count == 1:
            await say(socket, WELCOME, MESSAGE, MESSAGE | {"sequence": 3, "data": 3})
        else:
            gap = {"type": "gap", "from": 2, "to": 2, "reason": "lost"}
            await say(socket, WELCOME | {"recovery": "gap"}, MESSAGE, gap, MESSAGE | {"sequence": 3, "data": 3})
        await read_out(socket)

    async with scripted(say=skip_once) as server, server.connection() as user:
        first, gap, third = await anext(user), await anext(user), await anext(user)
    assert isinstance(first, Message)
    assert isinstance(third, Message)
    assert (first.sequence, third.sequence) == (1, 3)
    assert gap == Gap(2, 2, "lost", "c")
    assert server.hellos[1]["resume"]["last_sequence"] <= 1


@pytest.mark.parametrize(
    "garbage",
    ["{", b"\x00", '{"type":"message"}', json.dumps(WELCOME), json.dumps(MESSAGE | {"data": "x" * 9_000_000})],
)
async def test_a_sidecar_that_breaks_the_protocol_does_not_break_the_client(garbage: str | bytes) -> None:
    async def spoil_once(socket: ServerConnection, hello: dict[str, Any], count: int) -> None:
        await say(socket, WELCOME | {"recovery": "full"})
        if count == 1:
            await socket.send(garbage)
        else:
            await say(socket, MESSAGE)
        await read_out(socket)

    async with scripted(say=spoil_once) as server, server.connection() as user:
        if len(garbage) > 8_000_000:
            with pytest.raises(ConnectionEnded) as ended:
                await anext(user)
            assert ended.value.code == 1009
        else:
            assert isinstance(await anext(user), Message)
            assert len(server.hellos) == 2


async def test_no_more_is_read_ahead_than_there_is_room_for() -> None:
    """40 MB: more than the kernel, the library and four events hold."""
    all_sent = asyncio.Event()

    async def flood(socket: ServerConnection, hello: dict[str, Any], count: int) -> None:
        await say(socket, WELCOME)
        for sequence in range(1, 41):
            await say(socket, MESSAGE | {"sequence": sequence, "data": "x" * 1_000_000})
        all_sent.set()
        await read_out(socket)

    async with scripted(say=flood) as server, server.connection(max_events=4) as user:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(all_sent.wait(), 1.5)
        events = [await anext(user) for _ in range(40)]
        assert [event.sequence for event in events if isinstance(event, Message)] == list(range(1, 41))
        assert all_sent.is_set()


async def test_silence_instead_of_a_welcome_ends_in_time() -> None:
    async def be_silent(socket: ServerConnection, hello: dict[str, Any], count: int) -> None:
        await read_out(socket)

    loop = asyncio.get_running_loop()
    async with scripted(say=be_silent) as server:
        started = loop.time()
        with pytest.raises(Exception, match="no welcome in time"):
            async with server.connection(open_timeout_s=0.3):
                pass
        assert loop.time() - started < 5
