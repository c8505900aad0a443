"""Who waits to hear what became of a manager's messages: callers of `wait_for_ack`, lanes that asked for reports.

Made by the manager with the first of them. Everything is synchronous; callbacks are called once the state is whole.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heapify, heappop, heappush
from itertools import count
from typing import Protocol


class OutcomeListener(Protocol):
    """Hears of every acknowledgement and every loss of one context's messages."""

    def acknowledged(self, sequence: int) -> None:
        """The client has everything up to `sequence`, but for what was announced as gaps."""

    def dropped(self, first: int, last: int) -> None:
        """first..last cannot be delivered any more."""


class OutcomeWait:
    """One caller's wait for one message; `cancel` is idempotent."""

    __slots__ = ("_done",)

    def __init__(self, done: Callable[[], None]) -> None:
        self._done: Callable[[], None] | None = done

    @property
    def waiting(self) -> bool:
        """True until it was told, or cancelled."""
        return self._done is not None

    def cancel(self) -> None:
        """The caller waits no more."""
        self._done = None

    def tell(self) -> None:
        """The message was acknowledged or dropped."""
        done, self._done = self._done, None
        if done is not None:
            done()


class Outcomes:
    """See the module. A wait that was cancelled goes with the next look past its sequence, or when they pile up."""

    __slots__ = ("_cancelled", "_listeners", "_order", "_waits")

    def __init__(self) -> None:
        self._listeners: dict[OutcomeListener, None] = {}
        self._waits: list[tuple[int, int, OutcomeWait]] = []
        self._order = count()
        self._cancelled = 0

    def __bool__(self) -> bool:
        return bool(self._listeners or self._waits)

    def listen(self, listener: OutcomeListener) -> None:
        """Tell `listener` of everything from now on. Idempotent."""
        self._listeners[listener] = None

    def leave(self, listener: OutcomeListener) -> None:
        """Tell it no more. Idempotent."""
        self._listeners.pop(listener, None)

    def wait(self, sequence: int, done: Callable[[], None]) -> OutcomeWait:
        """Call `done` once, when the message of that sequence is acknowledged or dropped."""
        wait = OutcomeWait(done)
        heappush(self._waits, (sequence, next(self._order), wait))
        return wait

    def stop_waiting(self, wait: OutcomeWait) -> None:
        """Forget a wait. Idempotent."""
        if wait.waiting:
            wait.cancel()
            self._cancelled += 1
            if 2 * self._cancelled > len(self._waits) + 8:
                self._keep(lambda _, __: True)

    def acknowledged(self, sequence: int) -> None:
        """Everything up to `sequence` is acknowledged."""
        told = []
        while self._waits and self._waits[0][0] <= sequence:
            told.append(heappop(self._waits)[2])
        for wait in told:
            wait.tell()
        for listener in tuple(self._listeners):
            listener.acknowledged(sequence)

    def dropped(self, first: int, last: int) -> None:
        """first..last cannot be delivered any more."""
        told = [wait for sequence, _, wait in self._waits if first <= sequence <= last]
        if told:
            self._keep(lambda sequence, _: not first <= sequence <= last)
        for wait in told:
            wait.tell()
        for listener in tuple(self._listeners):
            listener.dropped(first, last)

    def clear(self) -> None:
        """The manager has ended: its end is told elsewhere."""
        self._listeners.clear()
        self._waits.clear()

    def _keep(self, wanted: Callable[[int, OutcomeWait], bool]) -> None:
        self._waits = [item for item in self._waits if item[2].waiting and wanted(item[0], item[2])]
        heapify(self._waits)
        self._cancelled = 0
