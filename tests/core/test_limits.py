"""Per-user limits: each at the limit and one past it."""

from __future__ import annotations

import pytest

from sidecar.core.errors import ErrorReason, ResourceExhausted
from sidecar.core.identity import UserIdentity
from sidecar.core.limits import Limits, TokenBucket, UserLevelResourceManager
from sidecar.core.message import MESSAGE_OVERHEAD_BYTES
from sidecar.core.outbox import OutboxLimits
from tests.support.core import Core
from tests.support.doubles import LaterStore

ALICE = UserIdentity("acme", "alice")


def test_the_defaults_are_the_contracts() -> None:
    limits = Limits()
    assert (limits.managers_per_user, limits.connections_per_manager) == (5, 10)
    assert (limits.idle_timeout_s, limits.health_check_interval_s) == (1800.0, 60.0)
    assert (limits.pong_timeout_s, limits.slow_consumer_timeout_s) == (20.0, 30.0)
    assert limits.max_message_bytes == 256 * 1024
    assert limits.outbox == OutboxLimits(
        max_messages=10_000,
        max_bytes=2 * 1024 * 1024,
        ttl_s=120.0,
        critical_reserve=100,
        critical_reserve_bytes=1024 * 1024,
        resume_window_s=120.0,
    )


def test_a_bucket_gives_a_seconds_worth_at_once_and_then_the_rate() -> None:
    bucket = TokenBucket(2.0, 0.0)
    assert [bucket.take(0.0) for _ in range(3)] == [0.0, 0.0, 0.5]
    assert bucket.take(0.25) == 0.25
    assert bucket.take(0.5) == 0.0
    assert bucket.take(0.5) == 0.5


def test_a_bucket_never_holds_more_than_a_seconds_worth() -> None:
    bucket = TokenBucket(2.0, 0.0)
    assert [bucket.take(1_000.0) for _ in range(3)] == [0.0, 0.0, 0.5]


def test_a_slow_bucket_holds_one() -> None:
    bucket = TokenBucket(0.1, 0.0)
    assert bucket.take(0.0) == 0.0
    assert bucket.take(0.0) == 10.0
    assert bucket.take(10.0) == 0.0


def test_a_bucket_gives_many_at_once_or_none() -> None:
    bucket = TokenBucket(4.0, 0.0)
    assert bucket.take(0.0, 5.0) == 0.25
    assert bucket.take(0.0, 4.0) == 0.0


def test_an_account_lives_as_long_as_it_holds_a_manager() -> None:
    core = Core()
    resources = UserLevelResourceManager(Limits())
    account = resources.open_account(ALICE, 0.0)
    assert resources.open_account(ALICE, 0.0) is account
    assert resources.account_of(ALICE) is account
    assert len(resources) == 1
    manager = core.create()
    account.managers[manager.isolation_key] = manager
    resources.release(account)
    assert resources.account_of(ALICE) is account
    account.managers.clear()
    resources.release(account)
    resources.release(account)
    assert resources.account_of(ALICE) is None
    assert len(resources) == 0


def test_the_same_user_id_of_another_tenant_is_another_account() -> None:
    resources = UserLevelResourceManager(Limits())
    assert resources.open_account(ALICE, 0.0) is not resources.open_account(UserIdentity("other", "alice"), 0.0)


def test_queued_bytes_are_bounded_for_the_user_over_all_contexts() -> None:
    size = MESSAGE_OVERHEAD_BYTES + 2
    core = Core(Limits(queued_bytes_per_user=2 * size))
    one, two = core.create(), core.create()
    core.send(one)
    core.send(two)
    with pytest.raises(ResourceExhausted) as caught:
        core.send(two)
    assert (caught.value.reason, caught.value.retry_after_s) == (ErrorReason.USER_LIMIT, 1.0)
    assert core.factory.get_factory_stats().resource_limit_hits == 1
    core.send(core.create("bob"))
    core.attach(one)
    one.acknowledge("a-1", 1, core.clock.now())
    core.send(two)


def test_what_expired_in_another_context_of_the_user_counts_no_more() -> None:
    size = MESSAGE_OVERHEAD_BYTES + 2
    core = Core(Limits(queued_bytes_per_user=2 * size))
    one, two, others = core.create(), core.create(), core.create("bob")
    for manager in (one, others):
        core.send(manager, ttl_s=5.0)
    core.send(two)
    told: list[int] = []
    one.wait_for_outcome(1, lambda: told.append(core.user_bytes(one)))
    core.clock.advance(4.9)
    with pytest.raises(ResourceExhausted):
        core.send(two)
    core.clock.advance(0.1)
    core.send(two)
    assert told == [size]
    assert [len(manager.outbox.entries) for manager in (one, two, others)] == [0, 2, 1]
    assert core.user_bytes(two) == 2 * size
    assert core.factory.get_factory_stats().resource_limit_hits == 1


def test_what_expired_elsewhere_goes_before_anything_gives_way_and_the_store_is_told() -> None:
    size = MESSAGE_OVERHEAD_BYTES + 2
    store = LaterStore()
    core = Core(Limits(queued_bytes_per_user=2 * size), store)
    one, (two, _) = core.create(), core.connect()
    core.send_later(one, ttl_s=5.0)
    core.send_later(two)
    store.confirm_all()
    core.clock.advance(5.0)
    store.changes.clear()
    core.send_later(two)
    assert list(two.outbox.entries) == [1, 2]
    assert store.changes == [one.isolation_key]


def test_the_rate_is_the_users_over_all_contexts() -> None:
    core = Core(Limits(messages_per_second_per_user=2.0))
    one, two = core.create(), core.create()
    core.send(one)
    core.send(two)
    with pytest.raises(ResourceExhausted) as caught:
        core.send(one)
    assert (caught.value.reason, caught.value.retry_after_s) == (ErrorReason.RATE_LIMITED, 0.5)
    assert core.factory.get_factory_stats().resource_limit_hits == 1
    core.send(core.create("bob"))
    core.clock.advance(0.5)
    core.send(one)


def test_a_repeat_takes_nothing_of_the_rate() -> None:
    core = Core(Limits(messages_per_second_per_user=1.0))
    manager = core.create()
    core.send(manager, message_id="id")
    assert core.send(manager, message_id="id").duplicate


def test_only_managers_over_the_limit_are_excess() -> None:
    core = Core()
    managers = [core.create() for _ in range(3)]
    for keep, expected in ((4, 0), (3, 0), (2, 1), (1, 2)):
        resources = UserLevelResourceManager(Limits(managers_per_user=keep))
        account = resources.open_account(ALICE, 0.0)
        account.managers.update({manager.isolation_key: manager for manager in managers})
        assert len(resources.excess(account)) == expected


def test_the_longest_detached_go_first_then_the_oldest_whatever_the_wall_clock_did() -> None:
    core = Core()
    oldest, _ = core.connect()
    core.clock.step_wall(-600)
    core.clock.advance(1)
    younger, _ = core.connect()
    core.clock.advance(1)
    detached_first = core.create()
    core.clock.advance(1)
    detached_last = core.create()
    resources = UserLevelResourceManager(Limits(managers_per_user=1))
    account = resources.open_account(ALICE, 0.0)
    for manager in (younger, detached_last, oldest, detached_first):
        account.managers[manager.isolation_key] = manager
    assert resources.excess(account) == [detached_first, detached_last, oldest]


def test_without_a_rate_no_message_is_one_too_many() -> None:
    resources = UserLevelResourceManager(Limits(messages_per_second_per_user=0.0))
    account = resources.open_account(ALICE, 0.0)
    for _ in range(1_000):
        resources.admit_rate(account, 0.0)
    assert resources.limit_hits == 0
