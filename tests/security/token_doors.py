"""Every way in for a token, each taken at a running sidecar with nothing that would refuse to send bad bytes.

Each visit comes from a loopback address of its own: refusals before authentication are then recorded one by one.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import grpc
from google.rpc import error_details_pb2, status_pb2
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from sidecar.api.v1 import context_service_pb2, context_service_pb2_grpc, delivery_service_pb2_grpc
from tests.support.running import RunningSidecar

TIMEOUT_S = 10
UNAUTHORIZED = (
    b"HTTP/1.1 401 Unauthorized\r\n"
    b"Connection: close\r\n"
    b"Content-Length: 31\r\n"
    b"Content-Type: text/plain; charset=utf-8\r\n"
    b"WWW-Authenticate: Bearer\r\n\r\n"
    b"a valid user token is required\n"
)
TEXTS = {
    "TOKEN_MISSING": "a token is required",
    "TOKEN_INVALID": "the token is not valid",
    "TOKEN_EXPIRED": "the token has expired",
}

_addresses = itertools.count(1)


def new_address() -> str:
    """A loopback address that nobody has used in this process."""
    number = next(_addresses)
    return f"127.{100 + number // 62_500}.{number // 250 % 250}.{1 + number % 250}"


def status(reason: str) -> bytes:
    """All that a caller of gRPC is told of a token that was refused: google.rpc.Status, serialised."""
    answer = status_pb2.Status(code=grpc.StatusCode.UNAUTHENTICATED.value[0], message=TEXTS[reason])
    answer.details.add().Pack(error_details_pb2.ErrorInfo(domain="sidecar", reason=reason))
    return answer.SerializeToString()


async def request(sidecar: RunningSidecar, address: str, *lines: bytes) -> bytes:
    """A WebSocket handshake with these further header lines; the whole answer, without its Date."""
    reader, writer = await asyncio.open_connection("127.0.0.1", sidecar.websocket_port, local_addr=(address, 0))
    head = (
        b"GET /v1/connect HTTP/1.1",
        b"Host: sidecar.test",
        b"Upgrade: websocket",
        b"Connection: Upgrade",
        b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
        b"Sec-WebSocket-Version: 13",
    )
    try:
        writer.write(b"\r\n".join((*head, *lines, b"", b"")))
        async with asyncio.timeout(TIMEOUT_S):
            answer = await reader.readuntil(b"\r\n\r\n")
            if not answer.startswith(b"HTTP/1.1 101 "):
                answer += await reader.read()
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()
    return re.sub(rb"Date: [^\r]*\r\n", b"", answer)


async def header(sidecar: RunningSidecar, token: str | bytes, address: str) -> bytes:
    """The token in `Authorization`; the HTTP answer."""
    data = token if isinstance(token, bytes) else token.encode()
    return await request(sidecar, address, b"Authorization: Bearer " + data)


async def subprotocol(sidecar: RunningSidecar, token: str, address: str) -> bytes:
    """The token as a subprotocol beside the real one; the HTTP answer."""
    return await request(
        sidecar, address, b"Sec-WebSocket-Protocol: sidecar.v1.json, bearer." + token.encode("latin-1")
    )


@asynccontextmanager
async def opened(sidecar: RunningSidecar, address: str) -> AsyncIterator[ClientConnection]:
    """A socket of the JSON protocol before its hello."""
    async with connect(
        sidecar.websocket_url,
        subprotocols=["sidecar.v1.json"],  # type: ignore[list-item]
        compression=None,
        local_addr=(address, 0),
        user_agent_header=None,
    ) as socket:
        yield socket


async def next_frame(socket: ClientConnection) -> Any:
    """The next frame; or, when the socket is closed instead, its close."""
    try:
        async with asyncio.timeout(TIMEOUT_S):
            return json.loads(await socket.recv())
    except ConnectionClosed:
        return socket.close_code, socket.close_reason


async def hello(sidecar: RunningSidecar, token: str, address: str, **members: object) -> Any:
    """The token in the first frame; the close, or the welcome."""
    async with opened(sidecar, address) as socket:
        await socket.send(json.dumps({"type": "hello", "token": token} | members))
        return await next_frame(socket)


async def refresh(sidecar: RunningSidecar, token: str, address: str, good: str) -> Any:
    """The token as the successor of a good one, in band; the close, or the answer."""
    async with opened(sidecar, address) as socket:
        await socket.send(json.dumps({"type": "hello", "token": good}))
        assert (await next_frame(socket))["type"] == "welcome"
        await socket.send(json.dumps({"type": "refresh", "token": token}))
        return await next_frame(socket)


@asynccontextmanager
async def channel(sidecar: RunningSidecar, address: str) -> AsyncIterator[grpc.aio.Channel]:
    """A gRPC channel whose calls come from that address, which grpc itself cannot choose: through a relay."""
    async with Relay(sidecar.grpc_target, address) as target, grpc.aio.insecure_channel(target) as own:
        yield own


class Relay:
    """Passes one listener's bytes on from another address."""

    def __init__(self, target: str, address: str) -> None:
        self._host, _, self._port = target.rpartition(":")
        self._address = address
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> str:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._tasks.add(asyncio.create_task(self._pass_on(reader, writer)))

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(self._host, int(self._port), local_addr=(self._address, 0))
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(pump(reader, back))
                both.create_task(pump(there, writer))
        finally:
            for one in (writer, back):
                one.close()
            for one in (writer, back):
                with suppress(ConnectionError):
                    await one.wait_closed()


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Bytes from one to the other until the end, and the end."""
    with suppress(ConnectionError):
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
        writer.close()


async def exchange(sidecar: RunningSidecar, token: str, address: str, connection_id: str) -> Any:
    """The token in ExchangeContextToken; the refusal's status, serialised, or the answer."""
    request = context_service_pb2.ExchangeContextTokenRequest(user_token=token, connection_id=connection_id)
    async with channel(sidecar, address) as own:
        call = context_service_pb2_grpc.ContextServiceStub(own).ExchangeContextToken(
            request, metadata=(("x-service-token", sidecar.service_token),), timeout=TIMEOUT_S
        )
        return await outcome(call)


async def outcome(call: Any) -> Any:
    """A call's answer, or all that its refusal said."""
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        return told(error)


def told(error: grpc.aio.AioRpcError) -> bytes:
    """The status with its details, as it came."""
    for name, value in error.trailing_metadata() or ():
        if name == "grpc-status-details-bin":
            assert isinstance(value, bytes)
            return value
    raise AssertionError(f"no details: {error.code()} {error.details()}")


def deliveries(own: grpc.aio.Channel) -> Any:
    """The stub of DeliveryService on a channel."""
    return delivery_service_pb2_grpc.DeliveryServiceStub(own)


def secret_parts(token: str) -> Iterator[str]:
    """What of a token must not be found in any log: the whole, and each segment long enough to be known again."""
    yield from (part for part in (token, *token.split(".")) if len(part) >= 16)
