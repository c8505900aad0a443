"""`wait_for_ack`: an answer held until the client has the message, or never will."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from sidecar.core.errors import BadRequest
from sidecar.core.message import DeliveryState

if TYPE_CHECKING:
    from google.protobuf.duration_pb2 import Duration

    from sidecar.core.manager import IsolatedWebSocketManager
    from sidecar.core.message import Receipt

MAX_WAIT_S: Final = 60.0
_FINAL: Final = (DeliveryState.ACKNOWLEDGED, DeliveryState.DROPPED)


def wait_s_of(duration: Duration) -> float:
    """The seconds of a request's `wait_for_ack`. Raises BadRequest unless 0 to 60."""
    wait_s = float(duration.seconds + duration.nanos / 1e9)
    # google.protobuf.Duration: less than a second of nanoseconds, and both of one sign.
    if duration.seconds < 0 or not 0 <= duration.nanos <= 999_999_999 or wait_s > MAX_WAIT_S:
        raise BadRequest("wait_for_ack", "0 to 60 seconds")
    return wait_s


class AcknowledgementWaits:
    """The calls that wait now. Bounded by the calls under way; once released, nobody waits any more."""

    def __init__(self) -> None:
        self._waiting: set[asyncio.Event] = set()
        self._released = False

    def __len__(self) -> int:
        return len(self._waiting)

    async def outcome(self, manager: IsolatedWebSocketManager, receipt: Receipt, wait_s: float) -> Receipt:
        """The receipt with the state as it is once the message is acknowledged or dropped, the context has ended, the
        sidecar stops, or after `wait_s` seconds. Cancelling leaves nothing over.
        """
        sequence = receipt.sequence
        state = manager.outbox.state_of(sequence)
        if wait_s and state not in _FINAL and not manager.ended and not self._released:
            await self._wait(manager, sequence, wait_s)
            state = manager.outbox.state_of(sequence)
        return receipt._replace(state=state)

    def release(self) -> None:
        """The sidecar stops: every call is answered with the state as it is."""
        self._released = True
        for done in self._waiting:
            done.set()

    async def _wait(self, manager: IsolatedWebSocketManager, sequence: int, wait_s: float) -> None:
        done = asyncio.Event()
        wait = manager.wait_for_outcome(sequence, done.set)
        manager.end_watchers.add(done.set)
        self._waiting.add(done)
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await done.wait()
        finally:
            self._waiting.discard(done)
            manager.end_watchers.discard(done.set)
            manager.stop_waiting(wait)
