"""A folder in which a page's settings and commands run as a reader runs them: only the paths lead elsewhere."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import sys
import tomllib
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

SERVICE_TOKEN: Final = "a service token of a test"
SECRET: Final = b"an HMAC secret of a test, long enough for the rule"
START_TIMEOUT_S: Final = 30
_PATH: Final = re.compile(r"(?<![\w.}/])/(?=(?:run|var|etc|srv)/)")
_LISTENERS: Final = {"websocket": "127.0.0.1:8080", "grpc": "127.0.0.1:50051", "ops": "127.0.0.1:8081"}
_PUBLIC_KEYS: Final[dict[str, Any]] = {
    "RS256": lambda: rsa.generate_private_key(public_exponent=65537, key_size=2048),
    "ES256": lambda: ec.generate_private_key(ec.SECP256R1()),
}


class Outcome(NamedTuple):
    """How a command ended."""

    code: int | None
    output: str
    errors: str


class Stage:
    """Holds `sidecar.toml` with these settings, the files that it names, and what runs there."""

    def __init__(self, folder: Path, settings: str, service_tokens: str = SERVICE_TOKEN.replace(" ", "-")) -> None:
        self.folder = folder
        self.settings = tomllib.loads(settings)
        self._environment = os.environ | self._free_addresses()
        self._process: Process | None = None
        (folder / "sidecar.toml").write_text(self.translated(settings), encoding="utf-8")
        self._prepare(service_tokens)

    @property
    def websocket_url(self) -> str:
        return f"ws://{self._environment['SIDECAR_WEBSOCKET__LISTEN']}/v1/connect"

    @property
    def ops_port(self) -> int:
        return int(self._environment["SIDECAR_OPS__LISTEN"].rpartition(":")[2])

    def translated(self, text: str) -> str:
        """The text with the system's folders below this one, and the environment of this interpreter for `.venv`."""
        return _PATH.sub(f"{self.folder}/", text).replace(".venv/bin/", f"{Path(sys.executable).parent}/")

    async def run(self, command: str) -> Outcome:
        """Run one command to its end."""
        arguments: dict[str, Any] = {"cwd": self.folder, "env": self._environment, "stdout": PIPE, "stderr": PIPE}
        process = await asyncio.create_subprocess_shell(self.translated(command), **arguments)
        output, errors = await asyncio.wait_for(process.communicate(), 30)
        return Outcome(process.returncode, output.decode(), errors.decode())

    async def serve(self, command: str = ".venv/bin/sidecar serve --config sidecar.toml") -> None:
        """Run a command that serves, until it says so; the one before it is stopped."""
        await self.stop()
        arguments: dict[str, Any] = {"cwd": self.folder, "env": self._environment, "stderr": PIPE}
        self._process = await asyncio.create_subprocess_exec(*self.translated(command).split(), **arguments)
        assert self._process.stderr is not None
        said = b""
        async with asyncio.timeout(START_TIMEOUT_S):
            while b'"serving"' not in said:
                line = await self._process.stderr.readline()
                said += line
                assert line, said.decode()

    async def stop(self) -> None:
        """Stop what serves, in order."""
        process, self._process = self._process, None
        if process is not None:
            process.terminate()
            await asyncio.wait_for(process.communicate(), 30)
            assert process.returncode == 0

    @property
    def serving(self) -> bool:
        return self._process is not None

    def _free_addresses(self) -> dict[str, str]:
        """Ports of our own in the place of the page's; a Unix socket stays."""
        addresses = {}
        for section, default in _LISTENERS.items():
            listen = self.settings.get(section, {}).get("listen", default)
            if not listen.startswith("unix:"):
                with socket.create_server(("127.0.0.1", 0)) as probe:
                    addresses[f"SIDECAR_{section.upper()}__LISTEN"] = f"127.0.0.1:{probe.getsockname()[1]}"
        return addresses

    def _prepare(self, service_tokens: str) -> None:
        """The folders, and the two files that the sidecar does not make by itself."""
        for path in re.findall(r'"(?:unix:)?(/[^"]+)"', self.translated(str(self.settings).replace("'", '"'))):
            Path(path).parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        (self.folder / "srv" / "heads").mkdir(parents=True)
        tokens = self.settings.get("service_auth", {}).get("token_file")
        if tokens is not None:
            self._write(tokens, service_tokens.encode())
        issuer = self.settings["user_tokens"]
        (algorithm,) = issuer["algorithms"]
        make = _PUBLIC_KEYS.get(algorithm)
        key = (
            SECRET
            if make is None
            else make().public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        )
        self._write(issuer["key_file"], key)

    def _write(self, path: str, data: bytes) -> None:
        target = Path(self.translated(path))
        target.write_bytes(data)
        target.chmod(0o600)


@asynccontextmanager
async def stage(folder: Path, settings: str, service_tokens: str | None = None) -> AsyncIterator[Stage]:
    """A stage; what still serves in the end is stopped."""
    made = Stage(folder, settings) if service_tokens is None else Stage(folder, settings, service_tokens)
    try:
        yield made
    finally:
        await made.stop()
