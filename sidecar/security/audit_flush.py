"""When the audit trail's thread is woken, and how it gets the interpreter from a loop that never sleeps."""

from __future__ import annotations

from asyncio import TimerHandle
from collections.abc import Callable
from typing import Final

from sidecar.security.audit_writer import AuditWriter

FLUSH_INTERVAL_S: Final = 0.005
"""How long a record that nobody waits for lies until the thread is woken; a wake-up costs the loop 10 to 20 records."""
MAX_STALL_S: Final = 0.002
MAX_INTERVAL_S: Final = 1.0


CallLater = Callable[[float, Callable[[], None]], TimerHandle]


class FlushTimer:
    """Runs while something is queued or being written. On the loop's thread.

    CPython gives its interpreter lock to a waiting thread only if that one wakes up in time: a loop at 100 % of a
    processor lets go of it for microseconds, and a grant was seen to wait for 14 s. So when the thread made no step
    for a whole interval, the loop sleeps until it has, at most MAX_STALL_S. Where that does not help, it is the disk
    that is slow: the interval doubles, up to MAX_INTERVAL_S.
    """

    def __init__(self, call_later: CallLater, writer: AuditWriter) -> None:
        self._call_later = call_later
        self._writer = writer
        self._timer: TimerHandle | None = None
        self._interval_s = FLUSH_INTERVAL_S
        self._tried = 0

    def arm(self) -> None:
        """Something was queued."""
        if self._timer is None:
            self._tried = -1  # Whatever there is to do, it has not been waiting for an interval yet.
            self._timer = self._call_later(self._interval_s, self._fire)

    def cancel(self) -> None:
        """Idempotent."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _fire(self) -> None:
        self._timer = None
        writer = self._writer
        starved = writer.behind and writer.tried == self._tried
        if starved:
            writer.give_way(MAX_STALL_S)
        stuck = starved and writer.tried == self._tried
        self._interval_s = min(2 * self._interval_s, MAX_INTERVAL_S) if stuck else FLUSH_INTERVAL_S
        if writer.untold:
            writer.wake()
        if writer.behind:
            self._tried = writer.tried
            self._timer = self._call_later(self._interval_s, self._fire)
