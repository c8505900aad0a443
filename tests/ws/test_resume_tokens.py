"""Where a resume token leads, and to whom."""

from __future__ import annotations

import secrets

import pytest

from sidecar.core.context_factory import Handshake
from sidecar.core.identity import VerifiedUser
from sidecar.core.manager import IsolatedWebSocketManager
from sidecar.ws.frames import JsonEncoder
from sidecar.ws.resume_tokens import ResumeTokens, belongs_to
from tests.ws.harness import NOW, Harness

ALICE = VerifiedUser("default", "alice", None, "issuer", None, (), NOW + 60)


async def manager_of(harness: Harness, user: VerifiedUser) -> IsolatedWebSocketManager:
    context = harness.contexts.create_context(user, Handshake(None, {}), harness.now())
    return harness.factory.create_manager(context, JsonEncoder(), harness.now())


async def test_a_token_leads_to_its_manager_while_that_lives() -> None:
    harness = Harness()
    tokens = ResumeTokens(secrets.token_hex)
    first, second = await manager_of(harness, ALICE), await manager_of(harness, ALICE)
    token, other = tokens.issue(first), tokens.issue(second)
    assert tokens.find(token) is first
    assert tokens.find(other) is second
    assert tokens.find(token[:-1]) is None
    first.end("test", None, harness.now())
    assert tokens.find(token) is None
    assert len(tokens) == 1


async def test_tokens_are_not_kept() -> None:
    harness = Harness()
    tokens = ResumeTokens(secrets.token_hex)
    token = tokens.issue(await manager_of(harness, ALICE))
    assert token not in str(vars(tokens))
    assert token.encode() not in vars(tokens)["_managers"]


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
    assert belongs_to(await manager_of(Harness(), ALICE), user) is belongs
