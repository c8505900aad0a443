"""Receipts and events of streams, written straight in protobuf's wire format (protobuf.dev, "Encoding").

A stream answers every message, and filling a generated message costs four times as much as writing its few bytes. The
text is Latin-1, one character a byte: joining short strings is what Python does fastest.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from google.rpc.status_pb2 import Status

    from sidecar.core.message import Receipt


_CHARACTERS: Final = tuple(map(chr, range(256)))
_CONTINUED: Final = tuple(chr(low | 0x80) for low in range(0x80))
"""Seven bits with more to come."""


def varint(value: int) -> str:
    """A number that is not negative, seven bits a character, lowest first."""
    if value < 0x80:
        return _CHARACTERS[value]
    if value < 0x4000:
        return _CONTINUED[value & 0x7F] + _CHARACTERS[value >> 7]
    return _CONTINUED[value & 0x7F] + varint(value >> 7)


_this_second: Final = lru_cache(maxsize=2)(varint)
"""Of the seconds in a receipt, which are those of many others."""

_LENGTHS: Final = tuple(map(varint, range(512)))
"""Of what is never longer: a receipt has an id of at most 128 characters and a few numbers."""

# What stands before a field: its number << 3, and its wire type: 0 for a varint, 2 for what carries its length.


def lane_field(lane: int) -> str:
    """`LaneReceipt.lane`, made once a lane."""
    return f"\x08{varint(lane)}"


class ReceiptFrame:
    """One `DeliverResponse` of receipts, gathered item by item."""

    __slots__ = ("_items", "_last", "_last_fields")

    def __init__(self) -> None:
        self._items: list[str] = []
        self._last: tuple[object, ...] = ()
        self._last_fields = ""

    def add_receipt(self, lane: str, number: int, receipt: Receipt) -> None:
        """The message at that place of its lane was accepted; `lane` is its `lane_field`."""
        rest = receipt[2:]
        if rest != self._last:  # most receipts of a frame differ in message_id and sequence alone
            self._last, self._last_fields = rest, _fields_of(receipt)
        message_id = receipt[0]
        body = f"\x0a{_LENGTHS[len(message_id)]}{message_id}\x10{varint(receipt[1])}{self._last_fields}"
        item = f"{lane}\x10{varint(number)}\x1a{_LENGTHS[len(body)]}{body}"
        self._items.append(f"\x0a{_LENGTHS[len(item)]}{item}")

    def add_error(self, lane: str, number: int, error: Status) -> None:
        """The message at that place of its lane was refused."""
        body = error.SerializeToString().decode("latin-1")
        item = f"{lane}\x10{varint(number)}\x22{varint(len(body))}{body}"
        self._items.append(f"\x0a{varint(len(item))}{item}")

    def encode(self) -> bytes:
        """The serialised `DeliverResponse`: its field `receipts`."""
        items = "".join(self._items)
        return f"\x1a{varint(len(items))}{items}".encode("latin-1")


def events_frame(events: Sequence[bytes]) -> bytes:
    """One `AttachResponse` of serialised events: its field `event` for one, its field `events` for several."""
    if len(events) == 1:
        return b"\x12%b%b" % (_length(events[0]), events[0])
    items = b"".join([b"\x0a%b%b" % (_length(event), event) for event in events])
    return b"\x1a%b%b" % (_length(items), items)


def _length(value: bytes) -> bytes:
    return varint(len(value)).encode("latin-1")


def _fields_of(receipt: Receipt) -> str:
    """`Receipt` from its third field on: state, durability, connections, duplicate, accepted_time."""
    seconds = int(receipt.accepted_time)
    nanos = int((receipt.accepted_time - seconds) * 1e9)
    accepted_time = f"\x08{_this_second(seconds)}\x10{varint(nanos)}"
    small = _CHARACTERS  # enumerations, at most a hundred connections, and what is shorter than 128 bytes
    return (
        f"\x18{small[receipt.state]}\x20{small[receipt.durability]}\x28{small[receipt.connections]}"
        f"\x30{small[receipt.duplicate]}\x3a{small[len(accepted_time)]}{accepted_time}"
    )
