"""The lanes of a Deliver stream: what makes one open, what waits in it, and what it is told of its context's client."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final

from sidecar.api.v1 import delivery_service_pb2 as pb
from sidecar.core.errors import SidecarError
from sidecar.core.message import PendingReceipt, Receipt
from sidecar.rpc.wire import lane_field

if TYPE_CHECKING:
    from sidecar.core.manager import IsolatedWebSocketManager
    from sidecar.security.context_tokens import ContextGrant

MAX_UNTOLD_LOSSES: Final = 1_024
"""Runs of dropped messages that wait for the client to read; a lane with more is ended."""

Outcome = Receipt | SidecarError


class Opening:
    """What makes a lane open: the token, renewed by a further open_lane, and the manager that it opened."""

    __slots__ = ("cancelled", "grant", "manager", "report", "watcher")

    def __init__(
        self,
        grant: ContextGrant,
        manager: IsolatedWebSocketManager,
        watcher: Callable[[], None],
        cancelled: Callable[[str, str], None],
    ) -> None:
        self.grant = grant
        self.manager = manager
        self.watcher = watcher
        self.cancelled = cancelled
        self.report: LaneReport | None = None
        manager.end_watchers.add(watcher)
        manager.conversation.watch_cancels(cancelled)

    def release(self) -> None:
        """The lane is not open any more: its manager need not tell of anything."""
        self.manager.end_watchers.discard(self.watcher)
        self.manager.conversation.unwatch_cancels(self.cancelled)
        self.report_to(None)

    def report_to(self, report: LaneReport | None) -> None:
        """Have acknowledgements and losses told to `report` instead of whom they were told to before."""
        if self.report is not None:
            self.manager.leave(self.report)
        self.report = report
        if report is not None:
            self.manager.listen(report)


class LaneReport:
    """What a lane with `report_acknowledged` has yet to be told: the last acknowledgement, and every loss."""

    __slots__ = ("_changed", "_losses", "_sequence", "lane")

    def __init__(self, lane: int, changed: Callable[[LaneReport], None]) -> None:
        self.lane = lane
        self._changed = changed
        self._sequence: int | None = None
        self._losses: list[tuple[int, int]] = []

    @property
    def too_many(self) -> bool:
        """True when its client has not read for too long."""
        return len(self._losses) > MAX_UNTOLD_LOSSES

    def acknowledged(self, sequence: int) -> None:
        """The context's client has everything up to `sequence`."""
        self._sequence = sequence
        self._changed(self)

    def dropped(self, first: int, last: int) -> None:
        """first..last cannot be delivered any more."""
        self._losses.append((first, last))
        self._changed(self)

    def take(self) -> list[bytes]:
        """The frames that say so, losses first: an acknowledgement may reach beyond them."""
        losses, self._losses = self._losses, []
        sequence, self._sequence = self._sequence, None
        frames = [pb.DeliverResponse.Dropped(lane=self.lane, **{"from": first, "to": last}) for first, last in losses]
        told = [pb.DeliverResponse(dropped=frame).SerializeToString() for frame in frames]
        if sequence is not None:
            frame = pb.DeliverResponse.Acknowledged(lane=self.lane, sequence=sequence)
            told.append(pb.DeliverResponse(acknowledged=frame).SerializeToString())
        return told


class Lane:
    """One numbered lane of a stream, open or not, and the place of the next message in it.

    `answer` is called when the store has confirmed one of its messages: what is answered now stands in `waiting`.
    """

    __slots__ = ("field", "next_number", "number", "opening", "settled", "waiting")

    def __init__(self, number: int, answer: Callable[[Lane, PendingReceipt], None], former: Lane | None = None) -> None:
        self.number = number
        self.settled = partial(answer, self)
        self.field = lane_field(number)
        self.next_number = 0
        self.opening: Opening | None = None
        # Outcomes behind one that the store has yet to confirm: receipts leave in order, those of the lane that had
        # this number before first.
        self.waiting: deque[tuple[int, Outcome | PendingReceipt, ContextGrant | None]] = (
            deque() if former is None else former.waiting
        )
