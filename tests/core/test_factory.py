"""The only maker, finder and ender of managers: limits at every instant, statistics, the tick, and what is left."""

from __future__ import annotations

import gc
import weakref
from types import SimpleNamespace
from typing import Any, cast

import pytest

from sidecar.core.close_codes import Close, CloseCode, catalogued
from sidecar.core.errors import ErrorReason, ManagerGone, ResourceExhausted, Unavailable
from sidecar.core.identity import UserIdentity
from sidecar.core.limits import Limits
from sidecar.core.outbox import OutboxLimits
from sidecar.core.ports import AuditEvent
from sidecar.core.statistics import FactoryStatistics
from tests.support.core import Core
from tests.support.doubles import LaterStore, RecordingOwners

ALICE = UserIdentity("acme", "alice")
RESTART = catalogued(CloseCode.RESTART)


def reasons(core: Core) -> list[object]:
    return [record.fields["reason"] for record in core.audit.of(AuditEvent.CONTEXT_CLOSED)]


def test_a_manager_is_found_by_its_key_and_by_its_connection_id() -> None:
    core = Core()
    manager = core.create()
    assert core.factory.get_manager(manager.context.get_isolation_key()) is manager
    assert core.factory.find_by_connection_id(manager.context.connection_id) is manager
    assert len(core.factory) == 1
    assert list(core.factory) == [manager]


def test_what_never_was_and_what_has_ended_are_not_found() -> None:
    core = Core()
    manager = core.create()
    core.factory.cleanup_manager(manager.isolation_key, RESTART, "over", core.clock.now())
    for key in (manager.isolation_key, "0" * 64, ""):
        with pytest.raises(ManagerGone):
            core.factory.get_manager(key)
        with pytest.raises(ManagerGone):
            core.factory.cleanup_manager(key, RESTART, "over", core.clock.now())
    assert core.factory.find_by_connection_id(manager.context.connection_id) is None
    assert core.factory.managers_of_user(ALICE) == ()


def test_managers_of_a_user_and_of_a_tenant() -> None:
    core = Core()
    one, two = core.create("alice", "acme"), core.create("alice", "acme")
    bob, other = core.create("bob", "acme"), core.create("alice", "other")
    assert core.factory.managers_of_user(ALICE) == (one, two)
    assert core.factory.managers_of_tenant("acme") == (one, two, bob)
    assert core.factory.managers_of_tenant("other") == (other,)
    assert core.factory.managers_of_tenant("") == ()


def test_the_sixth_manager_of_attached_ones_is_refused_and_changes_nothing() -> None:
    core = Core()
    held = [core.connect()[0] for _ in range(5)]
    with pytest.raises(ResourceExhausted) as caught:
        core.create()
    assert caught.value.reason is ErrorReason.USER_LIMIT
    assert core.factory.managers_of_user(ALICE) == tuple(held)
    assert core.factory.get_factory_stats().resource_limit_hits == 1
    assert core.counters.resource_limit_enforcements == 1
    core.create("bob")
    core.create("alice", "other")
    assert len(core.factory) == 7


def test_the_sixth_manager_replaces_the_longest_detached() -> None:
    core = Core()
    sessions = [core.connect() for _ in range(5)]
    for number in (3, 1, 4):
        core.clock.advance(1.0)
        core.lose(*sessions[number])
    mirror = core.attach(sessions[3][0], mirror=True)
    core.clock.step_wall(-600.0)
    core.create()
    assert [manager.ended for manager, _ in sessions] == [False, False, False, True, False]
    assert mirror.closed_with == Close(4508, "replaced")
    assert reasons(core) == ["replaced"]
    (enforced,) = core.audit.of(AuditEvent.LIMIT_ENFORCED)
    assert enforced.context is sessions[3][0].context
    assert enforced.fields == {"limit": "managers_per_user"}
    assert core.counters.resource_limit_enforcements == 1
    core.create()
    assert sessions[1][0].ended


def test_a_hundred_at_once_never_leave_more_than_five() -> None:
    core = Core()
    refused = 0
    for number in range(100):
        try:
            manager = core.create()
        except ResourceExhausted:
            refused += 1
        else:
            if number % 3:
                core.attach(manager)
        assert len(core.factory.managers_of_user(ALICE)) <= 5
    assert refused > 0


def test_a_limit_of_one_replaces_the_only_one() -> None:
    core = Core(Limits(managers_per_user=1))
    old = core.create()
    new = core.create()
    assert old.ended
    assert core.factory.managers_of_user(ALICE) == (new,)
    assert core.factory.get_factory_stats().users_with_active_managers == 1


def test_a_full_sidecar_says_so() -> None:
    core = Core(Limits(max_managers=2))
    core.create("alice")
    core.create("bob")
    with pytest.raises(ResourceExhausted) as caught:
        core.create("carol")
    assert caught.value.reason is ErrorReason.RATE_LIMITED
    assert caught.value.retry_after_s
    assert core.factory.get_factory_stats().users_with_active_managers == 2


def test_a_draining_sidecar_makes_no_context() -> None:
    core = Core()
    manager, socket = core.connect()
    core.factory.draining = True
    with pytest.raises(Unavailable) as caught:
        core.create("bob")
    assert caught.value.reason is ErrorReason.DRAINING
    assert len(core.factory) == 1
    core.send(manager)
    assert len(socket.frames) == 1


def test_cleaning_up_a_manager_says_how_many_sockets_it_had() -> None:
    core = Core()
    manager, socket = core.connect()
    core.attach(manager, mirror=True)
    assert core.factory.cleanup_manager(manager.isolation_key, RESTART, "operator", core.clock.now()) == 2
    assert socket.closed_with == RESTART
    assert reasons(core) == ["operator"]


def test_statistics_are_truthful() -> None:
    core = Core()
    assert core.factory.get_factory_stats() == FactoryStatistics(0, 0, 0, 0, 0, 0.0)
    one, _ = core.connect("alice")
    core.connect("alice")
    core.connect("bob")
    core.clock.step_wall(600.0)
    at = core.clock.advance(90.0)
    core.factory.cleanup_manager(one.isolation_key, RESTART, "over", at)
    stats = FactoryStatistics(
        total_managers_created=3,
        active_managers=2,
        managers_cleaned_up=1,
        users_with_active_managers=2,
        resource_limit_hits=0,
        average_manager_lifetime_minutes=1.5,
    )
    assert core.factory.get_factory_stats() == stats
    core.factory.end_all(RESTART, "over", core.clock.advance(30.0))
    assert core.factory.get_factory_stats() == stats._replace(
        active_managers=0,
        managers_cleaned_up=3,
        users_with_active_managers=0,
        average_manager_lifetime_minutes=(1.5 + 2.0 + 2.0) / 3,
    )


def test_ending_all_ends_all_once() -> None:
    core = Core()
    sockets = [core.connect(user)[1] for user in ("alice", "alice", "bob")]
    core.factory.end_all(RESTART, "stopped", core.clock.now())
    core.factory.end_all(RESTART, "stopped", core.clock.now())
    assert [socket.closes for socket in sockets] == [[RESTART]] * 3
    assert reasons(core) == ["stopped"] * 3
    assert len(core.factory) == 0


def test_enforcing_ends_what_is_past_its_time_of_that_user_only() -> None:
    core = Core()
    over, over_socket = core.connect("alice")
    core.lose(over, over_socket)
    core.attach(over, mirror=True)
    other, other_socket = core.connect("bob")
    core.lose(other, other_socket)
    core.clock.advance(120.0)
    live, _ = core.connect("alice")
    assert core.factory.enforce_resource_limits(ALICE, core.clock.now()) == (1, 1)
    assert (over.ended, live.ended, other.ended) == (True, False, False)
    assert core.factory.enforce_resource_limits(ALICE, core.clock.now()) == (0, 0)
    assert core.factory.enforce_resource_limits(UserIdentity("acme", "nobody"), core.clock.now()) == (0, 0)


def test_enforcing_ends_what_is_over_a_limit_that_was_lowered() -> None:
    limits = Limits()
    settable = SimpleNamespace(**{name: getattr(limits, name) for name in limits.__slots__})
    core = Core(cast("Any", settable))
    sessions = [core.connect() for _ in range(4)]
    core.attach(sessions[0][0], mirror=True)
    core.clock.advance(1.0)
    core.lose(*sessions[2])
    settable.managers_per_user = 2
    assert core.factory.enforce_resource_limits(ALICE, core.clock.now()) == (2, 2)
    assert [manager.ended for manager, _ in sessions] == [True, False, True, False]
    assert sessions[0][1].closed_with == Close(4504, "limit_reached")
    assert reasons(core) == ["limit_enforced"] * 2
    assert len(core.audit.of(AuditEvent.LIMIT_ENFORCED)) == 2
    assert core.counters.resource_limit_enforcements == 2


def test_a_tick_looks_only_after_those_whose_time_has_come() -> None:
    core = Core()
    _, early = core.connect("alice")
    core.clock.advance(30.0)
    _, late = core.connect("bob")
    core.tick(29.999)
    assert (len(early.pings), len(late.pings)) == (0, 0)
    core.tick(0.001)
    assert (len(early.pings), len(late.pings)) == (1, 0)


def test_a_tick_that_comes_late_does_everything_that_was_due_once() -> None:
    core = Core()
    idle, idle_socket = core.connect("alice")
    away, away_socket = core.connect("bob")
    core.lose(away, away_socket)
    expired, expired_socket = core.connect("carol", token_life_s=10.0)
    core.tick(1_799.0)
    assert (idle.ended, away.ended, expired.ended) == (False, True, False)
    assert len(idle_socket.pings) == 1
    assert expired_socket.closed_with == Close(4000, "token_expired")
    core.tick(1.0)
    assert (idle.ended, expired.ended) == (True, False)
    core.tick(119.0)
    assert expired.ended


@pytest.mark.parametrize("pong_timeout_s", [1.0, 60.0])
def test_a_tick_ends_though_pings_come_faster_than_pongs(pong_timeout_s: float) -> None:
    core = Core(Limits(health_check_interval_s=1.0, pong_timeout_s=pong_timeout_s))
    _, socket = core.connect()
    core.run(3)
    assert len(socket.pings) == 1


def test_an_ended_manager_is_not_kept_until_its_time_would_have_come() -> None:
    core = Core(Limits(outbox=OutboxLimits(resume_window_s=86_400.0)))
    manager, socket = core.connect()
    core.send(manager, b'"payload"', "id")
    ended = weakref.ref(manager)
    core.lose(manager, socket, 1000)
    core.audit.records.clear()
    del manager, socket
    gc.collect()
    assert ended() is None
    core.tick(100_000.0)


def test_contexts_that_have_ended_leave_no_looks_behind() -> None:
    core = Core()
    for _ in range(5_000):
        manager, _ = core.connect()
        manager.end("gone", catalogued(CloseCode.NORMAL), core.clock.now())
    assert len(core.factory._due) < 3_000
    survivor, _ = core.connect()
    core.tick(1_801.0)
    assert survivor.ended


def test_a_context_that_is_always_due_holds_up_nobody() -> None:
    core = Core(Limits(health_check_interval_s=0.0))
    hurried, _ = core.connect()
    core.tick()
    assert hurried.scheduled_for == core.clock.monotonic(), "the next look is at once, and yet at the next tick"
    core.tick()
    assert not hurried.ended


def test_a_context_is_owned_as_long_as_it_lives_and_appends_in_its_owners_epoch() -> None:
    store, owners = LaterStore(), RecordingOwners(epoch=7)
    core = Core(store=store, owners=owners)
    manager, socket = core.connect()
    core.offer(manager)
    assert owners.owned == [manager.isolation_key]
    assert [append.epoch for append in store.waiting] == [7]
    core.lose(manager, socket, 1000)
    assert owners.owned == []
