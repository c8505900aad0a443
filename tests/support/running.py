"""A real sidecar in a process of its own, and real clients for both of its sides."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from websockets.asyncio.client import ClientConnection, connect

from sidecar.api.v1 import (
    admin_service_pb2,
    admin_service_pb2_grpc,
    context_service_pb2_grpc,
    delivery_service_pb2,
    delivery_service_pb2_grpc,
    types_pb2,
)
from sidecar.security.user_tokens import mint_user_token

ISSUER = "https://id.test"
AUDIENCE = "chat"
START_TIMEOUT_S = 60.0
AT_ONCE = "[drain]\nwindow_s = 0\n"
"""How a sidecar stops in a test that says nothing of it."""


@dataclass
class RunningSidecar:
    """One sidecar process on ports of its own, and what a test needs to talk to it."""

    process: subprocess.Popen[str]
    websocket_port: int
    grpc_target: str
    ops_port: int
    audit_path: Path
    service_token: str
    secret: bytes = field(repr=False)
    log: list[str] = field(default_factory=list)

    @property
    def websocket_url(self) -> str:
        return f"ws://127.0.0.1:{self.websocket_port}/v1/connect"

    def user_token(self, subject: str, tenant_id: str | None = None, **claims: Any) -> str:
        """A good user token, unless the claims say otherwise."""
        arguments: dict[str, Any] = {"session_id": None, "ttl_s": 600, "now": time.time()} | claims
        return mint_user_token(
            self.secret, issuer=ISSUER, audience=AUDIENCE, subject=subject, tenant_id=tenant_id, **arguments
        )

    @asynccontextmanager
    async def user(self, subject: str, tenant_id: str | None = None, **hello: Any) -> AsyncIterator[User]:
        """A user connected with the JSON protocol, past its welcome."""
        async with connect(self.websocket_url, subprotocols=["sidecar.v1.json"], compression=None) as socket:  # type: ignore[list-item]
            await socket.send(json.dumps({"type": "hello", "token": self.user_token(subject, tenant_id), **hello}))
            yield User(subject, socket, json.loads(await socket.recv()))

    @asynccontextmanager
    async def service(self) -> AsyncIterator[Service]:
        """An agent service's channel."""
        async with grpc.aio.insecure_channel(self.grpc_target) as channel:
            yield Service(channel, self.service_token)

    async def audit_records(self, event: str | None = None) -> list[dict[str, Any]]:
        """The records of the trail so far. An admin read first: its record is written after all that came before."""
        async with self.service() as service:
            await service.security_stats()
        # What others cause is written meanwhile: a last line without its end is not whole yet.
        whole = self.audit_path.read_text().rpartition("\n")[0]
        records = [json.loads(line) for line in whole.splitlines()]
        return [record for record in records if event is None or record["event"] == event]

    def stop(self) -> int:
        """SIGTERM, and the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=30)


@dataclass
class User:
    """A user's primary socket and what its welcome said."""

    subject: str
    socket: ClientConnection
    welcome: dict[str, Any]

    @property
    def isolation_key(self) -> str:
        return str(self.welcome["isolation_key"])

    @property
    def context_token(self) -> str:
        return str(self.welcome["context_token"])

    async def frame(self) -> dict[str, Any]:
        """The next frame."""
        frame = json.loads(await asyncio.wait_for(self.socket.recv(), 10))
        assert isinstance(frame, dict)
        return frame

    async def frames_before_answer_to(self, probe: str) -> list[dict[str, Any]]:
        """Every frame up to the answer to an unknown frame type, which the server gives in order: what has arrived."""
        await self.socket.send(json.dumps({"type": probe}))
        frames: list[dict[str, Any]] = []
        while True:
            frame = await self.frame()
            if frame["type"] == "error":
                return frames
            frames.append(frame)


@dataclass
class Refusal:
    """How a call was refused: the status code's name and ErrorInfo's reason."""

    code: str
    reason: str
    details: tuple[Any, ...] = ()


class Service:
    """An agent service with nothing but generated stubs."""

    def __init__(self, channel: grpc.aio.Channel, service_token: str) -> None:
        self.delivery = delivery_service_pb2_grpc.DeliveryServiceStub(channel)
        self.context = context_service_pb2_grpc.ContextServiceStub(channel)
        self.admin = admin_service_pb2_grpc.AdminServiceStub(channel)
        self.as_operator = (("x-service-token", service_token),)

    async def send(self, isolation_key: str, context_token: str, payload: bytes = b"{}", **members: Any) -> Any:
        """SendToUser; the receipt."""
        expected = members.pop("expected_user_id", "")
        request = delivery_service_pb2.SendToUserRequest(
            isolation_key=isolation_key,
            message=types_pb2.Message(payload=payload, **members),
            expected_user_id=expected,
        )
        response = await self.delivery.SendToUser(request, metadata=(("x-context-token", context_token),), timeout=10)
        return response.receipt

    async def security_stats(self) -> Any:
        return await self.admin.GetSecurityStats(
            admin_service_pb2.GetSecurityStatsRequest(), metadata=self.as_operator, timeout=10
        )

    async def factory_stats(self) -> Any:
        return await self.admin.GetFactoryStats(
            admin_service_pb2.GetFactoryStatsRequest(), metadata=self.as_operator, timeout=10
        )


async def refusal(awaitable: Any) -> Refusal:
    """The refusal that a call must end with."""
    try:
        answer = await awaitable
    except grpc.aio.AioRpcError as error:
        return refusal_of(error)
    raise AssertionError(f"not refused: {answer!r}")


def refusal_of(error: grpc.aio.AioRpcError) -> Refusal:
    """The reason of an error of grpc.aio."""
    status = rpc_status.from_call(error)  # type: ignore[arg-type]
    if status is None:
        return Refusal(error.code().name, "")
    return refusal_in(status)


def refusal_in(status: Any) -> Refusal:
    """The reason in a google.rpc.Status."""
    details = []
    reason = ""
    for detail in status.details:
        for kind in (error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo(), error_details_pb2.BadRequest()):
            if detail.Is(kind.DESCRIPTOR):
                detail.Unpack(kind)
                details.append(kind)
                if isinstance(kind, error_details_pb2.ErrorInfo):
                    assert kind.domain == "sidecar"
                    reason = kind.reason
    names = {code.value[0]: code.name for code in grpc.StatusCode}
    return Refusal(names[status.code], reason, tuple(details))


@dataclass(frozen=True)
class Premises:
    """What a sidecar finds when it starts: its configuration, and the secrets that it shares with its peers."""

    folder: Path
    config: Path
    secret: bytes = field(repr=False)
    service_token: str = field(repr=False)


def furnish(folder: Path, settings: str = "") -> Premises:
    """Write keys and a configuration with ports of its own into that folder."""
    secret = secrets.token_hex(32).encode()
    service_token = secrets.token_hex(16)
    for name, text in (("user.key", secret.decode()), ("service-tokens", service_token)):
        path = folder / name
        path.write_text(text)
        path.chmod(0o600)
    config = folder / "sidecar.toml"
    config.write_text(
        f"""
[websocket]
listen = "127.0.0.1:0"
[grpc]
listen = "127.0.0.1:0"
[ops]
listen = "127.0.0.1:0"
[service_auth]
token_file = "{folder}/service-tokens"
[user_tokens]
issuer = "{ISSUER}"
audience = "{AUDIENCE}"
key_file = "{folder}/user.key"
[context_tokens]
key_file = "{folder}/context.keys"
[audit]
path = "{folder}/audit.jsonl"
{settings}
{"" if "[drain]" in settings else AT_ONCE}
"""
    )
    return Premises(folder, config, secret, service_token)


def launch(
    premises: Premises, environment: dict[str, str], *, module: str = "sidecar", log_name: str = "log.jsonl"
) -> RunningSidecar:
    """Start `python -m sidecar serve` (or another composition) and wait until it serves."""
    log_path = premises.folder / log_name
    with log_path.open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", module, "serve", "--config", str(premises.config)],
            stderr=log,
            stdout=subprocess.DEVNULL,
            text=True,
            env=os.environ | environment,
        )
    try:
        ports = _await_serving(process, log_path)
    except BaseException:
        end(process)
        raise
    return RunningSidecar(
        process=process,
        websocket_port=ports["websocket"],
        grpc_target=ports["grpc"],
        ops_port=ports["ops"],
        audit_path=premises.folder / "audit.jsonl",
        service_token=premises.service_token,
        secret=premises.secret,
    )


def end(process: subprocess.Popen[str]) -> None:
    """SIGTERM, and SIGKILL to one that does not go. Idempotent."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def running_sidecar(
    folder: Path, settings: str = "", *, module: str = "sidecar", **environment: str
) -> Iterator[RunningSidecar]:
    """Start a sidecar with keys and ports of its own; stop it in the end."""
    sidecar = launch(furnish(folder, settings), environment, module=module)
    try:
        yield sidecar
    finally:
        end(sidecar.process)


def _await_serving(process: subprocess.Popen[str], log_path: Path) -> dict[str, Any]:
    """The ports, from the line of the log that says it serves. There is no event to wait on in another's file."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        for line in log_path.read_text().splitlines():
            if '"serving"' in line:
                found = json.loads(line)
                assert isinstance(found, dict)
                return found
        try:
            process.wait(timeout=0.02)
        except subprocess.TimeoutExpired:
            continue
        raise AssertionError(f"the sidecar ended with {process.returncode}: {log_path.read_text()}")
    raise AssertionError(f"the sidecar did not start in time: {log_path.read_text()}")
