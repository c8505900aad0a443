"""The lanes of one Deliver stream: which are open, what waits in them for an answer, which one gives way. Pure.

A lane is opened by one token and carries only what was sent by that token. Renewing the token of an open lane would
save a number; but messages that follow a refused renewal would go out by the token before, which is not theirs.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator
from typing import Any, Final, NamedTuple, Protocol

from sidecar.api.v1 import types_pb2
from sidecar_client.errors import SidecarError
from sidecar_client.values import DeliveryState, Receipt

MAX_REMEMBERED_GAPS: Final = 64


class Outcome(Protocol):
    """A future, of asyncio or of concurrent.futures."""

    def done(self) -> bool: ...
    def set_result(self, result: Any, /) -> None: ...
    def set_exception(self, exception: Any, /) -> None: ...


class LaneKey(NamedTuple):
    """What opens a lane. The token is a secret: a key is never printed."""

    isolation_key: str
    context_token: str
    expected_user_id: str

    def __repr__(self) -> str:
        return f"LaneKey(isolation_key={self.isolation_key!r})"


class Entry:
    """One message on its way. `order` is its place among all, kept when it is sent again."""

    __slots__ = (
        "abandoned",
        "accepted",
        "final",
        "key",
        "left",
        "message",
        "order",
        "receipt",
        "size",
        "unanswered",
        "written",
    )

    def __init__(
        self, order: int, key: LaneKey, message: types_pb2.Message, accepted: Outcome, final: Outcome | None
    ) -> None:
        """`accepted` is told of the receipt; `final`, where given, of the one that says acknowledged or dropped."""
        self.order = order
        self.key = key
        self.message = message
        self.size = message.ByteSize()
        self.accepted = accepted
        self.final = final
        self.receipt: Receipt | None = None
        self.written = False
        self.unanswered = False
        """It was written to a stream that ended before the answer."""
        self.abandoned = False
        self.left = False

    def tell_accepted(self, receipt: Receipt) -> None:
        """The first receipt is the one that counts, but for its state."""
        self.receipt = receipt
        if not self.accepted.done():
            self.accepted.set_result(receipt)

    def tell_final(self, receipt: Receipt) -> None:
        """Nothing more will be known of it."""
        if self.final is not None and not self.final.done():
            self.final.set_result(receipt)

    def fail(self, error: SidecarError) -> None:
        """It was refused, or given up. One that has a receipt keeps it."""
        if self.receipt is not None:
            self.tell_final(self.receipt)
        elif not self.abandoned and not self.accepted.done():
            self.accepted.set_exception(error)


class Lane:
    """One numbered lane of the stream."""

    __slots__ = ("error", "gaps", "key", "next_number", "number", "pending", "position", "waiting")

    def __init__(self, number: int, key: LaneKey) -> None:
        self.number = number
        self.key = key
        self.next_number = 0
        self.pending: dict[int, Entry] = {}
        """Written and not answered, by their number in the lane; in order."""
        self.waiting: list[Entry] = []
        """Accepted, and waiting for the client's acknowledgement."""
        self.error: SidecarError | None = None
        self.position = 0
        self.gaps: deque[tuple[int, int]] = deque(maxlen=MAX_REMEMBERED_GAPS)

    @property
    def idle(self) -> bool:
        """Nothing waits for it."""
        return not self.pending and not self.waiting

    def put(self, entry: Entry) -> None:
        """The next message of the lane."""
        self.pending[self.next_number] = entry
        self.next_number += 1
        entry.written = True

    def fate_of(self, sequence: int) -> DeliveryState | None:
        """What the lane was told of that sequence: acknowledged, dropped, or nothing yet."""
        if any(first <= sequence <= last for first, last in self.gaps):
            return DeliveryState.DROPPED
        return DeliveryState.ACKNOWLEDGED if sequence <= self.position else None

    def take_decided(self) -> Iterator[tuple[Entry, Receipt]]:
        """The entries whose fate is known by now, each with its receipt in that state."""
        waiting, self.waiting = self.waiting, []
        for entry in waiting:
            assert entry.receipt is not None
            state = self.fate_of(entry.receipt.sequence)
            if state is None:
                self.waiting.append(entry)
            else:
                yield entry, entry.receipt._replace(state=state)


class Lanes:
    """The open lanes by what opened them, least recently used first, and those that still have answers to get."""

    def __init__(self, max_lanes: int) -> None:
        self._max_lanes = max_lanes
        self._open: OrderedDict[LaneKey, Lane] = OrderedDict()
        self._by_number: dict[int, Lane] = {}
        self._next_number = 0

    def __len__(self) -> int:
        return len(self._open)

    def get(self, number: int) -> Lane | None:
        """The lane of that number, open or with answers to get."""
        return self._by_number.get(number)

    def find(self, key: LaneKey) -> Lane | None:
        """The open lane of that key, used now."""
        lane = self._open.get(key)
        if lane is not None:
            self._open.move_to_end(key)
        return lane

    @property
    def full(self) -> bool:
        """No further lane may be opened before one is closed."""
        return len(self._open) >= self._max_lanes

    def add(self, key: LaneKey) -> Lane:
        """A new lane; numbers are not used twice on a stream."""
        lane = self._open[key] = self._by_number[self._next_number] = Lane(self._next_number, key)
        self._next_number += 1
        return lane

    def close_least_recent(self) -> Lane | None:
        """Close the idle lane that was not used for longest; None when all are busy."""
        for lane in self._open.values():
            if lane.idle:
                self.shut(lane)
                return lane
        return None

    def shut(self, lane: Lane) -> None:
        """The lane is not open any more; its answers still come."""
        if self._open.get(lane.key) is lane:
            del self._open[lane.key]
        self.forget_if_over(lane)

    def forget_if_over(self, lane: Lane) -> None:
        """A lane that is not open and has nothing to get is over."""
        if lane.idle and self._open.get(lane.key) is not lane:
            self._by_number.pop(lane.number, None)

    def unfinished(self) -> list[Entry]:
        """All that was written and has no answer, or no final one, in their first order."""
        entries = [entry for lane in self._by_number.values() for entry in (*lane.pending.values(), *lane.waiting)]
        return sorted(entries, key=lambda entry: entry.order)
