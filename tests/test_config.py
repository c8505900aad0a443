"""Each rule of the settings: its one line, at the limit and one past it, and never the value."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from sidecar.config import (
    Config,
    ConfigError,
    GrpcSettings,
    LogSettings,
    TcpAddress,
    UnixAddress,
    UserTokenSettings,
    development_config,
    load_config,
    parse_address,
)

ROOT = Path(__file__).resolve().parent.parent
CANARY = "canary-7f3a"
ISSUER = '[user_tokens]\nissuer = "i"\naudience = "a"\nkey_file = "k"\n'


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "sidecar.toml"


def problem_of(file: Path, toml: str = "", **environ: str) -> str:
    """The one line that says why these settings cannot be used in service."""
    file.write_text(toml, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_config(file, environ).validate_for(development=False)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    return str(caught.value)


def load(file: Path, toml: str = "", **environ: str) -> Config:
    file.write_text(toml, encoding="utf-8")
    return load_config(file, environ)


ORIGIN_RULE = "each must be an exact origin as browsers send it: scheme://host[:port], in lower case"
LISTEN_RULE = "must be host:port, [IPv6]:port or unix: and an absolute path of at most 107 bytes"
TCP_RULE = "must be host:port or [IPv6]:port"
MEMBER_RULE = "each must match [A-Za-z0-9_.:@|-]{1,128}"
HOLDS_RULE = "must hold a message of limits.max_message_bytes + 256"
PLACE_RULE = "plain TCP must stay on loopback unless grpc.allow_insecure is true"

REFUSED = [
    # what is no key, or of another type
    (f"{CANARY.replace('-', '_')} = 1", "canary_7f3a: unknown key"),
    (f'"{CANARY} \\n" = 1', "(unreadable): unknown key"),
    ('_env_file = "canary-7f3a"', "_env_file: unknown key"),
    ('[websocket]\nlissten = "canary-7f3a"', "websocket.lissten: unknown key"),
    ('[websocket]\n"canary-7f3a\\n" = 1', "websocket.(unreadable): unknown key"),
    ('[user_tokens]\nisuer = "i"\naudience = "a"', "user_tokens.isuer: unknown key"),
    ('log = "canary-7f3a"', "log: must be a table"),
    ("log = []", "log: must be a table"),
    ('user_tokens = "canary-7f3a"', "user_tokens: must be a list"),
    ('user_tokens = ["canary-7f3a"]', "user_tokens[0]: must be a table"),
    ("[websocket]\nlisten = 8080", "websocket.listen: must be a string"),
    ('[websocket]\nallowed_origins = "https://canary-7f3a"', "websocket.allowed_origins: must be a list"),
    ("[websocket]\nallowed_origins = [7]", "websocket.allowed_origins[0]: must be a string"),
    ('[limits]\nmanagers_per_user = "canary-7f3a"', "limits.managers_per_user: must be an integer"),
    ('[limits]\nmanagers_per_user = "5"', "limits.managers_per_user: must be an integer"),
    ("[limits]\nmanagers_per_user = 5.0", "limits.managers_per_user: must be an integer"),
    ("[limits]\nmanagers_per_user = true", "limits.managers_per_user: must be an integer"),
    ('[limits]\nidle_timeout_s = "canary-7f3a"', "limits.idle_timeout_s: must be a number"),
    ("[limits]\nidle_timeout_s = nan", "limits.idle_timeout_s: must be a finite number"),
    ("[limits]\nidle_timeout_s = inf", "limits.idle_timeout_s: must be a finite number"),
    ("[limits]\nidle_timeout_s = 1979-05-27", "limits.idle_timeout_s: must be a number"),
    ('[grpc]\nreflection = "canary-7f3a"', "grpc.reflection: must be true or false"),
    ("[grpc]\nreflection = 1", "grpc.reflection: must be true or false"),
    ('[log]\nlevel = "canary-7f3a"', 'log.level: must be "debug", "info", "warning" or "error"'),
    ("[audit]\npath = 7", "audit.path: must be a path"),
    ('[audit]\npath = ""', "audit.path: must be a path"),
    ('[audit]\npath = "canary-7f3a\\u0000"', "audit.path: must be a path"),
    # negative and absurd
    ("[limits]\nmanagers_per_user = 0", "limits.managers_per_user: must be at least 1"),
    ("[limits]\nmanagers_per_user = -1", "limits.managers_per_user: must be at least 1"),
    ("[limits]\nmanagers_per_user = 1001", "limits.managers_per_user: must be at most 1000"),
    ("[limits]\nconnections_per_manager = 101", "limits.connections_per_manager: must be at most 100"),
    ("[limits]\nhello_timeout_s = 0", "limits.hello_timeout_s: must be at least 0.1"),
    ("[limits]\nmax_message_bytes = 67108865", "limits.max_message_bytes: must be at most 67108864"),
    (f"[limits]\nmax_managers = {'9' * 400}", "limits.max_managers: must be at most 10000000"),
    ("[limits]\nmessages_per_second_per_user = -0.1", "limits.messages_per_second_per_user: must be at least 0"),
    ("[outbox]\nresume_window_s = 86401", "outbox.resume_window_s: must be at most 86400"),
    ("[outbox]\nttl_s = -1", "outbox.ttl_s: must be at least 0.1"),
    ("[context_tokens]\nttl_s = 3601", "context_tokens.ttl_s: must be at most 3600"),
    ("[context_tokens]\nttl_s = 0", "context_tokens.ttl_s: must be at least 1"),
    ("[streams]\nidle_timeout_s = 0", "streams.idle_timeout_s: must be at least 0.1"),
    (f'[user_tokens]\nissuer = "{CANARY * 100}"', "user_tokens.issuer: must be at most 1024 characters"),
    (
        f"[websocket]\nallowed_origins = {['https://a'] * 1001}",
        "websocket.allowed_origins: must hold at most 1000 entries",
    ),
    # addresses
    ('[websocket]\nlisten = "canary-7f3a"', f"websocket.listen: {TCP_RULE}"),
    ('[websocket]\nlisten = ":8080"', f"websocket.listen: {TCP_RULE}"),
    ('[websocket]\nlisten = "127.0.0.1:65536"', f"websocket.listen: {TCP_RULE}"),
    ('[websocket]\nlisten = "127.0.0.300:1"', f"websocket.listen: {TCP_RULE}"),
    ('[websocket]\nlisten = "unix:/run/canary-7f3a"', f"websocket.listen: {TCP_RULE}"),
    ('[ops]\nlisten = "[::g]:1"', f"ops.listen: {TCP_RULE}"),
    ('[grpc]\nlisten = ""', "grpc.listen: must not be empty"),
    ('[grpc]\nlisten = "unix:canary-7f3a"', f"grpc.listen: {LISTEN_RULE}"),
    ('[grpc]\nlisten = "unix:/a\\u0000"', f"grpc.listen: {LISTEN_RULE}"),
    (f'[grpc]\nlisten = "unix:/{"a" * 107}"', f"grpc.listen: {LISTEN_RULE}"),
    ('[grpc]\nlisten = "0.0.0.0:50051"', f"grpc.listen: {PLACE_RULE}"),
    ('[grpc]\nlisten = "canary-7f3a.example:50051"', f"grpc.listen: {PLACE_RULE}"),
    ('[grpc]\nlisten = "127.0.0.1:8080"', "grpc.listen: must not be the address of websocket.listen"),
    ('[ops]\nlisten = "0.0.0.0:8080"', "ops.listen: must not be the address of websocket.listen"),
    ('[ops]\nlisten = "localhost:50051"', "ops.listen: must not be the address of grpc.listen"),
    # origins and proxies
    (
        '[websocket]\nallowed_origins = ["*"]\n' + ISSUER,
        'websocket.allowed_origins: "*" is allowed only in development',
    ),
    *(
        (
            f'[websocket]\nallowed_origins = ["https://ok.example", "{origin}"]',
            f"websocket.allowed_origins: {ORIGIN_RULE}",
        )
        for origin in [
            CANARY,
            "null",
            "https://a.example/",
            "https://a.example:443",
            "http://a.example:80",
            "https://a.example:65536",
            "https://A.example",
            "https://*.example",
            "https://user@a.example",
            "https://a.example?b",
            "//a.example",
        ]
    ),
    (
        '[websocket]\ntrusted_proxies = ["canary-7f3a"]',
        "websocket.trusted_proxies: each must be an IP address or a network in CIDR form",
    ),
    ('[websocket]\ntrusted_proxies = ["0.0.0.0/0"]', "websocket.trusted_proxies: must not trust every address"),
    # user tokens
    ("", "user_tokens: issuer, audience and key_file are required outside development"),
    ("user_tokens = []", "user_tokens: issuer, audience and key_file are required outside development"),
    ('[user_tokens]\naudience = "a"\nkey_file = "k"', "user_tokens.issuer: is required"),
    ('[user_tokens]\nissuer = "i"\nkey_file = "k"', "user_tokens.audience: is required"),
    ('[user_tokens]\nissuer = "i"\naudience = "a"', "user_tokens.key_file: is required"),
    (ISSUER + "algorithms = []", "user_tokens.algorithms: must name at least one algorithm"),
    (ISSUER + 'algorithms = ["none"]', "user_tokens.algorithms: must not allow unsigned tokens (none)"),
    (ISSUER + 'algorithms = ["HS256", "nOnE"]', "user_tokens.algorithms: must not allow unsigned tokens (none)"),
    (
        ISSUER + 'algorithms = ["HS256", "RS256"]',
        "user_tokens.algorithms: must not mix HMAC and asymmetric algorithms",
    ),
    (
        ISSUER + 'algorithms = ["canary-7f3a"]',
        "user_tokens.algorithms: must name only supported algorithms (ES256 ES384 ES512 EdDSA HS256 HS384 HS512 PS256 "
        "PS384 PS512 RS256 RS384 RS512)",
    ),
    (ISSUER + "tenants = []", "user_tokens.tenants: must not be empty"),
    (ISSUER + 'tenants = ["canary-7f3a/"]', f"user_tokens.tenants: {MEMBER_RULE}"),
    (
        '[user_tokens]\nissuer = "i"\naudience = "a"\njwks_url = "http://canary-7f3a"',
        "user_tokens.jwks_url: must begin with https://",
    ),
    (
        '[user_tokens]\nissuer = "i"\naudience = "a"\njwks_url = "https://canary-7f3a"',
        "user_tokens.jwks_url: not supported by this version; give key_file",
    ),
    (
        '[[user_tokens]]\nissuer = "i"\naudience = "a"\nkey_file = "k"\n[[user_tokens]]\nissuer = "j"',
        "user_tokens[1].audience: is required",
    ),
    (
        '[[user_tokens]]\nissuer = "i"\naudience = "a"\nkey_file = "k"\ntenants = ["t"]\n'
        '[[user_tokens]]\nissuer = "j"\naudience = "a"\nkey_file = "k"',
        "user_tokens.tenants: each of several issuers must name its tenants",
    ),
    (
        '[[user_tokens]]\nissuer = "i"\naudience = "a"\nkey_file = "k"\ntenants = ["t"]\n'
        '[[user_tokens]]\nissuer = "j"\naudience = "a"\nkey_file = "k"\ntenants = ["s", "t"]',
        "user_tokens.tenants: a tenant must not have two issuers",
    ),
    (
        '[[user_tokens]]\nissuer = "i"\naudience = "a"\nkey_file = "k"\ntenants = ["t"]\n'
        '[[user_tokens]]\nissuer = "i"\naudience = "a"\nkey_file = "k"\ntenants = ["s"]',
        "user_tokens.issuer: an issuer must not be repeated",
    ),
    # what this version does not have, or only development
    ('[storage]\nkind = "sqlite"', 'storage.path: is required with storage.kind = "sqlite"'),
    ('[storage]\nkind = "sqlite"\npath = "a"', 'storage.key_file: is required with storage.kind = "sqlite"'),
    ('[storage]\nkind = "sqlite"\npath = "a"\nkey_file = "a"', "storage.key_file: must not be the database"),
    (
        '[storage]\nkind = "sqlite"\npath = "a"\nkey_file = "b"',
        'context_tokens.key_file: is required with storage.kind = "sqlite"',
    ),
    ("[drain]\ngrace_s = 27.9", "drain.grace_s: must be at least 8 seconds longer than drain.window_s"),
    ("[drain]\nwindow_s = -1", "drain.window_s: must be at least 0"),
    ('[storage]\nkind = "canary-7f3a"', 'storage.kind: must be "memory" or "sqlite"'),
    ('[cluster]\nkind = "nats"\nservers = ["s"]', 'cluster.kind: "nats" is not supported by this version'),
    ("[grpc]\nreflection = true\n" + ISSUER, "grpc.reflection: is allowed only in development"),
    (
        '[context_tokens]\nclient_scopes = ["send", "close"]',
        'context_tokens.client_scopes[1]: must be "send", "emit" or "stats"',
    ),
    # between keys
    (
        "[limits]\nidle_timeout_s = 59.9",
        "limits.idle_timeout_s: must not be shorter than limits.health_check_interval_s",
    ),
    ("[outbox]\nmax_bytes = 262399", f"outbox.max_bytes: {HOLDS_RULE}"),
    ("[outbox]\ncritical_reserve_bytes = 262399", f"outbox.critical_reserve_bytes: {HOLDS_RULE}"),
    ("[limits]\nqueued_bytes_per_user = 262399", f"limits.queued_bytes_per_user: {HOLDS_RULE}"),
    ("[grpc]\nmax_request_bytes = 262144", "grpc.max_request_bytes: must be above limits.max_message_bytes"),
    (
        "[websocket]\nbytes_per_second = 65535",
        "websocket.bytes_per_second: must not be below limits.max_inbound_bytes",
    ),
    # the file itself
    ("canary-7f3a", "config: the file must be TOML (see end of document)"),
    ("[a]\ncanary = = 7", "config: the file must be TOML (see line 2, column 10)"),
    (f"a = {'9' * 5000}", "config: the file must be TOML"),
    (f"a = {'[' * 5000}", "config: the file must be TOML"),
]


@pytest.mark.parametrize(("toml", "line"), REFUSED, ids=[line for _, line in REFUSED])
def test_refused_by_name_and_rule(file: Path, toml: str, line: str) -> None:
    assert problem_of(file, toml) == line
    assert CANARY not in line


ACCEPTED = [
    "",
    'user_tokens = [{issuer = "i", audience = "a", key_file = "k"}]',
    "[limits]\nmanagers_per_user = 1\nconnections_per_manager = 100",
    "[limits]\nmanagers_per_user = 1000",
    "[limits]\nidle_timeout_s = 60",
    "[limits]\nidle_timeout_s = 2\nhealth_check_interval_s = 2",
    "[outbox]\nresume_window_s = 86400\nmax_bytes = 262400\ncritical_reserve_bytes = 262400",
    "[outbox]\nresume_window_s = 0\ncritical_reserve = 0\ncritical_reserve_bytes = 0",
    "[limits]\nqueued_bytes_per_user = 262400",
    "[grpc]\nmax_request_bytes = 262145",
    "[websocket]\nbytes_per_second = 65536",
    "[context_tokens]\nttl_s = 3600\nclient_scopes = []",
    '[websocket]\nlisten = "127.0.0.1:0"\n[grpc]\nlisten = "127.0.0.1:0"\n[ops]\nlisten = "127.0.0.1:0"',
    '[websocket]\nlisten = "[::1]:9000"\n[ops]\nlisten = "127.0.0.1:9000"',
    '[websocket]\nlisten = "0.0.0.0:8080"\n[grpc]\nlisten = "0.0.0.0:50051"\nallow_insecure = true',
    f'[grpc]\nlisten = "unix:/{"a" * 106}"',
    '[grpc]\nlisten = "127.9.9.9:1"',
    '[grpc]\nlisten = "[::1]:1"',
    '[grpc]\nlisten = "localhost:1"',
    '[websocket]\nallowed_origins = ["https://a.example", "http://127.0.0.1:8081", "http://[::1]:1", "capacitor://localhost"]',
    '[websocket]\ntrusted_proxies = ["10.0.0.0/8", "::1", "192.0.2.7"]',
    '[storage]\nkind = "memory"\npath = "p"\nkey_file = "k"\n[cluster]\nkind = "none"\nservers = ["s"]\nname = "n"',
    ISSUER + 'algorithms = ["ES256", "EdDSA"]\nkey_id = "1"\ntenants = ["t", "t"]',
    '[[user_tokens]]\nissuer = "i"\naudience = "a"\nkey_file = "k"\ntenants = ["t"]\n'
    '[[user_tokens]]\nissuer = "j"\naudience = "a"\nkey_file = "k"\ntenants = ["s"]',
]


@pytest.mark.parametrize("toml", ACCEPTED)
def test_accepted_at_the_limit(file: Path, toml: str) -> None:
    assert isinstance(load(file, toml), Config)


def test_the_defaults_are_the_designs() -> None:
    config = load_config(None, {})
    assert (config.websocket.listen, config.grpc.listen, config.ops.listen) == (
        "127.0.0.1:8080",
        "127.0.0.1:50051",
        "127.0.0.1:8081",
    )
    assert (config.limits.managers_per_user, config.limits.connections_per_manager) == (5, 10)
    assert (config.limits.idle_timeout_s, config.limits.health_check_interval_s) == (1800, 60)
    assert (config.limits.hello_timeout_s, config.limits.max_message_bytes, config.limits.max_inbound_bytes) == (
        10,
        262144,
        65536,
    )
    assert (config.outbox.resume_window_s, config.outbox.max_messages, config.outbox.max_bytes) == (120, 10000, 2097152)
    assert (config.outbox.ttl_s, config.outbox.critical_reserve, config.outbox.critical_reserve_bytes) == (
        120,
        100,
        1048576,
    )
    assert (config.context_tokens.ttl_s, config.context_tokens.client_scopes) == (900, ("send", "emit", "stats"))
    assert (config.streams.idle_timeout_s, config.storage.kind, config.cluster.kind) == (120, "memory", "none")
    assert config.websocket.allowed_origins == ()


def test_nothing_in_it_can_be_changed() -> None:
    config = Config()
    with pytest.raises(ValidationError):
        config.grpc = GrpcSettings()
    with pytest.raises(ValidationError):
        config.grpc.listen = "127.0.0.1:1"


def test_nothing_is_read_behind_its_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIDECAR_GRPC__LISTEN", "127.0.0.1:1")
    assert load_config(None, {}).grpc.listen == Config().grpc.listen == "127.0.0.1:50051"


# --- the environment --------------------------------------------------------------------------------------------------


def test_the_environment_beats_the_file_key_by_key(file: Path) -> None:
    config = load(
        file,
        '[grpc]\nlisten = "127.0.0.1:1"\nmax_concurrent_calls = 7\n' + ISSUER,
        SIDECAR_GRPC__LISTEN="unix:/run/sidecar/grpc.sock",
        SIDECAR_GRPC__ALLOW_INSECURE="true",
        SIDECAR_LIMITS__IDLE_TIMEOUT_S="900.5",
        SIDECAR_LIMITS__MANAGERS_PER_USER="6",
        SIDECAR_USER_TOKENS__KEY_FILE="/run/secrets/key",
        SIDECAR_USER_TOKENS__TENANTS="t, s",
        sidecar_audit__path="trail.jsonl",
    )
    assert (config.grpc.listen, config.grpc.max_concurrent_calls) == ("unix:/run/sidecar/grpc.sock", 7)
    assert config.grpc.allow_insecure is True
    assert (config.limits.idle_timeout_s, config.limits.managers_per_user) == (900.5, 6)
    assert config.user_tokens == (
        UserTokenSettings(issuer="i", audience="a", key_file=Path("/run/secrets/key"), tenants=("t", "s")),
    )
    assert config.audit.path == Path("trail.jsonl")


def test_everything_can_come_from_the_environment() -> None:
    environ = {
        "SIDECAR_USER_TOKENS__ISSUER": "i",
        "SIDECAR_USER_TOKENS__AUDIENCE": "a",
        "SIDECAR_USER_TOKENS__KEY_FILE": "k",
        "SIDECAR_USER_TOKENS__ALGORITHMS": "RS256,ES256",
    }
    config = load_config(None, environ)
    config.validate_for(development=False)
    assert config.user_tokens[0].algorithms == ("RS256", "ES256")


@pytest.mark.parametrize("text", ['["https://a.example", "https://b.example"]', "https://a.example,https://b.example"])
def test_a_list_is_json_or_separated_by_commas(text: str) -> None:
    config = load_config(None, {"SIDECAR_WEBSOCKET__ALLOWED_ORIGINS": text})
    assert config.websocket.allowed_origins == ("https://a.example", "https://b.example")


def test_a_section_is_one_json_object(file: Path) -> None:
    issuers = '[{"issuer":"i","audience":"a","key_file":"k"}]'
    config = load(file, '[log]\nformat = "console"', SIDECAR_LOG='{"level":"debug"}', SIDECAR_USER_TOKENS=issuers)
    assert config.log == LogSettings(format="console", level="debug")
    assert config.user_tokens[0].issuer == "i"


def test_what_clients_read_is_not_ours() -> None:
    environ = {
        "SIDECAR_GRPC_ENDPOINT": CANARY,
        "SIDECAR_SERVICE_TOKEN": CANARY,
        "SIDECAR_GRPC_SERVICE_HOST": "10.0.0.1",
        "SIDECAR_PORT": "tcp://10.0.0.1:1",
        "OTHER__KEY": CANARY,
    }
    assert load_config(None, environ) == Config()


@pytest.mark.parametrize(
    ("name", "value", "line"),
    [
        ("SIDECAR_GRPC__LISTN", CANARY, "grpc.listn: unknown key"),
        ("SIDECAR_GRPC__", CANARY, "grpc.(unreadable): unknown key"),
        ("SIDECAR_GRPC__LISTEN__HOST", CANARY, "grpc.listen: must be a string"),
        ("SIDECAR_GRCP__LISTEN", CANARY, "grcp: unknown key"),
        ("SIDECAR___LISTEN", CANARY, "(unreadable): unknown key"),
        ("SIDECAR_USER_TOKENS__ISUER", CANARY, "user_tokens.isuer: unknown key"),
        ("SIDECAR_GRPC", CANARY, "grpc: must be a table"),
        ("SIDECAR_GRPC", "[" * 100_000, "grpc: must be a table"),
        ("SIDECAR_GRPC", '{"listen":' + CANARY, "grpc: must be a table"),
        ("SIDECAR_LIMITS__MAX_MANAGERS", CANARY, "limits.max_managers: must be an integer"),
        ("SIDECAR_LIMITS__MAX_MANAGERS", "", "limits.max_managers: must be an integer"),
        ("SIDECAR_LIMITS__IDLE_TIMEOUT_S", "nan", "limits.idle_timeout_s: must be a finite number"),
        ("SIDECAR_GRPC__REFLECTION", CANARY, "grpc.reflection: must be true or false"),
        ("SIDECAR_GRPC__LISTEN", "\udc80", "grpc.listen: must be UTF-8"),
        ("SIDECAR_WEBSOCKET__ALLOWED_ORIGINS", CANARY, f"websocket.allowed_origins: {ORIGIN_RULE}"),
        ("SIDECAR_WEBSOCKET__ALLOWED_ORIGINS", "", "websocket.allowed_origins: must be a list"),
        ("SIDECAR_WEBSOCKET__ALLOWED_ORIGINS", "[" + CANARY, "websocket.allowed_origins: must be a list"),
    ],
)
def test_the_environment_is_held_to_the_same_rules(file: Path, name: str, value: str, line: str) -> None:
    assert problem_of(file, "", **{name: value}) == line


def test_a_file_s_array_of_issuers_is_not_changed_key_by_key(file: Path) -> None:
    issuers = '[[user_tokens]]\nissuer = "i"\naudience = "a"\nkey_file = "k"'
    line = "user_tokens: an array of tables cannot be changed key by key from the environment"
    assert problem_of(file, issuers, SIDECAR_USER_TOKENS__ISSUER=CANARY) == line


def test_a_file_s_section_that_is_no_table_stays_one(file: Path) -> None:
    assert problem_of(file, 'log = "x"', SIDECAR_LOG__LEVEL="info") == "log: must be a table"


# --- the file ---------------------------------------------------------------------------------------------------------


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"\Aconfig: the file cannot be read: No such file or directory\Z"):
        load_config(tmp_path / CANARY, {})


def test_a_file_that_is_not_utf8(file: Path) -> None:
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"\Aconfig: the file must be UTF-8\Z"):
        load_config(file, {})


# --- development ------------------------------------------------------------------------------------------------------


def test_development_needs_no_settings() -> None:
    config = development_config()
    assert (config.grpc.reflection, config.log.format) == (True, "console")
    assert config.websocket.address.is_loopback


def test_development_keeps_what_is_set(file: Path) -> None:
    config = load(
        file, '[grpc]\nreflection = false\nlisten = "unix:/run/s"\n[log]\nformat = "json"\n[drain]\nwindow_s = 2'
    )
    assert development_config(config) == config


def test_development_allows_every_origin_and_reflection(file: Path) -> None:
    config = load(file, '[websocket]\nallowed_origins = ["*"]\n[grpc]\nreflection = true')
    assert development_config(config).websocket.allowed_origins == ("*",)


@pytest.mark.parametrize("section", ["websocket", "grpc", "ops"])
def test_development_stays_on_loopback(file: Path, section: str) -> None:
    config = load(file, f'[{section}]\nlisten = "0.0.0.0:9000"', SIDECAR_GRPC__ALLOW_INSECURE="true")
    with pytest.raises(ConfigError, match=rf"\A{section}\.listen: must be on loopback in development\Z"):
        development_config(config)


def test_complete_settings_are_fit_for_service(file: Path) -> None:
    load(file, ISSUER).validate_for(development=False)


# --- addresses --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:8080", TcpAddress("127.0.0.1", 8080)),
        ("[::1]:65535", TcpAddress("::1", 65535)),
        ("sidecar.example:0", TcpAddress("sidecar.example", 0)),
        ("unix:/run/s", UnixAddress("/run/s")),
    ],
)
def test_an_address_is_read_and_written_alike(text: str, address: TcpAddress | UnixAddress) -> None:
    assert parse_address(text) == address
    assert str(address) == text


def test_the_page_of_the_settings_is_current() -> None:
    command = [sys.executable, str(ROOT / "scripts" / "generate_configuration_doc.py"), "--check"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={"PYTHONPATH": str(ROOT)}, timeout=30
    )
    assert (done.returncode, done.stderr) == (0, "")
