"""An old service and a sidecar that is lost: who is there afterwards is found, who is not is not counted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sidecar_client import AsyncSidecarClient
from sidecar_client.errors import TokenError
from sidecar_client.legacy import AmbiguousUser, WebSocketManagerAdapter
from tests.support.fault_proxy import fault_proxy
from tests.support.restarting import RestartingSidecar, restarting_sidecar
from tests.support.running import RunningSidecar

pytestmark = [
    pytest.mark.filterwarnings("ignore:.* without a context is deprecated:DeprecationWarning"),
    pytest.mark.timeout(120),
]
ON_DISK = '[storage]\nkind = "sqlite"\npath = "{0}/outbox.db"\nkey_file = "{0}/outbox.key"\n'


def adapter_for(sidecar: RunningSidecar, endpoint: str = "") -> WebSocketManagerAdapter:
    return WebSocketManagerAdapter(
        strict=False, endpoint=endpoint or sidecar.grpc_target, service_token=sidecar.service_token
    )


async def until(sidecar: RunningSidecar, condition: Callable[[], Any]) -> None:
    """Returns when it is so; the sidecar is asked something in between, so that events can come."""
    async with sidecar.service() as service:
        while not condition():
            await service.factory_stats()


async def attachments(sidecar: RunningSidecar) -> int:
    return len(await sidecar.audit_records("agent_attached"))


async def restart(life: RestartingSidecar, how: str = "kill", keys: str = "same") -> None:
    """Returns when another process serves and the adapter has attached to it."""
    before = await attachments(life.running)
    await (life.kill() if how == "kill" else life.terminate())
    if keys == "new":
        (life.folder / "context.keys").unlink()
    await life.start()
    while await attachments(life.running) == before:
        pass


@pytest.mark.parametrize("keys", ["same", "new"])
@pytest.mark.parametrize("how", ["kill", "terminate"])
async def test_after_a_restart_only_those_count_who_have_come_back(tmp_path: Path, how: str, keys: str) -> None:
    async with restarting_sidecar(tmp_path) as life, adapter_for(life.running) as manager:
        async with life.running.user("alice"), life.running.user("bob"):
            await until(life.running, lambda: manager.get_stats()["total_connections"] == 2)
            await restart(life, how, keys)
        async with life.running.user("alice") as alice:
            new = alice.welcome["connection_id"]
            await until(life.running, lambda: new in manager.get_connections("alice"))
            assert await manager.send_to_user("alice", {"type": "answer"})
            assert await manager.emit_critical_event("alice", "alarm", 1)
            assert await manager.broadcast_to_user("alice", 2)
            assert [(await alice.frame())["data"] for _ in range(3)] == [{"type": "answer"}, 1, 2]
            for send in (manager.send_to_user("bob", 3), manager.broadcast_to_user("bob", 4)):
                assert not await send
            assert not await manager.disconnect_user("bob")
            assert not manager.is_user_connected("bob")
            await until(life.running, lambda: manager.get_connections("alice") == [new])
            stats = manager.get_stats()
            assert (stats["connected_users"], stats["total_connections"], stats["messages_sent"]) == (1, 1, 3)
            assert await alice.frames_before_answer_to("probe") == []


async def test_nobody_is_named_who_has_not_come_back(tmp_path: Path) -> None:
    """Though no call asks for them."""
    async with restarting_sidecar(tmp_path) as life, adapter_for(life.running) as manager:
        async with life.running.user("alice"):
            await until(life.running, lambda: manager.is_user_connected("alice"))
            await restart(life)
        await until(life.running, lambda: not manager.get_stats()["total_connections"])
        assert not manager.is_user_connected("alice")


async def test_a_context_that_a_store_kept_stays_known(tmp_path: Path) -> None:
    async with restarting_sidecar(tmp_path, ON_DISK.format(tmp_path)) as life, adapter_for(life.running) as manager:
        async with life.running.user("alice") as alice:
            await until(life.running, lambda: manager.is_user_connected("alice"))
            resume = {"token": alice.welcome["resume_token"], "last_sequence": 0, "attempt": 1}
            await restart(life)
        await until(life.running, lambda: not manager._contexts.in_doubt())
        assert await manager.send_to_user("alice", "kept")
        async with life.running.user("alice", resume=resume) as alice:
            assert (await alice.frame())["data"] == "kept"
            async with life.running.user("alice") as second:
                await until(life.running, lambda: len(manager.get_connections("alice")) == 2)
                with pytest.raises(AmbiguousUser):
                    await manager.send_to_user("alice", "to which?")
                assert await second.frames_before_answer_to("probe") == []


async def test_one_that_a_store_kept_is_known_by_new_keys_once_its_user_is_back(tmp_path: Path) -> None:
    async with restarting_sidecar(tmp_path, ON_DISK.format(tmp_path)) as life, adapter_for(life.running) as manager:
        async with life.running.user("alice") as alice:
            await until(life.running, lambda: manager.is_user_connected("alice"))
            resume = {"token": alice.welcome["resume_token"], "last_sequence": 0, "attempt": 1}
            await restart(life, keys="new")
        await until(life.running, lambda: not manager.is_user_connected("alice"))
        assert not await manager.send_to_user("alice", "nobody can")
        async with life.running.user("alice", resume=resume) as alice:
            assert alice.welcome["recovery"] == "full"
            await until(life.running, lambda: manager.is_user_connected("alice"))
            assert await manager.send_to_user("alice", "again")
            assert (await alice.frame())["data"] == "again"


async def test_where_only_the_stream_broke_nobody_is_forgotten(tmp_path: Path) -> None:
    async with restarting_sidecar(tmp_path) as life, fault_proxy(life.running.grpc_target) as proxy:
        sidecar = life.running
        async with (
            adapter_for(sidecar, proxy.target) as manager,
            sidecar.user("alice") as alice,
            sidecar.user("bob"),
            sidecar.user("bob"),
        ):
            await until(sidecar, lambda: manager.get_stats()["total_connections"] == 3)
            before = await attachments(sidecar)
            proxy.reset_all()
            while await attachments(sidecar) == before:
                pass
            await until(sidecar, lambda: manager._contexts.attachment == 2 and not manager._contexts.in_doubt())
            assert manager.get_stats()["total_connections"] == 3
            assert await manager.send_to_user("alice", "still here")
            assert (await alice.frame())["data"] == "still here"
            with pytest.raises(AmbiguousUser):
                await manager.send_to_user("bob", "to which?")


async def test_a_token_that_was_revoked_does_not_make_its_user_anothers(tmp_path: Path) -> None:
    """The context lives, though nothing can be sent there: beside another it counts."""
    async with restarting_sidecar(tmp_path) as life, adapter_for(life.running) as manager:
        sidecar = life.running
        async with (
            AsyncSidecarClient(endpoint=sidecar.grpc_target) as client,
            sidecar.user("alice"),
        ):
            await until(sidecar, lambda: manager.is_user_connected("alice"))
            known = manager._contexts.the_one_of("alice")
            assert known is not None
            await client.revoke_context_token(known.context_token)
            with pytest.raises(TokenError):
                await manager.send_to_user("alice", "by no token")
            async with sidecar.user("alice") as second:
                await until(sidecar, lambda: len(manager.get_connections("alice")) == 2)
                with pytest.raises(AmbiguousUser):
                    await manager.send_to_user("alice", "to which?")
                assert await second.frames_before_answer_to("probe") == []
