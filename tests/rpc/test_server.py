"""The gRPC server itself: its address, its options, its manners towards rude connections, its start and its stop."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from sidecar.core.ports import AuditEvent
from sidecar.rpc.server import MAX_UNIX_PATH_BYTES, RpcSettings, check_free, prepare_unix_socket, server_options
from sidecar.security.files import SettingError
from tests.rpc.conftest import MakeRig
from tests.rpc.rig import TIMEOUT_S, Attempt, Rig, refused
from tests.rpc.stores import ToldStore
from tests.support import http2

GOAWAY = 0x7


# Options


def test_the_options_that_the_contract_rests_on() -> None:
    options = dict(server_options(RpcSettings("127.0.0.1:0", max_receive_bytes=1_000, connection_age_s=100.0)))
    assert options["grpc.so_reuseport"] == 0
    assert options["grpc.keepalive_permit_without_calls"] == 1
    assert options["grpc.http2.min_ping_interval_without_data_ms"] == 5_000
    assert options["grpc.max_receive_message_length"] == 1_000
    assert options["grpc.max_metadata_size"] == options["grpc.absolute_max_metadata_size"] == 8_192
    assert options["grpc.max_concurrent_streams"] == 1_000
    assert 90_000 <= options["grpc.max_connection_age_ms"] <= 110_000


def test_the_age_of_connections_is_spread() -> None:
    ages = {dict(server_options(RpcSettings("127.0.0.1:0")))["grpc.max_connection_age_ms"] for _ in range(20)}
    assert len(ages) > 1


async def test_a_connection_of_age_is_told_to_go_and_its_stream_lives_on(make_rig: MakeRig) -> None:
    rig = await make_rig(connection_age_s=0.1)
    stream = rig.deliver()
    await stream.opened(1, rig.attempt())
    reader, writer = await http2.connect(rig.edge.target)
    async with asyncio.timeout(TIMEOUT_S):
        while (await http2.next_frame(reader))[0] != GOAWAY:
            pass
    writer.close()
    await stream.send((1, rig.attempt().message))
    assert len(await stream.receipts(1)) == 1
    assert (await rig.send(rig.alice)).sequence == 2
    await stream.finish()


# Rude connections


async def test_a_client_that_pings_all_the_time_is_cut_off(rig: Rig) -> None:
    reader, writer = await http2.connect(rig.edge.target)
    writer.write(http2.frame(http2.PING, 0, 0, bytes(8)) * 10)
    async with asyncio.timeout(TIMEOUT_S):
        while True:
            kind, _, payload = await http2.next_frame(reader)
            if kind == GOAWAY:
                break
    assert payload.endswith(b"too_many_pings")
    writer.close()
    assert (await rig.send(rig.alice)).sequence == 1


async def test_a_single_ping_without_calls_is_answered(rig: Rig) -> None:
    reader, writer = await http2.connect(rig.edge.target)
    writer.write(http2.frame(http2.PING, 0, 0, b"a ping!!"))
    async with asyncio.timeout(TIMEOUT_S):
        while True:
            kind, _, payload = await http2.next_frame(reader)
            assert kind != GOAWAY
            if kind == http2.PING and payload == b"a ping!!":
                break
    writer.close()


async def test_rapid_resets_leave_nothing_and_hold_up_nobody(rig: Rig) -> None:
    """The attack of CVE-2023-44487: calls begun and reset without end."""
    _, writer = await http2.connect(rig.edge.target)
    for stream in range(1, 2_001, 2):
        writer.write(http2.request_headers("/sidecar.api.v1.DeliveryService/Deliver", stream))
        writer.write(http2.frame(http2.RST_STREAM, 0, stream, (8).to_bytes(4, "big")))
    for sequence in range(1, 11):
        assert (await rig.send(rig.alice)).sequence == sequence
    writer.close()
    await rig.calls_under_way(0)


@pytest.mark.parametrize("data", [b"GET / HTTP/1.1\r\n\r\n", b"\0" * 10_000, http2.PREFACE + b"\xff" * 100])
async def test_what_is_not_http2_is_cut_off(rig: Rig, data: bytes) -> None:
    host, _, port = rig.edge.target.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(data)
    async with asyncio.timeout(TIMEOUT_S):
        while await reader.read(1_000):
            pass
    writer.close()
    assert (await rig.send(rig.alice)).sequence == 1


# Addresses


async def test_two_servers_do_not_share_a_port(rig: Rig, make_rig: MakeRig) -> None:
    with pytest.raises(OSError, match="in use") as caught:
        await make_rig(listen=rig.edge.target)
    assert caught.value.errno == errno.EADDRINUSE


async def test_any_other_listener_counts_too() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other, pytest.raises(OSError, match="in use"):
        check_free(f"127.0.0.1:{other.getsockname()[1]}")


async def test_a_port_can_be_taken_again_after_the_close(make_rig: MakeRig) -> None:
    first = await make_rig()
    target = first.edge.target
    await first.close()
    second = await make_rig(listen=target)
    assert (await second.send(second.alice)).sequence == 1


async def test_ipv6(make_rig: MakeRig) -> None:
    try:
        check_free("[::1]:0")
        rig = await make_rig(listen="[::1]:0")
    except OSError:  # a machine without IPv6
        pytest.skip("no IPv6 here")
    async with rig.seen(AuditEvent.TOKEN_DENIED, unauthorized_access_attempts=1, context_validation_failures=1) as seen:
        await refused(rig.unary(Attempt(rig.alice.key, "", rig.attempt().message)))
    assert seen[0]["address"] == "[::1]"


# Unix sockets


async def test_a_unix_socket(tmp_path: Path, make_rig: MakeRig) -> None:
    path = tmp_path / "run" / "grpc.sock"
    rig = await make_rig(listen=f"unix:{path}")
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert path.is_socket()
    assert (await rig.send(rig.alice)).sequence == 1
    async with rig.seen(AuditEvent.TOKEN_DENIED, unauthorized_access_attempts=1, context_validation_failures=1) as seen:
        await refused(rig.unary(Attempt(rig.alice.key, "", rig.attempt().message)))
    assert seen[0]["address"] == "unix"
    with pytest.raises(OSError, match="in use") as caught:
        await make_rig(listen=f"unix:{path}")
    assert caught.value.errno == errno.EADDRINUSE
    assert (await rig.send(rig.alice)).sequence == 2


def test_a_stale_socket_is_removed(tmp_path: Path) -> None:
    folder = private(tmp_path / "run")
    path = folder / "grpc.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    assert path.exists()
    prepare_unix_socket(path)
    assert not path.exists()


def test_a_plain_file_in_the_way_stays(tmp_path: Path) -> None:
    path = private(tmp_path / "run") / "grpc.sock"
    path.write_text("precious")
    with pytest.raises(SettingError, match="taken by something else"):
        prepare_unix_socket(path)
    assert path.read_text() == "precious"


@pytest.mark.parametrize(
    ("mode", "good"), [(0o700, True), (0o750, True), (0o770, False), (0o755, False), (0o701, False)]
)
def test_the_folder_lets_no_stranger_in(tmp_path: Path, mode: int, good: bool) -> None:
    folder = private(tmp_path / "run")
    folder.chmod(mode)
    if good:
        prepare_unix_socket(folder / "grpc.sock")
        return
    with pytest.raises(SettingError, match="0700 or 0750"):
        prepare_unix_socket(folder / "grpc.sock")


def test_the_longest_path_and_one_longer(tmp_path: Path) -> None:
    folder = private(tmp_path / "run")
    room = MAX_UNIX_PATH_BYTES - len(os.fsencode(folder)) - 1
    prepare_unix_socket(folder / ("a" * room))
    with pytest.raises(SettingError, match="at most 107 bytes"):
        prepare_unix_socket(folder / ("a" * (room + 1)))


def private(folder: Path) -> Path:
    folder.mkdir(mode=0o700)
    return folder


# Reflection


async def reflected(rig: Rig) -> list[str]:
    channel: Any = rig.channel
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
    call = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
    answer = await call.read()
    return [service.name for service in answer.list_services_response.service]


async def test_reflection_is_off_unless_asked_for(rig: Rig) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await reflected(rig)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_reflection_in_development(make_rig: MakeRig) -> None:
    rig = await make_rig(reflection=True)
    names = await reflected(rig)
    assert {"sidecar.api.v1.DeliveryService", "grpc.health.v1.Health"} <= set(names)


# The end


async def test_closing_before_the_start_does_nothing(rig: Rig, tmp_path: Path) -> None:
    other = Rig(tmp_path)
    other.edge.stop_serving()
    await other.edge.close(1.0)
    assert (await rig.send(rig.alice)).sequence == 1


async def test_a_call_under_way_is_answered_within_the_grace(make_rig: MakeRig) -> None:
    store = ToldStore()
    rig = await make_rig(store=store)
    call = asyncio.ensure_future(rig.unary(rig.attempt()))
    await store.asked(1)
    closing = asyncio.ensure_future(rig.edge.close(TIMEOUT_S))
    await asyncio.sleep(0)
    store.confirm()
    assert (await call).receipt.sequence == 1
    await closing
