"""Runs the demo agent until SIGTERM, SIGINT, or the end of whoever holds the other end of its standard input."""

import asyncio
import logging
import os
import signal
import stat
import sys

from agent import make_agent  # type: ignore[import-not-found] # beside this file

from sidecar_client import AsyncSidecarClient, SidecarError

EXIT_UNAVAILABLE = 69
EXIT_CONFIG = 78
ATTACH_TIMEOUT_S = 15.0
GRACE_S = 1.0


async def main() -> int:
    """Serve; returns the exit code."""
    logging.basicConfig(level=logging.INFO, format="demo agent: %(message)s")
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    try:
        client = AsyncSidecarClient()
    except ValueError as problem:
        print(f"demo agent: {problem}", file=sys.stderr)
        return EXIT_CONFIG
    try:
        async with client, make_agent(client) as agent:
            await agent.wait_attached(ATTACH_TIMEOUT_S)
            print("demo agent attached", flush=True)
            stop_with_parent(stopping)
            await stopping.wait()
            await agent.stop(grace_s=GRACE_S)
    except SidecarError as refusal:
        print(f"demo agent: not attached: {refusal.reason or refusal.code.name}", file=sys.stderr)
        return EXIT_UNAVAILABLE
    return 0


def stop_with_parent(stopping: asyncio.Event) -> None:
    """A pipe as standard input is held by a parent: when it closes, the parent has gone. A terminal means nothing."""
    stdin = sys.__stdin__
    if stdin is None:
        return
    mode = os.fstat(stdin.fileno()).st_mode
    if not (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)):
        return
    loop = asyncio.get_running_loop()

    def read() -> None:
        if not os.read(stdin.fileno(), 4096):
            loop.remove_reader(stdin.fileno())
            stopping.set()

    loop.add_reader(stdin.fileno(), read)


sys.exit(asyncio.run(main()))
