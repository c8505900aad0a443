"""What a Deliver stream has yet to tell its client: frames in order, receipts gathered in as few as may be.

The stream's one writer. Answers gather while a write is under way, so that many small frames cost few writes; and
where the client has several frames in flight, until it is quiet for a moment: then it may be waiting for them. The
receipt of a message that stands alone leaves at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final

from sidecar.core.message import Receipt
from sidecar.rpc.status import rich_status
from sidecar.rpc.wire import ReceiptFrame

if TYPE_CHECKING:
    from asyncio import TimerHandle

    from sidecar.rpc.lanes import Outcome

MAX_RECEIPTS: Final = 1_000
"""In one frame."""

QUIET_S: Final = 0.002
MAX_LOOKS: Final = 4
"""Receipts gather for so many times QUIET_S at most."""
ENOUGH: Final = 64
"""So many receipts wait for no others: one write more is little beside what they cost."""


class Answers:
    """See the module. `unsent` answers wait for the client to read; `owed` more are still to come before the end.

    `take_reports` gives what stands behind the receipts; `call_later` is the loop's. `drained` is set whenever
    everything was written, and when nobody writes any more. `leaving`: all that there is will be written without delay.
    """

    def __init__(
        self,
        write: Callable[[bytes], Awaitable[None]],
        take_reports: Callable[[], list[bytes]],
        call_later: Callable[[float, Callable[[], None]], TimerHandle],
    ) -> None:
        self.unsent = 0
        self.owed = 0
        self.leaving = False
        self.drained = asyncio.Event()
        self._write = write
        self._take_reports = take_reports
        self._frames: list[ReceiptFrame | bytes] = []
        self._receipts = ReceiptFrame()
        self._room = 0
        """So many more receipts go in the last frame."""
        self._ready = asyncio.Event()
        self._finished = False
        self._writing = False
        self._asked = 0
        self._several = False
        """The client does not wait for one frame's receipts before it sends the next."""
        self._gathering: TimerHandle | None = None
        self._looks = 0
        self._asked_before = 0
        self._call_later = call_later

    def asked(self) -> None:
        """A frame of messages has come: if the one before it has no answer yet, there are several in flight."""
        self._asked += 1
        if self._asked > 1 or self._writing:
            self._several = True

    def add_receipt(self, lane: str, place: int, outcome: Outcome) -> None:
        """What became of one message; `lane` is its `lane_field`. Call `receipts_ready` behind the last of a run."""
        if not self._room:
            self._receipts = ReceiptFrame()
            self._room = MAX_RECEIPTS
            self._frames.append(self._receipts)
        if isinstance(outcome, Receipt):
            self._receipts.add_receipt(lane, place, outcome)
        else:
            self._receipts.add_error(lane, place, rich_status(outcome))
        self._room -= 1
        self.unsent += 1

    def receipts_ready(self) -> None:
        """Let the receipts leave: now, or with those that come within a moment."""
        if not self._frames:
            return
        if not self._several or self.unsent >= ENOUGH:
            self.leaving = True
            self._ready.set()
        elif self._gathering is None:
            self._looks = 0
            self._look_again()

    def _look_again(self) -> None:
        self._looks += 1
        self._asked_before = self._asked
        self._gathering = self._call_later(QUIET_S, self._look)

    def _look(self) -> None:
        """Whether the client has asked for more in the moment that is over; else it may be waiting."""
        if self._asked == self._asked_before or self._looks >= MAX_LOOKS:
            self._gathering = None
            self._ready.set()
        else:
            self._look_again()

    def put(self, frames: list[bytes]) -> None:
        """Write these, behind the receipts before them; now."""
        self._room = 0  # what comes after stands after it
        self._frames += frames
        self.unsent += len(frames)
        self._ready.set()

    def wake(self) -> None:
        """There are reports to take."""
        self._ready.set()

    def finish(self) -> None:
        """Nothing more is asked: `run` ends once everything is answered."""
        self._finished = True
        self._ready.set()

    async def run(self) -> None:
        """Write until finished, or cancelled."""
        try:
            while not (self._finished and not self._frames and not self.owed):
                await self._ready.wait()
                await self._write_all()
                self.drained.set()
        finally:
            self._stop_gathering()
            self.drained.set()  # the reader may wait for it, and must see that nobody writes any more

    async def _write_all(self) -> None:
        self._ready.clear()
        self.leaving = False
        self._stop_gathering()
        frames, self._frames = self._frames, []
        self._room = self.unsent = 0
        self._several, self._asked = self._asked > 1, 0
        frames += self._take_reports()
        self._writing = True
        for frame in frames:
            await self._write(frame if isinstance(frame, bytes) else frame.encode())
        self._writing = False

    def _stop_gathering(self) -> None:
        if self._gathering is not None:
            self._gathering.cancel()
            self._gathering = None
