"""Reads commands and answers them, until its input ends: `python -m conformance` in clients/python."""

from __future__ import annotations

import asyncio
import json
import sys

from conformance import values
from conformance.service import ServiceCommands
from conformance.user import UserCommands
from conformance.values import Values
from sidecar_client import ConnectionEnded
from sidecar_client.errors import SidecarError

LINE_BYTES = 64 * 1_048_576


class Runner:
    """Begins each command in its turn; answers each when it is done."""

    def __init__(self) -> None:
        self._sides = (ServiceCommands(), UserCommands())
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Until the input ends."""
        reader = asyncio.StreamReader(limit=LINE_BYTES)
        loop = asyncio.get_running_loop()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        while line := await reader.readline():
            task = asyncio.create_task(self._answer(json.loads(line)))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _answer(self, command: Values) -> None:
        line = json.dumps({"id": command["id"]} | await self._outcome(command))
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()

    async def _outcome(self, command: Values) -> Values:
        name = command["do"]
        for side in self._sides:
            if not name.startswith("_") and hasattr(side, name):
                return await _called(getattr(side, name)(command.get("with", {})))
        return {"error": {"reason": "UNKNOWN_COMMAND"}}


async def _called(call: asyncio.Future[Values]) -> Values:
    try:
        return {"ok": await call}
    except SidecarError as error:
        return {"error": values.error(error)}
    except ConnectionEnded as ended:
        return {"error": {"reason": ended.reason, "close_code": ended.code}}
    except Exception as error:  # noqa: BLE001 - whatever it is, the driver is to see it
        return {"error": {"reason": "CRASH", "message": f"{type(error).__name__}: {error}"}}


if __name__ == "__main__":
    asyncio.run(Runner().run())
