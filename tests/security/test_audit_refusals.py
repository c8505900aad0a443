"""Flood control: refusals before authentication are recorded singly up to ten a second an address, then counted."""

from __future__ import annotations

import pytest

from sidecar.core.ports import AuditEvent
from sidecar.security.refusals import OTHER_ADDRESSES, Refusals
from tests.security.audit_doubles import RecordingTrail
from tests.security.forge import FakeClock

SINGLE = AuditEvent.CONNECT_REFUSED
COUNTED = AuditEvent.REFUSALS_COUNTED
ATTACKER, OTHER, THIRD = "192.0.2.1", "192.0.2.2", "192.0.2.3"


@pytest.fixture
def trail() -> RecordingTrail:
    return RecordingTrail()


@pytest.fixture
def refusals(trail: RecordingTrail, clock: FakeClock) -> Refusals:
    return Refusals(trail, clock, max_addresses=2)


def flood(refusals: Refusals, address: str, count: int) -> None:
    for _ in range(count):
        refusals.refused(address, "token_invalid")


def counted(address: str, count: int, seconds: float) -> tuple[AuditEvent, dict[str, object]]:
    return COUNTED, {"address": address, "count": count, "seconds": seconds}


def test_a_refusal_is_recorded_with_its_fields(trail: RecordingTrail, refusals: Refusals) -> None:
    refusals.refused(ATTACKER, "token_invalid", fault="signature")
    assert trail.take() == [(SINGLE, {"address": ATTACKER, "reason": "token_invalid", "fault": "signature"})]
    refusals.tick()
    assert trail.take() == []


@pytest.mark.parametrize("count", [10, 11])
def test_the_tenth_is_single_the_eleventh_counted(trail: RecordingTrail, refusals: Refusals, count: int) -> None:
    flood(refusals, ATTACKER, count)
    refusals.tick()
    records = trail.take()
    assert [event for event, _ in records] == [SINGLE] * 10 + [COUNTED] * (count - 10)


def test_a_thousand_in_one_second(trail: RecordingTrail, refusals: Refusals, clock: FakeClock) -> None:
    for _ in range(1000):
        refusals.refused(ATTACKER, "token_invalid")
        clock.advance(0.0009)
    clock.advance(0.1)
    refusals.tick()
    records = trail.take()
    assert [event for event, _ in records] == [SINGLE] * 10 + [COUNTED]
    assert records[-1] == counted(ATTACKER, 990, 0.991)
    refusals.tick()
    assert trail.take() == []


def test_each_context_behind_an_address_has_its_own_ten(trail: RecordingTrail, refusals: Refusals) -> None:
    for connection_id in ("c-1", "c-2"):
        for _ in range(11):
            refusals.refused(ATTACKER, "scope_missing", connection_id=connection_id)
    singles = trail.take()
    assert [fields["connection_id"] for _, fields in singles] == ["c-1"] * 10 + ["c-2"] * 10
    assert {fields["address"] for _, fields in singles} == {ATTACKER}
    refusals.tick()
    assert trail.take() == [
        (COUNTED, {"address": ATTACKER, "connection_id": name, "count": 1, "seconds": 0.0}) for name in ("c-1", "c-2")
    ]


def test_never_more_than_ten_in_any_second(trail: RecordingTrail, refusals: Refusals, clock: FakeClock) -> None:
    times: list[float] = []
    for _ in range(5000):
        refusals.refused(ATTACKER, "token_invalid")
        times += [clock.monotonic() for event, _ in trail.take() if event is SINGLE]
        clock.advance(0.001953125)
    assert len(times) > 90
    assert all(later - earlier >= 1.0 for earlier, later in zip(times, times[10:], strict=False))


@pytest.mark.parametrize(("later", "singles"), [(0.9375, 10), (1.0, 11)])
def test_the_first_of_ten_is_forgotten_after_a_second(
    trail: RecordingTrail, refusals: Refusals, clock: FakeClock, later: float, singles: int
) -> None:
    flood(refusals, ATTACKER, 1)
    clock.advance(0.5)
    flood(refusals, ATTACKER, 9)
    clock.advance(later - 0.5)
    flood(refusals, ATTACKER, 2)
    assert len(trail.take()) == singles


def test_a_long_flood_is_one_record_a_second_and_counts_all(
    trail: RecordingTrail, refusals: Refusals, clock: FakeClock
) -> None:
    total = 0
    for _ in range(5):
        flood(refusals, ATTACKER, 100)
        clock.advance(1.0)
        refusals.tick()
        records = trail.take()
        assert [event for event, _ in records] == [SINGLE] * 10 + [COUNTED]
        total += 10 + int(records[-1][1]["count"])  # type: ignore[arg-type]
    assert total == 500


def test_one_address_costs_no_other(trail: RecordingTrail, refusals: Refusals) -> None:
    flood(refusals, ATTACKER, 100)
    trail.take()
    flood(refusals, OTHER, 1)
    assert trail.take() == [(SINGLE, {"address": OTHER, "reason": "token_invalid"})]


def test_addresses_beyond_the_table_share_a_bucket(trail: RecordingTrail, refusals: Refusals, clock: FakeClock) -> None:
    flood(refusals, ATTACKER, 1)
    flood(refusals, OTHER, 1)
    flood(refusals, THIRD, 8)
    flood(refusals, "192.0.2.4", 5)
    assert [fields["address"] for _, fields in trail.take()] == [
        ATTACKER, OTHER, *[THIRD] * 8, *["192.0.2.4"] * 2,
    ]  # fmt: skip
    clock.advance(0.5)
    refusals.tick()
    assert trail.take() == [counted(OTHER_ADDRESSES, 3, 0.5)]


def test_a_quiet_address_leaves_the_table(trail: RecordingTrail, refusals: Refusals, clock: FakeClock) -> None:
    flood(refusals, ATTACKER, 1)
    clock.advance(0.5)
    flood(refusals, OTHER, 11)
    clock.advance(0.5)
    refusals.tick()  # The attacker's second is over, the other's is not.
    trail.take()
    flood(refusals, THIRD, 11)
    flood(refusals, OTHER, 1)
    clock.advance(0.25)
    refusals.tick()
    assert trail.take()[-2:] == [counted(OTHER, 1, 0.25), counted(THIRD, 1, 0.25)]


def test_a_step_of_the_wall_clock_changes_nothing(trail: RecordingTrail, refusals: Refusals, clock: FakeClock) -> None:
    flood(refusals, ATTACKER, 10)
    clock.step(600)
    flood(refusals, ATTACKER, 1)
    clock.step(-1200)
    refusals.tick()
    assert trail.take()[10:] == [counted(ATTACKER, 1, 0.0)]
