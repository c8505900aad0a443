"""The form of a record: one ASCII line whatever it holds, in a fixed order, with a hash over its bytes."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.core.errors import ErrorReason, SidecarError
from sidecar.core.ports import AuditEvent, AuditValue
from sidecar.security.audit_record import (
    GENESIS,
    MAX_FIELDS,
    MAX_LINE_BYTES,
    AuditFileError,
    AuditFileProblem,
    AuditRecord,
    Head,
    Link,
    build_record,
    hash_of,
    parse_record,
)
from tests.security.audit_doubles import KEY, NOW, make_context

PREVIOUS = "ab" * 32
OWN = ["sequence", "boot_id", "time", "event", "previous", "hash"]
values = st.none() | st.booleans() | st.integers() | st.floats() | st.text()


def line_of(record: AuditRecord) -> bytes:
    return build_record(7, "boot", NOW, record, PREVIOUS)


def members_of(line: bytes) -> dict[str, Any]:
    """The members, each name once."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        assert len({name for name, _ in pairs}) == len(pairs)
        return dict(pairs)

    members = json.loads(line, object_pairs_hook=once)
    assert isinstance(members, dict)
    return members


def written(value: AuditValue) -> object:
    return members_of(line_of(AuditRecord(AuditEvent.ADMIN_CALL, None, {"x": value})))["x"]


def test_members_stand_in_order() -> None:
    line = line_of(AuditRecord(AuditEvent.CONTEXT_OPENED, make_context(), {"recovery": "new", "sockets": 1}))
    digest = hashlib.sha256(line[: line.index(b',"hash":')]).hexdigest()
    assert line.decode() == (
        '{"sequence":7,"boot_id":"boot","time":"2027-01-15T08:00:00.250000Z","event":"context_opened",'
        '"tenant_id":"acme","user_id":"alice","session_id":"session-1","connection_id":"connection-1",'
        f'"request_id":"request-1","recovery":"new","sockets":1,"previous":"{PREVIOUS}","hash":"{digest}"}}\n'
    )
    assert hash_of(line) == digest


def test_without_a_context_its_names_are_free() -> None:
    line = line_of(AuditRecord(AuditEvent.ADMIN_CALL, None, {"user_id": "bob"}))
    assert list(members_of(line)) == ["sequence", "boot_id", "time", "event", "user_id", "previous", "hash"]


def test_the_isolation_key_is_not_in_it() -> None:
    assert KEY.encode() not in line_of(AuditRecord(AuditEvent.CONTEXT_OPENED, make_context()))


@pytest.mark.parametrize(
    "nasty",
    [
        '"}\n{"sequence":8,"event":"forged"}',
        "a\r\nb",
        "a\u2028b\u2029c",
        "a\x85b\x0bc\x0cd\x1ce",
        "\x00\x1b[2J\x7f\x9b",
        "\\\\u000a",
        "\ud800 alone",
        "\U0001f600",
        '","hash":"' + "0" * 64 + '"}',
    ],
)
def test_no_claim_breaks_out_of_its_line(nasty: str) -> None:
    record = AuditRecord(AuditEvent.CONTEXT_OPENED, make_context(user_id=nasty), {"reason": nasty, nasty: 1})
    line = line_of(record)
    assert line.decode("ascii").splitlines() == [line.decode("ascii").rstrip("\n")]
    assert all(0x20 <= byte <= 0x7E for byte in line[:-1])
    members = members_of(line)
    assert (members["user_id"], members["reason"]) == (nasty, nasty)
    assert [members[name] for name in ("sequence", "event", "previous")] == [7, "context_opened", PREVIOUS]
    assert parse_record(line[:-1]) == Link(7, PREVIOUS, hash_of(line))


@given(fields=st.dictionaries(st.text(), values), user_id=st.text())
def test_whatever_it_holds_it_is_one_line_that_parses(fields: dict[str, AuditValue], user_id: str) -> None:
    line = line_of(AuditRecord(AuditEvent.CONTEXT_OPENED, make_context(user_id=user_id), fields))
    assert all(0x20 <= byte <= 0x7E for byte in line[:-1])
    members = members_of(line)
    assert members["user_id"] == user_id[:256]
    assert len(members) == len(OWN) + 5 + min(len(fields), MAX_FIELDS)
    assert parse_record(line[:-1]) == Link(7, PREVIOUS, hash_of(line))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("a" * 256, "a" * 256),
        ("a" * 257, "a" * 256),
        (None, None),
        (True, True),
        (False, False),
        (-3, -3),
        (2**53 - 1, 2**53 - 1),
        (2**53, "0x20000000000000"),
        (-(2**53), "-0x20000000000000"),
        pytest.param(10**5000, hex(10**5000)[:256], id="5,000 digits"),
        (0.5, 0.5),
        (1e300, 1e300),
        (float("inf"), "inf"),
        (float("-inf"), "-inf"),
        (float("nan"), "nan"),
        (AuditEvent.BROADCAST, "broadcast"),
    ],
)
def test_values(value: AuditValue, expected: object) -> None:
    assert written(value) == expected
    assert type(written(value)) is type(expected)


def test_a_value_of_another_type_loses_no_record_and_shows_nothing() -> None:
    assert written(b"secret") == "bytes"  # type: ignore[arg-type]


def test_a_field_with_the_name_of_another_member_is_renamed() -> None:
    fields = {"hash": 1, "previous": 2, "field_hash": 3, "user_id": 4}
    members = members_of(line_of(AuditRecord(AuditEvent.ADMIN_CALL, make_context(), fields)))
    assert members["user_id"] == "alice"
    assert [members[name] for name in ("field_hash", "field_previous", "field_field_hash", "field_user_id")] == [
        1, 2, 3, 4,
    ]  # fmt: skip


def test_the_longest_record_fits_a_readers_buffer() -> None:
    widest = "\U0001f600" * 300
    context = make_context(**dict.fromkeys(("tenant_id", "user_id", "session_id", "request_id"), widest))
    fields = {f"{n:02}{widest}": widest for n in range(MAX_FIELDS + 1)}
    line = build_record(10**18, widest, NOW, AuditRecord(AuditEvent.AUDIT_RECORDS_LOST, context, fields), PREVIOUS)
    assert 100_000 < len(line) < MAX_LINE_BYTES
    assert len(members_of(line)) == len(OWN) + 5 + MAX_FIELDS
    assert parse_record(line[:-1]) is not None


@pytest.mark.parametrize(
    "change",
    [
        lambda line: line + b"\n",
        lambda line: b" " + line,
        lambda line: line.replace(b"alice", b"mally"),
        lambda line: line.replace(b'"sequence":7', b'"sequence":07'),
        lambda line: line.replace(b'"sequence":7', b'"sequence":0'),
        lambda line: line[:-3] + (b"0" if line[-3:-2] != b"0" else b"1") + line[-2:],
        lambda line: line[:-66] + line[-66:-2].upper() + line[-2:],
        lambda line: b"",
        lambda line: b"{}",
    ],
)
def test_parse_refuses_what_was_changed(change: Any) -> None:
    line = line_of(AuditRecord(AuditEvent.CONTEXT_OPENED, make_context()))[:-1]
    assert parse_record(line) is not None
    assert parse_record(change(line)) is None


def test_a_link_names_its_head() -> None:
    assert Link(3, PREVIOUS, "cd" * 32).head == Head(3, "cd" * 32)
    assert Head(0, "0" * 64) == GENESIS


def test_the_error_tells_the_operator_what_is_wrong() -> None:
    error = AuditFileError(AuditFileProblem.CANNOT_OPEN, "EACCES")
    assert isinstance(error, SidecarError)
    assert (error.reason, error.problem, error.error_name) == (
        ErrorReason.AUDIT_UNAVAILABLE, AuditFileProblem.CANNOT_OPEN, "EACCES",
    )  # fmt: skip
    assert str(error) == "the file cannot be opened for reading and writing (EACCES)"
    assert str(AuditFileError(AuditFileProblem.IN_USE)) == "another sidecar holds the file"
