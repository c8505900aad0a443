"""The owner directory of a sidecar that runs alone: it owns every context it has made."""

from __future__ import annotations


class LocalOwnerDirectory:
    """Every key is this process's, in its first epoch."""

    def claim(self, isolation_key: str) -> int:
        """Always epoch 1: nobody else can own it."""
        return 1

    def release(self, isolation_key: str) -> None:
        """Nothing is kept."""
