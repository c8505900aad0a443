"""Files and addresses that the sidecar must not start with: the settings are good, what they name is not.

Each ends with exit 78 (a port in use: 1) and one line; `check-config`, which reads the settings alone, finds them good.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from jwt.algorithms import RSAAlgorithm

from tests.security.conftest import public_pem
from tests.security.forge import segment
from tests.security.start_stage import CANARY, SECRET, Done, Forker, Stage, forking
from tests.support.restarting import free_ports

RSA_KEY = rsa.generate_private_key(65537, 2048)
RSA_PEM = public_pem(RSA_KEY)
SMALL_KEY = rsa.generate_private_key(65537, 1024)
ALMOST_KEY = rsa.generate_private_key(65537, 2047)
JWK: dict[str, Any] = {**RSAAlgorithm.to_jwk(RSA_KEY.public_key(), as_dict=True), "kid": "k1"}
PRIVATE_JWK: dict[str, Any] = {**RSAAlgorithm.to_jwk(RSA_KEY, as_dict=True), "kid": "k1"}

Prepare = Callable[[Stage], AbstractContextManager[dict[str, str]]]


@dataclass(frozen=True)
class Case:
    """What is wrong with which file, and the line that says so. `leaves` are files that were made all the same."""

    name: str
    line: str
    prepare: Prepare
    code: int = 78
    leaves: tuple[str, ...] = ()


def prepared(change: Callable[[Stage], dict[str, str] | None]) -> Prepare:
    """Something that is done to the folder and holds nothing open; it may answer sections of the settings."""
    return lambda stage: nullcontext(change(stage) or {})


def secret(name: str, rule: str, change: Callable[[Path], object]) -> Case:
    """The HMAC secret's file."""
    return Case(name, f"user_tokens.key_file: {rule}", prepared(lambda stage: void(change(stage.folder / "user.key"))))


def public(name: str, rule: str, data: bytes, algorithms: str = '"RS256"') -> Case:
    """The file of an asymmetric key."""

    def change(stage: Stage) -> dict[str, str]:
        stage.write("issuer.pem", data, 0o644)
        text = f'issuer = "https://id.test"\naudience = "chat"\nkey_file = "issuer.pem"\nalgorithms = [{algorithms}]'
        return {"user_tokens": text}

    return Case(name, f"user_tokens.key_file: {rule}", prepared(change))


def jwks(name: str, rule: str, *keys: object) -> Case:
    """A JWK Set."""
    return public(name, rule, json.dumps({"keys": keys}).encode())


def services(name: str, rule: str, change: Callable[[Path], object]) -> Case:
    """The file of the service tokens."""
    return Case(
        name, f"service_auth.token_file: {rule}", prepared(lambda stage: void(change(stage.folder / "service-tokens")))
    )


def context_keys(name: str, rule: str, change: Callable[[Path], object]) -> Case:
    """The file of the context tokens' keys."""

    def prepare(stage: Stage) -> dict[str, str]:
        change(stage.folder / "context.keys")
        return {"context_tokens": 'key_file = "context.keys"'}

    return Case(name, f"context_tokens.key_file: {rule}", prepared(prepare))


def audit(name: str, rule: str, change: Callable[[Path], object], path: str = "audit.jsonl") -> Case:
    """The audit trail's file."""

    def prepare(stage: Stage) -> dict[str, str]:
        change(stage.folder / "audit.jsonl")
        return {"audit": f'path = "{path}"'}

    return Case(name, f"audit.path: {rule}", prepared(prepare))


def void(_: object) -> None:
    """Nothing to say of the settings."""


def written(data: str | bytes, mode: int = 0o600) -> Callable[[Path], object]:
    """A file of this content."""

    def write(path: Path) -> None:
        path.write_bytes(data if isinstance(data, bytes) else data.encode())
        path.chmod(mode)

    return write


def folder(path: Path) -> None:
    """A folder in its place."""
    path.unlink(missing_ok=True)
    path.mkdir(mode=0o700)


def pipe(path: Path) -> None:
    """A named pipe that nobody writes to, in its place."""
    path.unlink(missing_ok=True)
    os.mkfifo(path, 0o600)


def device(path: Path) -> None:
    """A link to a device that gives bytes for ever, in its place."""
    path.unlink(missing_ok=True)
    path.symlink_to("/dev/zero")


def dangling(path: Path) -> None:
    """A symbolic link to what is not there, in its place."""
    path.unlink(missing_ok=True)
    path.symlink_to(path.with_name("elsewhere"))


@contextmanager
def locked(stage: Stage) -> Iterator[dict[str, str]]:
    """An audit trail that another process holds."""
    with stage.write("audit.jsonl", b"").open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield {}


def port_in_use(section: str) -> Case:
    """A listener's port is somebody's."""

    @contextmanager
    def taken(_: Stage) -> Iterator[dict[str, str]]:
        with socket.create_server(("127.0.0.1", PORTS[section])):
            yield {section: f'listen = "127.0.0.1:{PORTS[section]}"'}

    line = f"{section}.listen: 127.0.0.1:{PORTS[section]} is in use"
    return Case(f"{section}'s port in use", line, taken, code=1, leaves=("audit.jsonl",))


def unix(name: str, rule: str, make: Callable[[Path], object], leaves: tuple[str, ...] = ("audit.jsonl",)) -> Case:
    """The gRPC listener on a Unix socket."""

    def prepare(stage: Stage) -> dict[str, str]:
        own = stage.folder / "run"
        own.mkdir(mode=0o700)
        make(own / "grpc.sock")
        return {"grpc": f'listen = "unix:{own}/grpc.sock"'}

    return Case(name, f"grpc.listen: {rule}", prepared(prepare), leaves=leaves)


PORTS = dict(zip(("websocket", "grpc", "ops"), free_ports(3), strict=True))
MISSING = "the file cannot be read: No such file or directory"
OPEN = "the file must not be open to group or others (mode 0600)"
REGULAR = "must be a regular file"
LARGE = "the file must be at most 262144 bytes"
NO_PEM = "must be a PEM public key or a JWK Set"
NO_SET = "a JWK Set must be one JSON object without repeated members"
SHORT = "an HMAC secret must have at least 32 bytes"
OTHER_KIND = "an HMAC secret must not be a public key, a certificate or a JWK"
NO_RING = "must be a key file that the sidecar wrote"
RING = {
    "version": 1,
    "isolation_secret": segment(b"s" * 32),
    "keys": [{"kid": "a", "secret": segment(b"k" * 31), "created_at": 1}],
}

CASES = [
    # the HMAC secret (RFC 7518 §3.2)
    secret("secret short", SHORT, written(SECRET[:31])),
    secret("secret short but for its newline", SHORT, written(SECRET[:31] + "\n")),
    secret("secret empty", SHORT, written(b"")),
    secret("secret open to the group", OPEN, written(SECRET, 0o640)),
    secret("secret open to others", OPEN, written(SECRET, 0o604)),
    secret("secret writable by others", OPEN, written(SECRET, 0o602)),
    secret("secret missing", MISSING, Path.unlink),
    secret("secret a folder", REGULAR, folder),
    secret("secret a pipe", REGULAR, pipe),
    secret("secret a device", REGULAR, device),
    secret("secret too large", LARGE, written("x" * 262_145)),
    secret("secret the text of a public key", OTHER_KIND, written(RSA_PEM)),
    secret("secret the text of a JWK", OTHER_KIND, written(json.dumps({"kty": "oct", "k": segment(SECRET)}))),
    # public keys
    public("RSA of 1,024 bits", "an RSA key must have at least 2048 bits", public_pem(SMALL_KEY)),
    public("RSA of 2,047 bits", "an RSA key must have at least 2048 bits", public_pem(ALMOST_KEY)),
    public(
        "the private key",
        "must hold the public key, never the private one",
        RSA_KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
    ),
    public(
        "the private key of old",
        "must hold the public key, never the private one",
        RSA_KEY.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption()),
    ),
    public("two keys", "must hold one PEM key; several make a JWK Set", RSA_PEM + RSA_PEM),
    public("half a key", NO_PEM, RSA_PEM[:200]),
    public("an empty file", NO_PEM, b""),
    public("not UTF-8", NO_PEM, CANARY.encode() + b"\xff\xfe"),
    public("an HMAC secret", NO_PEM, SECRET.encode()),
    public(
        "a key of another kind",
        "the key must fit an algorithm of the list",
        public_pem(ec.generate_private_key(ec.SECP256R1())),
    ),
    public(
        "a curve that is not used",
        "the key must be RSA, EC (P-256, P-384, P-521) or Ed25519",
        public_pem(ec.generate_private_key(ec.SECP256K1())),
        '"ES256"',
    ),
    # key sets (RFC 7517 §4)
    jwks("JWK for encryption", "keys[0] must be for signatures (use sig)", JWK | {"use": "enc"}),
    jwks("JWK for a use unheard of", "keys[0] must be for signatures (use sig)", JWK | {"use": CANARY}),
    jwks("JWK that may not verify", "keys[0] must be for verifying (key_ops verify)", JWK | {"key_ops": ["sign"]}),
    jwks("JWK that may do nothing", "keys[0] must be for verifying (key_ops verify)", JWK | {"key_ops": []}),
    jwks("JWK private", "keys[0] must not be private", PRIVATE_JWK),
    jwks("JWK with a part that is private", "keys[0] must not be private", JWK | {"dq": CANARY}),
    jwks("JWK symmetric", "keys[0] must not be symmetric", {"kty": "oct", "k": segment(SECRET), "kid": "k1"}),
    jwks(
        "JWK symmetric beside a good one",
        "keys[1] must not be symmetric",
        JWK,
        {"kty": "oct", "k": segment(SECRET), "kid": "k2"},
    ),
    jwks("kid repeated", "a kid must not be repeated", JWK, JWK),
    jwks(
        "kid missing among several",
        "every key of a set of several must have a kid",
        JWK,
        {**JWK, "kid": "k2"},
        {"kty": "RSA"},
    ),
    jwks("kid a number", "a kid must be a string of 1 to 256 characters", JWK | {"kid": 1}),
    jwks(
        "JWK small",
        "an RSA key must have at least 2048 bits",
        RSAAlgorithm.to_jwk(SMALL_KEY.public_key(), as_dict=True),
    ),
    jwks("JWK malformed", "keys[0] must be a valid JWK", JWK | {"n": "!"}),
    jwks("JWK with an exponent of 2", "keys[0] must be a valid JWK", JWK | {"e": "Ag"}),
    jwks(
        "JWK of another algorithm",
        "the JWK Set must hold a key that fits an algorithm of the list",
        JWK | {"alg": "PS512"},
    ),
    jwks("no key", "the JWK Set must hold a key that fits an algorithm of the list"),
    jwks("101 keys", "a JWK Set must have at most 100 keys", *(JWK | {"kid": f"k{number}"} for number in range(101))),
    public("keys twice", NO_SET, json.dumps({"keys": [JWK]}).replace('"keys"', '"keys":[],"keys"', 1).encode()),
    public(
        "a member of a JWK twice", NO_SET, json.dumps({"keys": [JWK]}).replace('"kid"', '"kid":"x","kid"', 1).encode()
    ),
    public("a set 5,000 deep", NO_SET, b'{"keys":' + b"[" * 5000 + b"]" * 5000 + b"}"),
    public("half a set", NO_SET, json.dumps({"keys": [JWK]}).encode()[:-1]),
    public("a single JWK", "a JWK Set must have a list of objects, keys", json.dumps(JWK).encode()),
    # service tokens
    services("service tokens missing", MISSING, Path.unlink),
    services("service tokens open to the group", OPEN, written(f"{CANARY}-0123456789", 0o640)),
    services("service tokens a folder", REGULAR, folder),
    services("no service token", "the file must hold 1 to 1000 tokens", written("# none\n\n")),
    services(
        "service token short",
        "line 2: a token must be 16 to 512 printable ASCII characters",
        written(f"# {CANARY}\n{CANARY}\n"),
    ),
    services("service token twice", "line 2: a token must not be repeated", written(f"{CANARY}-0123456789\n" * 2)),
    services(
        "service half an object",
        "line 1: must be a token or one JSON object without repeated members",
        written('{"name":"' + CANARY),
    ),
    services(
        "service allowed what is unheard of",
        "line 1: allow must hold only deliver, exchange, attach, admin",
        written(json.dumps({"name": "a", "token": f"{CANARY}-0123456789", "allow": [CANARY]})),
    ),
    services(
        "service with a member unheard of",
        "line 1: may have no members but allow, name, scopes, tenants, token",
        written(json.dumps({"name": "a", "token": f"{CANARY}-0123456789", "alow": [CANARY]})),
    ),
    # keys of context tokens
    context_keys("context keys open to others", OPEN, written(json.dumps(RING), 0o644)),
    context_keys("context keys of another make", NO_RING, written(CANARY)),
    context_keys("context keys empty", NO_RING, written(b"")),
    context_keys("context keys not UTF-8", NO_RING, written(b"\xff\xfe")),
    context_keys("a context key short", NO_RING, written(json.dumps(RING))),
    context_keys("context keys a folder", REGULAR, folder),
    # the audit trail
    audit(
        "trail of another make",
        "the last record does not verify; move the file away or repair it",
        written(f"{CANARY}\n"),
    ),
    audit("trail a folder", "the file cannot be opened for reading and writing (EISDIR)", folder),
    audit("trail a pipe", "the path is not a regular file", pipe),
    audit(
        "trail in a folder that is not there",
        "the file cannot be opened for reading and writing (ENOENT)",
        void,
        "none/audit.jsonl",
    ),
    audit(
        "trail below a file",
        "the file cannot be opened for reading and writing (ENOTDIR)",
        void,
        "user.key/audit.jsonl",
    ),
    audit("trail a link to nowhere", "the file cannot be opened for reading and writing (EEXIST)", dangling),
    Case("trail held by another", "audit.path: another sidecar holds the file", locked),
    # listeners
    unix("socket path a plain file", "the path of a Unix socket is taken by something else", written(CANARY)),
    unix("socket path a folder", "the path of a Unix socket is taken by something else", folder),
    unix(
        "socket's folder open to others",
        "the folder of a Unix socket must be this user's own, mode 0700 or 0750",
        lambda path: path.parent.chmod(0o755),
    ),
    *map(port_in_use, PORTS),
]


@pytest.fixture(scope="module")
def forker() -> Iterator[Forker]:
    with forking() as started:
        yield started


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_what_cannot_be_used_starts_nothing(tmp_path: Path, forker: Forker, case: Case) -> None:
    stage = Stage(tmp_path / "start", forker)
    with case.prepare(stage) as sections:
        stage.settle(**sections)
        before = stage.seen()
        outcomes = stage.run(("serve", "--config", "sidecar.toml"), ("check-config", "sidecar.toml"))
        assert outcomes == [Done(case.code, "", [case.line]), Done(0, "ok\n", [])]
        after = stage.seen()
        assert {name: after.pop(name, None) is not None for name in case.leaves} == dict.fromkeys(case.leaves, True)
        assert after == before


ALONE = ("secret short", "JWK private", "trail of another make", "socket path a plain file", "websocket's port in use")


@pytest.mark.parametrize("case", [case for case in CASES if case.name in ALONE], ids=lambda case: case.name)
def test_a_process_that_shares_nothing_ends_alike(tmp_path: Path, forker: Forker, case: Case) -> None:
    stage = Stage(tmp_path / "start", forker)
    with case.prepare(stage) as sections:
        stage.settle(**sections)
        assert stage.run_alone("serve", "--config", "sidecar.toml") == Done(case.code, "", [case.line])
