"""A device that uses the product's own Python client, for a part of the users: seen as its consumer sees it.

Its sockets come and go unseen, so a context is one run of frames here, from its beginning on.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from itertools import count
from random import Random
from typing import Any

from sidecar_client import Event, Gap, Message, Tuning, UserConnection, connect
from tests.faults.devices import Person, Way
from tests.faults.history import Attach, Context, History

_numbers = count(1)


class LibraryDevice:
    """As far as a storm and a settlement ask, what `Device` is. `outbox_messages` asks what is kept for its context."""

    def __init__(
        self,
        history: History,
        person: Person,
        way: Way,
        random: Random,
        outbox_messages: Callable[[Context], Awaitable[int]],
    ) -> None:
        self.person = person
        self.last = 0
        self.context: Context | None = None
        self.seen: Counter[str] = Counter()
        self._history = history
        self._way = way
        self._random = random
        self._outbox_messages = outbox_messages
        self._attach: Attach | None = None
        self._user: UserConnection | None = None
        self._moved = asyncio.Event()
        self._task = asyncio.create_task(self._live())

    def __str__(self) -> str:
        return f"the client library of {'/'.join(self.person)} at {self.last}"

    async def welcomed(self) -> None:
        """Returns once it has a context that has not ended with its process."""
        await self._until(lambda: self.context is not None and not self.context.ended)

    async def reached(self, sequence: int) -> None:
        """Returns once it has everything of its context up to that sequence."""
        context = self.context
        await self._until(lambda: self.last >= sequence or self.context is not context)

    async def acknowledge(self) -> None:
        """Acknowledge everything; returns when the sidecar keeps nothing any more."""
        context = self.context
        assert context is not None
        assert self._user is not None
        self._user.acknowledge()
        while self.context is context and await self._outbox_messages(context):
            pass  # each look is a call that takes its turn
        self._history.acknowledgement_read(context, self.last)

    async def probe(self) -> None:
        """Nothing to do: what is acknowledged has come."""

    async def leave(self) -> None:
        """Close with 1000, which ends the context, and stay away."""
        assert self._user is not None
        await self._user.close()
        await self._task

    async def stop(self) -> None:
        """Be gone. Idempotent."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    def check(self) -> None:
        """Raise what went wrong in it."""
        if self._task.done() and not self._task.cancelled():
            self._task.result()

    async def _live(self) -> None:
        await self._way.ready()
        tuning = Tuning(uniform=lambda: self._random.random() / 10)
        token: Callable[[], str] = lambda: self._way.user_token(self.person)  # noqa: E731 - a method would not be new
        async with connect(self._way.url, token=token, tuning=tuning, proxy=None) as user:
            self._user = user
            self._begin(user.connection_id, user.isolation_key, "new")
            async for event in user:
                self._take(event)
                self._token_given()
                self._moved.set()

    def _begin(self, connection_id: str, isolation_key: str, recovery: str) -> None:
        welcome: dict[str, Any] = {
            "connection_id": connection_id,
            "isolation_key": isolation_key,
            "attach_id": f"library-{next(_numbers)}",
            "recovery": recovery,
            "sequence": 0,
        }
        self._attach = self._history.welcomed(
            self.person,
            welcome,
            asked=self._history.now(),
            durability=self._way.durability,
            former=None if self._attach is None else self._attach.context,
        )
        self.last = 0
        self.seen[recovery] += 1
        self._token_given()
        self._moved.set()

    def _take(self, event: Event) -> None:
        assert self._attach is not None
        match event:
            case Message():
                frame = {"type": "message", "sequence": event.sequence, "id": event.id, "data": event.data}
                self.last = event.sequence
            case Gap():
                frame = {"type": "gap", "from": event.first, "to": event.last, "reason": event.reason}
                self.last = event.last
            case _:
                self._begin(event.connection_id, event.isolation_key, "denied")
                return
        self._history.came(self._attach, frame)
        # To take the next one is to say that this one was dealt with.
        self._history.acknowledges(self._attach.context, self.last)

    def _token_given(self) -> None:
        """The token of the moment, which is another context's where events of this one wait to be taken still."""
        assert self._attach is not None
        assert self._user is not None
        context = self._attach.context
        if self._user.connection_id == context.connection_id:
            if self._user.context_token not in context.tokens[-1:]:
                context.tokens.append(self._user.context_token)
            self.context = context

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self.check()
            self._moved.clear()
            moved = asyncio.create_task(self._moved.wait())
            await asyncio.wait((moved, self._task), return_when=asyncio.FIRST_COMPLETED)
            moved.cancel()
            if self._task.done():
                self.check()
                raise AssertionError(f"{self} is gone")
