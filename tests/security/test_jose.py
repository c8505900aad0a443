"""The strict reading of tokens: everything that is not exactly right is refused, with a fault and no text."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.core.errors import ErrorReason, TokenFault, Unauthenticated
from sidecar.security import jose
from tests.security.forge import NOW, SECRET, hs256, segment, unsigned

HEADER = {"alg": "HS256", "typ": "JWT"}
GOOD = hs256(HEADER, {"sub": "alice"})


def fault_of(token: str) -> TokenFault:
    with pytest.raises(Unauthenticated) as caught:
        jose.parse_compact(token)
    assert caught.value.reason is ErrorReason.TOKEN_INVALID
    return caught.value.fault


def test_a_token_is_taken_apart() -> None:
    parts = jose.parse_compact(GOOD)
    assert parts.header == HEADER
    assert parts.claims == {"sub": "alice"}
    assert parts.signing_input.decode() == GOOD.rsplit(".", 1)[0]
    jose.verify_signature(parts, "HS256", SECRET)


def other_bits(text: str) -> str:
    """Another text of the same bytes, for a lenient decoder: the unused bits of the last character set."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    assert len(text) % 4
    return text[:-1] + alphabet[alphabet.index(text[-1]) | 1]


HEAD, BODY, TAIL = GOOD.split(".")


@pytest.mark.parametrize(
    "token",
    [
        pytest.param("x", id="1 segment"),
        pytest.param(f"{HEAD}.{BODY}", id="2 segments"),
        pytest.param(f"{GOOD}.{TAIL}", id="4 segments"),
        pytest.param(f"{GOOD}.", id="4 segments, one empty"),
        pytest.param(f"{HEAD}.{BODY}.", id="no signature"),
        pytest.param(f".{BODY}.{TAIL}", id="no header"),
        pytest.param(f"{HEAD}..{TAIL}", id="detached payload"),
        pytest.param(f"{GOOD}=", id="padding"),
        pytest.param(f"{GOOD}\n", id="newline at the end"),
        pytest.param(f" {GOOD}", id="space before"),
        pytest.param(GOOD.replace(BODY, BODY[:4] + "+" + BODY[5:]), id="plus"),
        pytest.param(GOOD.replace(BODY, BODY[:4] + "!" + BODY[4:]), id="junk that a lenient decoder skips"),
        pytest.param(f"{HEAD}.{BODY}.{other_bits(TAIL)}", id="stray bits in the signature"),
        pytest.param(f"{HEAD}.{BODY}.A", id="signature of one character"),
        pytest.param(f"{GOOD[:-1]}\ud800", id="lone surrogate"),
        pytest.param(f"{GOOD[:-1]}\x00", id="NUL"),
        pytest.param(f"{GOOD[:-1]}٣", id="a digit that is not ASCII"),
        pytest.param(hs256("[]", {}), id="header an array"),
        pytest.param(hs256(HEADER, '"claims"'), id="claims a string"),
        pytest.param(hs256(HEADER, b"\xff\xfe"), id="claims not UTF-8"),
        pytest.param(hs256('{"alg":"HS256","alg":"none"}', {}), id="repeated alg"),
        pytest.param(hs256(HEADER, '{"sub":"a","sub":"b"}'), id="repeated sub"),
        pytest.param(hs256(HEADER, '{"exp":Infinity}'), id="Infinity"),
        pytest.param(hs256(HEADER, '{"a":' + "[" * 1400 + "]" * 1400 + "}"), id="1,400 deep"),
        pytest.param(hs256(HEADER, '{"a":' + '{"a":' * 33 + "1" + "}" * 34), id="objects 34 deep"),
    ],
)
def test_what_is_not_a_compact_jws_of_two_objects_is_malformed(token: str) -> None:
    assert fault_of(token) is TokenFault.MALFORMED


def test_a_token_may_have_4096_characters_and_not_one_more() -> None:
    room = jose.MAX_TOKEN_CHARS - len(f"{HEAD}.{BODY}.")
    assert len(jose.parse_compact(f"{HEAD}.{BODY}.{'A' * room}").signature) == room * 3 // 4
    assert fault_of(f"{HEAD}.{BODY}.{'A' * (room + 1)}") is TokenFault.TOO_LONG
    assert fault_of(f"{HEAD}.{BODY}.{'A' * 1_000_000}") is TokenFault.TOO_LONG


@given(st.text(max_size=200) | st.lists(st.binary(max_size=60).map(segment), max_size=5).map(".".join))
def test_any_text_is_taken_apart_or_refused(token: str) -> None:
    outcome = outcome_of(token)
    if isinstance(outcome, Unauthenticated):
        assert (outcome.reason, outcome.__cause__) == (ErrorReason.TOKEN_INVALID, None)
        assert str(outcome) == "the token is not valid"
    else:
        assert outcome.signing_input.decode() == token.rsplit(".", 1)[0]


def outcome_of(token: str) -> jose.CompactToken | Unauthenticated:
    try:
        return jose.parse_compact(token)
    except Unauthenticated as error:
        return error


@given(st.binary(max_size=100))
def test_a_segment_is_read_back(data: bytes) -> None:
    assert jose.decode_segment(jose.encode_segment(data)) == data


def test_whatever_a_check_raises_refuses_the_token() -> None:
    @jose.fail_closed
    def check(error: BaseException) -> None:
        raise error

    for error in (UnicodeEncodeError("ascii", "\ud800", 0, 1, "x"), RecursionError(), ValueError("secret"), KeyError()):
        with pytest.raises(Unauthenticated) as caught:
            check(error)
        assert caught.value.fault is TokenFault.MALFORMED
        assert caught.value.__suppress_context__
    with pytest.raises(Unauthenticated) as caught:
        check(jose.expired())
    assert caught.value.fault is TokenFault.EXPIRED
    with pytest.raises(KeyboardInterrupt):
        check(KeyboardInterrupt())


@pytest.mark.parametrize(
    ("header", "fault"),
    [
        ({}, TokenFault.ALGORITHM),
        ({"alg": None}, TokenFault.ALGORITHM),
        ({"alg": "none"}, TokenFault.ALGORITHM),
        ({"alg": "nOnE"}, TokenFault.ALGORITHM),
        ({"alg": "hs256"}, TokenFault.ALGORITHM),
        ({"alg": "HS512"}, TokenFault.ALGORITHM),
        ({"alg": ["HS256"]}, TokenFault.ALGORITHM),
        ({"alg": "HS256", "crit": []}, TokenFault.HEADER),
        ({"alg": "HS256", "crit": ["exp"]}, TokenFault.HEADER),
        ({"alg": "HS256", "crit": None}, TokenFault.HEADER),
        ({"alg": "HS256", "b64": False}, TokenFault.HEADER),
        ({"alg": "HS256", "b64": True}, TokenFault.HEADER),
        ({"alg": "HS256", "kid": 7}, TokenFault.HEADER),
        ({"alg": "HS256", "kid": None}, TokenFault.HEADER),
        ({"alg": "HS256", "kid": ["k"]}, TokenFault.HEADER),
    ],
)
def test_a_header_that_says_too_much_or_too_little_is_refused(header: dict[str, object], fault: TokenFault) -> None:
    with pytest.raises(Unauthenticated) as caught:
        jose.check_header(header, ("HS256",))
    assert caught.value.fault is fault


def test_a_header_names_algorithm_and_key_and_its_own_keys_are_not_looked_at() -> None:
    assert jose.check_header({"alg": "HS256"}, ("HS256",)) == ("HS256", None)
    pointers = {"jku": "https://evil.example", "x5u": 1, "jwk": {"kty": "oct"}, "x5c": ["AAAA"]}
    assert jose.check_header({"alg": "ES256", "kid": "", **pointers}, ("RS256", "ES256")) == ("ES256", "")


@pytest.mark.parametrize("name", sorted(jose.HMAC_ALGORITHMS))
def test_a_signature_counts_whole(name: str) -> None:
    parts = jose.parse_compact(GOOD)
    for signature in (b"", parts.signature[:-1], parts.signature + b"\0", bytes(32)):
        with pytest.raises(Unauthenticated) as caught:
            jose.verify_signature(parts._replace(signature=signature), name, SECRET)
        assert caught.value.fault is TokenFault.SIGNATURE
    with pytest.raises(Unauthenticated):
        jose.verify_signature(parts, "HS256", SECRET + b"\0x")


def test_sign_makes_what_parse_reads() -> None:
    token = jose.sign(jose.encode_json(HEADER), {"sub": "ä", "n": 1}, SECRET)
    parts = jose.parse_compact(token)
    assert (parts.header, parts.claims) == (HEADER, {"sub": "ä", "n": 1})
    assert token == f"{unsigned(jose_text(HEADER), jose_text({'sub': 'ä', 'n': 1}))}.{token.rsplit('.', 1)[1]}"
    jose.verify_signature(parts, "HS256", SECRET)


def jose_text(value: Mapping[str, object]) -> str:
    """JSON without spaces, as the signer writes it."""
    return jose.decode_segment(jose.encode_json(value)).decode()


@pytest.mark.parametrize(
    "value", [None, "", 7, True, ["a"], {"a": 1}, "a b", "a\r\nb", "a\n", "a\x00", "a.>/", "x" * 129, "ä", "\ud800"]
)
def test_a_claim_that_is_no_identifier_is_refused(value: object) -> None:
    with pytest.raises(Unauthenticated) as caught:
        jose.claim_identifier({"sub": value}, "sub")
    assert caught.value.fault is TokenFault.CLAIMS


@pytest.mark.parametrize("value", ["a", "x" * 128, "auth0|5f7c", "a.b_c:d@e-f"])
def test_an_identifier_is_returned(value: str) -> None:
    assert jose.claim_identifier({"sub": value}, "sub") == value


@pytest.mark.parametrize("value", [None, "1", 1.0, 1e3, True, False, -1, 2**53, 10**2000, [1], float("inf")])
def test_a_claim_that_is_no_integer_is_refused(value: object) -> None:
    with pytest.raises(Unauthenticated) as caught:
        jose.claim_integer({"exp": value}, "exp")
    assert caught.value.fault is TokenFault.CLAIMS


def test_integers_reach_from_0_to_2_to_the_53_less_1() -> None:
    assert jose.claim_integer({"exp": 0}, "exp") == 0
    assert jose.claim_integer({"exp": 2**53 - 1}, "exp") == 2**53 - 1


def dates(now: float = NOW, /, **claims: object) -> int:
    return jose.check_dates(claims, now, leeway_s=30, max_lifetime_s=3600)


def test_dates_hold_up_to_their_leeway() -> None:
    assert dates(iat=NOW, exp=NOW + 60) == NOW + 60
    assert dates(NOW + 29.999, iat=NOW - 60, exp=NOW) == NOW
    assert dates(iat=NOW + 30, exp=NOW + 60) == NOW + 60
    assert dates(iat=NOW, nbf=NOW + 30, exp=NOW + 60) == NOW + 60
    assert dates(iat=NOW, exp=NOW + 3600) == NOW + 3600


@pytest.mark.parametrize(
    ("claims", "fault"),
    [
        ({"iat": NOW - 60, "exp": NOW - 30}, TokenFault.EXPIRED),
        ({"iat": NOW + 31, "exp": NOW + 60}, TokenFault.NOT_YET_VALID),
        ({"iat": NOW, "nbf": NOW + 31, "exp": NOW + 60}, TokenFault.NOT_YET_VALID),
        ({"iat": NOW, "exp": NOW + 3601}, TokenFault.LIFETIME),
        ({"iat": NOW, "exp": NOW}, TokenFault.LIFETIME),
        ({"iat": NOW + 10, "exp": NOW + 5}, TokenFault.LIFETIME),
        ({"exp": NOW + 60}, TokenFault.CLAIMS),
        ({"iat": NOW}, TokenFault.CLAIMS),
        ({"iat": NOW, "exp": NOW + 60, "nbf": None}, TokenFault.CLAIMS),
        ({"iat": NOW, "exp": NOW + 60, "nbf": True}, TokenFault.CLAIMS),
    ],
)
def test_dates_past_their_leeway_are_refused(claims: dict[str, object], fault: TokenFault) -> None:
    with pytest.raises(Unauthenticated) as caught:
        dates(NOW, **claims)
    assert caught.value.fault is fault
    expected = ErrorReason.TOKEN_EXPIRED if fault is TokenFault.EXPIRED else ErrorReason.TOKEN_INVALID
    assert caught.value.reason is expected


def test_the_four_refusals_carry_their_reasons() -> None:
    refusals = [jose.missing(), jose.invalid(TokenFault.KEY), jose.expired(), jose.revoked()]
    assert [(error.reason, error.fault) for error in refusals] == [
        (ErrorReason.TOKEN_MISSING, TokenFault.MISSING),
        (ErrorReason.TOKEN_INVALID, TokenFault.KEY),
        (ErrorReason.TOKEN_EXPIRED, TokenFault.EXPIRED),
        (ErrorReason.TOKEN_REVOKED, TokenFault.REVOKED),
    ]
