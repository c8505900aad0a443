"""The outbox store of a sidecar that keeps everything in memory: the manager's own outbox is all there is."""

from __future__ import annotations

from sidecar.core.message import Durability
from sidecar.core.ports import Confirmed


class MemoryOutboxStore:
    """Confirms every append at once. Nothing survives the process."""

    durability = Durability.MEMORY

    def append(
        self,
        isolation_key: str,
        epoch: int,
        sequence: int,
        frame: bytes,
        confirmed: Confirmed,
    ) -> bool:
        """Kept, by the outbox itself."""
        return True

    def discard(self, isolation_key: str, through: int) -> None:
        """The outbox has already dropped it."""

    def dispose(self, isolation_key: str) -> None:
        """The outbox has already been cleared."""
