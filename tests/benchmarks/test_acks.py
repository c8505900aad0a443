"""The client that acknowledges: how often, what, and what must not pass for messages in order."""

from __future__ import annotations

import asyncio

import pytest

from benchmarks.acks import AckingClient, ack_frame, sequence_of
from benchmarks.servers import RunFailed
from benchmarks.sockets import Opcode, Tally, client_frame

UPGRADED = b"HTTP/1.1 101 Switching Protocols\r\n\r\n"


class Transport(asyncio.Transport):
    """Records what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.frames: list[bytes] = []
        self.wrote = asyncio.Event()
        self.closing = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.frames.append(bytes(data))
        self.wrote.set()

    def is_closing(self) -> bool:
        return self.closing


def message(sequence: int) -> bytes:
    return server_frame(b'{"type":"message","sequence":%d,"id":"m-1","content_type":"json","data":"x"}' % sequence)


def server_frame(payload: bytes) -> bytes:
    return bytes((0x81, len(payload))) + payload


def welcomed(sequence: int = 0) -> tuple[AckingClient, Transport, Tally]:
    tally, transport = Tally(), Transport()
    client = AckingClient(b"request", b"hello", tally, sequence)
    client.connection_made(transport)
    client.data_received(UPGRADED + server_frame(b"welcome"))
    assert transport.frames == [b"request", client_frame(Opcode.TEXT, b"hello")]
    transport.frames.clear()
    return client, transport, tally


async def test_what_comes_in_one_read_is_acknowledged_once() -> None:
    client, transport, tally = welcomed()
    client.data_received(message(1) + message(2) + message(3)[:-1])
    assert transport.frames == [ack_frame(2)]
    assert (tally.count, tally.acks, client.sequence) == (2, 1, 2)


async def test_acknowledgements_keep_their_distance_and_the_last_comes_by_itself() -> None:
    client, transport, tally = welcomed()
    for sequence in (1, 2, 3):
        client.data_received(message(sequence))
    assert transport.frames == [ack_frame(1)]
    transport.wrote.clear()
    await transport.wrote.wait()
    assert transport.frames == [ack_frame(1), ack_frame(3)]
    assert tally.acks == 2


async def test_nothing_is_acknowledged_on_a_socket_that_is_gone() -> None:
    client, transport, tally = welcomed()
    transport.closing = True
    client.data_received(message(1))
    assert (transport.frames, tally.count, tally.acks) == ([], 1, 0)


async def test_a_client_that_came_back_goes_on_where_it_was() -> None:
    client, transport, tally = welcomed(sequence=7)
    client.data_received(message(8))
    await tally.reach(1)
    assert transport.frames == [ack_frame(8)]


@pytest.mark.parametrize("sequences", [(1, 3), (1, 1), (2,)])
async def test_a_hole_or_a_double_fails_the_run(sequences: tuple[int, ...]) -> None:
    client, _, tally = welcomed()
    client.data_received(b"".join(map(message, sequences)))
    with pytest.raises(RunFailed, match=r"after message 0 came \d, the last of them \d"):
        await tally.reach(len(sequences))


def test_only_a_message_has_a_sequence() -> None:
    assert sequence_of(b'{"type":"message","sequence":1234,"id":"m"}') == 1_234
    with pytest.raises(RunFailed, match=r"no message but .*gap"):
        sequence_of(b'{"type":"gap","from":1,"to":2,"reason":"expired"}')


def test_an_acknowledgement_is_a_text_frame() -> None:
    frame = ack_frame(12)
    assert frame == client_frame(Opcode.TEXT, b'{"type":"ack","sequence":12}')
