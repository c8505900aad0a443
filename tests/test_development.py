"""Development mode: what it makes up, what it keeps of the user's own settings, and what becomes of its demo agent."""

from __future__ import annotations

import json
import stat
from base64 import urlsafe_b64decode
from pathlib import Path
from typing import Any

import pytest

from sidecar.config import AuditSettings, Config, ConfigError, StartError, UserTokenSettings
from sidecar.config.sections import ServiceAuthSettings
from sidecar.development import AUDIENCE, ISSUER, Development
from sidecar.ops.edge import OpsEdge, OpsSettings


def claims_of(token: str) -> dict[str, Any]:
    payload = token.split(".")[1]
    claims = json.loads(urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    assert isinstance(claims, dict)
    return claims


def own_issuer(folder: Path, **settings: Any) -> UserTokenSettings:
    key = folder / "own.key"
    key.write_text("k" * 64)
    key.chmod(0o600)
    arguments: dict[str, Any] = {"issuer": "https://id.test", "audience": "chat", "key_file": key}
    return UserTokenSettings(**(arguments | settings))


def test_makes_up_an_issuer_and_an_audit_trail_in_its_folder(tmp_path: Path) -> None:
    development = Development(Config(), tmp_path)
    (issuer,) = development.config.user_tokens
    assert (issuer.issuer, issuer.audience, issuer.key_file) == (ISSUER, AUDIENCE, tmp_path / "user-token.key")
    assert stat.S_IMODE((tmp_path / "user-token.key").stat().st_mode) == 0o600
    assert development.config.audit.path == tmp_path / "audit.jsonl"
    claims = claims_of(development.mint_user_token("alice"))
    assert (claims["iss"], claims["aud"], claims["sub"]) == (ISSUER, AUDIENCE, "alice")
    assert "tid" not in claims


def test_keeps_an_issuer_and_an_audit_trail_of_ones_own(tmp_path: Path) -> None:
    made_up = tmp_path / "made-up"
    made_up.mkdir()
    issuer = own_issuer(tmp_path, tenants=("acme", "other"))
    audit = AuditSettings(path=tmp_path / "own.jsonl")
    development = Development(Config(user_tokens=(issuer,), audit=audit), made_up)
    assert development.config.user_tokens == (issuer,)
    assert development.config.audit == audit
    assert list(made_up.iterdir()) == []
    claims = claims_of(development.mint_user_token("alice"))
    assert (claims["iss"], claims["sub"], claims["tid"]) == ("https://id.test", "alice", "acme")


def test_refuses_an_issuer_whose_tokens_it_cannot_mint(tmp_path: Path) -> None:
    issuer = own_issuer(tmp_path, algorithms=("RS256",))
    with pytest.raises(ConfigError) as caught:
        Development(Config(user_tokens=(issuer,)), tmp_path)
    assert caught.value.setting == "user_tokens.algorithms"


def test_tells_its_service_token_unless_there_are_others(tmp_path: Path) -> None:
    development = Development(Config(), tmp_path)
    assert development.announcement() == f"service token {development.service_token}"
    others = tmp_path / "others"
    others.mkdir()
    services = ServiceAuthSettings(token_file=tmp_path / "service-tokens")
    assert Development(Config(service_auth=services), others).announcement() == ""


def test_the_agent_calls_with_the_first_token_that_may_attach(tmp_path: Path) -> None:
    tokens = tmp_path / "service-tokens"
    sender = '{"name":"sender","token":"sender-token-1","allow":["deliver"]}'
    agent = '{"name":"agent","token":"agent-token-1","allow":["deliver","attach"]}'
    for number, (lines, token) in enumerate(
        (
            (["# ours", "", sender, agent, "bare-token-1"], "agent-token-1"),
            (["bare-token-1", agent], "bare-token-1"),
            ([sender], None),
        )
    ):
        tokens.write_text("\n".join(lines))
        folder = tmp_path / str(number)
        folder.mkdir()
        development = Development(Config(service_auth=ServiceAuthSettings(token_file=tokens)), folder)
        if token is None:
            with pytest.raises(StartError, match="no service may attach"):
                development.agent_token()
        else:
            assert development.agent_token() == token
    assert Development(Config(), tmp_path).agent_token()


async def test_an_agent_that_does_not_start_is_told_and_gone(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    development = Development(Config(), tmp_path)
    ops = OpsEdge(OpsSettings("127.0.0.1", 0), alive=lambda: True, ready=lambda: True)
    await ops.start()
    try:
        with pytest.raises(StartError) as caught:
            await development.start(ops, 1, "nowhere")
        assert str(caught.value) == "the demo agent did not start"
        assert capfd.readouterr().err == "demo agent: endpoint is host:port or unix:/path\n"
        await development.close()
        await development.close()
    finally:
        await ops.close()
