"""A sidecar as ever, told to stop while it starts: `python -m tests.support.signalled_sidecar serve --config FILE`."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import uvloop

from sidecar import app
from sidecar.config import load_config
from sidecar.logs import configure_logging


class SignalledSidecar(app.Sidecar):
    """SIGTERM comes before its first listener is there."""

    async def start(self) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        await super().start()


if __name__ == "__main__":
    configure_logging("json", "info")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        sys.exit(runner.run(app._serve(SignalledSidecar(load_config(Path(sys.argv[-1]), os.environ)), None)))
