"""Runs the demo agent until SIGTERM, SIGINT, or the end of whoever holds the other end of its standard input."""

import asyncio
import os
import signal
import stat
import sys

from agent import DemoAgent, Settings, SettingsError  # type: ignore[import-not-found] # beside this file

EXIT_CONFIG = 78


async def main() -> int:
    """Serve; returns the exit code."""
    try:
        settings = Settings.from_environment(os.environ)
    except SettingsError as problem:
        print(f"demo agent: {problem}", file=sys.stderr)
        return EXIT_CONFIG
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    agent = DemoAgent(settings)
    try:
        port = await agent.start()
        print(f"demo agent listening on http://{settings.url_host}:{port}", flush=True)
        stop_with_parent(stopping)
        await stopping.wait()
    finally:
        await agent.close()
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
