"""Agents' tokens to many users at once: frames of what is due, made for next to nothing, and users who check each.

Every user is sent the same chunk in turn, round after round, so that a frame is lanes' numbers around one message.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Final, NamedTuple

from benchmarks.acks import AckingClient
from benchmarks.sockets import Client, Tally
from sidecar.api.v1 import types_pb2 as types

EVENT: Final = "token"
PAYLOAD_BYTES: Final = 64
CHUNKS: Final = 200
"""So many a stream; the last one ends it, and the next chunk begins another."""

MEASURED: Final = 10
"""Of so many users the latencies of one are noted."""

_NUMBER: Final = slice(-8, -1)
"""Where the number of the round stands in a payload without its closing braces."""


class Schedule(NamedTuple):
    """Messages one after the other at an even rate, to each user in turn; times of `time.perf_counter`."""

    started: float
    first_round: int
    users: int
    rate: float

    def due(self, chunk: int, user: int) -> float:
        """When that chunk of that user's is to be sent."""
        return self.started + ((chunk - self.first_round) * self.users + user) / self.rate


class TokenFrames:
    """`DeliverRequest`s of messages by their number over all users: number // users is the chunk, the rest the user."""

    def __init__(self, users: int) -> None:
        self._users = users
        self._size = 0
        self._heads: list[bytes] = []

    def frame(self, first: int, end: int) -> bytes:
        """Those messages, serialised: what the stubs make of them."""
        items = b"".join(self._items(first, end))
        return b"\x12" + varint(len(items)) + items

    def _items(self, first: int, end: int) -> Iterator[bytes]:
        while first < end:
            chunk, user = divmod(first, self._users)
            upto = min(self._users, user + end - first)
            message = token(chunk).SerializeToString()
            # Between the items' heads stands the same message.
            yield message.join((*self._heads_for(len(message))[user:upto], b""))
            first += upto - user

    def _heads_for(self, size: int) -> list[bytes]:
        """What precedes a message of that size in each lane: its item's tag and length, the lane, its own."""
        if size != self._size:
            self._size = size
            message = b"\x12" + varint(size)
            lanes = [b"\x08" + varint(lane) if lane else b"" for lane in range(self._users)]
            self._heads = [b"\x0a" + varint(len(lane) + len(message) + size) + lane + message for lane in lanes]
        return self._heads


def token(chunk: int) -> types.Message:
    """The chunk of that number, of whichever stream it belongs to."""
    answer, index = divmod(chunk, CHUNKS)
    state = types.STREAM_STATE_END if index == CHUNKS - 1 else types.STREAM_STATE_OPEN
    stream = types.Stream(stream_id=f"answer-{answer}", index=index, state=state)
    return types.Message(event_type=EVENT, payload=payload(chunk), stream=stream)


def payload(chunk: int) -> bytes:
    """64 bytes of JSON that say which chunk it is."""
    tail = f'","number":"{chunk:07}"}}'
    head = '{"text":"'
    return f"{head}{'x' * (PAYLOAD_BYTES - len(head) - len(tail))}{tail}".encode()


def number_of(frame: bytes) -> int:
    """Which chunk came, as a payload or in the sidecar's frame, of which it is the end."""
    return int(frame.rstrip(b"}")[_NUMBER])


def varint(value: int) -> bytes:
    """A protobuf varint."""
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


class Arrivals:
    """What the users of one server know together: when chunks were due, and how late those of some came."""

    def __init__(self) -> None:
        self.latencies_s: list[float] = []
        self.schedule = Schedule(0.0, 0, 1, 1.0)
        self.members = 0


class TokenClient(Client):
    """One user: every chunk has to come, in order and once. Users are made in the order of their lanes."""

    def __init__(self, request: bytes, hello: bytes, tally: Tally, arrivals: Arrivals) -> None:
        super().__init__(request, hello, tally)
        self._arrivals = arrivals
        self._place = arrivals.members
        arrivals.members += 1
        self._chunks = 0

    def _took(self, messages: int, last: bytes) -> None:
        chunks = self._chunks + messages
        if number_of(last) != chunks - 1:
            self._tally.lose(f"after {self._chunks} chunks came {messages}, the last of them {last.decode()}")
        if not self._place % MEASURED:
            now, arrivals = time.perf_counter(), self._arrivals
            due = arrivals.schedule.due
            arrivals.latencies_s += [now - due(chunk, self._place) for chunk in range(self._chunks, chunks)]
        self._chunks = chunks
        super()._took(messages, last)


class AckingTokenClient(TokenClient, AckingClient):
    """The same of a client that acknowledges."""
