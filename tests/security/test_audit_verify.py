"""The verifier finds every tampering that a chain of hashes can show, and a kept head shows the rest."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.core.ports import AuditEvent
from sidecar.security.audit_record import (
    GENESIS,
    MAX_LINE_BYTES,
    AuditFileError,
    AuditFileProblem,
    AuditRecord,
    Head,
    hash_of,
)
from sidecar.security.audit_verify import ChainFault, VerifyReport, parse_head, verify_file
from tests.security.audit_doubles import chain, make_context, numbered

LINES = chain(
    *(
        AuditRecord(AuditEvent.CONTEXT_OPENED, make_context(user_id=f"user-{n}"), {"reason": "\u2028\n", "n": n})
        for n in range(8)
    )
)
COUNT = len(LINES)
HEADS = [Head(n, hash_of(line)) for n, line in enumerate(LINES, 1)]
places = st.integers(0, COUNT - 1)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("verify") / "audit.jsonl"


def verify(path: Path, lines: list[bytes] | bytes, head: Head | None = None) -> VerifyReport:
    path.write_bytes(lines if isinstance(lines, bytes) else b"".join(lines))
    return verify_file(path, head)


def found(path: Path, lines: list[bytes] | bytes, head: Head | None = None) -> tuple[int | None, ChainFault | None]:
    """The first bad line and its fault; the report names the last good record before it."""
    report = verify(path, lines, head)
    assert not report.ok
    assert report.records == report.last_sequence
    assert Head(report.last_sequence, report.last_hash) == [GENESIS, *HEADS][report.records]
    return report.bad_line, report.fault


def test_a_whole_chain_is_good(path: Path) -> None:
    assert verify(path, LINES) == (True, COUNT, None, None, COUNT, hash_of(LINES[-1]))
    assert verify(path, b"") == (True, 0, None, None, 0, GENESIS.hash)


@pytest.mark.parametrize("head", [GENESIS, *HEADS])
def test_every_head_of_the_chain_is_found_in_it(path: Path, head: Head) -> None:
    assert verify(path, LINES, head).ok


@given(place=st.integers(0, sum(map(len, LINES)) - 1), mask=st.integers(1, 255))
def test_any_changed_byte_is_found(path: Path, place: int, mask: int) -> None:
    data = bytearray(b"".join(LINES))
    data[place] ^= mask
    line = b"".join(LINES)[:place].count(b"\n") + 1
    bad_line, _ = found(path, bytes(data))
    assert bad_line == line


def test_every_single_bit_of_a_record_counts(path: Path) -> None:
    for place in range(len(LINES[0])):
        for bit in range(8):
            data = bytearray(LINES[0])
            data[place] ^= 1 << bit
            assert not verify(path, bytes(data)).ok


@given(place=st.integers(0, COUNT - 2))
def test_a_deleted_record_is_found(path: Path, place: int) -> None:
    assert found(path, LINES[:place] + LINES[place + 1 :]) == (place + 1, ChainFault.SEQUENCE)


@given(one=places, other=places)
def test_swapped_records_are_found(path: Path, one: int, other: int) -> None:
    lines = list(LINES)
    lines[one], lines[other] = lines[other], lines[one]
    if one == other:
        assert verify(path, lines).ok
    else:
        assert found(path, lines) == (min(one, other) + 1, ChainFault.SEQUENCE)


@given(place=places, at=st.integers(0, COUNT))
def test_a_doubled_record_is_found(path: Path, place: int, at: int) -> None:
    bad_line, fault = found(path, [*LINES[:at], LINES[place], *LINES[at:]])
    assert fault is ChainFault.SEQUENCE
    assert bad_line == (at + 1 if at != place else at + 2)


@given(place=places)
def test_a_record_put_in_is_found(path: Path, place: int) -> None:
    """It verifies by itself and has the right sequence, but is of another chain."""
    foreign = numbered(COUNT, boot_id="other")
    report = verify(path, [*LINES[:place], foreign[place], *LINES[place + 1 :]])
    # The first record of any chain follows nothing: there it is the second that does not follow it.
    assert (report.bad_line, report.fault) == (max(place, 1) + 1, ChainFault.PREVIOUS)


def test_a_chain_does_not_begin_in_the_middle(path: Path) -> None:
    assert found(path, LINES[1:]) == (1, ChainFault.SEQUENCE)


@given(size=st.integers(1, sum(map(len, LINES)) - 1))
def test_a_cut_tail_is_found_by_the_kept_head(path: Path, size: int) -> None:
    data = b"".join(LINES)[:size]
    whole = data.count(b"\n")
    fault = ChainFault.CUT if data.endswith(b"\n") else ChainFault.TRUNCATED
    assert found(path, data, HEADS[-1]) == (whole + 1, fault)


def test_a_tail_cut_between_records_is_not_found_without_a_head(path: Path) -> None:
    assert verify(path, LINES[:-1]).ok
    assert found(path, b"", HEADS[0]) == (1, ChainFault.CUT)


def test_a_chain_computed_anew_is_found_by_the_kept_head_alone(path: Path) -> None:
    forged = numbered(COUNT)
    assert verify(path, forged).ok
    report = verify(path, forged, HEADS[3])
    assert report == (False, 3, 4, ChainFault.HEAD_DIFFERS, 3, hash_of(forged[2]))


@pytest.mark.parametrize(
    ("tail", "fault"),
    [
        (b"\n", ChainFault.NOT_A_RECORD),
        (b"junk\n", ChainFault.NOT_A_RECORD),
        (b"\x00\xff\n", ChainFault.NOT_A_RECORD),
        (b"junk", ChainFault.TRUNCATED),
    ],
)
def test_what_is_no_record_is_found(path: Path, tail: bytes, fault: ChainFault) -> None:
    assert found(path, b"".join(LINES) + tail) == (COUNT + 1, fault)


def test_an_endless_line_is_not_held_in_memory(path: Path) -> None:
    endless = b"x" * (5 * MAX_LINE_BYTES)
    assert found(path, b"".join(LINES) + endless) == (COUNT + 1, ChainFault.NOT_A_RECORD)
    assert found(path, b"".join(LINES) + endless[: MAX_LINE_BYTES - 1]) == (COUNT + 1, ChainFault.TRUNCATED)


def test_what_cannot_be_read_is_refused(tmp_path: Path) -> None:
    for target, problem, name in (
        (tmp_path / "absent", AuditFileProblem.CANNOT_OPEN, "ENOENT"),
        (tmp_path, AuditFileProblem.NOT_REGULAR, None),
        (Path("/dev/null"), AuditFileProblem.NOT_REGULAR, None),
        (tmp_path / "fifo", AuditFileProblem.NOT_REGULAR, None),
    ):
        if target.name == "fifo":
            os.mkfifo(target)
        with pytest.raises(AuditFileError) as caught:
            verify_file(target)
        assert (caught.value.problem, caught.value.error_name) == (problem, name)


def test_a_kept_head_is_read() -> None:
    kept = {"sequence": 8, "hash": HEADS[-1].hash, "signature": "later"}
    assert parse_head(json.dumps(kept).encode()) == HEADS[-1]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff",
        b"[]",
        b"{}",
        b'{"sequence":1}',
        b'{"sequence":"1","hash":"%b"}' % (b"0" * 64),
        b'{"sequence":-1,"hash":"%b"}' % (b"0" * 64),
        b'{"sequence":1,"hash":"%b"}' % (b"0" * 63),
        b'{"sequence":1,"hash":"%b"}' % (b"G" * 64),
        pytest.param(b"[" * 100_000, id="deep"),
    ],
)
def test_a_kept_head_that_is_none_is_refused(data: bytes) -> None:
    with pytest.raises(AuditFileError) as caught:
        parse_head(data)
    assert caught.value.problem is AuditFileProblem.BAD_HEAD
