"""One manager's life in time, on a fake clock with a tick a second: every deadline at its time and not before."""

from __future__ import annotations

from math import inf

import pytest

from sidecar.core.close_codes import Close
from sidecar.core.events import ContextTokenDue, TokenExpiring
from sidecar.core.limits import Limits
from sidecar.core.manager import IsolatedWebSocketManager
from sidecar.core.message import DeliveryState
from sidecar.core.outbox import OutboxLimits
from sidecar.core.ports import AuditEvent
from tests.support.core import Core
from tests.support.doubles import LaterStore, RecordingSocket

WALL_STEPS = [0.0, 600.0, -600.0]


class Driven:
    """A manager and its primary; ticks a second at a time and says when things happened."""

    def __init__(self, limits: Limits | None = None, *, token_life_s: float = 100_000.0) -> None:
        self.core = Core(limits)
        self.manager, self.socket = self.core.connect(token_life_s=token_life_s)
        self.start = self.core.clock.monotonic()
        self.answered: dict[str, int] = {}

    @property
    def elapsed(self) -> float:
        return self.core.clock.monotonic() - self.start

    def pong(self) -> None:
        """Answer the pings that came since the last answer; an answer to none would be one more look at the time."""
        for socket in self.manager.connections:
            assert isinstance(socket, RecordingSocket)
            if len(socket.pings) > self.answered.get(socket.attach_id, 0):
                self.answered[socket.attach_id] = len(socket.pings)
                self.manager.lifecycle.pong_received(socket.attach_id)

    def run(self, seconds: float, *, pongs: bool = True) -> None:
        """Let time pass, the client answering its pings or not."""
        for _ in range(round(seconds)):
            self.core.tick(1.0)
            if pongs:
                self.pong()

    def until_closed(self, *, pongs: bool = True, limit_s: float = 4_000.0) -> tuple[float, Close]:
        """When the primary was closed, in seconds since the start, and how."""
        while self.socket.closed_with is None:
            assert self.elapsed < limit_s, "never closed"
            self.run(1, pongs=pongs)
        return self.elapsed, self.socket.closed_with


def reasons(core: Core) -> list[object]:
    return [record.fields["reason"] for record in core.audit.of(AuditEvent.CONTEXT_CLOSED)]


@pytest.mark.parametrize("step", WALL_STEPS)
def test_an_idle_context_ends_after_half_an_hour(step: float) -> None:
    driven = Driven()
    driven.run(100)
    driven.core.clock.step_wall(step)
    assert driven.until_closed() == (1800.0, Close(4507, "idle"))
    assert driven.manager.ended
    assert reasons(driven.core) == ["idle"]


def test_activity_puts_the_idle_end_off_and_acks_and_pings_do_not() -> None:
    driven = Driven()
    driven.run(1_000)
    driven.core.send(driven.manager)
    driven.run(500)
    driven.manager.acknowledge(driven.socket.attach_id, 1, driven.core.clock.now())
    driven.core.send(driven.manager, b"{}", "id")
    driven.run(500)
    driven.core.send(driven.manager, b"{}", "id")  # a repeat delivers nothing: no activity
    driven.manager.acknowledge(driven.socket.attach_id, 2, driven.core.clock.now())
    assert driven.until_closed() == (3_300.0, Close(4507, "idle"))


def test_a_touch_puts_the_idle_end_off() -> None:
    driven = Driven()
    driven.run(1_799)
    driven.manager.touch(driven.core.clock.now())
    assert driven.until_closed() == (3_599.0, Close(4507, "idle"))


@pytest.mark.parametrize("step", WALL_STEPS)
def test_a_detached_context_ends_with_its_resume_window(step: float) -> None:
    driven = Driven()
    mirror = driven.core.attach(driven.manager, mirror=True)
    driven.run(50)
    driven.core.lose(driven.manager, driven.socket)
    driven.core.clock.step_wall(step)
    driven.run(119)
    assert not driven.manager.ended
    driven.run(1)
    assert driven.manager.ended
    assert reasons(driven.core) == ["resume_window_over"]
    assert mirror.closed_with == Close(1001, "going_away")


def test_a_context_that_comes_back_lives_on() -> None:
    driven = Driven()
    driven.core.lose(driven.manager, driven.socket)
    driven.run(119)
    driven.socket = driven.core.attach(driven.manager)
    driven.run(1_000)
    assert not driven.manager.ended
    driven.core.lose(driven.manager, driven.socket)
    driven.run(119)
    assert not driven.manager.ended
    driven.run(1)
    assert driven.manager.ended


def test_a_context_that_nobody_attached_to_ends_with_the_window() -> None:
    core = Core()
    manager = core.create()
    core.run(119)
    assert not manager.ended
    core.run(1)
    assert manager.ended


@pytest.mark.parametrize("step", WALL_STEPS)
def test_a_socket_ends_with_its_token_after_one_warning(step: float) -> None:
    driven = Driven(token_life_s=300.0)
    driven.core.clock.step_wall(step)
    driven.run(239)
    assert driven.socket.events == []
    driven.run(1)
    ends_at = int(driven.core.clock.time() - step + 60)
    assert driven.socket.events == [TokenExpiring(ends_at)]
    assert driven.until_closed() == (300.0, Close(4000, "token_expired"))
    assert driven.socket.events == [TokenExpiring(ends_at)]
    assert not driven.manager.ended  # it may resume with another token
    assert driven.manager.detached_at == driven.core.clock.monotonic()


def test_a_refreshed_token_counts_from_then_on_with_a_warning_of_its_own() -> None:
    driven = Driven(token_life_s=300.0)
    driven.run(290)
    at = driven.core.clock.now()
    driven.manager.lifecycle.token_refreshed(driven.socket.attach_id, int(at.unix + 100), at)
    driven.run(39)
    assert len(driven.socket.events) == 1
    driven.run(1)
    assert driven.socket.events[1:] == [TokenExpiring(int(at.unix + 100))]
    assert driven.until_closed() == (390.0, Close(4000, "token_expired"))


def test_a_refresh_to_a_shorter_token_is_seen_in_time() -> None:
    driven = Driven()
    driven.run(1)
    at = driven.core.clock.now()
    driven.manager.lifecycle.token_refreshed(driven.socket.attach_id, int(at.unix + 5), at)
    assert driven.until_closed() == (6.0, Close(4000, "token_expired"))


def test_a_token_of_less_than_a_minute_is_announced_at_once() -> None:
    driven = Driven(token_life_s=30.0)
    driven.core.tick(0.0)
    driven.core.tick(0.0)
    assert len(driven.socket.events) == 1
    assert driven.until_closed() == (30.0, Close(4000, "token_expired"))


def test_a_mirror_ends_with_its_own_token() -> None:
    driven = Driven()
    mirror = driven.core.attach(driven.manager, mirror=True, token_life_s=10.0)
    driven.run(9)
    assert mirror.closed_with is None
    driven.run(1)
    assert mirror.closed_with == Close(4000, "token_expired")
    assert driven.manager.connections == (driven.socket,)


@pytest.mark.parametrize(("life_s", "due_s"), [(900, 840.0), (120, 60.0), (60, 30.0)])
def test_a_context_token_is_replaced_before_it_ends(life_s: int, due_s: float) -> None:
    driven = Driven()
    at = driven.core.clock.now()
    driven.manager.lifecycle.context_token_minted(driven.socket.attach_id, int(at.unix + life_s), at)
    driven.core.clock.step_wall(600.0)
    driven.run(due_s - 1)
    assert driven.socket.events == []
    driven.run(1)
    assert driven.socket.events == [ContextTokenDue()]


def test_a_context_token_is_asked_for_again_until_it_is_minted() -> None:
    driven = Driven()
    at = driven.core.clock.now()
    driven.manager.lifecycle.context_token_minted(driven.socket.attach_id, int(at.unix + 120), at)
    driven.run(60 + 15 + 15)
    assert driven.socket.events == [ContextTokenDue()] * 3
    at = driven.core.clock.now()
    driven.manager.lifecycle.context_token_minted(driven.socket.attach_id, int(at.unix + 900), at)
    driven.run(839)
    assert len(driven.socket.events) == 3
    driven.run(1)
    assert len(driven.socket.events) == 4


def test_every_socket_is_pinged_every_minute_from_its_own_start() -> None:
    driven = Driven()
    driven.run(30)
    mirror = driven.core.attach(driven.manager, mirror=True)
    seen = []
    for _ in range(150):
        driven.run(1)
        seen.append((len(driven.socket.pings), len(mirror.pings)))
    changes = [second + 1 for second in range(1, 150) if seen[second] != seen[second - 1]]
    assert changes == [30, 60, 90, 120, 150]
    assert seen[-1] == (3, 2)
    assert driven.socket.pings == [b""] * 3


@pytest.mark.parametrize("step", WALL_STEPS)
def test_a_pong_may_be_overdue_for_twenty_seconds(step: float) -> None:
    driven = Driven()
    driven.run(70, pongs=False)
    driven.core.clock.step_wall(step)
    assert driven.until_closed(pongs=False) == (80.0, Close(4002, "pong_timeout"))
    assert driven.socket.pings == [b""]
    assert not driven.manager.ended


def test_a_late_pong_is_in_time() -> None:
    driven = Driven()
    driven.run(79, pongs=False)
    driven.pong()
    driven.run(40, pongs=False)
    assert driven.socket.closed_with is None
    assert driven.until_closed(pongs=False) == (140.0, Close(4002, "pong_timeout"))


def test_pings_more_often_than_pongs_are_due_wait_for_the_pong() -> None:
    driven = Driven(Limits(health_check_interval_s=5.0, pong_timeout_s=20.0))
    driven.run(14, pongs=False)
    assert driven.socket.pings == [b""]
    driven.pong()
    driven.run(1, pongs=False)
    assert driven.socket.pings == [b"", b""]
    assert driven.until_closed(pongs=False) == (35.0, Close(4002, "pong_timeout"))


@pytest.mark.parametrize("step", WALL_STEPS)
def test_a_slow_consumer_is_closed_after_half_a_minute(step: float) -> None:
    driven = Driven()
    driven.run(10)
    driven.core.pause(driven.manager, driven.socket)
    driven.core.clock.step_wall(step)
    driven.run(10)
    driven.manager.lifecycle.writing_paused(driven.socket.attach_id, driven.core.clock.now())  # it was, all along
    assert driven.until_closed() == (40.0, Close(4003, "slow_consumer"))
    assert not driven.manager.ended


def test_a_consumer_that_takes_more_in_between_is_not_slow() -> None:
    driven = Driven()
    for _ in range(10):
        driven.core.pause(driven.manager, driven.socket)
        driven.run(29)
        driven.core.resume(driven.manager, driven.socket)
    driven.run(60)
    assert driven.socket.closed_with is None


def test_what_is_said_of_a_socket_that_is_gone_changes_nothing() -> None:
    core = Core()
    manager, socket = core.connect()
    core.lose(manager, socket)
    at, lifecycle = core.clock.now(), manager.lifecycle
    due = manager.scheduled_for
    lifecycle.token_refreshed(socket.attach_id, int(at.unix), at)
    lifecycle.context_token_minted(socket.attach_id, int(at.unix), at)
    lifecycle.pong_received(socket.attach_id)
    lifecycle.writing_paused(socket.attach_id, at)
    lifecycle.writing_resumed(socket.attach_id)
    lifecycle.forget(socket.attach_id)
    assert lifecycle.health_check_connection(manager.context, socket.attach_id, at) is None
    assert manager.scheduled_for == due
    assert (socket.closed_with, socket.events, socket.pings) == (None, [], [])


def test_another_context_checks_nobodys_health() -> None:
    driven = Driven(token_life_s=10.0)
    at = driven.core.clock.advance(3_600.0)
    stranger = driven.core.context("mallory")
    lifecycle, attach_id = driven.manager.lifecycle, driven.socket.attach_id
    assert lifecycle.health_check_connection(stranger, attach_id, at) is None
    assert (driven.socket.events, driven.socket.pings) == ([], [])
    assert lifecycle.health_check_connection(driven.manager.context, attach_id, at) == Close(4000, "token_expired")


def test_messages_expire_within_an_interval_with_nobody_looking() -> None:
    core = Core(Limits(outbox=OutboxLimits(ttl_s=90.0, resume_window_s=1_000.0)))
    manager, socket = core.connect()
    core.lose(manager, socket)
    core.send(manager, message_id="default")
    core.send(manager, message_id="short", ttl_s=1.0)
    core.run(61)
    assert list(manager.outbox.entries) == [1]
    core.run(29)
    assert manager.outbox.entries == {}
    assert core.send(manager, message_id="default").state is DeliveryState.DROPPED


def test_an_ended_context_has_no_next_time() -> None:
    driven = Driven()
    at = driven.core.clock.now()
    assert driven.manager.lifecycle.auto_cleanup_expired(at) == at.monotonic + 60.0
    driven.manager.lifecycle.force_cleanup_all(Close(4900, "mine"), "forced", at)
    assert driven.socket.closes == [Close(4900, "mine")]
    assert driven.manager.lifecycle.auto_cleanup_expired(at) == inf
    driven.manager.lifecycle.force_cleanup_all(Close(4900, "mine"), "again", at)
    assert reasons(driven.core) == ["forced"]


def test_the_next_time_is_never_now() -> None:
    """Else one tick would not end: whatever is due has been done, or has been put off."""
    driven = Driven(Limits(health_check_interval_s=2.0, pong_timeout_s=30.0), token_life_s=20.0)
    at = driven.core.clock.now()
    driven.manager.lifecycle.context_token_minted(driven.socket.attach_id, int(at.unix), at)
    driven.core.send(driven.manager, ttl_s=0.001)
    for _ in range(80):
        at = driven.core.clock.advance(0.25)
        assert driven.manager.lifecycle.auto_cleanup_expired(at) > at.monotonic


def test_what_is_over_but_not_yet_confirmed_does_not_make_the_next_time_now() -> None:
    core = Core(store=LaterStore())
    manager, _ = core.connect()
    core.send_later(manager, ttl_s=1.0)
    at = core.clock.advance(5.0)
    assert manager.lifecycle.auto_cleanup_expired(at) == at.monotonic + 1.0


def test_a_raw_context_ends_with_a_socket_that_is_overdue() -> None:
    core = Core()
    manager: IsolatedWebSocketManager = core.create(raw=True)
    socket = core.attach(manager, token_life_s=10.0)
    core.run(10)
    assert socket.closed_with == Close(4000, "token_expired")
    assert manager.ended
    assert reasons(core) == ["token_expired"]


def test_a_slow_consumer_that_answers_pings_is_slow_and_not_silent() -> None:
    """Nothing is read while writing is paused, so that a pong on its way cannot be seen: only slowness counts."""
    driven = Driven()
    driven.core.tick(60.0)
    assert len(driven.socket.pings) == 1
    driven.core.pause(driven.manager, driven.socket)
    assert driven.until_closed(pongs=False) == (90.0, Close(4003, "slow_consumer"))


def test_a_socket_that_takes_more_again_is_pinged_anew() -> None:
    """What was sent while nothing was read is not held against it; silence from then on is."""
    driven = Driven()
    driven.core.tick(60.0)
    driven.core.pause(driven.manager, driven.socket)
    driven.core.tick(25.0)
    driven.core.resume(driven.manager, driven.socket)
    driven.core.tick(35.0)
    assert len(driven.socket.pings) == 2
    assert driven.until_closed(pongs=False) == (140.0, Close(4002, "pong_timeout"))
