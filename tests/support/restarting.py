"""A sidecar that is killed and started again: the same folder, the same configuration, the same ports."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from random import Random

from tests.support.running import Premises, RunningSidecar, end, furnish, launch

LISTENERS = ("WEBSOCKET", "GRPC", "OPS")
PORTS = (20_000, 32_000)
"""Below those that the kernel lends to clients: one of them may call while nobody listens, and would have the port."""
SHARES = 8
"""Into so many the workers of a run divide them: what is down for a while finds its ports free when it is back."""


class RestartingSidecar:
    """One sidecar through the lives of its processes. `running` is the present one, or the last."""

    def __init__(self, premises: Premises, environment: dict[str, str], *, module: str = "sidecar") -> None:
        ports = zip(LISTENERS, free_ports(len(LISTENERS)), strict=True)
        self._environment = environment | {f"SIDECAR_{name}__LISTEN": f"127.0.0.1:{port}" for name, port in ports}
        self._premises = premises
        self._module = module
        self._lives = count(1)
        self.running: RunningSidecar
        self.serving = asyncio.Event()
        """Set while a process serves."""

    @property
    def folder(self) -> Path:
        return self._premises.folder

    async def start(self) -> None:
        """Start a process; returns once it serves. Each life has a log of its own."""
        log_name = f"log-{next(self._lives)}.jsonl"
        self.running = await asyncio.to_thread(
            launch, self._premises, self._environment, module=self._module, log_name=log_name
        )
        self.serving.set()

    def strike(self) -> None:
        """SIGKILL, this instant: it ends in the middle of whatever it does, and writes nothing more. Idempotent."""
        self.serving.clear()
        self.running.process.kill()

    async def kill(self) -> None:
        """SIGKILL; returns once it is gone."""
        self.strike()
        await asyncio.to_thread(self.running.process.wait)

    async def terminate(self) -> int:
        """SIGTERM; the exit code, once it has drained."""
        self.serving.clear()
        self.running.process.send_signal(signal.SIGTERM)
        return await asyncio.to_thread(self.running.process.wait, 60)

    async def freeze(self) -> None:
        """SIGSTOP; returns once it stands still. Its sockets stay open, and nobody answers."""
        process = self.running.process
        process.send_signal(signal.SIGSTOP)
        await asyncio.to_thread(os.waitid, os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def thaw(self) -> None:
        """SIGCONT: it goes on as if no time had passed. Idempotent."""
        self.running.process.send_signal(signal.SIGCONT)

    async def end(self) -> None:
        """Leave no process behind, whatever its state. Idempotent."""
        self.serving.clear()
        if hasattr(self, "running"):
            self.thaw()
            await asyncio.to_thread(end, self.running.process)

    def log(self) -> str:
        """What every life has logged."""
        return "".join(path.read_text() for path in sorted(self.folder.glob("log-*.jsonl")))


@asynccontextmanager
async def restarting_sidecar(
    folder: Path, settings: str = "", *, module: str = "sidecar", **environment: str
) -> AsyncIterator[RestartingSidecar]:
    """One that serves at the beginning of the block, and is gone after it."""
    sidecar = RestartingSidecar(furnish(folder, settings), environment, module=module)
    try:
        await sidecar.start()
        yield sidecar
    finally:
        await sidecar.end()


def free_ports(wanted: int) -> list[int]:
    """Ports of loopback that nobody listens on now, and that no client is given."""
    random = Random(os.urandom(8))
    share = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % SHARES
    found: set[int] = set()
    while len(found) < wanted:
        port = random.randrange(PORTS[0] + share, PORTS[1], SHARES)
        with socket.socket() as plain:
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                plain.bind(("127.0.0.1", port))
            except OSError:
                continue
            found.add(port)
    return sorted(found)
