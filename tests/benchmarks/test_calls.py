"""What must not pass for messages that were acknowledged, or are on disk; and the reason of a refusal."""

from __future__ import annotations

from pathlib import Path

import grpc
import pytest
from google.protobuf.any_pb2 import Any
from google.rpc import error_details_pb2, status_pb2

from benchmarks.acks import AckingClient
from benchmarks.calls import Calls, batch_of, reason_of
from benchmarks.disk import sync_s
from benchmarks.load import deliver_load
from benchmarks.servers import SQLITE, RunFailed, running_sidecar
from benchmarks.sockets import Crowd
from benchmarks.works.side import side
from sidecar.api.v1 import types_pb2 as types


async def test_messages_that_nobody_acknowledged_fail_the_run() -> None:
    async with running_sidecar() as server, grpc.aio.insecure_channel(server.grpc_target) as channel:
        calls = Calls(channel)
        silent, acking = Crowd(server), Crowd(server, AckingClient)
        for crowd, user in ((silent, "alice"), (acking, "bob")):
            await crowd.join([user])
            await calls.send(batch_of(crowd.routes))
            await crowd.tally.reach(1)
        while (await calls.stats(acking.routes[0])).outbox_messages:
            pass
        await calls.check_acknowledged(acking.routes)
        with pytest.raises(RunFailed, match="1 messages were not acknowledged"):
            await calls.check_acknowledged(silent.routes)


@pytest.mark.parametrize(("settings", "kept"), [("", types.DURABILITY_MEMORY), (SQLITE, types.DURABILITY_DISK)])
async def test_a_receipt_of_another_durability_fails_the_run(settings: str, kept: int) -> None:
    async with side(running_sidecar(settings=settings), 2) as ours:
        for durability in (types.DURABILITY_MEMORY, types.DURABILITY_DISK):
            async with deliver_load(
                ours.channel, ours.crowd.routes, messages_a_frame=10, in_flight=1, durability=durability
            ) as load:
                if durability == kept:
                    assert len(await load.send(20)) == 2
                else:
                    with pytest.RaisesGroup(pytest.RaisesExc(RunFailed, match="is kept elsewhere")):
                        await load.send(10)


def test_a_refusal_s_reason_is_its_error_info_s() -> None:
    info = Any()
    info.Pack(error_details_pb2.ErrorInfo(reason="OUTBOX_FULL", domain="sidecar"))
    retry = Any()
    retry.Pack(error_details_pb2.RetryInfo())
    assert reason_of(status_pb2.Status(details=[retry, info])) == "OUTBOX_FULL"
    assert reason_of(status_pb2.Status(details=[retry])) == ""


def test_a_disk_takes_time(tmp_path: Path) -> None:
    assert 0 < sync_s(tmp_path, times=3) < 10
    assert not list(tmp_path.iterdir())
