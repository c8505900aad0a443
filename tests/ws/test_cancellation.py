"""A connection that ends at any await between hello and welcome: no context, socket or task of it is left over."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosedError

from sidecar.cluster.local import LocalOwnerDirectory
from sidecar.core.close_codes import Close
from sidecar.core.context_factory import Handshake
from sidecar.core.factory import WebSocketManagerFactory
from sidecar.core.manager import IsolatedWebSocketManager
from sidecar.core.message import Message
from sidecar.core.ports import AuditEvent
from sidecar.core.writes import WriteBatch
from sidecar.ws.admission import Admission
from sidecar.ws.edge import WebSocketEdge
from sidecar.ws.frames import JsonEncoder
from sidecar.ws.handshake import Offer
from sidecar.ws.resume_tokens import digest_of, new_resume_token
from sidecar.ws.session import JsonSession
from sidecar.ws.socket import ClientSocket
from tests.support.doubles import LaterStore, RecordingSocket
from tests.ws.harness import USUAL_HEADERS, Harness, until

WRITTEN, KEPT, LAST = 4, 8, 16
"""The turns of the loop at which the trail has the records, and the store the context."""
End = Callable[["Line", asyncio.Task[None]], None]


class Line:
    """What a session asks of its connection: what a client says, what it is told, and that it has gone."""

    paused = False

    def __init__(self, *frames: dict[str, Any]) -> None:
        offer = Offer(token=None, raw=False, answer="sidecar.v1.json", request_id=None, origin=None, user_agent=None)
        self.admission = Admission(offer, None, "192.0.2.1")
        self.transport = self
        self.told: list[bytes] = []
        self.closes: list[Close] = []
        self.socket: ClientSocket
        self._frames = deque(json.dumps(frame) for frame in frames)
        self.unread = len(frames)
        self._gone = asyncio.Event()

    async def recv(self) -> str:
        await asyncio.sleep(0)
        if self._frames:
            return self._frames.popleft()
        await self._gone.wait()
        raise ConnectionClosedError(None, None)

    def write(self, data: bytes) -> None:
        self.told.append(data)

    def begin_close(self, close: Close) -> None:
        self.closes.append(close)

    def lose(self) -> None:
        """The TCP connection ends, as the transport tells it."""
        self.socket.connection_ended(1006)
        self._gone.set()

    @property
    def welcomed(self) -> bool:
        return b'"type":"welcome"' in b"".join(self.told)


def is_cancelled(line: Line, task: asyncio.Task[None]) -> None:
    """The edge ends it, and its transport with it."""
    task.cancel()
    line.lose()


def is_lost(line: Line, task: asyncio.Task[None]) -> None:
    """The client goes; whatever the session waits for is told to it all the same."""
    line.lose()


class Counter:
    """Sessions of an edge whose trail and whose store answer when they are told to."""

    def __init__(self, harness: Harness) -> None:
        self.harness = harness
        self.store = LaterStore(creates_later=True)
        self.factory = WebSocketManagerFactory(
            harness.limits,
            store=self.store,
            owners=LocalOwnerDirectory(),
            clock=harness.clock,
            counters=harness.counters,
            randomness=secrets.token_hex,
            writes=WriteBatch(),
        )
        self.ports = replace(harness.edge._ports, factory=self.factory)

    def line(self, **hello: Any) -> Line:
        line = Line({"type": "hello", "token": self.harness.token(), **hello})
        line.socket = ClientSocket(line, f"a-{secrets.token_hex(4)}", self.ports.clock, self.factory.writes)  # type: ignore[arg-type]
        return line

    async def run(self, line: Line, turns: int, end: End | None) -> None:
        """A session for so many turns of the loop; then it ends so, or goes on (None) until it has been welcomed."""
        before = asyncio.all_tasks()
        self.harness.trail.hold()
        task = asyncio.create_task(JsonSession(line, line.socket, self.ports).run())  # type: ignore[arg-type]
        for turn in range(turns):
            self.answer(turn)
            await asyncio.sleep(0)
        (end or is_lost)(line, task)
        self.answer(WRITTEN)
        for _ in range(5):
            await asyncio.sleep(0)
        self.answer(KEPT)
        await asyncio.gather(task, return_exceptions=True)
        assert task.cancelled() or isinstance(task.exception(), ConnectionClosedError)
        assert asyncio.all_tasks() == before

    def answer(self, turn: int) -> None:
        assert self.store.creations is not None
        if turn == WRITTEN:
            self.harness.trail.release()
        if turn == KEPT:
            while self.store.creations:
                self.store.creations.popleft()(None)

    def connected(self) -> tuple[IsolatedWebSocketManager, RecordingSocket, str]:
        """A context of alice's from before, its primary, and its resume token."""
        token = new_resume_token(secrets.token_hex)
        user = self.ports.users.verify(self.harness.token())
        context = self.ports.contexts.create_context(user, Handshake(None, {}), self.ports.clock.now())
        manager = self.factory.create_manager(
            context, JsonEncoder(), self.ports.clock.now(), resume_digest=digest_of(token)
        )
        self.answer(KEPT)
        socket = RecordingSocket("a-before")
        manager.add_connection(context, socket, self.ports.clock.now())
        return manager, socket, token

    def send(self, manager: IsolatedWebSocketManager, payload: bytes) -> None:
        manager.send_to_user(manager.context, Message("", "", payload), self.ports.clock.now())
        self.store.confirm_all()

    def nobody_left(self) -> bool:
        """No context, and nothing counted for any user."""
        statistics = self.factory.get_factory_stats()
        return statistics.active_managers == statistics.users_with_active_managers == 0


@pytest.mark.parametrize("end", [is_cancelled, is_lost])
@pytest.mark.parametrize("hello", [{}, {"resume": {"token": "unknown", "last_sequence": 0, "attempt": 1}}])
async def test_an_opening(edge: Harness, end: End, hello: dict[str, Any]) -> None:
    seen = set()
    for turns in range(LAST):
        counter = Counter(edge)
        edge.trail.records.clear()
        line = counter.line(**hello)
        await counter.run(line, turns, end)
        seen.add(line.welcomed)
        assert not line.welcomed or turns > KEPT  # nobody is told of a context before it is kept
        made = counter.store.created
        if line.welcomed:
            (manager,) = counter.factory
            assert manager.connections == ()
            assert manager.detached_at is not None
            manager.end("over", None, counter.ports.clock.now())
        assert counter.nobody_left()
        assert counter.store.disposed == [one.isolation_key for one in made]
        assert len(edge.trail.of(AuditEvent.CONTEXT_CLOSED)) == len(made)
        assert len(edge.trail.of(AuditEvent.CONTEXT_OPENED)) <= len(made)
    assert seen == {False, True}


@pytest.mark.parametrize("end", [is_cancelled, is_lost])
async def test_a_resume(edge: Harness, end: End) -> None:
    """Before its grant nobody is fenced and the former socket is served; after it the context waits for the next."""
    seen = set()
    for turns in range(LAST):
        counter = Counter(edge)
        manager, before, token = counter.connected()
        for number in range(3):
            counter.send(manager, b"%d" % number)
        line = counter.line(resume={"token": token, "last_sequence": 1, "attempt": 1})
        await counter.run(line, turns, end)
        seen.add(line.welcomed)
        assert tuple(counter.factory) == (manager,)
        counter.send(manager, b"3")
        if line.welcomed:
            assert [close.code for close in before.closes] == [4503]
            assert len(before.frames) == 3
            assert manager.connections == ()
        else:
            assert manager.connections == (before,)
            assert before.closes == []
            assert len(before.frames) == 4
        assert manager.lifecycle._sockets == {}
        again = counter.line(resume={"token": token, "last_sequence": 1, "attempt": 2})
        await counter.run(again, LAST, None)
        told = b"".join(again.told)
        assert b'"recovery":"full"' in told
        assert told.count(b'"type":"message"') == 3
    assert seen == {False, True}


@pytest.mark.parametrize("end", [is_cancelled, is_lost])
async def test_a_mirror(edge: Harness, end: End) -> None:
    seen = set()
    for turns in range(LAST):
        counter = Counter(edge)
        manager, primary, token = counter.connected()
        line = counter.line(mirror={"token": token})
        await counter.run(line, turns, end)
        seen.add(line.welcomed)
        assert tuple(counter.factory) == (manager,)
        assert manager.connections == (primary,)
        assert manager.lifecycle._sockets == {}
        counter.send(manager, b"1")
        assert len(primary.frames) == 1
        assert b'"type":"message"' not in b"".join(line.told)
    assert seen == {False, True}


# Raw: the context is made in the handshake


async def raw_handshake(counter: Counter, **settings: Any) -> tuple[WebSocketEdge, Any, Any]:
    """An edge, and a raw client's handshake that waits for the store."""
    ports = counter.ports
    edge = WebSocketEdge(
        replace(ports.settings, **settings),
        users=ports.users,
        contexts=ports.contexts,
        factory=counter.factory,
        tokens=ports.tokens,
        audit=ports.audit,
        refusals=ports.refusals,
        counters=ports.counters,
        clock=ports.clock,
        randomness=secrets.token_hex,
    )
    await edge.start()
    reader, writer = await asyncio.open_connection("127.0.0.1", edge.port)
    headers = [*USUAL_HEADERS, ("Authorization", f"Bearer {counter.harness.token()}")]
    lines = ["GET /v1/connect HTTP/1.1", *(f"{name}: {value}" for name, value in headers), "", ""]
    writer.write("\r\n".join(lines).encode())
    await until(lambda: counter.store.creations)
    return edge, reader, writer


async def test_a_raw_client_goes_before_its_context_is_kept(edge: Harness) -> None:
    counter = Counter(edge)
    raw, _, writer = await raw_handshake(counter)
    writer.transport.abort()
    await until(counter.nobody_left)
    assert counter.store.disposed == [one.isolation_key for one in counter.store.created]
    counter.answer(KEPT)
    await raw.close()
    assert [record.fields["reason"] for record in edge.trail.of(AuditEvent.CONTEXT_CLOSED)] == ["socket_lost"]


async def test_a_raw_handshake_ends_with_its_time(edge: Harness) -> None:
    counter = Counter(edge)
    raw, reader, writer = await raw_handshake(counter, handshake_timeout_s=0.1)
    assert b" 101 " not in await reader.read()
    await until(counter.nobody_left)
    assert len(counter.store.disposed) == 1
    counter.answer(KEPT)
    writer.close()
    await raw.close()


async def test_a_raw_context_that_the_store_cannot_keep(edge: Harness) -> None:
    counter = Counter(edge)
    raw, reader, writer = await raw_handshake(counter)
    assert counter.store.creations
    counter.store.creations.popleft()(OSError("text that nobody is to see"))
    answer = await reader.read()
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b"nobody" not in answer
    writer.close()
    assert counter.nobody_left()
    await raw.close()
