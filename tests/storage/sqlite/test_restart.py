"""A running sidecar that is killed: which contexts are there again, which are over, and what the trail says of both."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from websockets.asyncio.client import connect

from tests.support.restarting import RestartingSidecar, restarting_sidecar
from tests.support.running import RunningSidecar

RAW = "sidecar.v1.raw"


def sqlite(folder: Path) -> str:
    return f'[storage]\nkind = "sqlite"\npath = "{folder}/outbox.db"\nkey_file = "{folder}/outbox.key"\n'


def raw_client(running: RunningSidecar) -> Any:
    """A raw client's connection."""
    headers = {"Authorization": f"Bearer {running.user_token('carol')}"}
    return connect(running.websocket_url, subprotocols=[RAW], additional_headers=headers, compression=None)  # type: ignore[list-item]


async def since_start(sidecar: RestartingSidecar) -> list[dict[str, Any]]:
    """The records from the present life's start on, without the look itself."""
    records = await sidecar.running.audit_records()
    boots = [record["boot_id"] for record in records]
    return [record for record in records if record["boot_id"] == boots[-1] and record["event"] != "admin_call"]


async def test_contexts_are_restored_and_raw_ones_are_over(tmp_path: Path) -> None:
    async with restarting_sidecar(tmp_path, sqlite(tmp_path)) as sidecar:
        running = sidecar.running
        async with (
            running.user("alice") as alice,
            running.user("bob") as bob,
            running.service() as service,
            raw_client(running) as raw,
        ):
            connection_id = raw.response.headers["Sidecar-Connection-Id"]
            await service.send(alice.isolation_key, alice.context_token, b'"alice"')
            assert (await alice.frame())["data"] == "alice"
            await sidecar.kill()
        await sidecar.start()
        records = await since_start(sidecar)
        events = [record["event"] for record in records]
        assert events.count("contexts_restored") == 1
        assert events.count("context_closed") == 1
        assert events.index("contexts_restored") < events.index("sidecar_started")
        (restored,) = (record for record in records if record["event"] == "contexts_restored")
        (over,) = (record for record in records if record["event"] == "context_closed")
        assert restored["contexts"] == 2
        assert over["reason"] == "socket_lost"
        assert over["connection_id"] == connection_id
        assert over["user_id"] == "carol"
        async with sidecar.running.service() as service:
            assert (await service.factory_stats()).active_managers == 2
        resume = {"token": bob.welcome["resume_token"], "last_sequence": 0, "attempt": 1}
        async with sidecar.running.user("bob", resume=resume) as again:
            assert (again.welcome["recovery"], again.isolation_key) == ("full", bob.isolation_key)
        await sidecar.kill()
        await sidecar.start()
        events = [record["event"] for record in await since_start(sidecar)]
        assert "context_closed" not in events  # its rows are gone
        assert await asyncio.to_thread(sidecar.running.stop) == 0


async def test_a_sidecar_that_kept_nothing_says_nothing_of_it(tmp_path: Path) -> None:
    async with restarting_sidecar(tmp_path, sqlite(tmp_path)) as sidecar:
        async with raw_client(sidecar.running):
            pass
        assert await sidecar.terminate() == 0
        await sidecar.start()
        events = [record["event"] for record in await since_start(sidecar)]
        assert "contexts_restored" not in events
        assert "context_closed" not in events
