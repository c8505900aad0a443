"""The servers under load, each a process of its own on ports of its own: the sidecar, and the floor."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import sys
import tempfile
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jwt

from benchmarks.as_installed import packages_beyond

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build"
START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 30.0
TOKEN_LIFE_S = 3_600
KEPT_LOG_LINES = 20
ISSUER, AUDIENCE = "https://id.example", "bench"

CONFIG = """\
[websocket]
listen = "127.0.0.1:0"
[grpc]
listen = "127.0.0.1:0"
[ops]
listen = "127.0.0.1:0"
[user_tokens]
issuer = "{issuer}"
audience = "{audience}"
key_file = "{folder}/user.key"
[audit]
path = "{folder}/audit.jsonl"
"""


SQLITE = """\
[storage]
kind = "sqlite"
path = "{folder}/outbox.db"
key_file = "{folder}/storage.key"
[context_tokens]
key_file = "{folder}/context.key"
"""
"""Settings besides: contexts and messages are kept on disk."""

AGENTS = """\
[service_auth]
token_file = "{folder}/service-tokens"
"""
"""Settings besides: agents may attach."""


class Cores(NamedTuple):
    """Which CPUs are whose: a server gets one, the load the rest, so that neither is measured in the other's way."""

    all: frozenset[int]
    server: frozenset[int]
    load: frozenset[int]


@cache
def cores() -> Cores:
    """The CPUs that this process had when it first asked; to be called before it keeps to its own."""
    usable = frozenset(os.sched_getaffinity(0))
    server = frozenset({min(usable)})
    return Cores(usable, server, usable - server or usable)


class RunFailed(Exception):
    """What was to be measured did not happen: the figures would mean nothing."""


class Route(NamedTuple):
    """How a service reaches a user."""

    isolation_key: str
    context_token: str


class Dialect(Protocol):
    """What a client says to a server before it is a user there."""

    subprotocol: str | None

    def hello(self, user: str) -> bytes:
        """The client's first frame."""

    def route(self, user: str, answer: bytes) -> Route:
        """What the server's first frame gives."""


class FloorDialect:
    """A name, and an `ok`."""

    subprotocol: str | None = None

    def hello(self, user: str) -> bytes:
        return user.encode()

    def route(self, user: str, answer: bytes) -> Route:
        if answer != b"ok":
            raise RunFailed(f"the floor answered {answer!r}")
        return Route(user, "")


class SidecarDialect:
    """`hello` with a user token (HS256), and `welcome`."""

    subprotocol: str | None = "sidecar.v1.json"

    def __init__(self, secret: str) -> None:
        self._secret = secret

    def hello(self, user: str) -> bytes:
        return json.dumps({"type": "hello", "token": self._token(user)}).encode()

    def hello_again(self, user: str, resume: dict[str, Any]) -> bytes:
        """The first frame of a client that wants its context back."""
        return json.dumps({"type": "hello", "token": self._token(user), "resume": resume}).encode()

    def _token(self, user: str) -> str:
        now = int(time.time())
        claims = {"iss": ISSUER, "aud": AUDIENCE, "sub": user, "iat": now, "exp": now + TOKEN_LIFE_S}
        return jwt.encode(claims, self._secret, algorithm="HS256")

    def route(self, user: str, answer: bytes) -> Route:
        welcome = json.loads(answer)
        if welcome["type"] != "welcome":
            raise RunFailed(f"the sidecar answered {welcome['type']}")
        return Route(welcome["isolation_key"], welcome["context_token"])


@dataclass(slots=True)
class Server:
    """A running server, how a client speaks to it, and the token with which a service attaches to it, if it may."""

    process: asyncio.subprocess.Process
    dialect: Dialect
    log: deque[str]
    service_token: str = ""
    websocket_port: int = 0
    grpc_target: str = ""

    @property
    def pid(self) -> int:
        """The process."""
        return self.process.pid

    def check_alive(self) -> None:
        """Raise RunFailed when it has ended: nobody asked it to."""
        if self.process.returncode is not None:
            raise RunFailed(f"a server ended with {self.process.returncode}: {'; '.join(self.log)}")


@asynccontextmanager
async def running_floor() -> AsyncIterator[Server]:
    """The floor, until the block ends."""
    async with _running([sys.executable, "-m", "benchmarks.floor"], FloorDialect()) as server:
        yield server


@asynccontextmanager
async def running_relay(*options: str) -> AsyncIterator[Server]:
    """The floor of what goes through an agent, until the block ends."""
    async with _running([sys.executable, "-m", "benchmarks.relay", *options], FloorDialect()) as server:
        yield server


@asynccontextmanager
async def running_sidecar(
    runner: Sequence[str] | None = None, *, settings: str = "", pinned: bool = True
) -> AsyncIterator[Server]:
    """The sidecar with its default settings but for those, until the block ends. `runner` is what Python runs it with.

    By default as its users have it: what the developers' environment adds is not there for it. Its files are on the
    checkout's disk, since a system's folder for temporary files may be in memory.
    """
    BUILD.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="sidecar-bench-", dir=BUILD) as folder:
        secret, service_token = secrets.token_hex(32), secrets.token_hex(32)
        _write_secret(Path(folder, "service-tokens"), service_token)
        config = _write_settings(Path(folder), secret, settings)
        command = [sys.executable, *(runner or _as_installed()), "serve", "--config", str(config)]
        async with _running(command, SidecarDialect(secret), pinned=pinned) as server:
            server.service_token = service_token
            yield server


@cache
def _as_installed() -> tuple[str, ...]:
    return "-m", "benchmarks.as_installed", ",".join(sorted(packages_beyond(ROOT / "requirements.lock")))


def _write_settings(folder: Path, secret: str, settings: str) -> Path:
    _write_secret(folder / "user.key", secret)
    config = folder / "sidecar.toml"
    config.write_text((CONFIG + settings).format(issuer=ISSUER, audience=AUDIENCE, folder=folder))
    return config


def _write_secret(path: Path, secret: str) -> None:
    path.touch(mode=0o600)
    path.write_text(secret)


@asynccontextmanager
async def _running(command: Sequence[str], dialect: Dialect, *, pinned: bool = True) -> AsyncIterator[Server]:
    """A process that says on one line of its output that it serves, and where; killed in the end."""
    # Neither the caller's settings nor what this process told its own gRPC.
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("SIDECAR_", "GRPC_"))}
    process = await asyncio.create_subprocess_exec(
        *command, cwd=ROOT, env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    # Its threads are yet to come, and take this on.
    os.sched_setaffinity(process.pid, cores().server if pinned else cores().all)
    server = Server(process, dialect, deque(maxlen=KEPT_LOG_LINES))
    reading: asyncio.Task[None] | None = None
    try:
        async with asyncio.timeout(START_TIMEOUT_S):
            ports = await _serving_line(server)
        server.websocket_port, server.grpc_target = ports["websocket"], ports["grpc"]
        reading = asyncio.create_task(_keep_log(server))
        yield server
        server.check_alive()
    except BaseException as error:
        error.add_note(f"the log of `{' '.join(command)}` ends: {'; '.join(server.log)}")
        raise
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        if reading is not None:
            await reading


async def _serving_line(server: Server) -> dict[str, Any]:
    assert server.process.stdout is not None
    async for line in server.process.stdout:
        server.log.append(line.decode().rstrip())
        if b'"serving"' in line:
            found = json.loads(line)
            assert isinstance(found, dict)
            return found
    await server.process.wait()
    server.check_alive()
    raise AssertionError("a process that has ended is not alive")


async def _keep_log(server: Server) -> None:
    """Read on, so that the server never waits for its log to be read; the last lines explain a failure."""
    assert server.process.stdout is not None
    async for line in server.process.stdout:
        server.log.append(line.decode().rstrip())
