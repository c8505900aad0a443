"""Back-off, pace and retries: which errors are tried again, when, and how often. A fake clock and no randomness."""

from __future__ import annotations

from typing import Any

import grpc
import pytest

from sidecar_client.back_off import BackOff
from sidecar_client.channel import channel_options
from sidecar_client.errors import SidecarError, TransportError, error_from_status
from sidecar_client.pace import Pace
from sidecar_client.retries import Retries
from tests.clients.python.scripted import status

UNAVAILABLE = TransportError(grpc.StatusCode.UNAVAILABLE)


def refusal(code: str, reason: str, retry_after_s: float | None = None) -> SidecarError:
    return error_from_status(status(grpc.StatusCode[code], reason, retry_after_s))


def retries(**settings: Any) -> Retries:
    given: dict[str, Any] = {"repeatable": True, "deadline": 10.0, "max_attempts": 4, "uniform": lambda: 0.5}
    return Retries(**(given | settings))


def test_the_bound_doubles_up_to_its_cap_and_jitter_is_full() -> None:
    highest = BackOff(0.25, 30, lambda: 0.999999)
    waits = [highest.next_s() for _ in range(10)]
    assert waits == pytest.approx([0.25, 0.5, 1, 2, 4, 8, 16, 30, 30, 30], rel=1e-3)
    lowest = BackOff(0.25, 30, lambda: 0.0)
    assert [lowest.next_s() for _ in range(5)] == [0.0] * 5
    assert lowest.next_s(at_least_s=3) == 3
    highest.reset()
    assert highest.next_s() == pytest.approx(0.25, rel=1e-3)
    for _ in range(5_000):
        highest.next_s()
    assert highest.next_s() <= 30


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (UNAVAILABLE, True),
        (refusal("UNAVAILABLE", "DRAINING", 0.1), True),
        (refusal("UNAVAILABLE", "STORAGE_UNAVAILABLE", 0.1), True),
        (refusal("UNAVAILABLE", "OUTCOME_UNKNOWN", 0.1), True),
        (refusal("UNAVAILABLE", "SOMETHING_NEW"), True),
        (refusal("RESOURCE_EXHAUSTED", "OUTBOX_FULL", 0.1), False),
        (refusal("RESOURCE_EXHAUSTED", "RATE_LIMITED", 0.1), False),
        (refusal("PERMISSION_DENIED", "ISOLATION_VIOLATION"), False),
        (refusal("UNAUTHENTICATED", "TOKEN_EXPIRED"), False),
        (refusal("INTERNAL", "INTERNAL"), False),
        (TransportError(grpc.StatusCode.DEADLINE_EXCEEDED), False),
        (TransportError(grpc.StatusCode.CANCELLED), False),
        (TransportError(grpc.StatusCode.RESOURCE_EXHAUSTED), False),
    ],
)
def test_only_what_passes_and_is_safe_is_tried_again(error: SidecarError, again: bool) -> None:
    assert (retries().wait_s(error, 0.0) is not None) == again
    assert retries(repeatable=False).wait_s(error, 0.0) is None


def test_retry_info_is_waited_out() -> None:
    assert retries().wait_s(refusal("UNAVAILABLE", "DRAINING", 2.0), 0.0) == pytest.approx(2.025)


def test_the_tries_without_an_answer_outlast_the_pause_between_two_connections() -> None:
    tries = retries(uniform=lambda: 0.0)
    waits = [tries.wait_s(UNAVAILABLE, 0.0) for _ in range(4)]
    assert waits[-1] is None
    most_s = dict(channel_options())["grpc.max_reconnect_backoff_ms"] / 1_000
    assert sum(wait_s or 0.0 for wait_s in waits) > 1.2 * most_s  # gRPC's own jitter is a fifth
    asked = retries(uniform=lambda: 0.0)
    assert asked.wait_s(refusal("UNAVAILABLE", "DRAINING", 0.01), 0.0) == 0.01


def test_tries_are_bounded_in_number_and_in_time() -> None:
    tries = retries(max_attempts=3)
    assert [tries.wait_s(UNAVAILABLE, 0.0) is not None for _ in range(4)] == [True, True, False, False]
    assert retries(max_attempts=1).wait_s(UNAVAILABLE, 0.0) is None
    draining = refusal("UNAVAILABLE", "DRAINING", 2.0)
    assert retries().wait_s(draining, 7.97) is not None
    assert retries().wait_s(draining, 7.98) is None


def test_a_refusal_is_told_of_an_unanswered_try_before_it() -> None:
    tries = retries()
    assert tries.wait_s(TransportError(grpc.StatusCode.UNAVAILABLE), 0.0) is not None
    gone = refusal("NOT_FOUND", "MANAGER_GONE")
    assert tries.wait_s(gone, 0.0) is None
    assert not gone.definite
    definite, draining = retries(), refusal("UNAVAILABLE", "DRAINING")
    assert definite.wait_s(draining, 0.0) is not None
    gone = refusal("NOT_FOUND", "MANAGER_GONE")
    definite.wait_s(gone, 0.0)
    assert gone.definite


def test_doubt_stays_over_further_tries() -> None:
    tries = retries()
    for error in (TransportError(grpc.StatusCode.UNAVAILABLE), refusal("UNAVAILABLE", "DRAINING")):
        assert tries.wait_s(error, 0.0) is not None
    gone = refusal("NOT_FOUND", "MANAGER_GONE")
    tries.wait_s(gone, 0.0)
    assert not gone.definite


def test_the_pace_of_frames_and_of_bytes() -> None:
    pace = Pace(100.0, frames_per_second=10, bytes_per_second=1_000)
    for _ in range(10):
        assert pace.wait_s(100.0) == 0
        pace.take(1)
    assert pace.wait_s(100.0) == pytest.approx(0.1)
    assert pace.wait_s(100.2) == 0
    pace.take(3_000)
    assert pace.wait_s(100.2) == pytest.approx(2.0, abs=0.02)
    assert pace.wait_s(90.0) > 0  # a clock that went back gives nothing
    assert pace.wait_s(200.0) == 0
    for _ in range(10):
        pace.take(0)
    assert pace.wait_s(200.0) > 0
