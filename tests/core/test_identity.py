"""Who a context belongs to, and the key that stands for it."""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.core.close_codes import CloseCode, catalogued
from sidecar.core.errors import IsolationViolation
from sidecar.core.identity import (
    IDENTIFIER,
    ContextToken,
    Scope,
    UserExecutionContext,
    UserIdentity,
    derive_isolation_key,
)
from sidecar.core.ports import AuditEvent
from tests.support.core import SECRET, Core, verified

IDENTIFIERS = st.from_regex(IDENTIFIER, fullmatch=True)


def test_the_isolation_key_is_a_keyed_digest_of_length_prefixed_parts() -> None:
    parts = [b"acme", b"alice", b"c-1", (12.5).hex().encode()]
    encoded = b"".join(len(part).to_bytes(4, "big") + part for part in parts)
    expected = hmac.new(SECRET, encoded, hashlib.sha256).hexdigest()
    assert derive_isolation_key(SECRET, "acme", "alice", "c-1", 12.5) == expected


@pytest.mark.parametrize("part", range(5))
def test_the_isolation_key_depends_on_each_part(part: int) -> None:
    values = [SECRET, "acme", "alice", "c-1", 12.5]
    others = [b"another secret of the same 32 b.", "acm", "alic", "c-2", 12.500000000000002]
    changed = [*values[:part], others[part], *values[part + 1 :]]
    assert derive_isolation_key(*values) != derive_isolation_key(*changed)  # type: ignore[arg-type]


@given(st.text(max_size=6), st.text(max_size=6), st.integers(0, 6), st.integers(0, 6))
def test_no_two_splits_of_the_same_text_encode_alike(first: str, second: str, one: int, other: int) -> None:
    joined = first + second
    keys = {
        (joined[:cut], joined[cut:]): derive_isolation_key(SECRET, joined[:cut], joined[cut:], "c", 1.0)
        for cut in (one, other)
    }
    assert len(set(keys.values())) == len(keys)


@given(IDENTIFIERS)
def test_identifiers_hold_no_space_control_character_or_wildcard(identifier: str) -> None:
    assert 1 <= len(identifier) <= 128
    assert not set(identifier) & set(" \t\r\n\0*>/\\\"'")


@pytest.mark.parametrize("text", ["", "a b", "a\n", "a/b", "*", "a.>", "\0", "é", "x" * 129])
def test_what_is_no_identifier(text: str) -> None:
    assert IDENTIFIER.fullmatch(text) is None


def test_a_context_is_immutable() -> None:
    context = Core().context()
    with pytest.raises(dataclasses.FrozenInstanceError):
        context.user_id = "mallory"  # type: ignore[misc]
    with pytest.raises(TypeError):
        context.metadata["user_id"] = "mallory"  # type: ignore[index]
    with pytest.raises((AttributeError, TypeError)):
        context.extra = 1  # type: ignore[attr-defined]


def test_two_contexts_are_the_same_only_when_they_are_one_object() -> None:
    context = Core().context()
    twin = dataclasses.replace(context)
    assert twin != context
    assert len({context, twin}) == 2


def test_a_context_shows_neither_its_key_nor_what_it_is_bound_to() -> None:
    context = Core().context()
    assert context.get_isolation_key() == context.isolation_key
    assert context.isolation_key not in repr(context)
    assert "bindings" not in repr(context)
    assert "alice" in repr(context)


@pytest.mark.parametrize(
    ("tenant_id", "user_id"), list(product(["acme", "other"], ["alice", "bob", ""]))[1:], ids=lambda part: part or "-"
)
def test_access_of_anybody_else_is_a_violation(tenant_id: str, user_id: str) -> None:
    context = Core().context("alice", "acme")
    context.validate_user_access("acme", "alice")
    with pytest.raises(IsolationViolation):
        context.validate_user_access(tenant_id, user_id)


def test_a_context_knows_whose_it_is() -> None:
    assert Core().context("alice", "acme").identity == UserIdentity("acme", "alice")
    assert verified("bob", "acme").identity == UserIdentity("acme", "bob")


def test_active_connections_is_a_view_of_the_managers_sockets() -> None:
    core = Core()
    manager = core.create()
    context: UserExecutionContext = manager.context
    assert list(context.active_connections) == []
    primary = core.attach(manager)
    mirror = core.attach(manager, mirror=True)
    assert list(context.active_connections) == [primary, mirror]
    core.lose(manager, primary)
    assert list(context.active_connections) == [mirror]
    core.factory.end_all(catalogued(CloseCode.GOING_AWAY), "over", core.clock.now())
    assert context.active_connections == ()


def test_cleaning_up_a_context_ends_its_manager_once() -> None:
    core = Core()
    manager, socket = core.connect()
    other, other_socket = core.connect()
    core.clock.advance(30.0)
    manager.context.cleanup_resources("over")
    manager.context.cleanup_resources("again")
    assert manager.ended
    assert socket.closed_with is not None
    assert socket.closed_with.code == CloseCode.GOING_AWAY
    assert not other.ended
    assert other_socket.closed_with is None
    assert [record.fields["reason"] for record in core.audit.of(AuditEvent.CONTEXT_CLOSED)] == ["over"]
    assert core.factory.get_factory_stats().average_manager_lifetime_minutes == 0.5


def test_cleaning_up_a_context_without_a_manager_does_nothing() -> None:
    core = Core()
    core.context().cleanup_resources()
    assert core.audit.records == []


def test_an_action_is_recorded_with_its_context() -> None:
    core = Core()
    context = core.context()
    context.audit_log_action(AuditEvent.SCOPE_DENIED, scope="emit")
    assert core.audit.records == [(AuditEvent.SCOPE_DENIED, context, {"scope": "emit"})]


def test_a_context_token_never_shows_its_text() -> None:
    token = ContextToken("e30.secret.text", 10, "id-1", "fam-1")
    assert "secret" not in repr(token)
    assert "secret" not in f"{token}"
    assert "id-1" in repr(token)


def test_the_scopes_are_the_contracts() -> None:
    assert {scope.value for scope in Scope} == {
        "send",
        "emit",
        "stats",
        "close",
        "broadcast:user",
        "broadcast:tenant",
    }
