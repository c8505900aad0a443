"""From a verified user token and a handshake to a context."""

from __future__ import annotations

import pytest

from sidecar.core.context_factory import ConnectionContextFactoryManager, Handshake
from sidecar.core.identity import IDENTIFIER, derive_isolation_key
from sidecar.core.message import Instant
from tests.support.core import NO_HANDSHAKE, SECRET, Core, verified
from tests.support.doubles import CountingRandomness, RecordingAudit

AT = Instant(5.0, 1_700_000_000.25)


def test_a_context_says_what_the_token_and_the_handshake_said() -> None:
    core = Core()
    handshake = Handshake("req-7", {"address": "192.0.2.1"})
    context = core.contexts.create_context(verified(permissions=("chat", "admin")), handshake, AT)
    assert (context.tenant_id, context.user_id, context.session_id) == ("acme", "alice", "s-1")
    assert (context.request_id, context.created_at, context.issuer) == ("req-7", AT.unix, "https://issuer")
    assert context.permissions == ("chat", "admin")
    assert context.metadata == {"address": "192.0.2.1"}


def test_the_key_is_of_the_contexts_own_parts() -> None:
    context = Core().contexts.create_context(verified(), NO_HANDSHAKE, AT)
    assert context.get_isolation_key() == derive_isolation_key(SECRET, "acme", "alice", context.connection_id, AT.unix)


def test_a_connection_id_has_128_random_bits_and_is_never_repeated() -> None:
    randomness = CountingRandomness()
    contexts = ConnectionContextFactoryManager(SECRET, RecordingAudit(), randomness)
    made = [contexts.create_context(verified(), Handshake("r-1", {}), AT) for _ in range(3)]
    assert randomness.calls == [16, 16, 16]
    assert len({context.connection_id for context in made}) == 3
    assert len({context.isolation_key for context in made}) == 3
    assert all(IDENTIFIER.fullmatch(context.connection_id) for context in made)


@pytest.mark.parametrize("absent", [None, ""])
def test_an_absent_session_is_made_up(absent: str | None) -> None:
    core = Core()
    one = core.contexts.create_context(verified(session_id=absent), NO_HANDSHAKE, AT)
    two = core.contexts.create_context(verified(session_id=absent), NO_HANDSHAKE, AT)
    assert IDENTIFIER.fullmatch(one.session_id)
    assert one.session_id != two.session_id


@pytest.mark.parametrize("unusable", [None, "", "a b", "x\r\ny", "x" * 129])
def test_an_unusable_request_id_is_made_up(unusable: str | None) -> None:
    context = Core().contexts.create_context(verified(), Handshake(unusable, {}), AT)
    assert context.request_id != unusable
    assert IDENTIFIER.fullmatch(context.request_id)


def test_the_metadata_is_a_copy() -> None:
    metadata = {"address": "192.0.2.1"}
    context = Core().contexts.create_context(verified(), Handshake(None, metadata), AT)
    metadata["address"] = "198.51.100.1"
    assert context.metadata["address"] == "192.0.2.1"
