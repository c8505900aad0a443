"""Acknowledgements as they are read: one for each message is no flood, one for nothing is."""

from __future__ import annotations

import pytest
from websockets.frames import Close as Frame

from tests.ws.conftest import MakeHarness
from tests.ws.harness import Harness, masked, until


async def test_one_for_each_message_is_no_flood(make_edge: MakeHarness) -> None:
    edge = await make_edge(frames_per_second=10)
    client = await edge.welcomed()
    manager = edge.manager(client.key)
    for number in range(1, 101):
        edge.send(manager, b"1")
        assert (await client.receive())["sequence"] == number
        await client.send(type="ack", sequence=number)
        await until(lambda number=number: manager.outbox.acknowledged == number)  # type: ignore[misc]
    assert (await client.ask(type="what"))["reason"] == "BAD_REQUEST"  # it is still served


async def test_the_same_again_is_one(make_edge: MakeHarness) -> None:
    edge = await make_edge(frames_per_second=10)
    client = await edge.welcomed()
    edge.send(edge.manager(client.key), b"1")
    for _ in range(20):
        client.connection.transport.write(masked(0x1, b'{"type":"ack","sequence":1}'))
    assert await client.closed() == Frame(4005, "rate_limited")


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        (b'{"type":"ack","sequence":2}', 4500),
        (b'{"type":"ack","sequence":-1}', 4500),
        (b'{"type":"ack"}', 4500),
        (b'{"type":"ack","sequence":1', 4500),
        (b'{"type":"ack","sequence":1}\xff', 1007),
    ],
)
async def test_one_that_is_not_good_ends_its_socket(edge: Harness, frame: bytes, code: int) -> None:
    client = await edge.welcomed()
    manager = edge.manager(client.key)
    edge.send(manager, b"1")
    client.connection.transport.write(masked(0x1, frame))
    closed = await client.closed()
    assert closed is not None
    assert closed.code == code
    assert manager.outbox.acknowledged == 0


async def test_other_frames_that_name_one_are_what_they_are(edge: Harness) -> None:
    client = await edge.welcomed()
    answer = await client.ask(type="message", id="m", data="ack")
    assert answer["reason"] == "NO_AGENT"


async def test_one_in_two_fragments_counts(edge: Harness) -> None:
    client = await edge.welcomed()
    manager = edge.manager(client.key)
    edge.send(manager, b"1")
    client.connection.transport.write(masked(0x1, b'{"type":"ack",', fin=False) + masked(0x0, b'"sequence":1}'))
    await until(lambda: manager.outbox.acknowledged == 1)


async def test_one_before_the_welcome_is_a_bad_frame(edge: Harness) -> None:
    client = await edge.client()
    await client.send(type="ack", sequence=0)
    assert await client.closed() == Frame(4500, "bad_frame")
