"""A store in a file for machines that are not coroutines: what is appended waits until the machine has it written.

The loop runs in these steps only, and each but `hold` runs it until nothing is under way: no race decides anything.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

from sidecar.core.limits import Limits
from sidecar.core.stored import RestoredContext
from sidecar.storage.sqlite.store import RETRY_S
from tests.storage.sqlite.stage import LeapingLoop, Stage, leap, one_batch, read

Outcome = TypeVar("Outcome")


class StillLoop(LeapingLoop):
    """A loop on which no time passes but for what is leapt: no timer of the store's goes off of itself."""

    def time(self) -> float:
        return self.leapt_s


class Driven:
    """One stage on a loop of its own, in a folder of its own."""

    def __init__(self, limits: Limits) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="driven-"))
        self.loop = StillLoop()
        self.held = False
        """A batch is under way and gets no further; what is appended meanwhile stands behind it."""
        self.stage = self.run(self._staged(limits))

    async def _staged(self, limits: Limits) -> Stage:
        return Stage(self.folder / "outbox.db", limits=limits)

    def run(self, step: Coroutine[Any, Any, Outcome]) -> Outcome:
        """Run the loop for that."""
        return self.loop.run_until_complete(step)

    def hold(self) -> None:
        """What waits becomes a batch that gets no further, until it is written or fails."""
        self.held = True
        self.stage.disk.hold()  # before the loop runs, which hands it over
        self.run(self._hold())

    async def _hold(self) -> None:
        held, refused = asyncio.create_task(self.stage.disk.held()), asyncio.create_task(self.stage.written())
        await asyncio.wait((held, refused), return_when=asyncio.FIRST_COMPLETED)
        refused.cancel()
        assert held.done(), "nothing that waits is to be written"

    def write(self) -> None:
        """All that waits is written."""
        self._let_go()
        self.run(self.stage.written())

    def fail(self, code: int, then: Callable[[], None]) -> None:
        """The batch that is held fails at its commit, with that code; then whoever is told does something at once.

        That comes before the store looks at what stands behind the batch, which is written after it.
        """
        assert self.held
        self.stage.disk.fail("COMMIT", code)
        self.run(self._fail(then))

    async def _fail(self, then: Callable[[], None]) -> None:
        async with one_batch():
            self.loop.after_answer = then
            self._let_go()
        await self.stage.written()

    def _let_go(self) -> None:
        self.held = False
        self.stage.disk.let_go()

    def in_the_file(self) -> dict[str, RestoredContext]:
        """What a process that was started now would find, by isolation key, once all upkeep was written."""
        self.run(self._flush())
        found = read(self.stage.copy(self.folder / "copy")).contexts
        return {one.restored.context.isolation_key: one.restored for one in found}

    async def _flush(self) -> None:
        await self.stage.written()
        leap(RETRY_S)
        for _ in range(3):  # turns of the loop: to the timer, to what it asks for, and past that
            await asyncio.sleep(0)
        await self.stage.written()

    def close(self) -> None:
        """Every manager has ended: write what waits. Nothing of them is left in the file."""
        self._let_go()
        self.run(self.stage.store.close())
        left = read(self.stage.path).contexts
        self.loop.close()
        shutil.rmtree(self.folder)
        assert left == []
