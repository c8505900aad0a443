"""The closed list of what the audit trail records, and the doubles against the protocols that they stand for."""

from __future__ import annotations

import inspect
from typing import Protocol

import pytest

from sidecar.cluster.local import LocalOwnerDirectory
from sidecar.core import ports
from sidecar.core.ports import AuditEvent
from sidecar.storage.memory import MemoryOutboxStore
from tests.support import doubles


def test_the_list_of_audit_events_is_closed() -> None:
    assert [event.value for event in AuditEvent] == [
        "sidecar_started",
        "sidecar_draining",
        "sidecar_stopped",
        "audit_tail_repaired",
        "audit_interrupted",
        "audit_records_lost",
        "context_opened",
        "context_resumed",
        "contexts_restored",
        "context_closed",
        "mirror_joined",
        "socket_closed",
        "connect_refused",
        "refusals_counted",
        "resume_denied",
        "user_token_refreshed",
        "token_minted",
        "token_refreshed",
        "token_exchanged",
        "token_revoked",
        "token_denied",
        "scope_denied",
        "service_denied",
        "isolation_violation",
        "limit_enforced",
        "broadcast",
        "admin_call",
        "agent_attached",
        "agent_detached",
        "keys_rotated",
    ]


@pytest.mark.parametrize(
    ("port", "implementation"),
    [
        (ports.Clock, doubles.FakeClock),
        (ports.AuditTrail, doubles.RecordingAudit),
        (ports.Socket, doubles.RecordingSocket),
        (ports.Encoder, doubles.TextEncoder),
        (ports.Encoder, doubles.GaplessEncoder),
        (ports.Randomness, doubles.CountingRandomness),
        (ports.OutboxStore, doubles.LaterStore),
        (ports.OutboxStore, MemoryOutboxStore),
        (ports.OwnerDirectory, LocalOwnerDirectory),
        (ports.OwnerDirectory, doubles.RecordingOwners),
    ],
)
def test_an_implementation_takes_what_its_port_is_given(port: type[Protocol], implementation: type) -> None:  # type: ignore[valid-type]
    for name, member in vars(port).items():
        if inspect.isfunction(member) and (not name.startswith("_") or name == "__call__"):
            expected = [(one.name, one.kind) for one in inspect.signature(member).parameters.values()]
            found = inspect.signature(getattr(implementation, name)).parameters.values()
            assert [(one.name, one.kind) for one in found] == expected, name


def test_a_recording_socket_refuses_what_the_port_forbids() -> None:
    socket = doubles.RecordingSocket(paused=True)
    with pytest.raises(AssertionError):
        socket.write(b"too early")
    assert socket.frames == []
