"""npm's ws in a process of Node's: node/client.mjs, which is told what to do in lines of JSON."""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
import subprocess
from asyncio.subprocess import PIPE, Process
from pathlib import Path
from typing import Any

from tests.clients.third_party.clients import Client

SOURCE = Path(__file__).parent / "node"
FOLDER = Path(__file__).parents[3] / "build" / "third-party-node"


def install() -> Path:
    """The program with what it needs beside it, fetched by npm unless that is there. Blocking."""
    lock = SOURCE / "package-lock.json"
    FOLDER.mkdir(parents=True, exist_ok=True)
    installed = FOLDER / "installed"
    if not installed.exists() or installed.read_text() != lock.read_text():
        for name in ("package.json", "package-lock.json", ".npmrc"):
            shutil.copy(SOURCE / name, FOLDER)
        subprocess.run(["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts"], cwd=FOLDER, check=True, timeout=50)
        installed.write_text(lock.read_text())
    shutil.copy(SOURCE / "client.mjs", FOLDER)
    return FOLDER / "client.mjs"


class NodeClient(Client):
    """A connection is a process."""

    sets_headers = True

    def __init__(self, program: Path) -> None:
        super().__init__()
        self._program = program
        self._process: Process | None = None
        self._reading: asyncio.Task[None] | None = None

    async def dial(self, url: str, protocols: list[str], headers: dict[str, str]) -> None:
        self._process = await asyncio.create_subprocess_exec("node", str(self._program), stdin=PIPE, stdout=PIPE)
        self._reading = asyncio.create_task(self._read(self._process))
        self._do("connect", url=url, protocols=protocols, headers=headers)

    async def _read(self, process: Process) -> None:
        assert process.stdout is not None
        while line := await process.stdout.readline():
            self.tell(json.loads(line))

    def _do(self, command: str, **members: Any) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"command": command, **members}).encode() + b"\n")

    async def send(self, message: str | bytes) -> None:
        if isinstance(message, bytes):
            self._do("binary", binary=base64.b64encode(message).decode())
        else:
            self._do("text", text=message)

    async def close(self, code: int = 1000) -> None:
        self._do("close", code=code)

    async def lose(self) -> None:
        self._do("lose")

    async def stop(self) -> None:
        if self._process is not None and self._reading is not None:
            if self._process.returncode is None:
                self._process.kill()
            await self._process.wait()
            await self._reading
