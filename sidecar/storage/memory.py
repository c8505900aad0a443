"""The outbox store of a sidecar that keeps everything in memory: the manager's own outbox is all there is."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from sidecar.core.message import Durability

if TYPE_CHECKING:
    from sidecar.core.message import Instant
    from sidecar.core.outbox import OutboxEntry
    from sidecar.core.ports import Confirmed
    from sidecar.core.stored import MessageIdentity, StoredContext, StoredInbound, StoredState


class MemoryOutboxStore:
    """Confirms everything at once. Nothing survives the process: there is nothing to restore or to write."""

    durability = Durability.MEMORY
    survives = False

    def start(self) -> None:
        """There is nothing to open."""

    def restore(self, adopt: object) -> None:
        """There is nothing from before."""

    async def close(self) -> None:
        """There is nothing to write."""

    def create(
        self, context: StoredContext, epoch: int, state: Callable[[], StoredState], confirmed: Confirmed
    ) -> bool:
        """Kept, by the manager itself."""
        return True

    def append(
        self,
        isolation_key: str,
        epoch: int,
        entry: OutboxEntry,
        identity: MessageIdentity | None,
        at: Instant,
        confirmed: Confirmed,
    ) -> bool:
        """Kept, by the outbox itself."""
        return True

    def changed(self, isolation_key: str) -> None:
        """The outbox knows."""

    def receive(self, isolation_key: str, inbound: StoredInbound, at: Instant, confirmed: Confirmed) -> bool:
        """Kept, by the registry itself."""
        return True

    def taken(self, isolation_key: str, number: int) -> None:
        """The registry has already dropped it."""

    def forget(self, isolation_key: str, sequence: int) -> None:
        """The manager has already forgotten it."""

    def dispose(self, isolation_key: str) -> None:
        """The outbox has already been cleared."""

    def when_written(self, done: Callable[[], None]) -> bool:
        """There is nothing to write."""
        return True
