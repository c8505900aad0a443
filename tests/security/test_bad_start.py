"""Settings that the sidecar must not start with: exit 78 and one line that names the setting and the rule, no value.

`check-config` says the same of each. Nothing is left: no process, no file made or changed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.security.start_stage import CANARY, Done, Forker, Stage, forking


@dataclass(frozen=True)
class Case:
    """Settings with one thing wrong, and the line that says so."""

    name: str
    line: str
    sections: dict[str, str] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    file: bytes | None = None
    development: bool = False


def section(name: str, text: str, line: str, *, development: bool = False) -> Case:
    """One section written otherwise."""
    return Case(f"{name}: {text}"[:80], line, {name: text}, development=development)


def whole(name: str, text: str | bytes, line: str) -> Case:
    """The whole file."""
    return Case(name, line, file=text if isinstance(text, bytes) else text.encode())


def environment(variable: str, value: str, line: str) -> Case:
    """Good settings, and a variable that beats them."""
    return Case(f"{variable}={value}"[:80], line, environment={variable: value})


COMMANDS = (("serve", "--config", "sidecar.toml"), ("check-config", "sidecar.toml"))
USER = f'issuer = "https://{CANARY}"\naudience = "chat"\nkey_file = "user.key"\n'
ORIGIN = "each must be an exact origin as browsers send it: scheme://host[:port], in lower case"
TCP = "must be host:port or [IPv6]:port"
ANY = "must be host:port, [IPv6]:port or unix: and an absolute path of at most 107 bytes"
LOOPBACK = "plain TCP must stay on loopback unless grpc.allow_insecure is true"
SUPPORTED = "ES256 ES384 ES512 EdDSA HS256 HS384 HS512 PS256 PS384 PS512 RS256 RS384 RS512"

SETTINGS = [
    # algorithms and issuers
    section(
        "user_tokens", USER + 'algorithms = ["none"]', "user_tokens.algorithms: must not allow unsigned tokens (none)"
    ),
    section(
        "user_tokens",
        USER + 'algorithms = ["HS256", "nOnE"]',
        "user_tokens.algorithms: must not allow unsigned tokens (none)",
    ),
    section(
        "user_tokens",
        USER + 'algorithms = ["HS256", "RS256"]',
        "user_tokens.algorithms: must not mix HMAC and asymmetric algorithms",
    ),
    section("user_tokens", USER + "algorithms = []", "user_tokens.algorithms: must name at least one algorithm"),
    section(
        "user_tokens",
        USER + f'algorithms = ["{CANARY}"]',
        f"user_tokens.algorithms: must name only supported algorithms ({SUPPORTED})",
    ),
    section("user_tokens", USER + 'algorithms = "HS256"', "user_tokens.algorithms: must be a list"),
    section(
        "user_tokens", USER + f'jwks_url = "http://{CANARY}/jwks"', "user_tokens.jwks_url: must begin with https://"
    ),
    section(
        "user_tokens",
        USER + f'jwks_url = "http://127.0.0.1/{CANARY}"',
        "user_tokens.jwks_url: must begin with https://",
    ),
    section(
        "user_tokens",
        USER + f'jwks_url = "https://{CANARY}/jwks"',
        "user_tokens.jwks_url: not supported by this version; give key_file",
    ),
    section("user_tokens", 'audience = "chat"\nkey_file = "user.key"', "user_tokens.issuer: is required"),
    section("user_tokens", f'issuer = "{CANARY}"\nkey_file = "user.key"', "user_tokens.audience: is required"),
    section("user_tokens", f'issuer = "{CANARY}"\naudience = "chat"', "user_tokens.key_file: is required"),
    section(
        "user_tokens",
        USER + f'tenants = ["{CANARY}/"]',
        "user_tokens.tenants: each must match [A-Za-z0-9_.:@|-]{1,128}",
    ),
    section("user_tokens", USER + "tenants = []", "user_tokens.tenants: must not be empty"),
    # origins
    section("websocket", 'allowed_origins = ["*"]', 'websocket.allowed_origins: "*" is allowed only in development'),
    section("websocket", f'allowed_origins = ["https://ok.test", "{CANARY}"]', f"websocket.allowed_origins: {ORIGIN}"),
    section("websocket", f'allowed_origins = ["https://*.{CANARY}"]', f"websocket.allowed_origins: {ORIGIN}"),
    section("websocket", 'allowed_origins = ["null"]', f"websocket.allowed_origins: {ORIGIN}"),
    section("websocket", 'trusted_proxies = ["0.0.0.0/0"]', "websocket.trusted_proxies: must not trust every address"),
    # unknown keys
    section("websocket", f'lissten = "{CANARY}"', "websocket.lissten: unknown key"),
    section("websocket", f'"{CANARY}\\n" = 1', "websocket.(unreadable): unknown key"),
    section("grcp", f'listen = "{CANARY}"', "grcp: unknown key"),
    # types
    section("websocket", "listen = 8080", "websocket.listen: must be a string"),
    section("websocket", f'max_connections = "{CANARY}"', "websocket.max_connections: must be an integer"),
    section("limits", 'managers_per_user = "5"', "limits.managers_per_user: must be an integer"),
    section("limits", "managers_per_user = true", "limits.managers_per_user: must be an integer"),
    section("limits", f'idle_timeout_s = "{CANARY}"', "limits.idle_timeout_s: must be a number"),
    section("limits", "idle_timeout_s = nan", "limits.idle_timeout_s: must be a finite number"),
    section("limits", "idle_timeout_s = inf", "limits.idle_timeout_s: must be a finite number"),
    section("grpc", f'reflection = "{CANARY}"', "grpc.reflection: must be true or false"),
    section("log", f'level = "{CANARY}"', 'log.level: must be "debug", "info", "warning" or "error"'),
    section("audit", "path = 7", "audit.path: must be a path"),
    section("audit", f'path = "{CANARY}\\u0000"', "audit.path: must be a path"),
    # limits: negative, absurd, at odds with each other
    section("limits", "managers_per_user = 0", "limits.managers_per_user: must be at least 1"),
    section("limits", "managers_per_user = -5", "limits.managers_per_user: must be at least 1"),
    section("limits", "managers_per_user = 1001", "limits.managers_per_user: must be at most 1000"),
    section("limits", f"max_managers = {'9' * 400}", "limits.max_managers: must be at most 10000000"),
    section("limits", "hello_timeout_s = 0", "limits.hello_timeout_s: must be at least 0.1"),
    section("limits", "max_message_bytes = 67108865", "limits.max_message_bytes: must be at most 67108864"),
    section("outbox", "ttl_s = -1", "outbox.ttl_s: must be at least 0.1"),
    section("outbox", "resume_window_s = 86401", "outbox.resume_window_s: must be at most 86400"),
    section("context_tokens", "ttl_s = 0", "context_tokens.ttl_s: must be at least 1"),
    section("context_tokens", "ttl_s = 3601", "context_tokens.ttl_s: must be at most 3600"),
    section(
        "context_tokens",
        'client_scopes = ["close"]',
        'context_tokens.client_scopes[0]: must be "send", "emit" or "stats"',
    ),
    section(
        "limits",
        "idle_timeout_s = 59.9",
        "limits.idle_timeout_s: must not be shorter than limits.health_check_interval_s",
    ),
    section(
        "limits",
        "idle_timeout_s = 5\nhealth_check_interval_s = 6",
        "limits.idle_timeout_s: must not be shorter than limits.health_check_interval_s",
    ),
    section("outbox", "max_bytes = 262399", "outbox.max_bytes: must hold a message of limits.max_message_bytes + 256"),
    section("grpc", "max_request_bytes = 262144", "grpc.max_request_bytes: must be above limits.max_message_bytes"),
    section(
        "websocket",
        "bytes_per_second = 65535",
        "websocket.bytes_per_second: must not be below limits.max_inbound_bytes",
    ),
    # addresses
    section("websocket", f'listen = "{CANARY}"', f"websocket.listen: {TCP}"),
    section("websocket", 'listen = "127.0.0.1:65536"', f"websocket.listen: {TCP}"),
    section("websocket", f'listen = "unix:/run/{CANARY}"', f"websocket.listen: {TCP}"),
    section("grpc", f'listen = "unix:{CANARY}"', f"grpc.listen: {ANY}"),
    section("grpc", f'listen = "unix:/{CANARY * 10}"', f"grpc.listen: {ANY}"),
    section("grpc", 'listen = "0.0.0.0:0"', f"grpc.listen: {LOOPBACK}"),
    section("grpc", 'listen = "[::]:0"', f"grpc.listen: {LOOPBACK}"),
    section("grpc", f'listen = "{CANARY}.example:50051"', f"grpc.listen: {LOOPBACK}"),
    Case(
        "two listeners of one address",
        "grpc.listen: must not be the address of websocket.listen",
        {"websocket": 'listen = "127.0.0.1:8080"', "grpc": 'listen = "127.0.0.1:8080"'},
    ),
    Case(
        "two listeners of one port, one of them everywhere",
        "ops.listen: must not be the address of websocket.listen",
        {"websocket": 'listen = "127.0.0.1:8080"', "ops": 'listen = "0.0.0.0:8080"'},
    ),
    # what only development may
    section("grpc", "reflection = true", "grpc.reflection: is allowed only in development"),
    section(
        "websocket", 'listen = "0.0.0.0:0"', "websocket.listen: must be on loopback in development", development=True
    ),
    section("ops", 'listen = "0.0.0.0:0"', "ops.listen: must be on loopback in development", development=True),
    section(
        "grpc",
        'listen = "0.0.0.0:0"\nallow_insecure = true',
        "grpc.listen: must be on loopback in development",
        development=True,
    ),
    section(
        "storage",
        f'kind = "sqlite"\npath = "{CANARY}.db"',
        'storage.key_file: is required with storage.kind = "sqlite"',
    ),
    # what this version has not
    section("storage", f'kind = "{CANARY}"', 'storage.kind: must be "memory" or "sqlite"'),
    section(
        "cluster",
        f'kind = "nats"\nservers = ["nats://{CANARY}"]',
        'cluster.kind: "nats" is not supported by this version',
    ),
    # the file
    whole("an empty file", "", "user_tokens: issuer, audience and key_file are required outside development"),
    whole("no TOML", CANARY, "config: the file must be TOML (see end of document)"),
    whole(
        "no TOML in line 2", f'[grpc]\n{CANARY} = = "{CANARY}"', "config: the file must be TOML (see line 2, column 15)"
    ),
    whole(
        "a key twice",
        f'[grpc]\nlisten = "{CANARY}"\nlisten = "x"\n',
        "config: the file must be TOML (see line 3, column 13)",
    ),
    whole(
        "a section twice",
        f'[grpc]\n[ops]\nlisten = "{CANARY}"\n[grpc]\n',
        "config: the file must be TOML (see line 4, column 6)",
    ),
    whole("5,000 digits", f"a = {'9' * 5000}", "config: the file must be TOML"),
    whole("5,000 deep", f"a = {'[' * 5000}", "config: the file must be TOML"),
    whole("not UTF-8", CANARY.encode() + b"\xff", "config: the file must be UTF-8"),
    whole("256 KiB and more", b"#" * (256 * 1024 + 1), "config: the file must be at most 262144 bytes"),
    # the environment
    environment("SIDECAR_GRPC__LISTEN", CANARY, f"grpc.listen: {ANY}"),
    environment("SIDECAR_GRPC__LISTEN", "0.0.0.0:50051", f"grpc.listen: {LOOPBACK}"),
    environment("SIDECAR_GRPC__LISTEN", "", "grpc.listen: must not be empty"),
    environment("SIDECAR_GRPC__LISTEN", "\udcff", "grpc.listen: must be UTF-8"),
    environment("SIDECAR_GRPC__LISTEN__HOST", CANARY, "grpc.listen: must be a string"),
    environment("SIDECAR_GRPC__LISTN", CANARY, "grpc.listn: unknown key"),
    environment("SIDECAR_GRCP__LISTEN", CANARY, "grcp: unknown key"),
    environment("SIDECAR_GRPC", CANARY, "grpc: must be a table"),
    environment("SIDECAR_GRPC", '{"listen":' + CANARY, "grpc: must be a table"),
    environment("SIDECAR_LIMITS__MANAGERS_PER_USER", CANARY, "limits.managers_per_user: must be an integer"),
    environment("SIDECAR_LIMITS__MANAGERS_PER_USER", "-1", "limits.managers_per_user: must be at least 1"),
    environment(
        "SIDECAR_USER_TOKENS__ALGORITHMS", "HS256,none", "user_tokens.algorithms: must not allow unsigned tokens (none)"
    ),
    environment(
        "SIDECAR_USER_TOKENS__ALGORITHMS",
        "HS256,ES256",
        "user_tokens.algorithms: must not mix HMAC and asymmetric algorithms",
    ),
    environment(
        "SIDECAR_WEBSOCKET__ALLOWED_ORIGINS", "*", 'websocket.allowed_origins: "*" is allowed only in development'
    ),
    environment("SIDECAR_STORAGE__KIND", "sqlite", 'storage.path: is required with storage.kind = "sqlite"'),
    environment("SIDECAR_CLUSTER__KIND", "nats", 'cluster.kind: "nats" is not supported by this version'),
]


@pytest.fixture(scope="module")
def forker() -> Iterator[Forker]:
    with forking() as started:
        yield started


@pytest.fixture
def stage(tmp_path: Path, forker: Forker) -> Stage:
    return Stage(tmp_path / "start", forker)


@pytest.mark.parametrize("case", SETTINGS, ids=[case.name for case in SETTINGS])
def test_bad_settings_start_nothing(stage: Stage, case: Case) -> None:
    if case.file is None:
        stage.settle(**case.sections)
    else:
        stage.write("sidecar.toml", case.file)
    development = ("--dev",) if case.development else ()
    before = stage.seen()
    commands = [(*command, *development) for command in COMMANDS]
    assert stage.run(*commands, environment=case.environment) == [Done(78, "", [case.line])] * 2
    assert stage.seen() == before


NO_FILE = [
    pytest.param(lambda _: None, "config: the file cannot be read: No such file or directory", id="missing"),
    pytest.param(lambda stage: (stage.folder / CANARY).mkdir(), "config: must be a regular file", id="a folder"),
    pytest.param(lambda stage: os.mkfifo(stage.folder / CANARY), "config: must be a regular file", id="a pipe"),
]


@pytest.mark.parametrize(("make", "line"), NO_FILE)
def test_what_is_no_file_of_settings_starts_nothing(stage: Stage, make: Callable[[Stage], object], line: str) -> None:
    make(stage)
    before = stage.seen()
    assert stage.run(("serve", "--config", CANARY), ("check-config", CANARY)) == [Done(78, "", [line])] * 2
    assert stage.seen() == before


def test_good_settings_are_good(stage: Stage) -> None:
    """What the tables change one thing of would start."""
    stage.settle()
    before = stage.seen()
    assert stage.run(COMMANDS[1]) == [Done(0, "ok\n", [])]
    assert stage.seen() == before


def test_a_process_that_shares_nothing_ends_alike(stage: Stage) -> None:
    stage.settle(user_tokens=USER + 'algorithms = ["none"]')
    line = "user_tokens.algorithms: must not allow unsigned tokens (none)"
    for command in COMMANDS:
        assert stage.run_alone(*command) == Done(78, "", [line])
