"""Which records an action adds to the audit trail of a running sidecar."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

from tests.support.running import RunningSidecar


class Trail:
    """The trail seen as differences: mark, act, expect."""

    def __init__(self, sidecar: RunningSidecar) -> None:
        self._sidecar = sidecar
        self._marked = 0
        self.seen: set[str] = set()

    async def mark(self) -> None:
        """Count what comes from here on."""
        self._marked = len(await self._sidecar.audit_records())

    async def added(self) -> list[dict[str, Any]]:
        """The records since the mark, without the admin read that looks."""
        records = (await self._sidecar.audit_records())[self._marked :]
        looks = [number for number, record in enumerate(records) if record["event"] == "admin_call"]
        del records[looks[-1]]
        return records

    async def expect(self, **events: int) -> list[dict[str, Any]]:
        """Exactly these events since the mark, so many of each; then marks again. The records, in order."""
        added = await self.added()
        assert Counter(record["event"] for record in added) == Counter(events)
        self.seen |= set(events)
        await self.mark()
        return added

    async def until(self, event: str, times: int = 1, **fields: Any) -> list[dict[str, Any]]:
        """Wait for what the sidecar does of itself, by asking again: each look is a call that takes its turn."""
        async with asyncio.timeout(10):
            while True:
                found = [
                    record
                    for record in await self._sidecar.audit_records(event)
                    if all(record.get(name) == value for name, value in fields.items())
                ]
                if len(found) >= times:
                    return found
