"""Key files: what may verify a user token, and what stops the sidecar before it starts."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa, x25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from sidecar.security.files import SettingError
from sidecar.security.jose import ASYMMETRIC_ALGORITHMS, HMAC_ALGORITHMS
from sidecar.security.keys import (
    KeySet,
    check_algorithms,
    hmac_key_set,
    load_hmac_secret,
    load_key_set,
    parse_jwk_set,
)
from tests.security.forge import SECRET

RS256 = ("RS256",)
EVERY_ASYMMETRIC = tuple(ASYMMETRIC_ALGORITHMS)
Jwk = dict[str, object]


def written(path: Path, data: bytes | str, mode: int = 0o600) -> Path:
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    path.chmod(mode)
    return path


def rule_of(path: Path, algorithms: tuple[str, ...]) -> str:
    with pytest.raises(SettingError) as caught:
        load_key_set(path, algorithms)
    assert caught.value.setting == "user_tokens.key_file"
    return caught.value.rule


def set_rule_of(*jwks: object, algorithms: tuple[str, ...] = EVERY_ASYMMETRIC) -> str:
    with pytest.raises(SettingError) as caught:
        parse_jwk_set(json.dumps({"keys": jwks}).encode(), algorithms)
    return caught.value.rule


def set_of(*jwks: Jwk, algorithms: tuple[str, ...] = EVERY_ASYMMETRIC) -> KeySet:
    return parse_jwk_set(json.dumps({"keys": jwks}).encode(), algorithms)


@pytest.fixture(scope="session")
def rsa_jwk(rsa_key: rsa.RSAPrivateKey) -> Jwk:
    return {**RSAAlgorithm.to_jwk(rsa_key.public_key(), as_dict=True), "kid": "r1"} | {"key_ops": ["verify"]}


@pytest.fixture(scope="session")
def ec_jwk(ec_key: ec.EllipticCurvePrivateKey) -> Jwk:
    return {**ECAlgorithm.to_jwk(ec_key.public_key(), as_dict=True), "kid": "e1"}


@pytest.fixture(scope="session")
def ed_jwk(ed_key: ed25519.Ed25519PrivateKey) -> Jwk:
    return {**OKPAlgorithm.to_jwk(ed_key.public_key(), as_dict=True), "kid": "o1"}


@pytest.mark.parametrize(
    ("algorithms", "rule"),
    [
        ((), "must name at least one algorithm"),
        (("none",), "must not allow unsigned tokens (none)"),
        (("HS256", "nOnE"), "must not allow unsigned tokens (none)"),
        (("HS256", "RS256"), "must not mix HMAC and asymmetric algorithms"),
        (("EdDSA", "HS512"), "must not mix HMAC and asymmetric algorithms"),
    ],
)
def test_a_list_of_algorithms_is_of_one_family(algorithms: tuple[str, ...], rule: str) -> None:
    with pytest.raises(SettingError) as caught:
        check_algorithms(algorithms, "a.b")
    assert (caught.value.setting, caught.value.rule) == ("a.b", rule)


@pytest.mark.parametrize("name", ["hs256", "ES256K", "RSA-OAEP", "", "HS256 "])
def test_an_unknown_algorithm_is_refused_without_naming_it(name: str) -> None:
    with pytest.raises(SettingError, match="must name only supported algorithms") as caught:
        check_algorithms(["RS256", name])
    assert "OAEP" not in str(caught.value)


def test_a_whole_family_is_good() -> None:
    check_algorithms(sorted(HMAC_ALGORITHMS))
    check_algorithms(sorted(ASYMMETRIC_ALGORITHMS))


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        (b"x" * 32, b"x" * 32),
        (b"x" * 32 + b"\n", b"x" * 32),
        (b"x" * 32 + b"\r\n", b"x" * 32),
        (b"x" * 32 + b"\n\n", b"x" * 32 + b"\n"),
        (b"x" * 32 + b"\r", b"x" * 32 + b"\r"),
        (b" " + b"x" * 32 + b" ", b" " + b"x" * 32 + b" "),
        (bytes(range(64, 96)), bytes(range(64, 96))),
    ],
)
def test_an_hmac_secret_is_the_files_bytes_without_one_newline(tmp_path: Path, text: bytes, secret: bytes) -> None:
    path = written(tmp_path / "secret", text)
    assert load_hmac_secret(path) == secret
    key = load_key_set(path, ("HS256",)).find(None, "HS256")
    assert key is not None
    assert key.material == secret


@pytest.mark.parametrize("text", [b"", b"x" * 31, b"x" * 31 + b"\n"])
def test_a_short_hmac_secret_is_refused(tmp_path: Path, text: bytes) -> None:
    assert rule_of(written(tmp_path / "secret", text), ("HS256",)) == "an HMAC secret must have at least 32 bytes"


def test_an_hmac_secret_that_others_can_read_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "secret", SECRET, 0o640)
    assert rule_of(path, ("HS256",)) == "the file must not be open to group or others (mode 0600)"


def test_a_key_of_another_kind_is_no_hmac_secret(tmp_path: Path, rsa_pem: bytes, rsa_jwk: Jwk) -> None:
    rule = "an HMAC secret must not be a public key, a certificate or a JWK"
    assert rule_of(written(tmp_path / "pem", rsa_pem), ("HS256",)) == rule
    assert rule_of(written(tmp_path / "jwk", json.dumps({"keys": [rsa_jwk]})), ("HS256",)) == rule


def test_a_pem_key_fits_its_own_algorithms_and_may_be_read_by_all(
    tmp_path: Path, rsa_pem: bytes, ec_pem: bytes, ed_pem: bytes
) -> None:
    for pem, good, bad in ((rsa_pem, "PS384", "ES256"), (ec_pem, "ES256", "ES384"), (ed_pem, "EdDSA", "RS256")):
        keys = load_key_set(written(tmp_path / "key.pem", pem, 0o644), EVERY_ASYMMETRIC)
        assert keys.find(None, good) is not None
        assert keys.find(None, bad) is None
        assert keys.find(None, "HS256") is None


@pytest.mark.parametrize(("curve", "name"), [(ec.SECP384R1(), "ES384"), (ec.SECP521R1(), "ES512")])
def test_each_curve_has_one_algorithm(tmp_path: Path, curve: ec.EllipticCurve, name: str) -> None:
    pem = ec.generate_private_key(curve).public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    keys = load_key_set(written(tmp_path / "key.pem", pem), EVERY_ASYMMETRIC)
    assert [algorithm for algorithm in EVERY_ASYMMETRIC if keys.find(None, algorithm)] == [name]


def test_only_the_listed_algorithms_are_used(tmp_path: Path, rsa_pem: bytes) -> None:
    path = written(tmp_path / "key.pem", rsa_pem)
    assert load_key_set(path, RS256).find(None, "RS512") is None
    assert rule_of(path, ("ES256", "EdDSA")) == "the key must fit an algorithm of the list"


@pytest.mark.parametrize("bits", [1024, 2047])
def test_a_small_rsa_key_is_refused(tmp_path: Path, bits: int) -> None:
    public = rsa.generate_private_key(65537, bits).public_key()
    rule = "an RSA key must have at least 2048 bits"
    pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    assert rule_of(written(tmp_path / "key.pem", pem), RS256) == rule
    assert set_rule_of(RSAAlgorithm.to_jwk(public, as_dict=True)) == rule


@pytest.mark.parametrize(
    "key",
    [
        pytest.param(x25519.X25519PrivateKey.generate().public_key(), id="X25519"),
        pytest.param(ed448.Ed448PrivateKey.generate().public_key(), id="Ed448"),
        pytest.param(ec.generate_private_key(ec.SECP256K1()).public_key(), id="secp256k1"),
    ],
)
def test_other_kinds_of_keys_are_refused(
    tmp_path: Path, key: x25519.X25519PublicKey | ed448.Ed448PublicKey | ec.EllipticCurvePublicKey
) -> None:
    pem = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    rule = rule_of(written(tmp_path / "key.pem", pem), EVERY_ASYMMETRIC)
    assert rule == "the key must be RSA, EC (P-256, P-384, P-521) or Ed25519"


def test_what_is_no_public_key_is_refused(tmp_path: Path, ec_key: ec.EllipticCurvePrivateKey, ec_pem: bytes) -> None:
    private = ec_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    rules = {
        private: "must hold the public key, never the private one",
        ec_pem + private: "must hold the public key, never the private one",
        ec_pem + ec_pem: "must hold one PEM key; several make a JWK Set",
        b"": "must be a PEM public key or a JWK Set",
        SECRET: "must be a PEM public key or a JWK Set",
        ec_pem[:60]: "must be a PEM public key or a JWK Set",
        b"{": "a JWK Set must be one JSON object without repeated members",
    }
    for data, rule in rules.items():
        assert rule_of(written(tmp_path / "key.pem", data), ("ES256",)) == rule


def test_a_file_that_is_not_there_is_named_by_its_setting(tmp_path: Path) -> None:
    assert rule_of(tmp_path / "none", RS256) == "the file cannot be read: No such file or directory"


def test_a_nameless_key_is_not_meant_by_a_token_that_names_one() -> None:
    keys = hmac_key_set(SECRET)
    assert keys.find(None, "HS256") is not None
    for kid in ("", "k1", "../../etc/passwd", "None"):
        assert keys.find(kid, "HS256") is None


def test_a_named_key_is_meant_by_its_exact_name_or_by_none(tmp_path: Path, rsa_pem: bytes) -> None:
    for keys in (
        hmac_key_set(SECRET, RS256, key_id="k1"),
        load_key_set(written(tmp_path / "key.pem", rsa_pem), RS256, key_id="k1"),
    ):
        assert keys.find("k1", "RS256") is keys.find(None, "RS256") is not None
        assert keys.find("K1", "RS256") is None
        assert keys.find("k1 ", "RS256") is None
    assert load_key_set(written(tmp_path / "s", SECRET), ("HS256",), key_id="k2").find("k2", "HS256") is not None


def test_a_set_of_several_needs_the_name(tmp_path: Path, rsa_jwk: Jwk, ec_jwk: Jwk, ed_jwk: Jwk) -> None:
    text = "\n " + json.dumps({"keys": [rsa_jwk, ec_jwk, ed_jwk]})
    keys = load_key_set(written(tmp_path / "jwks", text, 0o644), EVERY_ASYMMETRIC, key_id="ignored")
    assert keys.find("r1", "RS256") is not None
    assert keys.find("e1", "ES256") is not None
    assert keys.find("o1", "EdDSA") is not None
    assert keys.find("o1", "RS256") is None
    assert keys.find(None, "RS256") is None
    assert keys.find("ignored", "RS256") is None


def test_a_set_of_one_needs_no_name(rsa_jwk: Jwk) -> None:
    nameless = {name: value for name, value in rsa_jwk.items() if name != "kid"}
    assert set_of(nameless).find(None, "RS256") is not None
    assert set_of(nameless).find("r1", "RS256") is None
    assert set_of(rsa_jwk).find(None, "RS256") is not None


def test_a_jwk_for_one_algorithm_is_used_with_no_other(rsa_jwk: Jwk) -> None:
    keys = set_of({**rsa_jwk, "alg": "RS384", "use": "sig"})
    assert [name for name in sorted(ASYMMETRIC_ALGORITHMS) if keys.find("r1", name)] == ["RS384"]


def test_keys_that_are_of_no_use_here_are_passed_over(rsa_jwk: Jwk, ec_jwk: Jwk) -> None:
    unknown: list[Jwk] = [
        {"kty": "AKP", "kid": "u1"},
        {"kty": "OKP", "crv": "X25519", "x": "AAAA", "kid": "u2"},
        {"kty": "EC", "crv": "secp256k1", "x": "AAAA", "y": "AAAA", "kid": "u3"},
        {**rsa_jwk, "alg": "RS512", "kid": "u4"},
    ]
    keys = set_of(*unknown, rsa_jwk, ec_jwk, algorithms=RS256)
    assert keys.find("r1", "RS256") is not None
    assert [kid for kid in ("u1", "u2", "u3", "u4", "e1") if keys.find(kid, "RS256") or keys.find(kid, "ES256")] == []
    assert set_rule_of(*unknown, ec_jwk, algorithms=RS256) == (
        "the JWK Set must hold a key that fits an algorithm of the list"
    )


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"use": "enc"}, "keys[1] must be for signatures (use sig)"),
        ({"use": None}, "keys[1] must be for signatures (use sig)"),
        ({"key_ops": ["sign"]}, "keys[1] must be for verifying (key_ops verify)"),
        ({"key_ops": []}, "keys[1] must be for verifying (key_ops verify)"),
        ({"key_ops": "verify"}, "keys[1] must be for verifying (key_ops verify)"),
        ({"d": "AAAA"}, "keys[1] must not be private"),
        ({"qi": "AAAA"}, "keys[1] must not be private"),
        ({"kty": "oct", "k": "c2VjcmV0"}, "keys[1] must not be symmetric"),
        ({"k": "c2VjcmV0"}, "keys[1] must not be symmetric"),
        ({"n": "!"}, "keys[1] must be a valid JWK"),
        ({"e": None}, "keys[1] must be a valid JWK"),
        ({"e": "Ag"}, "keys[1] must be a valid JWK"),
        ({"kty": None}, "keys[1] must be a valid JWK"),
        ({"crv": []}, "keys[1] must be a valid JWK"),
        ({"alg": ["RS256"]}, "keys[1] must be a valid JWK"),
        ({"kid": "e1"}, "a kid must not be repeated"),
        ({"kid": 1}, "a kid must be a string of 1 to 256 characters"),
        ({"kid": ""}, "a kid must be a string of 1 to 256 characters"),
        ({"kid": "k" * 257}, "a kid must be a string of 1 to 256 characters"),
    ],
)
def test_one_bad_jwk_refuses_the_set(rsa_jwk: Jwk, ec_jwk: Jwk, change: Jwk, rule: str) -> None:
    assert set_rule_of(ec_jwk, rsa_jwk | change) == rule


def test_a_set_of_several_must_name_each(rsa_jwk: Jwk) -> None:
    rule = "every key of a set of several must have a kid"
    assert set_rule_of(rsa_jwk, {"kty": "RSA"}) == rule


@pytest.mark.parametrize("text", ["{}", '{"keys":{}}', '{"keys":[1]}', '{"keys":null}'])
def test_what_is_no_list_of_keys_is_refused(text: str) -> None:
    with pytest.raises(SettingError, match="a JWK Set must have a list of objects, keys"):
        parse_jwk_set(text.encode(), RS256)


def test_a_set_has_at_most_100_keys(rsa_jwk: Jwk) -> None:
    many = [rsa_jwk | {"kid": f"k{number}"} for number in range(101)]
    assert set_of(*many[:100]).find("k99", "RS256") is not None
    assert set_rule_of(*many) == "a JWK Set must have at most 100 keys"
    with pytest.raises(SettingError, match="must hold a key that fits"):
        set_of()


def test_no_key_is_shown() -> None:
    keys = hmac_key_set(SECRET, key_id="k1")
    shown = repr(keys) + repr(keys.find("k1", "HS256"))
    assert "k1" in shown
    assert SECRET.decode() not in shown
    with pytest.raises(SettingError) as caught:
        hmac_key_set(b"hunter2")
    assert "hunter2" not in str(caught.value) + repr(caught.value)


def test_no_jwk_member_is_shown(rsa_jwk: Jwk) -> None:
    secret = base64.urlsafe_b64encode(SECRET).decode()
    for change in ({"d": secret}, {"kid": secret * 9}, {"use": secret}, {"n": secret}, {"kty": secret}):
        assert secret not in set_rule_of(rsa_jwk | change, algorithms=("ES256",))
