"""Frames of one step to one socket, gathered into one write: a system call costs more than what else a message does.

A step is what runs between two turns of the event loop, so that nothing is held back for longer than it takes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, Self

if TYPE_CHECKING:
    from types import TracebackType


class Held(Protocol):
    """A socket that holds frames back."""

    def flush(self) -> None:
        """Write what is held, if anything is. Never raises, for that would cost the other sockets their frames."""


class WriteBatch:
    """Entered for a step in which many messages are accepted; sockets write what they held at its end.

    Steps may enter it again from within: the outermost decides.
    """

    __slots__ = ("_depth", "_held", "holding")

    def __init__(self) -> None:
        self.holding = False
        """Sockets may hold what they are given now."""
        self._depth = 0
        self._held: list[Held] = []

    def add(self, socket: Held) -> None:
        """Have this socket write at the end of the step: while `holding`, whenever it begins to hold."""
        self._held.append(socket)

    def __enter__(self) -> Self:
        self._depth += 1
        self.holding = True
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._depth -= 1
        if self._depth:
            return
        self.holding = False
        held, self._held = self._held, []
        for socket in held:
            socket.flush()
