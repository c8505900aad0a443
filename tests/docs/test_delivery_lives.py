"""docs/delivery.md, what it says of a restart and of a drain, with each kind of storage: real sidecars, stopped."""

from __future__ import annotations

import asyncio
import json
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Final
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from sidecar.api.v1 import context_service_pb2, delivery_service_pb2, types_pb2
from tests.support.restarting import RestartingSidecar, restarting_sidecar
from tests.support.running import RunningSidecar, Service, User, refusal, running_sidecar

RAW: Final[Any] = ["sidecar.v1.raw"]


def sqlite(folder: Path) -> str:
    return f'[storage]\nkind = "sqlite"\npath = "{folder}/outbox.db"\nkey_file = "{folder}/outbox.key"\n'


def resume_of(user: User, attempt: int) -> dict[str, Any]:
    return {"token": user.welcome["resume_token"], "last_sequence": 0, "attempt": attempt}


async def restarted(sidecar: RestartingSidecar, way: str) -> RunningSidecar:
    """In order, or not."""
    if way == "killed":
        await sidecar.kill()
    else:
        assert await sidecar.terminate() == 0
    await sidecar.start()
    return sidecar.running


@pytest.mark.parametrize("way", ["killed", "stopped"])
async def test_with_sqlite_a_context_is_there_again_with_all_that_opens_it(way: str, tmp_path: Path) -> None:
    async with restarting_sidecar(tmp_path, sqlite(tmp_path)) as sidecar:
        async with sidecar.running.user("alice") as alice, sidecar.running.service() as service:
            first = await service.send(alice.isolation_key, alice.context_token, b'"kept"', message_id="m-1")
            assert (first.state, first.durability) == (types_pb2.DELIVERY_STATE_WRITTEN, types_pb2.DURABILITY_DISK)
            revoked = await refreshed(service, alice)
            await service.context.RevokeContextToken(
                context_service_pb2.RevokeContextTokenRequest(), metadata=by(revoked), timeout=10
            )
            other = await exchanged(service, sidecar.running, alice.welcome["connection_id"])
            running = await restarted(sidecar, way)  # her socket is open until then: closing it would end the context
        async with running.service() as service:
            assert (await refusal(service.send(alice.isolation_key, revoked))).reason == "TOKEN_REVOKED"
            repeat = await service.send(alice.isolation_key, other, b'"kept"', message_id="m-1")
            assert (repeat.sequence, repeat.duplicate) == (1, True)
            assert repeat.accepted_time == first.accepted_time
            assert repeat.state == types_pb2.DELIVERY_STATE_QUEUED  # what was written is to be written again
            async with running.user("alice", resume=resume_of(alice, 1)) as again:
                assert (again.welcome["recovery"], again.welcome["sequence"]) == ("full", 0)
                assert again.isolation_key == alice.isolation_key
                assert (await again.frame())["data"] == "kept"


def by(token: str) -> tuple[tuple[str, str]]:
    return (("x-context-token", token),)


async def refreshed(service: Service, user: User) -> str:
    request = context_service_pb2.RefreshContextTokenRequest()
    answer = await service.context.RefreshContextToken(request, metadata=by(user.context_token), timeout=10)
    return str(answer.context_token)


async def exchanged(service: Service, sidecar: RunningSidecar, connection_id: str) -> str:
    request = context_service_pb2.ExchangeContextTokenRequest(
        user_token=sidecar.user_token("alice"), connection_id=connection_id
    )
    answer = await service.context.ExchangeContextToken(request, metadata=service.as_operator, timeout=10)
    return str(answer.context_token)


async def test_with_sqlite_a_raw_context_ends_with_the_process(tmp_path: Path) -> None:
    async with restarting_sidecar(tmp_path, sqlite(tmp_path)) as sidecar:
        headers = {"Authorization": f"Bearer {sidecar.running.user_token('alice')}"}
        async with connect(sidecar.running.websocket_url, subprotocols=RAW, additional_headers=headers) as socket:
            assert socket.response is not None
            connection_id = socket.response.headers["Sidecar-Connection-Id"]
            async with sidecar.running.service() as service:
                await exchanged(service, sidecar.running, connection_id)
            running = await restarted(sidecar, "killed")
        async with running.service() as service:
            assert (await refusal(exchanged(service, running, connection_id))).reason == "ISOLATION_VIOLATION"


async def test_with_memory_a_stop_is_the_end_of_every_context(tmp_path: Path) -> None:
    async with restarting_sidecar(tmp_path) as sidecar:
        async with sidecar.running.user("alice") as alice, sidecar.running.service() as service:
            receipt = await service.send(alice.isolation_key, alice.context_token)
            assert receipt.durability == types_pb2.DURABILITY_MEMORY
            running = await restarted(sidecar, "stopped")
        async with running.user("alice", resume=resume_of(alice, 1)) as again, running.service() as service:
            assert (again.welcome["recovery"], again.welcome["sequence"]) == ("denied", 0)
            assert (await refusal(service.send(alice.isolation_key, alice.context_token))).reason == "MANAGER_GONE"


async def test_one_process_has_the_database(tmp_path: Path) -> None:
    with running_sidecar(tmp_path, sqlite(tmp_path)):
        command = [sys.executable, "-m", "sidecar", "serve", "--config", str(tmp_path / "sidecar.toml")]
        second = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=30)
    assert second.returncode == 1
    assert second.stderr.splitlines()[-1] == "storage.path: the database is in use by another process"


async def test_a_disk_that_takes_no_more_refuses_and_then_goes_on(tmp_path: Path) -> None:
    """No file may grow past what the log has by now, which the audit trail is far from."""
    with running_sidecar(tmp_path, sqlite(tmp_path)) as sidecar:
        async with sidecar.user("alice") as alice, sidecar.service() as service:

            async def send(payload: bytes, message_id: str) -> Any:
                return await service.send(alice.isolation_key, alice.context_token, payload, message_id=message_id)

            await send(b'"%b"' % (b"x" * 200_000), "m-1")
            assert (await alice.frame())["sequence"] == 1
            limit = (tmp_path / "outbox.db-wal").stat().st_size
            resource.prlimit(sidecar.process.pid, resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
            refused = await refusal(send(b'"kept"', "m-2"))
            assert (refused.code, refused.reason) == ("UNAVAILABLE", "OUTCOME_UNKNOWN")
            assert await closed_with(sidecar, "bob") == (1013, "overloaded")
            headers = {"Authorization": f"Bearer {sidecar.user_token('carol')}"}
            with pytest.raises(InvalidStatus) as raw:
                await connect(sidecar.websocket_url, subprotocols=RAW, additional_headers=headers)
            assert (raw.value.response.status_code, raw.value.response.body) == (503, b"storage unavailable\n")
            assert await status(sidecar, "readyz") == 200
            resource.prlimit(sidecar.process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
            receipt = await send(b'"kept"', "m-2")
            assert (receipt.sequence, receipt.duplicate) == (2, False)
            assert (await alice.frame())["data"] == "kept"
            async with sidecar.user("bob") as bob:
                assert bob.welcome["recovery"] == "new"
        log = (tmp_path / "log.jsonl").read_text()
        assert log.index("the store cannot be written") < log.index("the store can be written again")


async def closed_with(sidecar: RunningSidecar, subject: str) -> tuple[int, str]:
    """How a socket ends whose hello is refused."""
    with pytest.raises(ConnectionClosed) as closed:
        async with sidecar.user(subject):
            pass
    assert closed.value.rcvd is not None
    return closed.value.rcvd.code, closed.value.rcvd.reason


async def test_while_it_drains_it_is_alive_and_not_ready(tmp_path: Path) -> None:
    with running_sidecar(tmp_path, "[drain]\nwindow_s = 600\ngrace_s = 700\n") as sidecar:
        async with sidecar.user("alice") as alice, sidecar.user("bob") as bob:
            assert [await status(sidecar, page) for page in ("healthz", "readyz")] == [200, 200]
            sidecar.process.send_signal(signal.SIGTERM)
            await asyncio.wait(
                [asyncio.ensure_future(user.frame()) for user in (alice, bob)], return_when=asyncio.FIRST_COMPLETED
            )
            assert [await status(sidecar, page) for page in ("healthz", "readyz")] == [200, 503]
            sidecar.process.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(sidecar.process.wait, 30) == 0


async def status(sidecar: RunningSidecar, page: str) -> int:
    def ask() -> int:
        try:
            with urlopen(f"http://127.0.0.1:{sidecar.ops_port}/{page}", timeout=5) as answer:
                return int(answer.status)
        except HTTPError as refused:
            with refused:
                return refused.code

    return await asyncio.to_thread(ask)


async def test_a_wait_for_a_raw_client_is_never_acknowledged(tmp_path: Path) -> None:
    with running_sidecar(tmp_path) as sidecar:
        headers = {"Authorization": f"Bearer {sidecar.user_token('alice')}"}
        async with connect(sidecar.websocket_url, subprotocols=RAW, additional_headers=headers) as socket:
            assert socket.response is not None
            async with sidecar.service() as service:
                token = await exchanged(service, sidecar, socket.response.headers["Sidecar-Connection-Id"])
                known = await service.context.GetContext(context_service_pb2.GetContextRequest(), metadata=by(token))
                request = delivery_service_pb2.SendToUserRequest(
                    isolation_key=known.isolation_key, message=types_pb2.Message(payload=b"1")
                )
                request.wait_for_ack.FromMilliseconds(50)
                answer = await service.delivery.SendToUser(request, metadata=by(token), timeout=10)
                assert answer.receipt.state == types_pb2.DELIVERY_STATE_WRITTEN
                assert json.loads(await socket.recv()) == 1
