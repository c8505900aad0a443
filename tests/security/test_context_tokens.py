"""Context tokens: what opens one isolation key, for how long, and how it is taken back."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sidecar.core.errors import (
    ErrorReason,
    IsolationViolation,
    ResourceExhausted,
    TokenFault,
    Unauthenticated,
)
from sidecar.core.identity import Scope
from sidecar.security.context_tokens import (
    KEEP_REVOKED_S,
    ContextTokenAuthority,
    ContextTokenKeys,
)
from sidecar.security.files import SettingError
from sidecar.security.revocations import RevocationList
from tests.security.forge import NOW, FakeClock, context, hs256, read

SCOPES = (Scope.SEND, Scope.STATS)


class Unhashable(str):
    """A text that must not be looked up."""

    __slots__ = ()

    def __hash__(self) -> int:
        raise AssertionError


class BrokenClock(FakeClock):
    """Does not know the time."""

    def time(self) -> float:
        raise OverflowError


class CountingClock(FakeClock):
    """Counts how often it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0

    def monotonic(self) -> float:
        self.asked += 1
        return super().monotonic()

    def time(self) -> float:
        self.asked += 1
        return super().time()


@pytest.fixture
def keys() -> ContextTokenKeys:
    return ContextTokenKeys(None, now=NOW)


@pytest.fixture
def authority(keys: ContextTokenKeys, clock: FakeClock) -> ContextTokenAuthority:
    return ContextTokenAuthority(keys, clock)


def refusal(authority: ContextTokenAuthority, token: str | None) -> tuple[ErrorReason, TokenFault]:
    with pytest.raises(Unauthenticated) as caught:
        authority.verify(token)
    assert caught.value.__cause__ is None
    return caught.value.reason, caught.value.fault


def forged(
    keys: ContextTokenKeys,
    claims: Mapping[str, object] | str | None = None,
    *,
    header: Mapping[str, object] | None = None,
    changes: Mapping[str, object] | None = None,
) -> str:
    """A token signed with the sidecar's own key, with other claims, some changed, or another header."""
    key = keys.ring.keys[-1]
    good = ContextTokenAuthority(keys, FakeClock()).mint(context(), SCOPES).text
    whole = read(good, 1) | dict(changes or {}) if claims is None else claims
    return hs256(read(good, 0) if header is None else header, whole, key.secret)


def test_the_claims_are_the_contracts(authority: ContextTokenAuthority, keys: ContextTokenKeys) -> None:
    token = authority.mint(context(), [Scope.STATS, Scope.BROADCAST_USER, Scope.SEND, Scope.SEND])
    assert read(token.text, 0) == {"alg": "HS256", "kid": keys.ring.keys[0].kid, "typ": "ctx+jwt"}
    assert read(token.text, 1) == {
        "iss": "ws-sidecar",
        "aud": "sidecar",
        "sub": "alice",
        "tid": "acme",
        "sid": "s1",
        "cid": "c1",
        "ik": context().isolation_key,
        "scope": "broadcast:user send stats",
        "fam": token.family,
        "iat": NOW,
        "nbf": NOW,
        "exp": NOW + 900,
        "jti": token.token_id,
    }
    assert token.expires_at == NOW + 900
    other = authority.mint(context(), SCOPES)
    assert len({token.token_id, token.family, other.token_id, other.family}) == 4


def test_a_minted_token_opens_its_context(authority: ContextTokenAuthority, clock: FakeClock) -> None:
    token = authority.mint(context(), SCOPES)
    grant = authority.verify(token.text)
    assert (grant.tenant_id, grant.user_id, grant.session_id, grant.connection_id) == ("acme", "alice", "s1", "c1")
    assert grant.isolation_key == context().isolation_key
    assert grant.scopes == frozenset(SCOPES)
    assert (grant.family, grant.token_id) == (token.family, token.token_id)
    assert (grant.expires_at, grant.expires_monotonic) == (NOW + 900, clock.monotonic() + 905)
    assert grant.revoked is False
    assert authority.verify(token.text) is grant


@pytest.mark.parametrize("scopes", [(), (Scope.CLOSE,), tuple(Scope)])
def test_scopes_are_read_as_they_were_minted(authority: ContextTokenAuthority, scopes: tuple[Scope, ...]) -> None:
    assert authority.verify(authority.mint(context(), scopes).text).scopes == frozenset(scopes)


@pytest.mark.parametrize("token", [None, ""])
def test_no_token_is_a_missing_one(authority: ContextTokenAuthority, token: str | None) -> None:
    assert refusal(authority, token) == (ErrorReason.TOKEN_MISSING, TokenFault.MISSING)


IDENTIFIERS = ("sub", "tid", "sid", "cid", "fam", "jti")


def dropped(name: str) -> TokenFault:
    return {"iss": TokenFault.ISSUER, "aud": TokenFault.AUDIENCE}.get(name, TokenFault.CLAIMS)


@pytest.mark.parametrize("name", ["iss", "aud", "ik", "scope", "iat", "nbf", "exp", *IDENTIFIERS])
def test_every_claim_is_required(authority: ContextTokenAuthority, keys: ContextTokenKeys, name: str) -> None:
    claims = read(forged(keys), 1)
    del claims[name]
    assert refusal(authority, forged(keys, claims)) == (ErrorReason.TOKEN_INVALID, dropped(name))


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        *[
            ({name: value}, TokenFault.CLAIMS)
            for name in IDENTIFIERS
            for value in (None, "", 1, "a.>", "a\n", "x" * 129)
        ],
        *[({name: value}, TokenFault.CLAIMS) for name in ("exp", "iat", "nbf") for value in ("1", 1.5, True, None, -1)],
        ({"iss": "ws-sidecar2"}, TokenFault.ISSUER),
        ({"iss": "ws"}, TokenFault.ISSUER),
        ({"aud": ["sidecar"]}, TokenFault.AUDIENCE),
        ({"aud": "sidecar.example"}, TokenFault.AUDIENCE),
        ({"ik": ""}, TokenFault.CLAIMS),
        ({"ik": "A" * 64}, TokenFault.CLAIMS),
        ({"ik": "a" * 63}, TokenFault.CLAIMS),
        ({"ik": "a" * 64 + "\n"}, TokenFault.CLAIMS),
        ({"ik": ["a" * 64]}, TokenFault.CLAIMS),
        ({"scope": ["send"]}, TokenFault.CLAIMS),
        ({"scope": "send admin"}, TokenFault.CLAIMS),
        ({"scope": "send  stats"}, TokenFault.CLAIMS),
        ({"scope": "SEND"}, TokenFault.CLAIMS),
        ({"exp": NOW + 3601}, TokenFault.LIFETIME),
        ({"nbf": NOW + 6}, TokenFault.NOT_YET_VALID),
        ({"iat": NOW + 6}, TokenFault.NOT_YET_VALID),
    ],
)
def test_bad_claims_are_refused_though_the_signature_is_good(
    authority: ContextTokenAuthority, keys: ContextTokenKeys, changes: dict[str, object], fault: TokenFault
) -> None:
    assert refusal(authority, forged(keys, changes=changes)) == (ErrorReason.TOKEN_INVALID, fault)
    assert authority.cached == 0


def test_an_hour_and_the_leeway_are_good(authority: ContextTokenAuthority, keys: ContextTokenKeys) -> None:
    claims: dict[str, object] = {"iat": NOW + 5, "nbf": NOW + 5, "exp": NOW + 3605}
    assert authority.verify(forged(keys, changes=claims)).expires_at == NOW + 3605


def test_a_repeated_claim_is_refused(authority: ContextTokenAuthority, keys: ContextTokenKeys) -> None:
    token = forged(keys, '{"sub":"a","sub":"b"}')
    assert refusal(authority, token) == (ErrorReason.TOKEN_INVALID, TokenFault.MALFORMED)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"typ": "JWT"}, TokenFault.TYPE),
        ({"typ": "CTX+JWT"}, TokenFault.TYPE),
        ({"typ": None}, TokenFault.TYPE),
        ({"alg": "none"}, TokenFault.ALGORITHM),
        ({"alg": "nOnE"}, TokenFault.ALGORITHM),
        ({"alg": "HS512"}, TokenFault.ALGORITHM),
        ({"alg": "RS256"}, TokenFault.ALGORITHM),
        ({"crit": ["exp"]}, TokenFault.HEADER),
        ({"b64": False}, TokenFault.HEADER),
        ({"kid": "../../etc/passwd"}, TokenFault.KEY),
        ({"kid": ""}, TokenFault.KEY),
        ({"kid": None}, TokenFault.HEADER),
    ],
)
def test_bad_headers_are_refused_though_the_signature_is_good(
    authority: ContextTokenAuthority, keys: ContextTokenKeys, change: dict[str, object], fault: TokenFault
) -> None:
    header = read(forged(keys), 0) | change
    assert refusal(authority, forged(keys, header=header)) == (ErrorReason.TOKEN_INVALID, fault)


def test_a_token_names_its_key(authority: ContextTokenAuthority, keys: ContextTokenKeys) -> None:
    token = forged(keys, header={"alg": "HS256", "typ": "ctx+jwt"})
    assert refusal(authority, token) == (ErrorReason.TOKEN_INVALID, TokenFault.KEY)


def test_another_sidecars_token_is_refused(authority: ContextTokenAuthority, clock: FakeClock) -> None:
    stranger = ContextTokenKeys(None, now=NOW)
    token = ContextTokenAuthority(stranger, clock).mint(context(), SCOPES).text
    assert refusal(authority, token) == (ErrorReason.TOKEN_INVALID, TokenFault.KEY)


@given(position=st.integers(0, 2000), character=st.sampled_from("ABab09-_.=+\x00é\ud800"))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
def test_any_changed_character_refuses_the_token(
    authority: ContextTokenAuthority, position: int, character: str
) -> None:
    token = authority.mint(context(), SCOPES).text
    position %= len(token)
    changed = token[:position] + character + token[position + 1 :]
    authority.verify(token)
    if changed != token:
        assert refusal(authority, changed)[0] is ErrorReason.TOKEN_INVALID


def test_segments_of_two_tokens_do_not_mix(authority: ContextTokenAuthority) -> None:
    mine = authority.mint(context(user_id="mallory"), SCOPES).text.split(".")
    hers = authority.mint(context(), SCOPES).text.split(".")
    assert refusal(authority, f"{mine[0]}.{hers[1]}.{mine[2]}")[1] is TokenFault.SIGNATURE
    assert refusal(authority, f"{hers[0]}.{hers[1]}.{'A' * 43}")[1] is TokenFault.SIGNATURE
    assert refusal(authority, f"{hers[0]}.{hers[1]}")[1] is TokenFault.MALFORMED


def test_a_long_token_is_refused_before_it_is_looked_up(authority: ContextTokenAuthority) -> None:
    token = authority.mint(context(), SCOPES).text
    assert refusal(authority, token + "A" * (4096 - len(token)))[1] is TokenFault.SIGNATURE
    assert refusal(authority, token + "A" * (4097 - len(token)))[1] is TokenFault.TOO_LONG
    assert refusal(authority, Unhashable("A" * 1_000_000))[1] is TokenFault.TOO_LONG
    assert authority.cached == 0


def test_what_is_no_text_at_all_is_refused(authority: ContextTokenAuthority) -> None:
    anything: Any = authority.mint(context(), SCOPES).text.encode()
    assert refusal(authority, anything) == (ErrorReason.TOKEN_INVALID, TokenFault.MALFORMED)


def test_whatever_goes_wrong_the_token_is_refused(keys: ContextTokenKeys) -> None:
    authority = ContextTokenAuthority(keys, BrokenClock())
    assert refusal(authority, forged(keys)) == (ErrorReason.TOKEN_INVALID, TokenFault.MALFORMED)


# --- time ------------------------------------------------------------------------------------------------------------


def test_a_token_ends_at_its_exp_and_the_leeway_met_before_or_not(
    authority: ContextTokenAuthority, clock: FakeClock
) -> None:
    met, unmet, late = (authority.mint(context(), SCOPES).text for _ in range(3))
    authority.verify(met)
    clock.advance(904.9)
    assert authority.verify(met) is authority.verify(met)
    assert authority.verify(unmet).expires_at == NOW + 900
    clock.advance(0.1)
    for token in (met, unmet, late):
        assert refusal(authority, token) == (ErrorReason.TOKEN_EXPIRED, TokenFault.EXPIRED)
    assert authority.cached == 0


def test_a_step_of_the_wall_clock_ends_nothing_and_lengthens_nothing(
    authority: ContextTokenAuthority, clock: FakeClock
) -> None:
    token = authority.mint(context(), SCOPES).text
    grant = authority.verify(token)
    clock.step(3600)
    assert authority.verify(token) is grant
    clock.step(-7200)
    clock.advance(905)
    assert refusal(authority, token)[0] is ErrorReason.TOKEN_EXPIRED


def test_a_grant_met_before_costs_one_look_at_the_clock(keys: ContextTokenKeys) -> None:
    clock = CountingClock()
    authority = ContextTokenAuthority(keys, clock)
    token = authority.mint(context(), SCOPES).text
    authority.verify(token)
    clock.asked = 0
    authority.verify(token)
    assert clock.asked == 1


@pytest.mark.parametrize("ttl_s", [0, -1, 3601])
def test_a_ttl_is_at_most_an_hour(keys: ContextTokenKeys, clock: FakeClock, ttl_s: int) -> None:
    with pytest.raises(SettingError) as caught:
        ContextTokenAuthority(keys, clock, ttl_s=ttl_s)
    assert str(caught.value) == "context_tokens.ttl_s: must be 1 to 3600 seconds"


def test_an_authority_has_its_own_issuer_and_ttl(keys: ContextTokenKeys, clock: FakeClock) -> None:
    authority = ContextTokenAuthority(keys, clock, issuer="edge-1", ttl_s=3600)
    token = authority.mint(context(), SCOPES)
    assert read(token.text, 1)["iss"] == "edge-1"
    assert authority.verify(token.text).expires_at == NOW + 3600
    assert refusal(ContextTokenAuthority(keys, clock), token.text)[1] is TokenFault.ISSUER


# --- what is remembered ----------------------------------------------------------------------------------------------


def test_the_cache_is_bounded_and_the_oldest_goes_first(keys: ContextTokenKeys, clock: FakeClock) -> None:
    authority = ContextTokenAuthority(keys, clock, cache_size=3)
    tokens = [authority.mint(context(), SCOPES).text for _ in range(4)]
    grants = [authority.verify(token) for token in tokens]
    assert authority.cached == 3
    assert [authority.verify(token) is grant for token, grant in zip(tokens[1:], grants[1:], strict=True)] == [True] * 3
    again = authority.verify(tokens[0])
    assert again is not grants[0]
    assert again.isolation_key == grants[0].isolation_key
    assert authority.cached == 3


def test_failures_are_not_remembered(authority: ContextTokenAuthority, keys: ContextTokenKeys) -> None:
    for _ in range(3):
        refusal(authority, forged(keys, changes={"aud": "other"}))
    assert authority.cached == 0


def test_pruning_forgets_what_is_over_and_nothing_else(authority: ContextTokenAuthority, clock: FakeClock) -> None:
    old = authority.mint(context(), SCOPES)
    authority.verify(old.text)
    authority.revoke_family("gone", until=NOW + 10)
    clock.advance(300)
    young = authority.mint(context(), SCOPES)
    grant = authority.verify(young.text)
    authority.revoke_family("kept")
    clock.advance(605)
    authority.prune()
    assert authority.cached == 1
    assert authority.verify(young.text) is grant
    assert ("gone" in authority.revocations, "kept" in authority.revocations) == (False, True)


# --- refresh and revocation ------------------------------------------------------------------------------------------


def test_a_refreshed_token_has_the_same_scopes_and_family_and_the_old_one_lives_on(
    authority: ContextTokenAuthority, clock: FakeClock
) -> None:
    first = authority.mint(context(), [Scope.SEND])
    grant = authority.verify(first.text)
    clock.advance(600)
    second = authority.refresh(grant, context())
    assert (second.family, second.expires_at) == (first.family, NOW + 1500)
    assert second.token_id != first.token_id
    assert authority.verify(second.text).scopes == {Scope.SEND}
    assert authority.verify(first.text) is grant


def test_a_token_is_refreshed_for_its_own_context_only(authority: ContextTokenAuthority) -> None:
    grant = authority.verify(authority.mint(context(), SCOPES).text)
    with pytest.raises(IsolationViolation):
        authority.refresh(grant, context(user_id="bob"))


def test_revoking_one_token_ends_its_family_at_once(authority: ContextTokenAuthority) -> None:
    first = authority.mint(context(), SCOPES)
    grant = authority.verify(first.text)
    met, unmet = authority.refresh(grant, context()), authority.refresh(grant, context())
    other = authority.mint(context(), SCOPES)
    held = [grant, authority.verify(met.text), authority.verify(other.text)]
    authority.revoke_family(first.family)
    authority.revoke_family(first.family)
    assert [one.revoked for one in held] == [True, True, False]
    for token in (first, met, unmet):
        assert refusal(authority, token.text) == (ErrorReason.TOKEN_REVOKED, TokenFault.REVOKED)
    assert authority.verify(other.text) is held[2]
    with pytest.raises(Unauthenticated) as caught:
        authority.refresh(grant, context())
    assert caught.value.reason is ErrorReason.TOKEN_REVOKED


def test_revocation_reaches_a_grant_that_the_cache_has_forgotten(keys: ContextTokenKeys, clock: FakeClock) -> None:
    authority = ContextTokenAuthority(keys, clock, cache_size=1)
    token = authority.mint(context(), SCOPES)
    held = [authority.verify(token.text)]
    authority.verify(authority.mint(context(), SCOPES).text)
    held.append(authority.verify(token.text))
    assert held[0] is not held[1]
    authority.revoke_family(token.family)
    assert [grant.revoked for grant in held] == [True, True]


def test_families_are_not_kept_longer_than_their_grants(keys: ContextTokenKeys, clock: FakeClock) -> None:
    authority = ContextTokenAuthority(keys, clock, cache_size=1)
    for _ in range(10):
        authority.verify(authority.mint(context(), SCOPES).text)
    gc.collect()
    assert len(authority._families) == 1


def test_a_revoked_token_met_for_the_first_time_is_refused(authority: ContextTokenAuthority) -> None:
    token = authority.mint(context(), SCOPES)
    authority.revoke_family(token.family)
    assert refusal(authority, token.text) == (ErrorReason.TOKEN_REVOKED, TokenFault.REVOKED)
    assert authority.cached == 0


def test_a_revocation_outlives_every_token_of_its_family(authority: ContextTokenAuthority, clock: FakeClock) -> None:
    token = authority.mint(context(), SCOPES)
    authority.revoke_family(token.family)
    clock.advance(KEEP_REVOKED_S - 1)
    authority.prune()
    assert token.family in authority.revocations
    clock.advance(1)
    authority.prune()
    assert token.family not in authority.revocations
    assert refusal(authority, token.text)[0] is ErrorReason.TOKEN_EXPIRED


def test_a_revocation_outlives_the_process(keys: ContextTokenKeys, clock: FakeClock, tmp_path: Path) -> None:
    path = tmp_path / "revoked"
    authority = ContextTokenAuthority(keys, clock, revocations=RevocationList(path, now=NOW))
    token = authority.mint(context(), SCOPES)
    authority.revoke_family(token.family)
    authority.revocations.flush()
    restarted = ContextTokenAuthority(keys, clock, revocations=RevocationList(path, now=NOW))
    assert refusal(restarted, token.text)[0] is ErrorReason.TOKEN_REVOKED


def test_a_revocation_that_is_refused_changes_nothing(keys: ContextTokenKeys, clock: FakeClock) -> None:
    authority = ContextTokenAuthority(keys, clock, revocations=RevocationList(max_entries=1))
    token = authority.mint(context(), SCOPES)
    grant = authority.verify(token.text)
    authority.revoke_family("other")
    with pytest.raises(ResourceExhausted):
        authority.revoke_family(token.family)
    assert authority.verify(token.text) is grant


# --- keys ------------------------------------------------------------------------------------------------------------


def test_rotation_keeps_old_tokens_good_until_they_end(keys: ContextTokenKeys, clock: FakeClock) -> None:
    authority = ContextTokenAuthority(keys, clock, ttl_s=3600)
    old = authority.mint(context(), SCOPES).text
    kid = keys.rotate(clock.time())
    new = authority.mint(context(), SCOPES).text
    assert read(new, 0)["kid"] == kid != read(old, 0)["kid"]
    clock.advance(3604)
    keys.rotate(clock.time())
    assert authority.verify(old).expires_at == authority.verify(new).expires_at == NOW + 3600
    clock.advance(300)
    keys.rotate(clock.time())
    assert keys.ring.find(str(read(old, 0)["kid"])) is None


def test_a_token_of_a_key_that_is_gone_is_refused(authority: ContextTokenAuthority, keys: ContextTokenKeys) -> None:
    old = authority.mint(context(), SCOPES).text
    keys.rotate(NOW)
    keys.rotate(NOW + 24 * 3600)
    assert refusal(authority, old) == (ErrorReason.TOKEN_INVALID, TokenFault.KEY)


def test_no_secret_is_shown(authority: ContextTokenAuthority, keys: ContextTokenKeys) -> None:
    token = authority.mint(context(), SCOPES)
    grant = authority.verify(token.text)
    shown = repr(grant) + repr(token) + repr(authority) + repr(keys) + repr(grant.shared)
    assert grant.connection_id in shown
    for secret in (token.text, token.text.rsplit(".", 1)[1], grant.isolation_key, repr(keys.ring.keys[0].secret)):
        assert secret not in shown
