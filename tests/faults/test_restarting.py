"""The harness that kills a sidecar and starts it again on the same folder and the same ports."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import pytest

from tests.support.restarting import PORTS, free_ports, restarting_sidecar


async def test_a_killed_sidecar_serves_again_where_it_served(tmp_path: Path) -> None:
    async with restarting_sidecar(tmp_path) as sidecar:
        first = sidecar.running
        async with first.user("alice"):
            await sidecar.kill()
        assert first.process.returncode == -signal.SIGKILL
        assert not sidecar.serving.is_set()
        with pytest.raises(ConnectionRefusedError):
            async with first.user("alice"):
                pass
        await sidecar.start()
        second = sidecar.running
        assert sidecar.serving.is_set()
        assert second.process.pid != first.process.pid
        assert (second.websocket_port, second.grpc_target, second.ops_port) == (
            (first.websocket_port, first.grpc_target, first.ops_port)
        )
        # A token of before is good, and the trail goes on in the same file.
        async with first.user("alice") as alice, second.service() as service:
            assert (await service.send(alice.isolation_key, alice.context_token)).sequence == 1
        assert [record["user_id"] for record in await second.audit_records("context_opened")] == ["alice", "alice"]
    assert second.process.returncode == 0
    assert sidecar.log().count('"serving"') == 2


async def test_a_sidecar_that_is_told_to_stop_exits_0(tmp_path: Path) -> None:
    async with restarting_sidecar(tmp_path) as sidecar:
        assert await sidecar.terminate() == 0
        assert not sidecar.serving.is_set()


async def test_a_frozen_sidecar_goes_on(tmp_path: Path) -> None:
    async with restarting_sidecar(tmp_path) as sidecar:
        async with sidecar.running.user("alice") as alice:
            await sidecar.freeze()
            state = Path(f"/proc/{sidecar.running.process.pid}/stat").read_text().rsplit(")")[-1].split()[0]
            assert state == "T"
            asked = asyncio.create_task(alice.frames_before_answer_to("probe"))
            sidecar.thaw()
            assert await asked == []
        await sidecar.freeze()
    assert sidecar.running.process.returncode == 0


async def test_nothing_runs_after_a_test_that_fails(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        async with restarting_sidecar(tmp_path) as sidecar:
            raise ZeroDivisionError
    assert sidecar.running.process.returncode is not None


def test_ports_are_not_those_of_clients() -> None:
    ports = free_ports(20)
    assert len(set(ports)) == 20
    assert all(PORTS[0] <= port < PORTS[1] for port in ports)
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    assert PORTS[1] <= lowest
