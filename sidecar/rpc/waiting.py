"""`wait_for_ack`: an answer held until the client has the message, or never will."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from sidecar.core.errors import BadRequest
from sidecar.core.message import DeliveryState

if TYPE_CHECKING:
    from google.protobuf.duration_pb2 import Duration

    from sidecar.core.manager import IsolatedWebSocketManager
    from sidecar.core.message import Receipt
    from sidecar.rpc.boundary import CallFacts

MAX_WAIT_S: Final = 60.0
MAX_WAITS: Final = 10_000
MAX_WAITS_OF_CONTEXT: Final = 64
_FINAL: Final = (DeliveryState.ACKNOWLEDGED, DeliveryState.DROPPED)


def wait_s_of(duration: Duration) -> float:
    """The seconds of a request's `wait_for_ack`. Raises BadRequest unless 0 to 60."""
    wait_s = float(duration.seconds + duration.nanos / 1e9)
    # google.protobuf.Duration: less than a second of nanoseconds, and both of one sign.
    if duration.seconds < 0 or not 0 <= duration.nanos <= 999_999_999 or wait_s > MAX_WAIT_S:
        raise BadRequest("wait_for_ack", "0 to 60 seconds")
    return wait_s


class AcknowledgementWaits:
    """The calls that wait now: so many of one context and in all; one more is answered with the state as it is.

    Once released, nobody waits any more.
    """

    def __init__(self) -> None:
        self._waiting: set[asyncio.Event] = set()
        self._of_context: Counter[str] = Counter()
        self._released = False

    def __len__(self) -> int:
        return len(self._waiting)

    async def outcome(
        self, manager: IsolatedWebSocketManager, receipt: Receipt, wait_s: float, facts: CallFacts
    ) -> Receipt:
        """The receipt with the state as it is once the message is acknowledged or dropped, the context has ended, the
        sidecar stops, or after `wait_s` seconds. The call steps aside meanwhile. Cancelling leaves nothing over.
        """
        sequence = receipt.sequence
        if not sequence:  # a chunk that is forgotten: nobody can say more of it
            return receipt
        state = manager.outbox.state_of(sequence)
        if wait_s and state not in _FINAL and not manager.ended and self._has_room(manager):
            facts.step_aside()
            await self._wait(manager, sequence, wait_s)
            state = manager.outbox.state_of(sequence)
        return receipt._replace(state=state)

    def _has_room(self, manager: IsolatedWebSocketManager) -> bool:
        full = len(self._waiting) >= MAX_WAITS or self._of_context[manager.isolation_key] >= MAX_WAITS_OF_CONTEXT
        return not full and not self._released

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
        self._of_context[manager.isolation_key] += 1
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await done.wait()
        finally:
            self._waiting.discard(done)
            self._of_context[manager.isolation_key] -= 1
            if not self._of_context[manager.isolation_key]:
                del self._of_context[manager.isolation_key]
            manager.end_watchers.discard(done.set)
            manager.stop_waiting(wait)
