"""Who handles what, when: the events of one context one after the other, different contexts side by side.

A task an event, one a context: a cancellation that comes too late must hit nobody else. What waits for its context
holds no place that another context could have: a user who asks much holds up nobody else.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from typing import Final

from sidecar_client.agent_events import AgentEvent, Closed, InboundMessage
from sidecar_client.answering import Answering
from sidecar_client.errors import ManagerGone

MAX_BACKLOG: Final = 32
"""Events of one context that wait and are acknowledged. What comes beyond stays the sidecar's until it is begun, whose
own bound then tells that client (AGENT_BUSY), and which hands it to another worker when this one stops."""
CANCEL_TIMEOUT_S: Final = 10.0
"""How long a handler may take to end once it is cancelled."""

logger = logging.getLogger("sidecar_client")


class Handling:
    """One event, from its receipt to the end of its handler."""

    __slots__ = ("_acknowledge", "acknowledged", "answering", "event", "key")

    def __init__(self, event: AgentEvent, acknowledge: Callable[[], None]) -> None:
        self.event = event
        self.acknowledged = False
        self._acknowledge = acknowledge
        self.key = event.context.isolation_key
        self.answering = event.answering if isinstance(event, InboundMessage) else Answering()

    def acknowledge(self) -> None:
        """The event is this process's. Said once."""
        if not self.acknowledged:
            self.acknowledged = True
            self._acknowledge()


class Dispatcher:
    """Runs the handlers of one agent. `on_room` is called for each event received, when another may be in its place."""

    def __init__(self, handle: Callable[[AgentEvent], Awaitable[None]], on_room: Callable[[], None]) -> None:
        self._handle = handle
        self._on_room = on_room
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

    def receive(
        self, event: AgentEvent, *, cancelled: bool = False, acknowledge: Callable[[], None] = lambda: None
    ) -> None:
        """Handle it when those of its context before it have been. `cancelled`: it is only in the order.

        `acknowledge` is called when the event is this process's.
        """
        handling = Handling(event, acknowledge)
        handling.answering.cancelled = cancelled
        self._idle.clear()
        if isinstance(event, Closed):
            self._leave_unanswered(handling.key)
        if handling.key not in self._running:
            handling.acknowledge()
            self._start(handling)
            return
        waiting = self._waiting.setdefault(handling.key, deque())
        waiting.append(handling)
        if len(waiting) <= MAX_BACKLOG:
            handling.acknowledge()
        self._on_room()

    def cancel(self, isolation_key: str, stream_id: str, message_id: str) -> None:
        """The client wants no more of a stream, or of the answer to a message."""
        for handling in tuple(self._of_context(isolation_key)):
            event = handling.event
            named = isinstance(event, InboundMessage) and bool(message_id) and event.id == message_id
            if named or stream_id in handling.answering.streams:
                handling.answering.cancel()

    def give_back(self) -> None:
        """What waits and is not acknowledged goes to another worker from now on: it is not begun here any more."""
        for key, waiting in self._waiting.items():
            self._waiting[key] = deque(handling for handling in waiting if handling.acknowledged)

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
        self._running[handling.key] = handling
        task = asyncio.create_task(self._run(handling))
        handling.answering.task = task
        task.add_done_callback(lambda _: self._done(handling))

    async def _run(self, handling: Handling) -> None:
        if handling.answering.cancelled:
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
            following = waiting.popleft()
            following.acknowledge()
            self._start(following)
        else:
            self._on_room()
        if not waiting:
            self._waiting.pop(handling.key, None)
        if not self._running:
            self._idle.set()

    async def _cancel_all(self) -> None:
        """End every handler; what waits is not begun."""
        self._stopping = True
        self._waiting.clear()
        tasks = {task for handling in self._running.values() if (task := handling.answering.task) is not None}
        for task in tasks:
            task.cancel()
        if tasks:
            _, left = await asyncio.wait(tasks, timeout=CANCEL_TIMEOUT_S)
            if left:
                logger.error("%d handlers do not end though they were cancelled", len(left))
