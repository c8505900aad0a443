"""Reads an audit file from its start and says whether its chain is whole. Streaming; blocking I/O.

Found without anything kept elsewhere: any changed byte, any record deleted (but for a cut tail), swapped, doubled or
put in, and a last line that is not whole. Found against a head kept elsewhere: a cut tail, and a file whose records up
to that head were all rewritten. Nobody can find, without a kept head, that somebody who may write the file computed
all its hashes anew: the chain holds no secret.
"""

from __future__ import annotations

import json
import os
from enum import StrEnum
from functools import partial
from typing import BinaryIO, NamedTuple

from sidecar.security.audit_file import error_name, open_regular
from sidecar.security.audit_record import (
    GENESIS,
    MAX_LINE_BYTES,
    AuditFileError,
    AuditFileProblem,
    Head,
    parse_record,
)


class ChainFault(StrEnum):
    """What is wrong with the first bad line; the values are for the operator."""

    TRUNCATED = "the last line is not whole"
    NOT_A_RECORD = "the line is not a record, or its hash is not that of its bytes"
    SEQUENCE = "the record is out of its place: one is missing, doubled, moved or put in"
    PREVIOUS = "the record does not follow the one before it"
    HEAD_DIFFERS = "the record is not the one of the kept head"
    CUT = "the file ends before the kept head"


class VerifyReport(NamedTuple):
    """`records`, `last_sequence` and `last_hash` are of the good records before `bad_line` (from 1; None: all good)."""

    ok: bool
    records: int
    bad_line: int | None
    fault: ChainFault | None
    last_sequence: int
    last_hash: str


def verify_file(path: str | os.PathLike[str], head: Head | None = None) -> VerifyReport:
    """Check every record, and that `head` is among them. Raises AuditFileError when the file cannot be read.

    Of a file that is being written to, the last line may be seen in part.
    """
    try:
        with os.fdopen(open_regular(os.fspath(path), os.O_RDONLY), "rb") as file:
            return _verify(file, head)
    except OSError as error:
        raise AuditFileError(AuditFileProblem.CANNOT_OPEN, error_name(error)) from None


def parse_head(data: bytes) -> Head:
    """The kept head in `{"sequence":…,"hash":…}`. Raises AuditFileError (BAD_HEAD)."""
    try:
        match json.loads(data):
            case {"sequence": int(sequence), "hash": str(digest)} if sequence >= 0 and _is_digest(digest):
                return Head(sequence, digest)
    except (ValueError, RecursionError):
        pass
    raise AuditFileError(AuditFileProblem.BAD_HEAD)


def _is_digest(text: str) -> bool:
    return len(text) == len(GENESIS.hash) and not text.strip("0123456789abcdef")


def _verify(file: BinaryIO, kept: Head | None) -> VerifyReport:
    last = GENESIS
    number = 0
    for line in iter(partial(file.readline, MAX_LINE_BYTES), b""):
        number += 1
        found = _next_head(line, last, kept)
        if isinstance(found, ChainFault):
            return VerifyReport(False, number - 1, number, found, *last)
        last = found
    if kept is not None and kept.sequence > last.sequence:
        return VerifyReport(False, number, number + 1, ChainFault.CUT, *last)
    return VerifyReport(True, number, None, None, *last)


def _next_head(line: bytes, last: Head, kept: Head | None) -> Head | ChainFault:
    if not line.endswith(b"\n"):
        return ChainFault.TRUNCATED if len(line) < MAX_LINE_BYTES else ChainFault.NOT_A_RECORD
    link = parse_record(line[:-1])
    if link is None:
        return ChainFault.NOT_A_RECORD
    if link.sequence != last.sequence + 1:
        return ChainFault.SEQUENCE
    if link.previous != last.hash:
        return ChainFault.PREVIOUS
    if kept is not None and kept.sequence == link.sequence and kept.hash != link.hash:
        return ChainFault.HEAD_DIFFERS
    return link.head
