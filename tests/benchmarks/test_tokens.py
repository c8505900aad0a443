"""Tokens to many users: frames that are what the stubs make, chunks that came in order, and rates that are held."""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager

import pytest

from benchmarks.measure import Comparison, Triple, Window
from benchmarks.servers import RunFailed, Server, running_floor, running_sidecar
from benchmarks.sockets import Tally
from benchmarks.tokens import (
    CHUNKS,
    PAYLOAD_BYTES,
    AckingTokenClient,
    Arrivals,
    Schedule,
    TokenClient,
    TokenFrames,
    number_of,
    payload,
    token,
    varint,
)
from benchmarks.works.token_streams import Held, highest, pace, tokens
from sidecar.api.v1 import delivery_service_pb2 as pb
from sidecar.api.v1 import types_pb2 as types


@pytest.mark.parametrize(
    ("first", "end"), [(0, 1), (1, 3), (150, 450), (299, 301), (300 * 199, 300 * 201), (300 * 127 + 5, 300 * 129)]
)
def test_a_frame_is_what_the_stubs_make_of_its_messages(first: int, end: int) -> None:
    users = 300
    items = [
        pb.DeliverRequest.LaneMessage(lane=number % users, message=token(number // users))
        for number in range(first, end)
    ]
    expected = pb.DeliverRequest(messages=pb.DeliverRequest.Messages(items=items))
    assert pb.DeliverRequest.FromString(TokenFrames(users).frame(first, end)) == expected


def test_a_stream_has_so_many_chunks_and_ends_with_the_last() -> None:
    places = [(token(chunk).stream.stream_id, token(chunk).stream.index) for chunk in (0, CHUNKS - 1, CHUNKS)]
    assert places == [("answer-0", 0), ("answer-0", CHUNKS - 1), ("answer-1", 0)]
    assert [token(chunk).stream.state for chunk in (0, CHUNKS - 1)] == [
        types.STREAM_STATE_OPEN,
        types.STREAM_STATE_END,
    ]


@pytest.mark.parametrize("chunk", [0, 7, 123, 9_999_999])
def test_a_payload_says_which_chunk_it_is_bare_and_in_a_frame(chunk: int) -> None:
    data = payload(chunk)
    assert len(data) == PAYLOAD_BYTES
    assert number_of(data) == number_of(b'{"type":"message","data":' + data + b"}") == chunk


@pytest.mark.parametrize(
    ("value", "encoded"),
    [(0, b"\0"), (127, b"\x7f"), (128, b"\x80\x01"), (300, b"\xac\x02"), (16_384, b"\x80\x80\x01")],
)
def test_a_varint_is_protobuf_s(value: int, encoded: bytes) -> None:
    assert varint(value) == encoded


def test_each_user_s_chunks_are_due_one_after_the_other_at_an_even_pace() -> None:
    schedule = Schedule(started=100.0, first_round=7, users=4, rate=8.0)
    assert [schedule.due(7, 0), schedule.due(7, 3), schedule.due(8, 0)] == [100.0, 100.375, 100.5]


def served(*chunks: int) -> bytes:
    return b"".join(bytes((0x81, PAYLOAD_BYTES)) + payload(chunk) for chunk in chunks)


async def welcomed(tally: Tally, arrivals: Arrivals) -> TokenClient:
    client = TokenClient(b"request", b"hello", tally, arrivals)
    client.connection_made(Mute())
    client.data_received(b"HTTP/1.1 101 Switching Protocols\r\n\r\n\x81\x02ok")
    return client


class Mute(asyncio.Transport):
    """Takes what is written."""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Say nothing."""


async def test_the_latencies_of_every_tenth_user_are_noted() -> None:
    tally, arrivals = Tally(), Arrivals()
    clients = [await welcomed(tally, arrivals) for _ in range(11)]
    for client in clients:
        client.data_received(served(0, 1))
        client.data_received(served(2))
    await tally.reach(33)
    assert len(arrivals.latencies_s) == 2 * 3


@pytest.mark.parametrize("chunks", [(1,), (0, 0), (0, 2)])
async def test_a_chunk_that_is_missing_or_doubled_fails_the_run(chunks: tuple[int, ...]) -> None:
    tally = Tally()
    client = await welcomed(tally, Arrivals())
    client.data_received(served(*chunks))
    with pytest.raises(RunFailed, match=r"after 0 chunks came \d"):
        await tally.reach(len(chunks))


@pytest.mark.parametrize(
    ("running", "client"),
    [(running_floor, TokenClient), (running_sidecar, TokenClient), (running_sidecar, AckingTokenClient)],
)
async def test_messages_go_at_their_rate_and_arrive_in_order(running: type, client: type[TokenClient]) -> None:
    server: AbstractAsyncContextManager[Server] = running()
    async with tokens(server, 20, client) as to:
        for _ in range(2):
            measured = await to.measure(400.0, 0.25)
            assert measured.operations == 100
            assert measured.wall_s > 0.2
            assert len(measured.latencies_s) == 2 * 5
            assert min(measured.latencies_s) > 0
        assert to.rounds == 10
        assert to.crowd.tally.count == 200


async def test_a_chunk_that_is_refused_fails_the_run() -> None:
    async with tokens(running_sidecar(), 2) as to:
        to.rounds = 1  # the sidecar waits for the first chunk of all
        with pytest.RaisesGroup(pytest.RaisesExc(RunFailed, match="STREAM_OUT_OF_ORDER")):
            await to.measure(100.0, 0.1)


def test_a_load_that_is_not_the_one_asked_for_is_told() -> None:
    fast, slow = Window(100, 1.0, 1.0, ()), Window(100, 1.0, 2.0, ())
    on_time, behind = Triple(fast, fast, fast), Triple(fast, slow, fast)
    assert pace(Comparison((on_time, on_time, behind)), 100.0) == ""
    assert "of 100 a second the floor took 100 and the sidecar 50" in pace(Comparison((on_time, behind, behind)), 100.0)


@pytest.mark.parametrize(
    ("share", "p99_s", "good"), [(0.5, 1.0, True), (0.97, 0.1, False), (0.5, 1.01, False), (0.96, 0.9, True)]
)
def test_a_rate_is_held_with_time_left_and_messages_within_a_second(share: float, p99_s: float, good: bool) -> None:
    assert Held(1.0, 1.0, share, 1.0, 0.1, p99_s).good is good


class Machine:
    """Holds a rate up to so much for long, and some more for a while."""

    def __init__(self, most: float) -> None:
        self.most = most
        self.tried: list[tuple[float, float]] = []

    async def hold(self, rate: float, seconds: float) -> Held:
        self.tried.append((round(rate, 1), seconds))
        holds = rate <= self.most * (1.2 if seconds < 10 else 1.0)
        return Held(rate, rate, 0.5 if holds else 1.0, 0.5, 0.1, 0.1)


async def test_the_rate_rises_in_short_steps_and_falls_until_it_is_held_for_long() -> None:
    machine = Machine(100.0)
    held, lost = await highest(machine, 100.0, probe_s=3.0, hold_s=30.0, steps=20)
    assert machine.tried == [(100.0, 3.0), (110.0, 3.0), (121.0, 3.0), (108.9, 30.0), (81.7, 30.0)]
    assert (held.good, lost.good) == (True, False)


async def test_a_machine_that_is_not_quiet_is_asked_for_much_less() -> None:
    machine = Machine(50.0)
    held, lost = await highest(machine, 100.0, probe_s=3.0, hold_s=30.0, steps=20)
    assert machine.tried == [(100.0, 3.0), (90.0, 30.0), (67.5, 30.0), (33.8, 30.0)]
    assert held.rate == pytest.approx(33.75)
    assert lost.rate == pytest.approx(67.5)


async def test_a_machine_that_holds_nothing_fails_the_run() -> None:
    with pytest.raises(RunFailed, match="no rate was held"):
        await highest(Machine(0.0), 100.0, probe_s=3.0, hold_s=30.0, steps=20)
