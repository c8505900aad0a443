"""The fault proxy does what it is told, seen from both of its ends: byte counts, ends of file, resets, full buffers."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random

import pytest

from tests.support.fault_flow import RESET_AT_CLOSE, Plan, Spoiling
from tests.support.fault_proxy import STRIKES, Admission, FaultProxy, fault_proxy

TIMEOUT_S = 10
SMALL_BUFFER = 4_096


class End:
    """One end of a connection, bytes as the kernel has them."""

    def __init__(self, plain: socket.socket) -> None:
        self.plain = plain

    async def send(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.plain, data)

    async def read(self, limit: int = 65_536) -> bytes:
        """What one recv(2) gives; empty at the end of file. Raises ConnectionResetError after an RST."""
        async with asyncio.timeout(TIMEOUT_S):
            return await asyncio.get_running_loop().sock_recv(self.plain, limit)

    async def read_exactly(self, count: int) -> bytes:
        data = bytearray()
        while len(data) < count:
            piece = await self.read(count - len(data))
            assert piece, f"the end after {bytes(data)!r}"
            data += piece
        return bytes(data)

    def has_nothing(self) -> bool:
        """Whether a recv(2) would wait."""
        try:
            self.plain.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        return False

    def reset(self) -> None:
        self.plain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_AT_CLOSE)
        self.plain.close()


class Wire:
    """A proxy between a listener and the clients of a test."""

    def __init__(self, listener: socket.socket, proxy: FaultProxy) -> None:
        self.listener = listener
        self.proxy = proxy
        self.ends: list[End] = []

    async def dial(self) -> End:
        """A client's connection to the proxy, whatever becomes of it."""
        plain = socket.socket()
        plain.setblocking(False)
        if self.proxy.buffer_bytes is not None:
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, self.proxy.buffer_bytes)
        self.ends.append(End(plain))
        await asyncio.get_running_loop().sock_connect(plain, ("127.0.0.1", self.proxy.port))
        return self.ends[-1]

    async def connect(self) -> tuple[End, End]:
        """The client's end and the server's of a new connection."""
        before = self.proxy.accepted
        client = await self.dial()
        async with asyncio.timeout(TIMEOUT_S):
            plain, _ = await asyncio.get_running_loop().sock_accept(self.listener)
            self.ends.append(End(plain))
            await self.proxy.connected(before + 1)
        return client, self.ends[-1]


class Waiter:
    """A delay's waiter that waits until it is told to go on."""

    def __init__(self) -> None:
        self.asked: asyncio.Queue[float] = asyncio.Queue()
        self.on = asyncio.Event()

    async def __call__(self, delay_s: float) -> None:
        self.asked.put_nowait(delay_s)
        await self.on.wait()


@asynccontextmanager
async def wire(buffer_bytes: int | None = None, **members: Waiter) -> AsyncIterator[Wire]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        if buffer_bytes is not None:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
        target = f"127.0.0.1:{listener.getsockname()[1]}"
        async with fault_proxy(target, buffer_bytes=buffer_bytes, **members) as proxy:
            between = Wire(listener, proxy)
            try:
                yield between
            finally:
                for end in between.ends:
                    end.plain.close()


async def test_both_ways_and_both_ends_of_file_pass() -> None:
    async with wire() as between:
        client, server = await between.connect()
        await client.send(b"question")
        assert await server.read() == b"question"
        client.plain.shutdown(socket.SHUT_WR)
        assert await server.read() == b""
        await server.send(b"answer")
        assert await client.read() == b"answer"
        connection = between.proxy.latest
        server.plain.close()
        assert await client.read() == b""
        await connection.over.wait()
        assert (connection.up.passed, connection.down.passed) == (8, 6)
        assert between.proxy.connections == []


@pytest.mark.parametrize("way", ["up", "down"])
async def test_a_delay_holds_one_direction_until_it_is_over(way: str) -> None:
    waiter = Waiter()
    async with wire(wait=waiter) as between:
        client, server = await between.connect()
        sender, receiver = (client, server) if way == "up" else (server, client)
        getattr(between.proxy.latest, way).delay_s = 0.25
        await sender.send(b"late")
        assert await waiter.asked.get() == 0.25
        await receiver.send(b"in time")
        assert await sender.read() == b"in time"
        assert receiver.has_nothing()
        waiter.on.set()
        assert await receiver.read() == b"late"


async def test_the_loops_timer_waits_out_a_delay() -> None:
    async with wire() as between:
        client, server = await between.connect()
        between.proxy.latest.up.delay_s = 0.02
        loop = asyncio.get_running_loop()
        before = loop.time()
        await client.send(b"late")
        assert await server.read() == b"late"
        assert loop.time() - before >= 0.02


async def test_one_byte_at_a_time() -> None:
    async with wire() as between:
        client, server = await between.connect()
        between.proxy.latest.up.one_byte = True
        await client.send(b"0123456789" * 10)
        pieces: list[bytes] = []
        while sum(map(len, pieces)) < 100:
            pieces.append(await server.read())
        assert b"".join(pieces) == b"0123456789" * 10
        assert max(map(len, pieces)) <= 4
        await server.send(b"0123456789" * 10)
        assert len(await client.read()) == 100


async def test_a_stall_fills_the_senders_buffer_and_loses_nothing() -> None:
    async with wire(SMALL_BUFFER) as between:
        client, server = await between.connect()
        flow = between.proxy.latest.up
        flow.stall()
        sent = await fill(client)
        assert sent < 50_000
        assert server.has_nothing()
        assert flow.passed == 0
        await server.send(b"the other way")
        assert await client.read() == b"the other way"
        flow.resume()
        assert await server.read_exactly(sent) == b"x" * sent


async def fill(end: End) -> int:
    """Send until the kernel takes no more; the number of bytes. Others run in between, and take what they will."""
    sent = 0
    for _ in range(1_000):
        try:
            sent += end.plain.send(b"x" * 8_192)
        except BlockingIOError:
            for _ in range(20):
                await asyncio.sleep(0)
            try:
                sent += end.plain.send(b"x")
            except BlockingIOError:
                return sent
    raise AssertionError(f"{sent} bytes, and no end")


async def test_a_connection_can_begin_stalled_both_ways() -> None:
    async with wire() as between:
        stalled = Spoiling(stalled=True)
        between.proxy.plan = Plan(up=stalled, down=stalled)
        client, server = await between.connect()
        await client.send(b"a")
        await server.send(b"b")
        for _ in range(20):
            await asyncio.sleep(0)
        assert client.has_nothing()
        assert server.has_nothing()
        between.proxy.latest.resume()
        assert (await server.read(), await client.read()) == (b"a", b"b")


@pytest.mark.parametrize("way", ["up", "down"])
@pytest.mark.parametrize("count", [0, 1, 40])
async def test_a_reset_after_so_many_bytes(way: str, count: int) -> None:
    async with wire() as between:
        client, server = await between.connect()
        sender, receiver = (client, server) if way == "up" else (server, client)
        flow = getattr(between.proxy.latest, way)
        await sender.send(b"before")
        assert await receiver.read() == b"before"
        flow.reset_after(count)
        await sender.send(b"x" * 100)
        assert await receiver.read_exactly(count) == b"x" * count
        for end in (receiver, sender):
            with pytest.raises(ConnectionResetError):
                await end.read()
        assert flow.passed == 6 + count


@pytest.mark.parametrize("count", [0, 40])
async def test_a_cut_after_so_many_bytes(count: int) -> None:
    async with wire() as between:
        between.proxy.plan = Plan(down=Spoiling(cut_after=count))
        client, server = await between.connect()
        await server.send(b"x" * 100)
        assert await client.read_exactly(count) == b"x" * count
        assert await client.read() == b""
        assert await server.read() == b""


async def test_each_connection_can_have_a_plan_of_its_own() -> None:
    async with wire() as between:
        between.proxy.plans = iter([Plan(), Plan(up=Spoiling(cut_after=2))])
        for passed, plan in ((4, Plan()), (2, Plan()), (3, Plan(up=Spoiling(cut_after=3)))):
            between.proxy.plan = plan
            client, server = await between.connect()
            await client.send(b"abcd")
            client.plain.shutdown(socket.SHUT_WR)
            assert await server.read_exactly(passed) == b"abcd"[:passed]
            assert await server.read() == b""


async def test_a_cut_is_an_end_of_file_though_bytes_are_under_way() -> None:
    async with wire() as between:
        client, server = await between.connect()
        connection = between.proxy.latest
        connection.up.stall()
        await client.send(b"never read")
        between.proxy.cut_all()
        assert await server.read() == b""
        assert await client.read() == b""
        await client.send(b"thrown away")
        client.plain.shutdown(socket.SHUT_WR)
        server.plain.shutdown(socket.SHUT_WR)
        assert await client.read() == b""
        assert connection.up.passed == 0


async def test_a_reset_of_all_is_seen_by_all() -> None:
    async with wire() as between:
        ends = [*await between.connect(), *await between.connect()]
        between.proxy.reset_all()
        for end in ends:
            with pytest.raises(ConnectionResetError):
                await end.read()


@pytest.mark.parametrize("side", [0, 1])
async def test_an_ends_own_reset_is_passed_on(side: int) -> None:
    async with wire() as between:
        ends = await between.connect()
        ends[side].reset()
        with pytest.raises(ConnectionResetError):
            await ends[1 - side].read()


@pytest.mark.parametrize("side", [0, 1])
async def test_a_stall_holds_back_an_end_and_a_reset(side: int) -> None:
    async with wire() as between:
        ends = await between.connect()
        connection = between.proxy.latest
        connection.stall()
        ends[side].reset()
        for _ in range(20):
            await asyncio.sleep(0)
        assert ends[1 - side].has_nothing()
        assert not connection.over.is_set()
        connection.resume()
        with pytest.raises(ConnectionResetError):
            await ends[1 - side].read()


async def test_a_blackhole_accepts_and_never_answers() -> None:
    async with wire() as between:
        between.proxy.admission = Admission.BLACKHOLE
        client = await between.dial()
        await client.send(b"anybody?")
        await between.proxy.connected(1)
        assert client.has_nothing()
        with pytest.raises(BlockingIOError):
            between.listener.accept()
        between.proxy.calm()
        with pytest.raises(ConnectionResetError):  # closed with bytes unread
            await client.read()
        again, server = await between.connect()
        await again.send(b"you")
        assert await server.read() == b"you"


async def test_new_connections_can_be_reset() -> None:
    async with wire() as between:
        between.proxy.admission = Admission.RESET
        client = await between.dial()
        with pytest.raises(ConnectionResetError):
            await client.read()
        with pytest.raises(BlockingIOError):
            between.listener.accept()


async def test_the_target_may_be_away_and_come_back() -> None:
    async with wire() as between:
        port = between.listener.getsockname()[1]
        between.listener.close()
        client = await between.dial()
        with pytest.raises(ConnectionResetError):
            await client.read()
        with socket.create_server(("127.0.0.1", port)) as between.listener:
            between.listener.setblocking(False)
            again, server = await between.connect()
            await server.send(b"back")
            assert await again.read() == b"back"


async def test_a_strike_is_what_the_seed_draws() -> None:
    drawn = [await strikes(Random(seed), 60) for seed in (7, 7, 8)]
    assert drawn[0] == drawn[1]
    assert drawn[0] != drawn[2]
    assert {name for seed in drawn for name in seed} == set(STRIKES)


async def strikes(random: Random, count: int) -> list[str]:
    """What is drawn, each for a connection of its own."""
    found = []
    async with wire() as between:
        assert between.proxy.strike(random) == ""
        for _ in range(count):
            await between.connect()
            found.append(between.proxy.strike(random))
            connection = between.proxy.latest
            connection.reset()
            await connection.over.wait()
            await asyncio.sleep(0)
    return found


async def test_calm_ends_every_fault() -> None:
    async with wire() as between:
        client, server = await between.connect()
        connection = between.proxy.latest
        for name in ("delay", "one byte at a time", "stall both ways", "reset in mid-frame", "cut in mid-frame"):
            for flow in connection.flows:
                STRIKES[name](connection, flow, Random(1))
        between.proxy.plan = Plan(up=Spoiling(reset_after=0))
        between.proxy.plans = iter([Plan(up=Spoiling(cut_after=0))])
        between.proxy.calm()
        for left, right in ((client, server), (server, client), await between.connect()):
            await left.send(b"y" * 1_000)
            assert await right.read_exactly(1_000) == b"y" * 1_000


async def test_nothing_is_left_of_a_proxy() -> None:
    before, tasks = os.listdir("/proc/self/fd"), asyncio.all_tasks()
    async with wire() as between:
        await between.connect()
        between.proxy.latest.stall()
        await between.connect()
        between.proxy.admission = Admission.BLACKHOLE
        await between.dial()
        await between.proxy.connected(3)
        assert asyncio.all_tasks() != tasks
    assert os.listdir("/proc/self/fd") == before
    assert asyncio.all_tasks() == tasks
