"""The error tree and the catalogue of reasons."""

from __future__ import annotations

import pytest

from sidecar.core import errors
from sidecar.core.errors import CATALOGUE, ErrorReason, Status, TokenFault

BY_STATUS = {
    Status.UNAUTHENTICATED: {"TOKEN_MISSING", "TOKEN_INVALID", "TOKEN_EXPIRED", "TOKEN_REVOKED"},
    Status.PERMISSION_DENIED: {"ISOLATION_VIOLATION", "SCOPE_MISSING", "SERVICE_DENIED"},
    Status.NOT_FOUND: {"MANAGER_GONE"},
    Status.RESOURCE_EXHAUSTED: {"OUTBOX_FULL", "USER_LIMIT", "RATE_LIMITED", "AGENT_BUSY"},
    Status.ALREADY_EXISTS: {"MESSAGE_ID_REUSED", "SUBSCRIPTION_TAKEN"},
    Status.INVALID_ARGUMENT: {"BAD_REQUEST"},
    Status.FAILED_PRECONDITION: {
        "DURABILITY_UNAVAILABLE",
        "STREAM_CANCELLED",
        "STREAM_ENDED",
        "STREAM_OUT_OF_ORDER",
        "LANE_NOT_OPEN",
    },
    Status.UNAVAILABLE: {
        "DRAINING",
        "CLUSTER_UNAVAILABLE",
        "STORAGE_UNAVAILABLE",
        "AUDIT_UNAVAILABLE",
        "OUTCOME_UNKNOWN",
        "NO_AGENT",
    },
    Status.UNIMPLEMENTED: {"UNSUPPORTED"},
    Status.INTERNAL: {"INTERNAL"},
}


def test_every_reason_has_the_contracts_status_and_a_text() -> None:
    by_status: dict[Status, set[str]] = {}
    for reason in ErrorReason:
        status, text = CATALOGUE[reason]
        assert text
        by_status.setdefault(status, set()).add(reason.value)
    assert by_status == BY_STATUS


def test_a_refusal_says_the_catalogues_text_and_nothing_of_the_caller() -> None:
    error = errors.SidecarError(ErrorReason.OUTBOX_FULL, retry_after_s=1.5)
    assert (error.reason, error.status, error.retry_after_s) == (
        ErrorReason.OUTBOX_FULL,
        Status.RESOURCE_EXHAUSTED,
        1.5,
    )
    assert str(error) == error.text == "the outbox is full"


@pytest.mark.parametrize(
    ("error", "reason", "retry_after_s"),
    [
        (errors.Unauthenticated(ErrorReason.TOKEN_EXPIRED, TokenFault.EXPIRED), "TOKEN_EXPIRED", None),
        (errors.PermissionDenied(ErrorReason.SCOPE_MISSING), "SCOPE_MISSING", None),
        (errors.IsolationViolation(), "ISOLATION_VIOLATION", None),
        (errors.ManagerGone(), "MANAGER_GONE", None),
        (errors.ResourceExhausted(ErrorReason.RATE_LIMITED, retry_after_s=0.5), "RATE_LIMITED", 0.5),
        (errors.AlreadyExists(ErrorReason.MESSAGE_ID_REUSED), "MESSAGE_ID_REUSED", None),
        (errors.BadRequest("message.ttl", "positive"), "BAD_REQUEST", None),
        (errors.FailedPrecondition(ErrorReason.LANE_NOT_OPEN), "LANE_NOT_OPEN", None),
        (errors.Unavailable(ErrorReason.DRAINING), "DRAINING", 1.0),
        (errors.Unavailable(ErrorReason.DRAINING, retry_after_s=5.0), "DRAINING", 5.0),
        (errors.Unsupported(), "UNSUPPORTED", None),
    ],
)
def test_each_class_carries_its_reason(error: errors.SidecarError, reason: str, retry_after_s: float | None) -> None:
    assert isinstance(error, errors.SidecarError)
    assert error.reason.value == reason
    assert error.retry_after_s == retry_after_s


def test_typed_attributes() -> None:
    assert errors.Unauthenticated(ErrorReason.TOKEN_INVALID, TokenFault.SIGNATURE).fault is TokenFault.SIGNATURE
    assert errors.BadRequest("message.ttl", "positive").violations == (("message.ttl", "positive"),)
    assert isinstance(errors.IsolationViolation(), errors.PermissionDenied)


def test_a_tokens_fault_is_not_in_the_text() -> None:
    texts = {str(errors.Unauthenticated(ErrorReason.TOKEN_INVALID, fault)) for fault in TokenFault}
    assert texts == {"the token is not valid"}
