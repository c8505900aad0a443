"""The error tree: every reason of the contract has its class and its status, whatever brings it."""

from __future__ import annotations

import copy
import pickle

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from sidecar.api.v1 import error_reason_pb2
from sidecar.core.errors import CATALOGUE, ErrorReason
from sidecar_client import errors
from sidecar_client.errors import (
    BadRequest,
    Internal,
    OutcomeUnknown,
    SidecarError,
    TokenError,
    TransportError,
    Unavailable,
    error_from_reason,
    error_from_status,
)
from tests.clients.python.scripted import status

REASONS = [
    name.removeprefix("ERROR_REASON_")
    for name in error_reason_pb2.ErrorReason.keys()  # noqa: SIM118 - an enum wrapper is no dict
    if name != "ERROR_REASON_UNSPECIFIED"
]


@pytest.mark.parametrize("reason", REASONS)
def test_every_reason_of_the_contract_has_its_class(reason: str) -> None:
    code = grpc.StatusCode[CATALOGUE[ErrorReason(reason)][0].value]
    by_status = error_from_status(status(code, reason, 2.5))
    by_frame = error_from_reason(reason, "a text")
    assert type(by_status) is type(by_frame)
    assert type(by_status).__name__.lower() == reason.replace("_", "").lower() or isinstance(by_status, TokenError)
    assert type(by_status) is not SidecarError
    assert (by_status.code, by_frame.code) == (code, code)
    assert (by_status.reason, by_status.message, by_status.retry_after_s) == (reason, "a fixed text", 2.5)
    assert by_status.definite == (reason not in {"INTERNAL", "OUTCOME_UNKNOWN"})


def test_the_docstring_shows_every_class() -> None:
    kinds = [each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, SidecarError)]
    assert errors.__doc__ is not None
    assert [kind.__name__ for kind in kinds if kind.__name__ not in errors.__doc__] == []
    assert len(kinds) > 25


def test_reasons_to_come_fall_back_on_their_status() -> None:
    assert type(error_from_status(status(grpc.StatusCode.UNAVAILABLE, "NEW_TROUBLE"))) is Unavailable
    assert type(error_from_status(status(grpc.StatusCode.DATA_LOSS, "NEW_TROUBLE"))) is SidecarError
    assert error_from_status(status(grpc.StatusCode.UNAVAILABLE, "NEW_TROUBLE")).reason == "NEW_TROUBLE"
    assert type(error_from_reason("NEW_TROUBLE", "")) is SidecarError


def test_a_status_without_the_sidecars_word_is_the_transports() -> None:
    foreign = status_pb2.Status(code=7, message="a proxy's")
    foreign.details.add().Pack(error_details_pb2.ErrorInfo(reason="ISOLATION_VIOLATION", domain="elsewhere"))
    broken = status_pb2.Status(code=7)
    broken.details.add(type_url="type.googleapis.com/google.rpc.ErrorInfo", value=b"\xff")
    beyond = status_pb2.Status(code=99)
    for made, code in (
        (foreign, grpc.StatusCode.PERMISSION_DENIED),
        (broken, grpc.StatusCode.PERMISSION_DENIED),
        (beyond, grpc.StatusCode.UNKNOWN),
    ):
        error = error_from_status(made)
        assert type(error) is TransportError
        assert (error.code, error.reason, error.definite) == (code, "", False)
    assert TransportError(grpc.StatusCode.UNIMPLEMENTED).definite


def test_violations_and_incidents_are_in_the_text() -> None:
    bad = status(grpc.StatusCode.INVALID_ARGUMENT, "BAD_REQUEST")
    fields = error_details_pb2.BadRequest()
    fields.field_violations.add(field="message.ttl", description="more than 0")
    bad.details.add().Pack(fields)
    error = error_from_status(bad)
    assert isinstance(error, BadRequest)
    assert error.violations == (("message.ttl", "more than 0"),)
    assert str(error) == "BAD_REQUEST: a fixed text; message.ttl: more than 0"
    bug = status_pb2.Status(code=13, message="internal error")
    bug.details.add().Pack(
        error_details_pb2.ErrorInfo(reason="INTERNAL", domain="sidecar", metadata={"incident_id": "abc"})
    )
    incident = error_from_status(bug)
    assert isinstance(incident, Internal)
    assert str(incident) == "INTERNAL: internal error (incident abc)"


@pytest.mark.parametrize("again", [copy.copy, lambda error: pickle.loads(pickle.dumps(error))])
def test_a_copy_is_the_same_and_another(again: object) -> None:
    assert callable(again)
    error = error_from_status(status(grpc.StatusCode.UNAVAILABLE, "DRAINING", 1.5))
    error.unanswered_before = True
    twin = again(error)
    assert twin is not error
    assert type(twin) is type(error)
    assert vars(twin) == vars(error)
    assert str(twin) == str(error)


def test_a_refusal_behind_an_unanswered_try_is_not_definite() -> None:
    refused = error_from_reason("MANAGER_GONE", "")
    assert refused.definite
    refused.unanswered_before = True
    assert not refused.definite
    assert not OutcomeUnknown(grpc.StatusCode.UNAVAILABLE).definite
