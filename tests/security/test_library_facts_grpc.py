"""What grpcio does if it is let: one test a fact, that fails when our defence against it is taken away.

Facts that the tables of bad input hold already have no second test here; docs/security.md names the test of each.
Times are a hundredth of the real ones, on both sides.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message

from sidecar.api.v1 import admin_service_pb2 as admin_pb
from sidecar.api.v1 import agent_service_pb2_grpc
from sidecar.api.v1 import context_service_pb2 as context_pb
from sidecar.api.v1 import delivery_service_pb2 as pb
from sidecar.rpc.server import RpcSettings, server_options
from tests.rpc.rig import MESSAGE, TIMEOUT_S, Refused, ended_with, refused
from tests.support import http2
from tests.support.stage import check_status, serving
from tests.support.trail import Trail

SCALE = 100
KEEPALIVE_S, TOO_OFTEN_S = 10 / SCALE, 0.2 / SCALE
OF_MILLISECONDS = ("_ms", "settings_timeout")
MISSING = Refused("UNAUTHENTICATED", "TOKEN_MISSING")


def scaled_options(**settings: Any) -> list[tuple[str, Any]]:
    """Our options, every time a hundredth."""
    options = server_options(RpcSettings("127.0.0.1:0", **settings))
    return [(name, value // SCALE if name.endswith(OF_MILLISECONDS) else value) for name, value in options]


@asynccontextmanager
async def bare_server(options: list[tuple[str, Any]]) -> AsyncIterator[str]:
    """A server with these options and one method, which sends back what it gets; where it listens."""

    async def echo(_: object, call: Any) -> None:
        while (data := await call.read()) is not grpc.aio.EOF:
            await call.write(data)

    server = grpc.aio.server(options=options)
    methods: dict[str, Any] = {"Say": grpc.stream_stream_rpc_method_handler(echo)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("Echo", methods),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


async def test_nobody_shares_the_port() -> None:
    """A second server binds with SO_REUSEPORT, and half the calls are its own, unless the first one forbids it."""
    async with bare_server(server_options(RpcSettings("127.0.0.1:0"))) as target:
        second = grpc.aio.server()
        with pytest.raises(RuntimeError, match="Failed to bind"):
            second.add_insecure_port(target)
        await second.stop(None)


async def pinged(target: str, every_s: float, times: int) -> http2.Frame | None:
    """The GOAWAY that a client gets who pings so often without any call; None when each was answered instead."""
    reader, writer = await http2.connect(target)
    writer.write(http2.frame(http2.SETTINGS, http2.ACK, 0, b""))
    answers: asyncio.Queue[http2.Frame] = asyncio.Queue()
    listening = asyncio.create_task(listen(reader, answers))
    try:
        for _ in range(times):
            writer.write(http2.frame(http2.PING, 0, 0, b"are you?"))
            if (await asyncio.wait((listening,), timeout=every_s))[0]:
                return listening.result()
        for _ in range(times):
            await asyncio.wait_for(answers.get(), TIMEOUT_S)
        return None
    finally:
        listening.cancel()
        writer.close()


async def listen(reader: asyncio.StreamReader, answers: asyncio.Queue[http2.Frame] | None = None) -> http2.Frame:
    """The GOAWAY, when it comes; pings' answers until then."""
    while (got := await http2.whole_frame(reader)).kind != http2.GOAWAY:
        if got.kind == http2.PING and answers is not None:
            answers.put_nowait(got)
    return got


async def test_keepalives_every_10_s_are_welcome_without_calls() -> None:
    """gRPC would take one in 300 s, and one in 2 h without calls, and cut the third who comes too early."""
    async with bare_server(scaled_options()) as target:
        assert await pinged(target, KEEPALIVE_S, 6) is None


async def test_keepalives_every_200_ms_are_not() -> None:
    async with bare_server(scaled_options()) as target:
        got = await pinged(target, TOO_OFTEN_S, 50)
        assert got is not None
        assert got.payload.endswith(b"too_many_pings")


async def test_a_stream_outlives_its_connections_age() -> None:
    """With a grace period it would be cut at its end: five further connections come of age first."""
    options = scaled_options(connection_age_s=10.0)
    async with bare_server(options) as target, grpc.aio.insecure_channel(target) as channel:
        stream: Any = channel.stream_stream("/Echo/Say")(timeout=TIMEOUT_S)
        for number in range(5):
            reader, writer = await http2.connect(target)
            writer.write(http2.frame(http2.SETTINGS, http2.ACK, 0, b""))
            async with asyncio.timeout(TIMEOUT_S):
                assert b"max_age" in (await listen(reader)).payload
            writer.close()
            await stream.write(b"%d" % number)
            assert await stream.read() == b"%d" % number
        await stream.done_writing()
        assert await stream.read() is grpc.aio.EOF


async def test_a_client_that_acknowledges_no_settings_is_cut() -> None:
    """Until it has, gRPC holds it to no limit of metadata or of streams, and would wait a minute for it."""
    async with bare_server(scaled_options()) as target:
        reader, writer = await http2.connect(target)
        try:
            async with asyncio.timeout(TIMEOUT_S):
                got = await listen(reader)
                assert await reader.read() == b""
        finally:
            writer.close()
        assert got.payload.endswith(b"settings_timeout")


CALLS: dict[str, Callable[[], Message]] = {
    "delivery.SendToUser": lambda: pb.SendToUserRequest(isolation_key="0" * 64, message=MESSAGE),
    "context.GetContext": context_pb.GetContextRequest,
    "context.ExchangeContextToken": lambda: context_pb.ExchangeContextTokenRequest(user_token="t", connection_id="c"),
    "admin.GetFactoryStats": admin_pb.GetFactoryStatsRequest,
    "admin.DisconnectUser": lambda: admin_pb.DisconnectUserRequest(user_id="alice"),
}


async def test_a_unix_socket_is_no_proof(tmp_path: Path) -> None:
    """Its peer is this test's own user, as the sidecar is: gRPC lets it in unasked, and each call needs its token."""
    listen = f"unix:{tmp_path}/run/grpc.sock"
    with serving(tmp_path, SIDECAR_GRPC__LISTEN=listen) as sidecar:
        assert sidecar.grpc_target == listen
        assert (tmp_path / "run").stat().st_mode & 0o777 == 0o700
        trail = Trail(sidecar)
        await trail.mark()
        async with sidecar.service() as service, grpc.aio.insecure_channel(listen) as channel:
            for name, request in CALLS.items():
                part, _, method = name.partition(".")
                call: Any = getattr(getattr(service, part), method)
                assert check_status(await refused(call(request(), timeout=TIMEOUT_S))) == MISSING, name
            agent = agent_service_pb2_grpc.AgentServiceStub(channel)
            assert check_status(await ended_with(agent.Attach(timeout=TIMEOUT_S))) == MISSING
        records = await trail.expect(token_denied=len(CALLS) + 1)
        assert {record["address"] for record in records} == {"unix"}
