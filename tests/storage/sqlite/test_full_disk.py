"""A running sidecar whose store's disk is full: what is refused, who goes on, and that it recovers by itself."""

from __future__ import annotations

import json
import resource
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from google.rpc import error_details_pb2
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from sidecar.api.v1 import delivery_service_pb2 as pb
from sidecar.api.v1 import types_pb2
from tests.support.restarting import restarting_sidecar
from tests.support.running import RunningSidecar, User, refusal, refusal_in, running_sidecar

FULL = ("UNAVAILABLE", "STORAGE_UNAVAILABLE")
UNKNOWN = ("UNAVAILABLE", "OUTCOME_UNKNOWN")
LARGE = b'"%s"' % (b"x" * 100_000)
Disk = Callable[[bool], None]


def settings(folder: Path, store: Path) -> str:
    return f'[storage]\nkind = "sqlite"\npath = "{store}/outbox.db"\nkey_file = "{folder}/outbox.key"\n'


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """A file system of 2 MB, gone afterwards."""
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder], capture_output=True, check=False)
    if made.returncode != 0:
        pytest.skip("no file system can be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def fill(path: Path) -> None:
    """Take up all the room there is."""
    with suppress(OSError), path.open("ab", buffering=0) as file:
        while True:
            file.write(bytes(65_536))
    with suppress(OSError), path.open("ab", buffering=0) as file:
        while True:
            file.write(bytes(512))


def resume_of(user: User, last_sequence: int) -> dict[str, Any]:
    return {"token": user.welcome["resume_token"], "last_sequence": last_sequence, "attempt": 1}


async def turned_away(running: RunningSidecar) -> None:
    """New clients, of either protocol, are told to come back later."""
    with pytest.raises(ConnectionClosed) as closed:
        async with running.user("carol"):
            raise AssertionError("welcomed")
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1013
    token = running.user_token("carol")
    with pytest.raises(InvalidStatus) as refused:
        await connect(running.websocket_url, additional_headers={"Authorization": f"Bearer {token}"}, compression=None)
    assert refused.value.response.status_code == 503


async def live_through_it(running: RunningSidecar, full: Disk, expected: tuple[str, str]) -> None:
    """`full(True)` fills the disk, as often as it is called: a store that refuses may have made some room."""
    async with running.service() as service:
        async with running.user("bob") as bob:
            for number in range(3):
                await service.send(bob.isolation_key, bob.context_token, b"%d" % number)
            bob.socket.transport.abort()  # a close of his own would end his context
        async with running.user("alice") as alice:
            await service.send(alice.isolation_key, alice.context_token, b'"before"', message_id="m-1")
            assert (await alice.frame())["data"] == "before"
            full(True)
            for attempt in range(3):
                send = service.send(alice.isolation_key, alice.context_token, LARGE, message_id=f"large-{attempt}")
                refused = await refusal(send)
                assert (refused.code, refused.reason) == expected
                assert any(isinstance(detail, error_details_pb2.RetryInfo) for detail in refused.details)
                full(True)
            items = [
                pb.SendBatchItem(
                    isolation_key=user.isolation_key,
                    context_token=user.context_token,
                    message=types_pb2.Message(payload=LARGE),
                )
                for user in (alice, bob, alice)
            ]
            batch = await service.delivery.SendBatch(pb.SendBatchRequest(items=items), timeout=20)
            for result in batch.results:
                refused = refusal_in(result.error)
                assert (refused.code, refused.reason) == expected
            full(True)
            await turned_away(running)
            full(True)
            async with running.user("bob", resume=resume_of(bob, 1)) as again:
                assert again.welcome["recovery"] == "full"
                assert [(await again.frame())["data"] for _ in range(2)] == [1, 2]
                await again.socket.send(json.dumps({"type": "ack", "sequence": 3}))
                assert await again.frames_before_answer_to("nothing more") == []
            repeat = await service.send(alice.isolation_key, alice.context_token, b'"before"', message_id="m-1")
            assert (repeat.sequence, repeat.duplicate) == (1, True)
            assert await alice.frames_before_answer_to("nothing so far") == []
            full(False)
            receipt = await service.send(alice.isolation_key, alice.context_token, b'"after"', message_id="large-0")
            assert (receipt.sequence, receipt.durability) == (2, types_pb2.DURABILITY_DISK)
            frame = await alice.frame()
            assert (frame["sequence"], frame["data"]) == (2, "after")
            async with running.user("carol") as carol:
                assert carol.welcome["recovery"] == "new"


@pytest.mark.stands_in("test_a_file_that_may_not_grow_refuses_and_recovers")
async def test_a_full_disk_refuses_and_recovers(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        filler = disk / "filler"

        def full(yes: bool) -> None:
            fill(filler) if yes else filler.unlink()

        with running_sidecar(tmp_path, settings(tmp_path, disk)) as running:
            await live_through_it(running, full, FULL)
            assert running.stop() == 0


async def test_a_file_that_may_not_grow_refuses_and_recovers(tmp_path: Path) -> None:
    """EFBIG is no ENOSPC to SQLite: what became of the commit it does not say, and neither does the store."""
    log = tmp_path / "outbox.db-wal"
    with running_sidecar(tmp_path, settings(tmp_path, tmp_path)) as running:
        async with running.user("dave") as dave, running.service() as service:
            # The log is larger than the trail, which is a file of the same process and has its room.
            for _ in range(3):
                await service.send(dave.isolation_key, dave.context_token, LARGE)
            dave.socket.transport.abort()

        def full(yes: bool) -> None:
            most = log.stat().st_size if yes else resource.RLIM_INFINITY
            resource.prlimit(running.process.pid, resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))

        await live_through_it(running, full, UNKNOWN)
        assert running.stop() == 0


@pytest.mark.stands_in("test_a_file_that_may_not_grow_refuses_and_recovers")
async def test_a_stop_on_a_full_disk_loses_nothing_that_was_confirmed(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        stored = settings(tmp_path, disk)
        async with restarting_sidecar(tmp_path, stored) as sidecar:
            running = sidecar.running
            async with running.user("alice") as alice, running.service() as service:
                await service.send(alice.isolation_key, alice.context_token, b'"kept"')
                fill(disk / "filler")
                await refusal(service.send(alice.isolation_key, alice.context_token, LARGE))
                alice.socket.transport.abort()
            assert await sidecar.terminate() == 0
            (disk / "filler").unlink()
            await sidecar.start()
            async with sidecar.running.user("alice", resume=resume_of(alice, 0)) as back:
                assert back.welcome["recovery"] == "full"
                assert (await back.frame())["data"] == "kept"
