"""An old service, which knows its users by name, over a real sidecar: it works where it is safe, and nowhere else."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from datetime import date, timedelta
from itertools import count
from typing import Any, cast

import pytest

from sidecar_client import AsyncSidecarClient, UserContext
from sidecar_client.agent_context import AgentContext, AgentPorts
from sidecar_client.errors import IsolationViolation, ScopeMissing, TokenError
from sidecar_client.legacy import (
    COMPATIBILITY_OFF,
    DEPRECATED,
    REMOVED,
    AmbiguousUser,
    ContextRequired,
    GivenContext,
    WebSocketManagerAdapter,
    get_websocket_manager,
)
from tests.support.running import RunningSidecar, User

numbers = count(1)
CALLS: dict[str, Callable[[Any], Any]] = {
    "send_to_user": lambda manager: manager.send_to_user("alice", {"type": "answer"}),
    "emit_critical_event": lambda manager: manager.emit_critical_event("alice", "alarm", {}),
    "broadcast_to_user": lambda manager: manager.broadcast_to_user("alice", {}),
    "disconnect_user": lambda manager: manager.disconnect_user("alice"),
    "connect_user": lambda manager: manager.connect_user("alice", object()),
    "is_user_connected": lambda manager: manager.is_user_connected("alice"),
    "get_connections": lambda manager: manager.get_connections("alice"),
}


def adapter_for(sidecar: RunningSidecar, **settings: Any) -> WebSocketManagerAdapter:
    defaults: dict[str, Any] = {
        "strict": False,
        "endpoint": sidecar.grpc_target,
        "service_token": sidecar.service_token,
        "service_name": f"legacy-{next(numbers)}",
    }
    return WebSocketManagerAdapter(**(defaults | settings))


@pytest.fixture
async def manager(sidecar: RunningSidecar) -> AsyncIterator[WebSocketManagerAdapter]:
    """One that has attached."""
    async with adapter_for(sidecar) as made:
        yield made


@contextmanager
def deprecated() -> Iterator[None]:
    """In the block calls without a context warn, each in the line that makes it."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    assert caught
    assert {(each.category, each.filename) for each in caught} == {(DeprecationWarning, __file__)}
    assert all(str(day) in str(caught[0].message) for day in (DEPRECATED, COMPATIBILITY_OFF, REMOVED))


async def known(sidecar: RunningSidecar, manager: WebSocketManagerAdapter, *users: str) -> None:
    """Returns when the adapter has been told of so many connections."""
    async with sidecar.service() as service:
        while manager.get_stats()["total_connections"] < len(users):
            await service.factory_stats()


def told_of(manager: WebSocketManagerAdapter, user_id: str, isolation_key: str, context_token: str) -> None:
    """The adapter knows this context as that user's."""
    ports = AgentPorts(cast("Any", None), cast("Any", None), lambda: 0.0)
    context = AgentContext(isolation_key, UserContext("default", user_id, "s", "c", "r", 0.0, (), {}), ports)
    context.renew(context_token)
    manager._contexts.opened(context)


async def ended(sidecar: RunningSidecar, manager: WebSocketManagerAdapter, subject: str) -> GivenContext:
    """The key and the token of a context that has ended, and of which the adapter will be told no more."""
    async with sidecar.service() as service:
        async with sidecar.user(subject) as user:
            await known(sidecar, manager, subject)
        while subject in manager._contexts.users():
            await service.factory_stats()
    return GivenContext(user.isolation_key, user.context_token)


async def heard(user: User) -> list[Any]:
    """What has arrived."""
    return [frame["data"] for frame in await user.frames_before_answer_to("probe") if frame["type"] == "message"]


async def test_each_user_gets_their_own_and_nobody_elses(
    sidecar: RunningSidecar, manager: WebSocketManagerAdapter
) -> None:
    async with sidecar.user("alice") as alice, sidecar.user("bob") as bob:
        await known(sidecar, manager, "alice", "bob")

        async def answer(user_id: str, number: int) -> bool:
            return await manager.send_to_user(user_id, {"type": "answer", "to": user_id, "n": number})

        with deprecated():
            sent = await asyncio.gather(*(answer(user_id, n) for n in range(50) for user_id in ("alice", "bob")))
            assert await manager.emit_critical_event("alice", "alarm", {"to": "alice", "n": 50})
            assert await manager.broadcast_to_user("bob", {"to": "bob", "n": 50})
        assert all(sent)
        for user in (alice, bob):
            said = await heard(user)
            assert sorted(each["n"] for each in said) == list(range(51))
            assert {each["to"] for each in said} == {user.subject}
        assert manager.get_stats() == {
            "connected_users": 2,
            "total_connections": 2,
            "messages_sent": 102,
            "messages_failed": 0,
        }


async def test_the_type_of_a_message_is_the_event(sidecar: RunningSidecar, manager: WebSocketManagerAdapter) -> None:
    async with sidecar.user("alice") as alice:
        await known(sidecar, manager, "alice")
        with deprecated():
            for message in ({"type": "agent_started"}, {"type": "not an event"}, ["no", "type"], "text"):
                await manager.send_to_user("alice", message)
        frames = await alice.frames_before_answer_to("probe")
    assert [frame.get("event", "") for frame in frames] == ["agent_started", "", "", ""]
    assert [frame["data"] for frame in frames][2:] == [["no", "type"], "text"]


async def test_a_user_with_two_contexts_is_never_guessed(
    sidecar: RunningSidecar, manager: WebSocketManagerAdapter
) -> None:
    async with sidecar.user("alice") as first, sidecar.user("alice") as second:
        await known(sidecar, manager, "alice", "alice")
        with deprecated():
            for call in ("send_to_user", "emit_critical_event", "disconnect_user"):
                with pytest.raises(AmbiguousUser, match="2 connection contexts"):
                    await CALLS[call](manager)
            assert len(manager.get_connections("alice")) == 2
            assert await manager.broadcast_to_user("alice", "to all of hers")
        assert await heard(first) == await heard(second) == ["to all of hers"]
        await manager.for_context(first.isolation_key, first.context_token).send_to_user("alice", "to the first")
        assert (await heard(first), await heard(second)) == (["to the first"], [])


async def test_users_of_two_tenants_with_one_name_are_never_guessed(
    sidecar: RunningSidecar, manager: WebSocketManagerAdapter
) -> None:
    async with sidecar.user("alice", "one") as first, sidecar.user("alice", "two") as second:
        await known(sidecar, manager, "alice", "alice")
        with deprecated():
            for call in ("send_to_user", "broadcast_to_user"):
                with pytest.raises(AmbiguousUser):
                    await CALLS[call](manager)
        assert await heard(first) == await heard(second) == []


async def test_who_is_not_there_gets_nothing(sidecar: RunningSidecar, manager: WebSocketManagerAdapter) -> None:
    with deprecated():
        assert not await manager.send_to_user("nobody", {})
        assert not await manager.disconnect_user("nobody")
        assert not manager.is_user_connected("nobody")
    async with sidecar.user("alice") as alice:
        await known(sidecar, manager, "alice")
        with deprecated():
            await manager.connect_user("alice", object())
            assert manager.is_user_connected("alice")
            assert manager.get_connections("alice") == [alice.welcome["connection_id"]]
            assert await manager.disconnect_user("alice")
            await alice.socket.wait_closed()
            assert alice.socket.close_code == 4505
            assert not await manager.send_to_user("alice", "too late")


async def test_a_context_that_an_answer_says_is_gone_is_forgotten(
    sidecar: RunningSidecar, manager: WebSocketManagerAdapter
) -> None:
    gone = await ended(sidecar, manager, "alice")
    of_other_keys = GivenContext("0" * 64, "a.token.of-other-keys")
    with deprecated():
        for context in (gone, of_other_keys):
            for call in ("send_to_user", "emit_critical_event", "broadcast_to_user", "disconnect_user"):
                told_of(manager, "alice", *context)
                assert manager.is_user_connected("alice")
                assert not await CALLS[call](manager)
                assert not manager.is_user_connected("alice")
                assert not manager.get_connections("alice")
    assert manager.get_stats()["messages_failed"] == 8


async def test_what_goes_to_all_of_a_users_contexts_goes_though_one_is_gone(
    sidecar: RunningSidecar, manager: WebSocketManagerAdapter
) -> None:
    told_of(manager, "alice", *await ended(sidecar, manager, "alice"))
    async with sidecar.user("alice") as alice:
        await known(sidecar, manager, "alice", "alice")
        with deprecated():
            assert await manager.broadcast_to_user("alice", "to all of hers")
            assert await manager.send_to_user("alice", "to the one that is left")
        assert await heard(alice) == ["to all of hers", "to the one that is left"]


async def test_a_context_that_is_not_the_users_is_never_used_again(
    sidecar: RunningSidecar, manager: WebSocketManagerAdapter
) -> None:
    async with sidecar.user("bob") as bob:
        with deprecated():
            for call in ("send_to_user", "emit_critical_event", "broadcast_to_user", "disconnect_user"):
                told_of(manager, "alice", bob.isolation_key, bob.context_token)
                with pytest.raises(IsolationViolation):
                    await CALLS[call](manager)
                assert not await CALLS[call](manager)
        assert await heard(bob) == []


async def test_a_context_opens_nothing_but_itself(sidecar: RunningSidecar) -> None:
    adapter = adapter_for(sidecar, strict=True)
    async with adapter, sidecar.user("alice") as alice, sidecar.user("bob") as bob:
        own = adapter.for_context(alice.isolation_key, alice.context_token)
        assert await own.send_to_user("alice", "hers")
        assert await own.emit_critical_event("alice", "alarm", "hers too")
        wrong_key = adapter.for_context(bob.isolation_key, alice.context_token)
        for manager, user_id in ((wrong_key, "alice"), (wrong_key, "bob"), (own, "bob")):
            for call in (
                manager.send_to_user(user_id, "forged"),
                manager.emit_critical_event(user_id, "forged", "forged"),
                manager.broadcast_to_user(user_id, "forged"),
                manager.disconnect_user(user_id),
            ):
                with pytest.raises(IsolationViolation):
                    await call
        with pytest.raises(ScopeMissing):
            await own.broadcast_to_user("alice", "a client's token has not that scope")
        assert (await heard(alice), await heard(bob)) == (["hers", "hers too"], [])
        assert alice.context_token not in repr(own) + repr(GivenContext(alice.isolation_key, alice.context_token))
        await alice.socket.close()
        await alice.socket.wait_closed()
        assert not await own.send_to_user("alice", "too late")


@pytest.mark.parametrize("name", CALLS)
async def test_in_strict_mode_a_call_without_a_context_is_refused(sidecar: RunningSidecar, name: str) -> None:
    async with adapter_for(sidecar, strict=True) as manager:
        with pytest.raises(ContextRequired, match="for_context"):
            await CALLS[name](manager)


async def test_calls_without_a_context_need_an_adapter_that_is_told_of_contexts(sidecar: RunningSidecar) -> None:
    manager = adapter_for(sidecar)
    with pytest.raises(RuntimeError, match="must be started"):
        await manager.send_to_user("alice", {})
    await manager.close()


@pytest.mark.parametrize(
    ("said", "today", "strict"),
    [
        ("", DEPRECATED, False),
        ("", COMPATIBILITY_OFF - timedelta(days=1), False),
        ("", COMPATIBILITY_OFF, True),
        ("0", COMPATIBILITY_OFF, False),
        ("1", DEPRECATED, True),
        ("yes", DEPRECATED, False),
    ],
)
def test_strict_by_the_environment_else_by_the_date(said: str, today: date, strict: bool) -> None:
    made = WebSocketManagerAdapter(today=lambda: today, environment={"SIDECAR_LEGACY_STRICT": said})
    assert made.strict is strict
    assert ("strict" in repr(made)) is strict
    assert WebSocketManagerAdapter(strict=not strict, today=lambda: today, environment={}).strict is not strict


@pytest.fixture
def of_the_process(sidecar: RunningSidecar, monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """The environment that the process's adapter is set up by."""
    monkeypatch.setenv("SIDECAR_GRPC_ENDPOINT", sidecar.grpc_target)
    monkeypatch.setenv("SIDECAR_SERVICE_TOKEN", sidecar.service_token)
    get_websocket_manager.cache_clear()
    yield monkeypatch
    get_websocket_manager.cache_clear()


@pytest.mark.parametrize("strict", ["0", "1"])
async def test_the_processs_one_may_be_entered_again(
    sidecar: RunningSidecar, of_the_process: pytest.MonkeyPatch, strict: str
) -> None:
    of_the_process.setenv("SIDECAR_LEGACY_STRICT", strict)
    manager = get_websocket_manager()
    for number in range(3):
        assert get_websocket_manager() is manager
        async with manager, sidecar.user("alice") as alice:
            own = GivenContext(alice.isolation_key, alice.context_token)
            assert await manager.send_to_user("alice", number, context=own)
            if strict == "0":
                await known(sidecar, manager, "alice")
                with deprecated():
                    assert await manager.send_to_user("alice", number)
            assert await heard(alice) == [number] * (2 - int(strict))
        assert manager.get_stats()["total_connections"] == 0
        with pytest.raises(RuntimeError, match="the client is closed"):
            await manager.send_to_user("alice", "after it was left", context=own)


@pytest.mark.parametrize("strict", [False, True])
async def test_entered_twice_at_a_time_it_says_so_and_goes_on(sidecar: RunningSidecar, strict: bool) -> None:
    async with adapter_for(sidecar, strict=strict) as manager, sidecar.user("alice") as alice:
        with pytest.raises(RuntimeError, match="entered already"):
            async with manager:
                raise AssertionError("it was entered")
        assert await manager.for_context(alice.isolation_key, alice.context_token).send_to_user("alice", "hello")


async def test_where_it_could_not_be_entered_it_may_be_tried_again(
    sidecar: RunningSidecar, of_the_process: pytest.MonkeyPatch
) -> None:
    of_the_process.setenv("SIDECAR_LEGACY_STRICT", "0")
    of_the_process.setenv("SIDECAR_SERVICE_TOKEN", "another")
    with pytest.raises(TokenError):
        await get_websocket_manager().__aenter__()
    of_the_process.setenv("SIDECAR_SERVICE_TOKEN", sidecar.service_token)
    async with get_websocket_manager() as manager, sidecar.user("alice"):
        await known(sidecar, manager, "alice")


async def test_a_shared_client_is_left_open(sidecar: RunningSidecar) -> None:
    async with AsyncSidecarClient(endpoint=sidecar.grpc_target, service_token=sidecar.service_token) as client:
        manager = WebSocketManagerAdapter(strict=False, client=client, service_name=f"legacy-{next(numbers)}")
        for _ in range(2):
            async with manager, sidecar.user("alice"):
                await known(sidecar, manager, "alice")
            await client.wait_until_ready()
    with pytest.raises(RuntimeError, match="the client is closed"):
        await manager.__aenter__()
