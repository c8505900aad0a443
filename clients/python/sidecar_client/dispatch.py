"""Who handles what, when: the events of one context one after the other, different contexts side by side.

A task an event, one a context: a cancellation that comes too late must hit nobody else. What waits for its context
holds no place that another context could have: a user who asks much holds up nobody else. It stays the sidecar's until
it is begun, or has waited for long: another worker has it when this one stops or is lost, and the sidecar's own bound
tells a client that asks too much (AGENT_BUSY).
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from itertools import chain
from typing import Final

from sidecar_client.agent_events import AgentEvent, Closed, InboundMessage
from sidecar_client.answering import Answering
from sidecar_client.errors import ManagerGone

CANCEL_TIMEOUT_S: Final = 10.0
"""How long a handler may take to end once it is cancelled."""

logger = logging.getLogger("sidecar_client")


class Handling:
    """One event, from its receipt to the end of its handler."""

    __slots__ = ("_acknowledge", "_waiting", "acknowledged", "answering", "delivery_id", "event", "key")

    def __init__(self, event: AgentEvent, delivery_id: str, acknowledge: Callable[[str], None]) -> None:
        self.event = event
        self.delivery_id = delivery_id
        self.acknowledged = False
        self._acknowledge = acknowledge
        self._waiting: asyncio.TimerHandle | None = None
        self.key = event.context.isolation_key
        self.answering = event.answering if isinstance(event, InboundMessage) else Answering()

    def acknowledge(self) -> None:
        """The event is this process's. Said once."""
        self.stop_waiting()
        if not self.acknowledged:
            self.acknowledged = True
            self._acknowledge(self.delivery_id)

    def wait(self, patience_s: float) -> None:
        """For its turn; acknowledged when that is too long: the sidecar would take the context away. Idempotent."""
        if self._waiting is None and not self.acknowledged:
            self._waiting = asyncio.get_running_loop().call_later(patience_s, self.acknowledge)

    def stop_waiting(self) -> None:
        """Its turn has come, or will not."""
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None


class Dispatcher:
    """Runs the handlers of one agent. `on_room` is called for each event received, when another may be in its place.

    `acknowledge` is called with the delivery_id of an event when its handler begins, or after `patience_s`. `read`: not
    when it begins, but when `begun` says so.
    """

    def __init__(
        self,
        handle: Callable[[AgentEvent], Awaitable[None]],
        on_room: Callable[[], None],
        acknowledge: Callable[[str], None],
        patience_s: float,
        *,
        read: bool = False,
    ) -> None:
        self._handle = handle
        self._on_room = on_room
        self._acknowledge = acknowledge
        self._patience_s = patience_s
        self._read = read
        self._waiting: dict[str, deque[Handling]] = {}
        """By context, where one of it is running."""
        self._running: dict[str, Handling] = {}
        self._idle = asyncio.Event()
        self._idle.set()
        self._stopping = False
        self._grace: asyncio.Timeout | None = None

    def __len__(self) -> int:
        """How many contexts have a handler running."""
        return len(self._running)

    def receive(self, event: AgentEvent, delivery_id: str, *, cancelled: bool = False) -> None:
        """Handle it when those of its context before it have been. `cancelled`: it is only in the order."""
        handling = Handling(event, delivery_id, self._acknowledge)
        handling.answering.cancelled = cancelled
        self._idle.clear()
        if isinstance(event, Closed):
            self._leave_unanswered(handling.key)
        if handling.key not in self._running:
            self._start(handling)
            return
        handling.wait(self._patience_s)
        self._waiting.setdefault(handling.key, deque()).append(handling)
        self._on_room()

    def cancel(self, isolation_key: str, stream_id: str, message_id: str) -> None:
        """The client wants no more of a stream, or of the answer to a message."""
        for handling in tuple(self._of_context(isolation_key)):
            event = handling.event
            named = isinstance(event, InboundMessage) and bool(message_id) and event.id == message_id
            if named or stream_id in handling.answering.streams:
                handling.answering.cancel()

    def begun(self, event: AgentEvent) -> None:
        """The reader has it."""
        handling = self._running.get(event.context.isolation_key)
        if handling is not None and handling.event is event:
            handling.acknowledge()

    def own(self, isolation_key: str, delivery_id: str) -> None:
        """An event that came again is acknowledged: where it waits, it is this process's now."""
        for handling in tuple(self._of_context(isolation_key)):
            if handling.delivery_id == delivery_id:
                handling.acknowledge()

    def give_back(self) -> list[Handling]:
        """What waits and is not acknowledged comes again, here or elsewhere: it is not begun any more. Returns it."""
        given = [handling for handling in self._running.values() if not handling.acknowledged]
        for handling in given:
            if handling.answering.task is not None:
                handling.answering.task.cancel()
        for key, waiting in self._waiting.items():
            given += (handling for handling in waiting if not handling.acknowledged)
            self._waiting[key] = deque(handling for handling in waiting if handling.acknowledged)
        for handling in given:
            handling.stop_waiting()
        return given

    async def finish(self, grace_s: float) -> None:
        """Let what was received be handled, at most `grace_s` seconds; then cancel it. Takes no more."""
        try:
            async with asyncio.timeout(grace_s) as self._grace:
                await self._idle.wait()
        except TimeoutError:
            logger.warning("%d handlers did not end within %s s", len(self), grace_s)
        finally:
            self._grace = None
            await self._cancel_all()

    def give_up(self) -> None:
        """End the grace that `finish` gives, if it does."""
        if self._grace is not None and not self._idle.is_set():
            self._grace.reschedule(asyncio.get_running_loop().time())

    # Within

    def _of_context(self, key: str) -> Iterator[Handling]:
        if key in self._running:
            yield self._running[key]
        yield from self._waiting.get(key, ())

    def _leave_unanswered(self, key: str) -> None:
        """The context has ended: an answer that is being streamed has nobody to read it. Other work goes on."""
        running = self._running.get(key)
        if running is not None and running.answering.streams:
            running.answering.cancel()

    def _start(self, handling: Handling) -> None:
        """Begin one; its context has none running."""
        if self._read:
            handling.wait(self._patience_s)
        else:
            handling.acknowledge()
        self._running[handling.key] = handling
        task = asyncio.create_task(self._run(handling))
        handling.answering.task = task
        task.add_done_callback(lambda _: self._done(handling))

    async def _run(self, handling: Handling) -> None:
        if handling.answering.cancelled:
            handling.acknowledge()
            return  # nobody wants an answer, and none was begun
        try:
            await self._handle(handling.event)
        except ManagerGone:
            logger.debug("the context ended before its event was handled")
        except Exception:
            logger.exception("a handler failed on %s", type(handling.event).__name__)

    def _done(self, handling: Handling) -> None:
        """The next of its context takes its place, else another context may."""
        del self._running[handling.key]
        waiting = self._waiting.get(handling.key)
        if waiting and not self._stopping:
            self._start(waiting.popleft())
        else:
            self._on_room()
        if not waiting:
            self._waiting.pop(handling.key, None)
        if not self._running:
            self._idle.set()

    async def _cancel_all(self) -> None:
        """End every handler; what waits is not begun."""
        self._stopping = True
        for handling in chain.from_iterable(self._waiting.values()):
            handling.stop_waiting()
        self._waiting.clear()
        tasks = {task for handling in self._running.values() if (task := handling.answering.task) is not None}
        for task in tasks:
            task.cancel()
        if tasks:
            _, left = await asyncio.wait(tasks, timeout=CANCEL_TIMEOUT_S)
            if left:
                logger.error("%d handlers do not end though they were cancelled", len(left))
