"""One message's handler at work: the task that it runs in, the streams that it has open, whether it is still wanted."""

from __future__ import annotations

import asyncio


class Answering:
    """Cancels its own task and no other: that task handles nothing but this message."""

    __slots__ = ("cancelled", "streams", "task")

    def __init__(self) -> None:
        self.task: asyncio.Task[None] | None = None
        self.streams: set[str] = set()
        self.cancelled = False
        """The client wants no answer any more."""

    def __repr__(self) -> str:
        return f"Answering(cancelled={self.cancelled}, streams={len(self.streams)})"

    def cancel(self) -> None:
        """The client wants no more: the handler sees asyncio.CancelledError at its next await. Idempotent."""
        if self.cancelled:
            return
        self.cancelled = True
        if self.task is not None:
            self.task.cancel()

    async def cancelled_here(self) -> None:
        """Let the cancellation arrive, where the caller runs in the handler's own task; else return."""
        if self.task is not None and asyncio.current_task() is self.task:
            await asyncio.sleep(0)
