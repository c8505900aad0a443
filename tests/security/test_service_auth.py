"""Service tokens: who a service is, what it may do, and how the file is followed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from sidecar.core.errors import ErrorReason, PermissionDenied, TokenFault, Unauthenticated
from sidecar.core.identity import Scope
from sidecar.security.files import SettingError
from sidecar.security.service_auth import (
    DEFAULT_SCOPES,
    MAX_CREDENTIALS,
    UNRESTRICTED,
    Permission,
    ServiceAuthenticator,
    ServiceCredential,
    ServiceIdentity,
    parse_token_file,
)
from tests.security.forge import FakeClock

TOKEN = "service-token-0123456789"
OTHER = "another-token-0123456789"
LINE: dict[str, Any] = {"name": "chat", "token": TOKEN, "allow": ["deliver", "attach"], "tenants": ["acme"]}


def write(path: Path, text: str, mode: int = 0o600) -> Path:
    path.write_text(text)
    path.chmod(mode)
    return path


def identity_of(line: dict[str, Any] | str) -> ServiceIdentity:
    text = line if isinstance(line, str) else json.dumps(line)
    (credential,) = parse_token_file(text.encode(), "s")
    return credential.identity


def rule_of(text: str | bytes) -> str:
    with pytest.raises(SettingError) as caught:
        parse_token_file(text if isinstance(text, bytes) else text.encode(), "s")
    assert caught.value.setting == "s"
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    return caught.value.rule


def refusal(authenticator: ServiceAuthenticator, token: str | None) -> tuple[ErrorReason, TokenFault]:
    with pytest.raises(Unauthenticated) as caught:
        authenticator.authenticate(token)
    return caught.value.reason, caught.value.fault


def test_a_line_says_what_a_service_may_do() -> None:
    identity = identity_of(LINE | {"tenants": ["acme", "beta"], "scopes": ["send", "close", "broadcast:tenant"]})
    assert identity == ServiceIdentity(
        name="chat",
        allow=frozenset({Permission.DELIVER, Permission.ATTACH}),
        tenants=frozenset({"acme", "beta"}),
        scopes=frozenset({Scope.SEND, Scope.CLOSE, Scope.BROADCAST_TENANT}),
    )
    identity.require(Permission.ATTACH)
    assert [identity.allows_tenant(tenant) for tenant in ("acme", "beta", "gamma", "*", "")] == [
        True,
        True,
        *[False] * 3,
    ]
    for permission in (Permission.ADMIN, Permission.EXCHANGE):
        with pytest.raises(PermissionDenied) as caught:
            identity.require(permission)
        assert caught.value.reason is ErrorReason.SERVICE_DENIED


def test_a_bare_token_may_do_everything() -> None:
    identity = identity_of(TOKEN)
    assert identity is UNRESTRICTED
    assert (identity.name, identity.tenants, identity.scopes) == ("default", None, frozenset(Scope))
    for permission in Permission:
        identity.require(permission)
    assert identity.allows_tenant("any")


def test_what_a_line_leaves_out() -> None:
    identity = identity_of({"name": "chat", "token": TOKEN, "allow": []})
    assert identity == ServiceIdentity("chat", frozenset(), None, DEFAULT_SCOPES)
    assert sorted(DEFAULT_SCOPES) == [Scope.EMIT, Scope.SEND, Scope.STATS]
    assert identity_of(LINE | {"scopes": []}).scopes == frozenset()
    assert identity_of(LINE | {"tenants": []}).tenants == frozenset()
    assert identity_of(LINE | {"tenants": ["acme", "*"]}).tenants is None


def test_blank_lines_and_comments_are_passed_over() -> None:
    text = f"# tokens\r\n\r\n  {TOKEN}  \n\t\n#{OTHER}\n{json.dumps(LINE | {'token': OTHER})}"
    credentials = parse_token_file(text.encode(), "s")
    assert [credential.identity.name for credential in credentials] == ["default", "chat"]
    authenticator = ServiceAuthenticator(credentials)
    assert authenticator.authenticate(TOKEN).name == "default"
    assert authenticator.authenticate(OTHER).name == "chat"


LENGTH_RULE = "line 1: a token must be 16 to 512 printable ASCII characters"


@pytest.mark.parametrize(
    ("line", "rule"),
    [
        ("x" * 15, LENGTH_RULE),
        ("x" * 513, LENGTH_RULE),
        ("two words of a token", LENGTH_RULE),
        ("ä" * 20, LENGTH_RULE),
        (f"{TOKEN}\x00", LENGTH_RULE),
        (LINE | {"token": "short"}, LENGTH_RULE),
        (LINE | {"token": None}, LENGTH_RULE),
        (LINE | {"token": "ä" * 20}, LENGTH_RULE),
        ("{" + TOKEN, "line 1: must be a token or one JSON object without repeated members"),
        ('{"name":"a","name":"b"}', "line 1: must be a token or one JSON object without repeated members"),
        (LINE | {"tenant": ["a"]}, "line 1: may have no members but allow, name, scopes, tenants, token"),
        (LINE | {"name": ""}, "line 1: name must match [A-Za-z0-9_.:@|-]{1,128}"),
        (LINE | {"name": 1}, "line 1: name must match [A-Za-z0-9_.:@|-]{1,128}"),
        (LINE | {"allow": "deliver"}, "line 1: allow must be a list of strings"),
        (LINE | {"allow": None}, "line 1: allow must be a list of strings"),
        (LINE | {"allow": [1]}, "line 1: allow must be a list of strings"),
        (LINE | {"allow": ["all"]}, "line 1: allow must hold only deliver, exchange, attach, admin"),
        (LINE | {"tenants": "acme"}, "line 1: tenants must be a list of strings"),
        (LINE | {"tenants": ["a b"]}, "line 1: tenants must each be * or match [A-Za-z0-9_.:@|-]{1,128}"),
        (LINE | {"scopes": None}, "line 1: scopes must be a list of strings"),
        (
            LINE | {"scopes": ["write"]},
            "line 1: scopes must hold only send, emit, stats, close, broadcast:user, broadcast:tenant",
        ),
    ],
)
def test_a_line_that_breaks_a_rule_is_named_and_not_shown(line: str | dict[str, Any], rule: str) -> None:
    assert rule_of(line if isinstance(line, str) else json.dumps(line, ensure_ascii=False)) == rule


@pytest.mark.parametrize("token", ["x" * 16, "x" * 512, "!~#{}\\\"'" + "x" * 20])
def test_a_token_at_the_limits_is_good(token: str) -> None:
    assert identity_of(token) is UNRESTRICTED
    assert ServiceAuthenticator(parse_token_file(token.encode(), "s")).authenticate(token) is UNRESTRICTED


def test_a_token_comes_once_and_a_name_may_come_twice() -> None:
    second = json.dumps(LINE | {"token": OTHER, "allow": ["admin"]})
    authenticator = ServiceAuthenticator(parse_token_file(f"{json.dumps(LINE)}\n{second}".encode(), "s"))
    assert authenticator.authenticate(OTHER).allow == {Permission.ADMIN}
    assert authenticator.authenticate(TOKEN).name == authenticator.authenticate(OTHER).name
    assert rule_of(f"{TOKEN}\n\n{json.dumps(LINE)}") == "line 3: a token must not be repeated"


@pytest.mark.parametrize("text", ["", "\n# nothing\n"])
def test_a_file_without_a_token_is_refused(text: str) -> None:
    assert rule_of(text) == "the file must hold 1 to 1000 tokens"


def test_a_file_has_at_most_1000_tokens() -> None:
    lines = [f"token-number-{number:06}" for number in range(MAX_CREDENTIALS + 1)]
    assert len(parse_token_file("\n".join(lines[:-1]).encode(), "s")) == MAX_CREDENTIALS
    assert rule_of("\n".join(lines)) == "the file must hold 1 to 1000 tokens"


@pytest.mark.parametrize(
    ("token", "reason", "fault"),
    [
        (None, ErrorReason.TOKEN_MISSING, TokenFault.MISSING),
        ("", ErrorReason.TOKEN_MISSING, TokenFault.MISSING),
        ("x" * 16, ErrorReason.TOKEN_INVALID, TokenFault.KEY),
        (TOKEN[:-1], ErrorReason.TOKEN_INVALID, TokenFault.KEY),
        (TOKEN + " ", ErrorReason.TOKEN_INVALID, TokenFault.KEY),
        (TOKEN.upper(), ErrorReason.TOKEN_INVALID, TokenFault.KEY),
        (TOKEN + "\ud800", ErrorReason.TOKEN_INVALID, TokenFault.MALFORMED),
        (TOKEN + "ä", ErrorReason.TOKEN_INVALID, TokenFault.MALFORMED),
        ("x" * 4096, ErrorReason.TOKEN_INVALID, TokenFault.KEY),
        ("x" * 4097, ErrorReason.TOKEN_INVALID, TokenFault.TOO_LONG),
    ],
)
def test_any_other_token_is_refused(token: str | None, reason: ErrorReason, fault: TokenFault) -> None:
    assert refusal(ServiceAuthenticator.with_token(TOKEN), token) == (reason, fault)


def test_without_tokens_nobody_is_let_in() -> None:
    authenticator = ServiceAuthenticator()
    assert refusal(authenticator, TOKEN)[0] is ErrorReason.TOKEN_INVALID
    assert authenticator.refresh() is False


def test_a_file_is_read_private_and_named_by_its_setting(tmp_path: Path, clock: FakeClock) -> None:
    path = write(tmp_path / "tokens", TOKEN)
    assert ServiceAuthenticator.from_file(path, clock).authenticate(TOKEN) is UNRESTRICTED
    path.chmod(0o644)
    with pytest.raises(SettingError) as caught:
        ServiceAuthenticator.from_file(path, clock)
    assert str(caught.value) == "service_auth.token_file: the file must not be open to group or others (mode 0600)"


def test_a_changed_file_is_read_again_at_most_once_a_second(tmp_path: Path, clock: FakeClock) -> None:
    path = write(tmp_path / "tokens", TOKEN)
    authenticator = ServiceAuthenticator.from_file(path, clock)
    write(path, f"{TOKEN}\n{OTHER}")
    clock.advance(0.9)
    assert authenticator.refresh() is False
    assert refusal(authenticator, OTHER)[0] is ErrorReason.TOKEN_INVALID
    clock.advance(0.1)
    assert authenticator.refresh() is True
    assert authenticator.authenticate(OTHER) is UNRESTRICTED
    clock.advance(1)
    assert authenticator.refresh() is False
    write(path, OTHER)
    assert authenticator.refresh() is False
    clock.advance(1)
    assert authenticator.refresh() is True
    assert refusal(authenticator, TOKEN)[0] is ErrorReason.TOKEN_INVALID


def test_a_file_put_in_the_place_is_seen_though_it_has_the_same_size_and_time(tmp_path: Path, clock: FakeClock) -> None:
    path = write(tmp_path / "tokens", TOKEN)
    authenticator = ServiceAuthenticator.from_file(path, clock)
    times = (path.stat().st_atime_ns, path.stat().st_mtime_ns)
    new = write(tmp_path / "new", OTHER)
    os.utime(new, ns=times)
    new.replace(path)
    clock.advance(1)
    assert authenticator.refresh() is True
    assert authenticator.authenticate(OTHER) is UNRESTRICTED


def test_a_broken_file_keeps_the_last_good_and_is_reported_once(tmp_path: Path, clock: FakeClock) -> None:
    path = write(tmp_path / "tokens", TOKEN)
    authenticator = ServiceAuthenticator.from_file(path, clock)

    def refreshed() -> bool:
        clock.advance(1)
        return authenticator.refresh()

    for break_it in (
        lambda: write(path, "short"),
        lambda: write(path, OTHER, 0o644),
        path.unlink,
    ):
        break_it()
        with pytest.raises(SettingError, match=r"^service_auth\.token_file: "):
            refreshed()
        assert refreshed() is False
        assert authenticator.authenticate(TOKEN) is UNRESTRICTED
    write(path, OTHER)
    assert refreshed() is True
    assert authenticator.authenticate(OTHER) is UNRESTRICTED
    assert refusal(authenticator, TOKEN)[0] is ErrorReason.TOKEN_INVALID


def test_a_file_that_is_made_private_again_is_read(tmp_path: Path, clock: FakeClock) -> None:
    path = write(tmp_path / "tokens", TOKEN)
    authenticator = ServiceAuthenticator.from_file(path, clock)
    write(path, OTHER, 0o644)
    clock.advance(1)
    with pytest.raises(SettingError):
        authenticator.refresh()
    path.chmod(0o600)
    clock.advance(1)
    assert authenticator.refresh() is True
    assert authenticator.authenticate(OTHER) is UNRESTRICTED


def test_no_token_is_shown() -> None:
    credential = ServiceCredential.of(TOKEN, UNRESTRICTED)
    authenticator = ServiceAuthenticator([credential])
    shown = repr(authenticator) + repr(credential) + repr(vars(authenticator))
    assert "default" in shown
    assert TOKEN not in shown
    assert repr(credential.digest) not in shown
    assert "short" not in rule_of(json.dumps(LINE | {"token": "short"}))
