"""The form of one audit record: one line of ASCII JSON, chained to the former by its hash. Pure.

    {"sequence":1,"boot_id":…,"time":…,"event":…, context members, further fields, "previous":…,"hash":…}

`hash` is SHA-256 over the line's bytes before `,"hash":`; `previous` is the former record's, 64 zeros for the first.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from enum import StrEnum
from itertools import islice
from json.encoder import encode_basestring_ascii as quoted
from typing import TYPE_CHECKING, Final, NamedTuple

from sidecar.core.errors import ErrorReason, SidecarError
from sidecar.core.ports import AuditEvent, AuditValue

if TYPE_CHECKING:
    from sidecar.core.identity import UserExecutionContext

MAX_VALUE_CHARS: Final = 256
MAX_NAME_CHARS: Final = 64
MAX_FIELDS: Final = 32
MAX_LINE_BYTES: Final = 262_144
"""More than the longest line that the limits above allow, newline included: what a reader has to hold."""

_OWN_NAMES: Final = frozenset({"sequence", "boot_id", "time", "event", "previous", "hash"})
_CONTEXT_NAMES: Final = ("tenant_id", "user_id", "session_id", "connection_id", "request_id")
_MAX_INTEGER: Final = 2**53 - 1
_HASHED_END: Final = -len(b',"hash":"' + b"0" * 64 + b'"}')
_LINE: Final = re.compile(
    rb'\{"sequence":([1-9][0-9]{0,18}),"boot_id":"[^"]*","time":"[0-9TZ:.-]+","event":"[a-z_]+"'
    rb'[ -~]*,"previous":"([0-9a-f]{64})","hash":"([0-9a-f]{64})"\}'
)


class AuditRecord(NamedTuple):
    """What happened, to which context (None: none yet), and what else is to be said of it."""

    event: AuditEvent
    context: UserExecutionContext | None = None
    fields: Mapping[str, AuditValue] = {}


class Head(NamedTuple):
    """The last record of a chain: its sequence and hash. Kept elsewhere, it shows that a tail was cut off."""

    sequence: int
    hash: str


GENESIS: Final = Head(0, "0" * 64)
"""The head of a chain that has no record yet."""


class Link(NamedTuple):
    """What one record says of its place in the chain; its own hash is already checked."""

    sequence: int
    previous: str
    hash: str

    @property
    def head(self) -> Head:
        return Head(self.sequence, self.hash)


class AuditFileProblem(StrEnum):
    """Why an audit file, or a head kept from one, cannot be used; the values are for the operator."""

    CANNOT_OPEN = "the file cannot be opened for reading and writing"
    NOT_REGULAR = "the path is not a regular file"
    IN_USE = "another sidecar holds the file"
    BROKEN = "the last record does not verify; move the file away or repair it"
    BAD_HEAD = "the kept head is not a JSON object with sequence and hash"


class AuditFileError(SidecarError):
    """An audit file was refused as it is and left untouched. `error_name` is the errno's (`EACCES`), where one is."""

    def __init__(self, problem: AuditFileProblem, error_name: str | None = None) -> None:
        super().__init__(ErrorReason.AUDIT_UNAVAILABLE)
        self.problem = problem
        self.error_name = error_name

    def __str__(self) -> str:
        return self.problem.value if self.error_name is None else f"{self.problem.value} ({self.error_name})"


def build_record(sequence: int, boot_id: str, time: float, record: AuditRecord, previous: str) -> bytes:
    """The line of one record, with its newline. `time` is Unix seconds, `previous` the former record's hash.

    Whatever the values hold, the line is printable ASCII and at most MAX_LINE_BYTES long: strings are cut at
    MAX_VALUE_CHARS, names at MAX_NAME_CHARS, fields past MAX_FIELDS are left out. A field that has the name of another
    member is renamed, never doubled. The isolation key is not in it.
    """
    members = "".join(f",{quoted(name)}:{_json(value)}" for name, value in _members(record).items())
    hashed = (
        f'{{"sequence":{sequence},"boot_id":{quoted(boot_id[:MAX_VALUE_CHARS])},"time":"{_rfc3339(time)}"'
        f',"event":"{record.event.value}"{members},"previous":"{previous}"'
    ).encode("ascii")
    return b'%b,"hash":"%b"}\n' % (hashed, hashlib.sha256(hashed).hexdigest().encode("ascii"))


def hash_of(line: bytes) -> str:
    """The hash that a line made by `build_record` ends with."""
    return line[-67:-3].decode("ascii")


def parse_record(line: bytes) -> Link | None:
    """The place in the chain of a line, given without its newline; None when it is not a record or its hash differs."""
    match = _LINE.fullmatch(line)
    if match is None or hashlib.sha256(line[:_HASHED_END]).hexdigest().encode("ascii") != match[3]:
        return None
    return Link(int(match[1]), match[2].decode("ascii"), match[3].decode("ascii"))


def _members(record: AuditRecord) -> dict[str, AuditValue]:
    context = record.context
    members: dict[str, AuditValue] = {}
    if context is not None:
        for name in _CONTEXT_NAMES:
            members[name] = getattr(context, name)
    for given, value in islice(record.fields.items(), MAX_FIELDS):
        name = given[:MAX_NAME_CHARS]
        while name in members or name in _OWN_NAMES:
            name = f"field_{name}"
        members[name] = value
    return members


def _json(value: object) -> str:
    """One value as JSON; what JSON has no form for becomes a string, so that a record is never lost to its caller."""
    if isinstance(value, str):
        return quoted(value[:MAX_VALUE_CHARS])
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return int.__repr__(value) if abs(value) <= _MAX_INTEGER else quoted(hex(value)[:MAX_VALUE_CHARS])
    if isinstance(value, float):
        text = float.__repr__(value)
        return text if text[-1].isdigit() else quoted(text)
    return quoted(type(value).__name__[:MAX_VALUE_CHARS])


def _rfc3339(time: float) -> str:
    """RFC 3339 §5.6, UTC, microseconds."""
    return datetime.fromtimestamp(time, UTC).isoformat(timespec="microseconds")[:-6] + "Z"
