"""What a resume token is, and whose the context is that it leads to."""

from __future__ import annotations

import hashlib
import secrets

import pytest

from sidecar.core.context_factory import Handshake
from sidecar.core.identity import VerifiedUser
from sidecar.core.manager import IsolatedWebSocketManager
from sidecar.ws.frames import JsonEncoder
from sidecar.ws.resume_tokens import belongs_to, digest_of, new_resume_token
from tests.ws.harness import NOW, Harness

ALICE = VerifiedUser("default", "alice", None, "issuer", None, (), NOW + 60)


async def manager_of(harness: Harness, user: VerifiedUser, token: str) -> IsolatedWebSocketManager:
    context, at = harness.contexts.create_context(user, Handshake(None, {}), harness.now()), harness.now()
    return harness.factory.create_manager(context, JsonEncoder(), at, resume_digest=digest_of(token))


async def test_a_token_leads_to_its_manager_while_that_lives() -> None:
    harness = Harness()
    token, other = new_resume_token(secrets.token_hex), new_resume_token(secrets.token_hex)
    first, second = await manager_of(harness, ALICE, token), await manager_of(harness, ALICE, other)
    find = harness.factory.find_by_resume_digest
    assert find(digest_of(token)) is first
    assert find(digest_of(other)) is second
    assert find(digest_of(token[:-1])) is None
    first.end("test", None, harness.now())
    assert find(digest_of(token)) is None
    assert find(digest_of(other)) is second


def test_a_token_is_256_random_bits_of_which_only_the_hash_is_kept() -> None:
    token = new_resume_token(secrets.token_hex)
    assert len(bytes.fromhex(token)) == 32
    assert token != new_resume_token(secrets.token_hex)
    assert digest_of(token) == hashlib.sha256(token.encode()).digest()


@pytest.mark.parametrize(
    ("user", "belongs"),
    [
        (ALICE._replace(token_id="another", session_id="another", permissions=("p",), expires_at=1), True),
        (ALICE._replace(user_id="bob"), False),
        (ALICE._replace(tenant_id="other"), False),
        (ALICE._replace(issuer="second"), False),
    ],
)
async def test_whose_a_context_is(user: VerifiedUser, belongs: bool) -> None:
    assert belongs_to(await manager_of(Harness(), ALICE, new_resume_token(secrets.token_hex)), user) is belongs
