"""What the audit trail's tests need: a disk that fails as told, a context, and readers of what was written."""

from __future__ import annotations

import errno
import json
import os
import threading
from pathlib import Path
from typing import Any

from sidecar.core.identity import ContextBindings, UserExecutionContext
from sidecar.core.ports import AuditEvent, AuditValue
from sidecar.security.audit_record import GENESIS, AuditRecord, build_record, hash_of

NOW = 1_800_000_000.25
KEY = "f" * 64


class Disk:
    """write(2) on a file that may grow to `limit` bytes only, and that can be held back."""

    def __init__(self) -> None:
        self.limit: int | None = None
        self.error = errno.ENOSPC
        self.writes: list[int] = []
        self.entered = threading.Event()
        self.gate = threading.Event()
        self.gate.set()

    def write(self, descriptor: int, data: memoryview) -> int:
        self.entered.set()
        self.gate.wait()
        if self.limit is not None:
            room = self.limit - os.fstat(descriptor).st_size
            if room <= 0:
                raise OSError(self.error, "no room")
            data = data[:room]
        self.writes.append(len(data))
        return os.write(descriptor, data)

    def hold(self) -> None:
        self.gate.clear()
        self.entered.clear()


class RecordingTrail:
    """An audit trail that keeps what it is told."""

    def __init__(self) -> None:
        self.records: list[tuple[AuditEvent, dict[str, AuditValue]]] = []

    def record(self, event: AuditEvent, context: UserExecutionContext | None = None, /, **fields: AuditValue) -> None:
        assert context is None
        self.records.append((event, fields))

    def take(self) -> list[tuple[AuditEvent, dict[str, AuditValue]]]:
        taken, self.records = self.records, []
        return taken


def make_context(user_id: str = "alice", **changes: Any) -> UserExecutionContext:
    values: dict[str, Any] = {
        "tenant_id": "acme",
        "user_id": user_id,
        "session_id": "session-1",
        "connection_id": "connection-1",
        "request_id": "request-1",
        "created_at": NOW,
        "permissions": (),
        "metadata": {},
        "issuer": "https://issuer",
        "isolation_key": KEY,
        "bindings": ContextBindings(RecordingTrail()),
    }
    return UserExecutionContext(**(values | changes))


def chain(*records: AuditRecord, boot_id: str = "boot") -> list[bytes]:
    """The lines of a file that holds these."""
    lines: list[bytes] = []
    previous = GENESIS.hash
    for sequence, record in enumerate(records, 1):
        lines.append(build_record(sequence, boot_id, NOW, record, previous))
        previous = hash_of(lines[-1])
    return lines


def numbered(count: int, boot_id: str = "boot") -> list[bytes]:
    return chain(*(AuditRecord(AuditEvent.ADMIN_CALL, None, {"n": n}) for n in range(count)), boot_id=boot_id)


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def told(path: Path, *names: str) -> list[Any]:
    """Of each record the event, or the event and these members where it has them."""
    return [
        (record["event"], *(record[name] for name in names if name in record)) if names else record["event"]
        for record in read(path)
    ]
