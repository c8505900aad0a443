"""A sidecar as ever but for its store, run as a process: `python -m tests.support.faulty_sidecar serve --config FILE`.

What a payload says is what the store does: it has a bug, is out of reach, or does not know.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import uvloop

from sidecar.app import Sidecar, random_hexadecimal
from sidecar.cluster.local import LocalOwnerDirectory
from sidecar.config import load_config
from sidecar.core.errors import ErrorReason, Unavailable
from sidecar.core.factory import WebSocketManagerFactory
from sidecar.core.limits import Limits
from sidecar.core.message import Instant
from sidecar.core.outbox import OutboxEntry
from sidecar.core.ports import Confirmed
from sidecar.core.stored import MessageIdentity
from sidecar.logs import configure_logging
from sidecar.rpc.server import RpcEdge
from sidecar.storage.memory import MemoryOutboxStore

BUG, UNREACHABLE, UNKNOWN = '"a bug, please"', '"out of reach, please"', '"who knows, please"'
"""The payloads."""


class FaultyStore(MemoryOutboxStore):
    """Keeps nothing of those payloads."""

    def append(
        self,
        isolation_key: str,
        epoch: int,
        entry: OutboxEntry,
        identity: MessageIdentity | None,
        at: Instant,
        confirmed: Confirmed,
    ) -> bool:
        frame = entry.frame
        if BUG.encode() in frame:
            raise RuntimeError(f"{isolation_key}: {frame!r}")
        for payload, error in (
            (UNREACHABLE, OSError(f"{isolation_key}: {frame!r}")),
            (UNKNOWN, Unavailable(ErrorReason.OUTCOME_UNKNOWN)),
        ):
            if payload.encode() in frame:
                asyncio.get_running_loop().call_soon(confirmed, error)
                return False
        return super().append(isolation_key, epoch, entry, identity, at, confirmed)


class FaultySidecar(Sidecar):
    """Composed with that store."""

    def _rpc_edge(self) -> RpcEdge:
        self.factory = WebSocketManagerFactory(
            Limits(),
            store=FaultyStore(),
            owners=LocalOwnerDirectory(),
            clock=self._clock,
            counters=self._counters,
            randomness=random_hexadecimal,
            writes=self.factory.writes,
        )
        return super()._rpc_edge()


async def serve(path: Path) -> None:
    """Until SIGTERM."""
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    sidecar = FaultySidecar(load_config(path, os.environ))
    await sidecar.start()
    await stopping.wait()
    await sidecar.stop()


if __name__ == "__main__":
    configure_logging("json", "info")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(Path(sys.argv[-1])))
