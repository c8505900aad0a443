"""The agents of one company: several workers of one service, each a process, of which any may be killed at any time."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from contextlib import suppress
from itertools import count
from pathlib import Path
from random import Random
from typing import Any

from tests.faults.soak.talk import Handling


class Crew:
    """Its workers go through the company's fault proxy, and write one journal."""

    def __init__(self, journal: Path, grpc_target: str, service_token: str, random: Random) -> None:
        self._journal = journal
        self._environment = os.environ | {
            "SIDECAR_GRPC_ENDPOINT": grpc_target,
            "SIDECAR_SERVICE_TOKEN": service_token,
            "GRPC_VERBOSITY": "NONE",
        }
        self._random = random
        self._names = count(1)
        self._workers: list[asyncio.subprocess.Process] = []
        journal.touch()

    async def hire(self) -> None:
        """One more."""
        name = f"worker-{next(self._names)}"
        self._workers.append(
            await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "tests.faults.soak.worker", name, str(self._journal)),
                env=self._environment,
            )
        )

    async def kill_one(self) -> None:
        """kill -9, in the middle of whatever it does."""
        worker = self._workers.pop(self._random.randrange(len(self._workers)))
        worker.kill()
        await worker.wait()

    async def dismiss(self) -> None:
        """Leave none. Idempotent."""
        while self._workers:
            await self.kill_one()

    async def a_while(self) -> None:
        """Give them a moment. There is no event to wait on in another process's file."""
        with suppress(TimeoutError):
            async with asyncio.timeout(0.1):
                await asyncio.Event().wait()

    def check(self) -> list[str]:
        """A line for each that has ended and was not killed."""
        return [f"a worker has ended with {one.returncode}" for one in self._workers if one.returncode is not None]

    def handlings(self) -> list[Handling]:
        """Every message that a worker was handed, in the order in which they took them."""
        lines = [json.loads(line) for line in self._journal.read_text().splitlines()]
        return sorted((handling(line) for line in lines if "said" in line), key=lambda one: one.at)

    def answers(self) -> list[tuple[str, str, str]]:
        """The context and the id of each message that was answered, and how far."""
        lines = [json.loads(line) for line in self._journal.read_text().splitlines()]
        return [(line["context"], line["id"], line["answered"]) for line in lines if "answered" in line]


def handling(line: dict[str, Any]) -> Handling:
    return Handling(
        line["at"], line["worker"], (line["tenant"], line["user"]), line["context"], line["id"], line["said"],
        line["redelivered"], line["life"],
    )  # fmt: skip
