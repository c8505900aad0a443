"""The settings: one frozen `Config` from a TOML file and the environment, which beats the file.

Opens nothing but that file: no socket, no key file. Every problem is a `ConfigError` of one line that names the setting
and the rule and never holds the value.
"""

from __future__ import annotations

import ipaddress
import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, PydanticCustomError
from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from sidecar.core.identity import IDENTIFIER
from sidecar.core.message import MESSAGE_OVERHEAD_BYTES
from sidecar.security.files import SettingError, read_file
from sidecar.security.keys import check_algorithms

ENVIRONMENT_PREFIX: Final = "SIDECAR_"

_NESTED: Final = "__"
_MAX_UNIX_PATH_BYTES: Final = 107
_HOST: Final = r"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]{0,251}[A-Za-z0-9])?|\[[0-9A-Fa-f:.]{2,45}\])"
_TCP: Final = re.compile(rf"({_HOST}):([0-9]{{1,5}})")
_ORIGIN: Final = re.compile(
    r"([a-z][a-z0-9+.-]{0,30})://([a-z0-9._-]{1,253}|\[[0-9a-f:.]{2,45}\])(?::([1-9][0-9]{0,4}))?"
)
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_KEY_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
_TOML_PLACE: Final = re.compile(r"\(at (line [0-9]+, column [0-9]+|end of document)\)$")
_RULES: Final = {
    "extra_forbidden": "unknown key",
    "missing": "is required",
    "string_type": "must be a string",
    "string_unicode": "must be UTF-8",
    "string_too_short": "must not be empty",
    "string_too_long": "must be at most {max_length} characters",
    "int_type": "must be an integer",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "bool_type": "must be true or false",
    "tuple_type": "must be a list",
    "too_short": "must not be empty",
    "too_long": "must hold at most {max_length} entries",
    "model_type": "must be a table",
    "literal_error": "must be {expected}",
    "greater_than_equal": "must be at least {ge}",
    "less_than_equal": "must be at most {le}",
}


class ConfigError(SettingError):
    """A setting that is missing, unknown or breaks a rule. At start-up: exit 78."""


class StartError(Exception):
    """What keeps the sidecar from starting though its settings are good, such as a port in use: one line. Exit 1."""


@dataclass(frozen=True, slots=True)
class TcpAddress:
    """A host (without the brackets of IPv6) and a port; port 0 is any free one."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def is_wildcard(self) -> bool:
        """Whether it is every interface of the machine."""
        return self.host in {"0.0.0.0", "::"}  # noqa: S104 - compared, not bound

    def clashes_with(self, other: TcpAddress) -> bool:
        """Whether both cannot be listened on at once."""
        if self.port != other.port or not self.port:
            return False
        return self._bound_host == other._bound_host or self.is_wildcard or other.is_wildcard

    @property
    def _bound_host(self) -> str:
        return "127.0.0.1" if self.host == "localhost" else self.host


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """The absolute path of a Unix socket."""

    path: str

    def __str__(self) -> str:
        return f"unix:{self.path}"


def _rule(text: str) -> PydanticCustomError:
    # Handed over as a value: pydantic fills in braces of the template, and a rule is not one.
    return PydanticCustomError("rule", "{rule}", {"rule": text})


def parse_address(text: str) -> TcpAddress | UnixAddress:
    """Read `host:port`, `[IPv6]:port` or `unix:/path`. Raises ValueError."""
    if text.startswith("unix:"):
        path = text.removeprefix("unix:")
        if not path.startswith("/") or "\0" in path or len(path.encode()) > _MAX_UNIX_PATH_BYTES:
            raise ValueError("not a socket path")
        return UnixAddress(path)
    found = _TCP.fullmatch(text)
    if found is None or int(found[2]) > 65535:
        raise ValueError("not a TCP address")
    host = found[1].strip("[]")
    if found[1] != host or host.replace(".", "").isdigit():
        ipaddress.ip_address(host)
    return TcpAddress(host, int(found[2]))


def _tcp_listen(text: str) -> str:
    try:
        if isinstance(parse_address(text), TcpAddress):
            return text
    except ValueError:
        pass
    raise _rule("must be host:port or [IPv6]:port")


def _listen(text: str) -> str:
    try:
        parse_address(text)
    except ValueError:
        raise _rule(
            f"must be host:port, [IPv6]:port or unix: and an absolute path of at most {_MAX_UNIX_PATH_BYTES} bytes"
        ) from None
    return text


def _path(value: object) -> Path:
    if isinstance(value, Path):
        return value
    if not isinstance(value, str) or not value or "\0" in value:
        raise _rule("must be a path")
    return Path(value)


def _as_tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


def _origins(origins: tuple[str, ...]) -> tuple[str, ...]:
    for origin in origins:
        if origin != "*" and not _is_origin(origin):
            raise _rule("each must be an exact origin as browsers send it: scheme://host[:port], in lower case")
    return origins


def _is_origin(text: str) -> bool:
    found = _ORIGIN.fullmatch(text)
    if found is None:
        return False
    port = int(found[3] or 0)
    return port <= 65535 and port != _DEFAULT_PORTS.get(found[1], -1)


def _networks(networks: tuple[str, ...]) -> tuple[str, ...]:
    try:
        lengths = [ipaddress.ip_network(network).prefixlen for network in networks]
    except ValueError:
        raise _rule("each must be an IP address or a network in CIDR form") from None
    if 0 in lengths:
        raise _rule("must not trust every address")
    return networks


def _algorithms(names: tuple[str, ...]) -> tuple[str, ...]:
    try:
        check_algorithms(names)
    except SettingError as error:
        raise _rule(error.rule) from None
    return names


def _identifiers(names: tuple[str, ...]) -> tuple[str, ...]:
    if not all(IDENTIFIER.fullmatch(name) for name in names):
        raise _rule(f"each must match {IDENTIFIER.pattern}")
    return names


def _jwks_url(url: str) -> str:
    if not url.startswith("https://"):
        raise _rule("must begin with https://")
    raise _rule("not supported by this version; give key_file")


def _memory_only(kind: str) -> str:
    if kind == "sqlite":
        raise _rule('"sqlite" is not supported by this version')
    return kind


def _alone_only(kind: str) -> str:
    if kind == "nats":
        raise _rule('"nats" is not supported by this version')
    return kind


Text = Annotated[str, Field(min_length=1, max_length=1024)]
Texts = Annotated[tuple[Text, ...], BeforeValidator(_as_tuple), Field(max_length=1000)]
FilePath = Annotated[Path, BeforeValidator(_path)]
Seconds = Annotated[float, Field(allow_inf_nan=False)]

DAY_S: Final = 86_400
MIB: Final = 1024 * 1024


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, hide_input_in_errors=True)


class WebSocketSettings(_Section):
    """The edge that browsers and phones connect to."""

    listen: Annotated[Text, AfterValidator(_tcp_listen)] = Field(
        default="127.0.0.1:8080", description="Address of the WebSocket listener: host:port."
    )
    allowed_origins: Annotated[Texts, AfterValidator(_origins)] = Field(
        default=(),
        description="Exact origins of the pages that may connect: scheme://host[:port]. Empty admits no browser; "
        'clients that send no Origin are always let in. "*" (any page) only in development.',
    )
    trusted_proxies: Annotated[Texts, AfterValidator(_networks)] = Field(
        default=(),
        description="Addresses or networks (CIDR) of the proxies whose X-Forwarded-For is believed. Empty: nobody's.",
    )
    frames_per_second: int = Field(
        default=100, ge=1, le=100_000, description="Frames that one socket may send a second."
    )
    bytes_per_second: int = Field(
        default=MIB,
        ge=1,
        le=1024 * MIB,
        description="Bytes that one socket may send a second; at least limits.max_inbound_bytes.",
    )
    max_connections: int = Field(
        default=20_000, ge=1, le=1_000_000, description="Sockets open at once, all users together."
    )
    max_handshakes: int = Field(default=1_000, ge=1, le=100_000, description="Handshakes under way at once.")
    handshake_timeout_s: Seconds = Field(default=5.0, ge=0.1, le=60, description="Seconds for a handshake.")
    connects_per_second_per_address: Seconds = Field(
        default=50.0,
        ge=0,
        le=100_000,
        description="Handshakes a second from one address; 0 is no limit. Loopback has none.",
    )
    failures_per_second_per_address: Seconds = Field(
        default=10.0,
        ge=0,
        le=100_000,
        description="Refused tokens a second from one address; 0 is no limit. Not loopback.",
    )

    @property
    def address(self) -> TcpAddress:
        """`listen`, taken apart."""
        return _tcp(self.listen)


class GrpcSettings(_Section):
    """The edge that agent services call."""

    listen: Annotated[Text, AfterValidator(_listen)] = Field(
        default="127.0.0.1:50051", description="Address of the gRPC listener: host:port, or unix:/path of a socket."
    )
    allow_insecure: bool = Field(
        default=False,
        description="Let a TCP listener without TLS leave loopback, where something else encrypts and isolates.",
    )
    reflection: bool = Field(
        default=False, description="Serve gRPC reflection; only in development, where it is on unless set."
    )
    max_concurrent_calls: int = Field(
        default=1_000, ge=1, le=100_000, description="Calls under way at once, streams included."
    )
    max_request_bytes: int = Field(
        default=4 * MIB,
        ge=1024,
        le=256 * MIB,
        description="Bytes of one request message; above limits.max_message_bytes.",
    )

    @property
    def address(self) -> TcpAddress | UnixAddress:
        """`listen`, taken apart."""
        return parse_address(self.listen)


class OpsSettings(_Section):
    """The edge for operators: health, metrics, dashboard."""

    listen: Annotated[Text, AfterValidator(_tcp_listen)] = Field(
        default="127.0.0.1:8081", description="Address of the operations listener: host:port."
    )

    @property
    def address(self) -> TcpAddress:
        """`listen`, taken apart."""
        return _tcp(self.listen)


class ServiceAuthSettings(_Section):
    """How agent services and operators say who they are."""

    token_file: FilePath | None = Field(
        default=None,
        description="File (0600) of the service tokens, a line each; read again when it changes. None: nobody can call "
        "what needs a service identity.",
    )


class UserTokenSettings(_Section):
    """An identity provider whose user tokens are believed. One table, or an array of tables for several issuers."""

    issuer: Text = Field(description="The `iss` claim, exact.")
    audience: Text = Field(description="The `aud` claim, exact.")
    algorithms: Annotated[Texts, AfterValidator(_algorithms)] = Field(
        default=("HS256",), description="Signature algorithms, all HMAC or all asymmetric."
    )
    key_file: FilePath | None = Field(
        default=None,
        description="For HMAC the secret's bytes, at least 32 (mode 0600); else a PEM public key or a JWK Set. "
        "Required.",
    )
    key_id: Annotated[Text, Field(max_length=256)] | None = Field(
        default=None, description="The `kid` of the key in an HMAC or PEM file. None: tokens name no kid."
    )
    tenants: Annotated[Texts, Field(min_length=1), AfterValidator(_identifiers)] | None = Field(
        default=None,
        description="The `tid` claims that this issuer may use. None: any, and only for a single issuer; no tenant has "
        "two.",
    )
    jwks_url: Annotated[Text, AfterValidator(_jwks_url)] | None = Field(
        default=None, description="Address of the issuer's key set (https). Not supported by this version."
    )


class ContextTokenSettings(_Section):
    """The tokens that the sidecar mints."""

    key_file: FilePath | None = Field(
        default=None,
        description="File of the signing keys, made with mode 0600 where there is none; what was revoked is kept "
        "beside it. None: both live in memory and tokens end with the process.",
    )
    issuer: Text = Field(default="ws-sidecar", description="The `iss` claim of context tokens.")
    ttl_s: int = Field(default=900, ge=1, le=3600, description="Seconds that a context token lives.")
    rotation_s: int = Field(
        default=DAY_S, ge=3600, le=90 * DAY_S, description="Seconds until a new signing key takes over."
    )
    client_scopes: Annotated[tuple[Literal["send", "emit", "stats"], ...], BeforeValidator(_as_tuple)] = Field(
        default=("send", "emit", "stats"),
        description="Scopes of the context token that a client is given in `welcome`.",
    )


class LimitSettings(_Section):
    """Bounds of users, managers and sockets."""

    managers_per_user: int = Field(default=5, ge=1, le=1_000, description="Managers (connection contexts) of one user.")
    connections_per_manager: int = Field(
        default=10, ge=1, le=100, description="Sockets of one manager: a primary and mirrors."
    )
    max_managers: int = Field(default=100_000, ge=1, le=10_000_000, description="Managers at once, all users together.")
    idle_timeout_s: Seconds = Field(
        default=1800.0, ge=0.1, le=7 * DAY_S, description="Seconds without activity after which a context ends."
    )
    health_check_interval_s: Seconds = Field(
        default=60.0, ge=0.05, le=3600, description="Seconds between pings to a socket."
    )
    hello_timeout_s: Seconds = Field(
        default=10.0, ge=0.1, le=300, description="Seconds for the first frame after the upgrade."
    )
    pong_timeout_s: Seconds = Field(default=20.0, ge=0.05, le=3600, description="Seconds that a pong may be overdue.")
    slow_consumer_timeout_s: Seconds = Field(
        default=30.0,
        ge=0.05,
        le=3600,
        description="Seconds that a socket may take nothing while something waits for it.",
    )
    max_message_bytes: int = Field(default=262_144, ge=1, le=64 * MIB, description="Bytes of one payload to a client.")
    max_inbound_bytes: int = Field(
        default=65_536, ge=1024, le=16 * MIB, description="Bytes of one message from a client."
    )
    queued_bytes_per_user: int = Field(
        default=16 * MIB,
        ge=1,
        le=16 * 1024 * MIB,
        description="Bytes queued for one user in all managers, payload + 256 a message. Over it written messages of "
        "the context that is sent to give way, as in a full outbox, or the send is refused USER_LIMIT.",
    )
    messages_per_second_per_user: Seconds = Field(
        default=0.0, ge=0, le=10_000_000, description="Messages a second to one user; 0 is no limit."
    )


class OutboxSettings(_Section):
    """Bounds of each manager's recovery queue."""

    resume_window_s: Seconds = Field(
        default=120.0, ge=0, le=DAY_S, description="Seconds that a detached context waits."
    )
    max_messages: int = Field(default=10_000, ge=1, le=1_000_000, description="Ordinary messages kept.")
    max_bytes: int = Field(default=2 * MIB, ge=1, le=1024 * MIB, description="Bytes of them, payload + 256 each.")
    ttl_s: Seconds = Field(default=120.0, ge=0.1, le=DAY_S, description="Seconds that an ordinary message is kept.")
    critical_reserve: int = Field(default=100, ge=0, le=100_000, description="Critical events kept; 0 takes none.")
    critical_reserve_bytes: int = Field(
        default=MIB, ge=0, le=1024 * MIB, description="Bytes of them, payload + 256 each."
    )


class StreamSettings(_Section):
    """Response streams."""

    idle_timeout_s: Seconds = Field(
        default=120.0,
        ge=0.1,
        le=DAY_S,
        description="Seconds of silence that end a stream. Without effect in this version, which serves no streams.",
    )


class StorageSettings(_Section):
    """Where outboxes are kept."""

    kind: Annotated[Literal["memory", "sqlite"], AfterValidator(_memory_only)] = Field(
        default="memory", description='"memory"; "sqlite" is not supported by this version.'
    )
    path: FilePath | None = Field(default=None, description="Database file (sqlite).")
    key_file: FilePath | None = Field(
        default=None, description="File (0600) of the key that wraps the rows' keys (sqlite)."
    )


class ClusterSettings(_Section):
    """How several sidecars find each other."""

    kind: Annotated[Literal["none", "nats"], AfterValidator(_alone_only)] = Field(
        default="none", description='"none"; "nats" is not supported by this version.'
    )
    servers: Texts = Field(default=(), description="Addresses of the NATS servers (nats).")
    name: Text | None = Field(default=None, description="Name of the cluster (nats).")
    replicas: int = Field(default=3, ge=1, le=5, description="Copies of what is stored (nats).")


class AuditSettings(_Section):
    """The audit trail."""

    path: FilePath = Field(
        default=Path("audit.jsonl"), description="File of the trail, made with mode 0600 where there is none."
    )


class LogSettings(_Section):
    """The log on standard error."""

    format: Literal["json", "console"] = Field(
        default="json", description="JSON lines, or lines for people; in development the latter unless set."
    )
    level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="The least severe that is written."
    )


def _issuers(value: object) -> object:
    return (value,) if isinstance(value, dict | UserTokenSettings) else _as_tuple(value)


class Config(BaseSettings):
    """All settings, valid by themselves; `validate_for` says whether they are fit for what they are used for.

    Relative paths are relative to the working directory.
    """

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        hide_input_in_errors=True,
        env_prefix=ENVIRONMENT_PREFIX,
        env_nested_delimiter=_NESTED,
    )

    websocket: WebSocketSettings = WebSocketSettings()
    grpc: GrpcSettings = GrpcSettings()
    ops: OpsSettings = OpsSettings()
    service_auth: ServiceAuthSettings = ServiceAuthSettings()
    user_tokens: Annotated[tuple[UserTokenSettings, ...], BeforeValidator(_issuers), Field(max_length=1000)] = ()
    context_tokens: ContextTokenSettings = ContextTokenSettings()
    limits: LimitSettings = LimitSettings()
    outbox: OutboxSettings = OutboxSettings()
    streams: StreamSettings = StreamSettings()
    storage: StorageSettings = StorageSettings()
    cluster: ClusterSettings = ClusterSettings()
    audit: AuditSettings = AuditSettings()
    log: LogSettings = LogSettings()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only what is handed over: `load_config` reads the sources, and nothing is read behind its back."""
        return (init_settings,)

    @model_validator(mode="after")
    def _check_together(self) -> Config:
        """The rules between keys. A ConfigError is no ValueError, so it leaves pydantic as it is."""
        _check_issuers(self.user_tokens)
        _check_addresses(self)
        _check_sizes(self)
        if self.limits.idle_timeout_s < self.limits.health_check_interval_s:
            raise ConfigError("limits.idle_timeout_s", "must not be shorter than limits.health_check_interval_s")
        return self

    def validate_for(self, development: bool) -> None:
        """Raise ConfigError unless these settings are fit for development, or for service."""
        if development:
            _check_development(self)
        else:
            _check_service(self)


def load_config(path: Path | None, environ: Mapping[str, str]) -> Config:
    """Read the file, if any, and the environment, which beats it. Blocking. Raises ConfigError.

    A list in the environment is JSON or separated by commas; a whole section may be one JSON object.
    """
    data = {} if path is None else _read_toml(path)
    for section, keys in _read_environment(environ).items():
        data[section] = _merged(section, data.get(section), keys)
    for section in data:
        if section not in Config.model_fields:
            raise ConfigError(_setting_name((section,), data), "unknown key")
    try:
        return Config(**data)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_context=True, include_input=False)
        # A key mistyped first: it explains the one that is missing.
        problem = min(problems, key=lambda each: each["type"] != "extra_forbidden")
        raise ConfigError(_setting_name(problem["loc"], data), _rule_of(problem)) from None


def development_config(config: Config | None = None) -> Config:
    """These settings (None: the defaults) for development. Raises ConfigError for a listener off loopback.

    Where they do not say otherwise, reflection is on and the log is for people.
    """
    config = Config() if config is None else config
    config.validate_for(development=True)
    grpc, log = config.grpc, config.log
    if "reflection" not in grpc.model_fields_set:
        grpc = grpc.model_copy(update={"reflection": True})
    if "format" not in log.model_fields_set:
        log = log.model_copy(update={"format": "console"})
    return config.model_copy(update={"grpc": grpc, "log": log})


class _EnvironmentSource(EnvSettingsSource):
    """The given environment instead of the process's; lists may be separated by commas."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        super().__init__(Config)
        self.env_vars = {name.lower(): value for name, value in environ.items()}

    def decode_complex_value(self, field_name: str, field: FieldInfo, value: str) -> Any:
        """JSON, or a list's members between commas; anything else stays text, which the field's own type refuses."""
        if value.lstrip().startswith(("[", "{")):
            try:
                return json.loads(value)
            except (ValueError, RecursionError):
                return value
        return value if field_name in Config.model_fields else [part.strip() for part in value.split(",")]


def _read_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    """The sections that the environment names. What has the prefix but no `__` is not ours, such as a client's."""
    prefix = ENVIRONMENT_PREFIX.lower()
    for name in environ:
        section, nested, _ = name.lower().removeprefix(prefix).partition(_NESTED)
        if name.lower().startswith(prefix) and nested and section not in Config.model_fields:
            raise ConfigError(_setting_name((section,), {}), "unknown key")
    return _EnvironmentSource(environ)()


def _merged(section: str, file: object, environment: object) -> object:
    if not isinstance(environment, dict) or file is None:
        return environment
    if isinstance(file, list):
        raise ConfigError(section, "an array of tables cannot be changed key by key from the environment")
    return {**file, **environment} if isinstance(file, dict) else file


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(read_file(path, "config", private=False)[0].decode())
    except SettingError as error:
        raise ConfigError(error.setting, error.rule) from None
    except UnicodeDecodeError:
        raise ConfigError("config", "the file must be UTF-8") from None
    except (ValueError, RecursionError) as error:  # A message of the parser's may quote the file.
        place = _TOML_PLACE.search(str(error))
        raise ConfigError("config", f"the file must be TOML{f' (see {place[1]})' if place else ''}") from None


def _setting_name(location: tuple[int | str, ...], data: Mapping[str, Any]) -> str:
    """`websocket.listen`, `user_tokens[1].issuer`. A key that does not look like one is not repeated."""
    if isinstance(data.get("user_tokens"), dict) and location[:1] == ("user_tokens",):
        location = (location[0], *location[2:])
    name = ""
    for part in location:
        if isinstance(part, int):
            name += f"[{part}]"
        else:
            name += f"{'.' if name else ''}{part if _KEY_NAME.fullmatch(part) else '(unreadable)'}"
    return name


def _rule_of(problem: ErrorDetails) -> str:
    if problem["type"] == "rule":
        return problem["msg"]
    limits = {
        name: f"{value:.15g}" if isinstance(value, float) else value for name, value in problem.get("ctx", {}).items()
    }
    return _RULES.get(problem["type"], "must be of the right type").format(**limits).replace("'", '"')


def _tcp(listen: str) -> TcpAddress:
    address = parse_address(listen)
    assert isinstance(address, TcpAddress)
    return address


def _listeners(config: Config) -> dict[str, TcpAddress]:
    """The TCP listeners by the names of their settings."""
    addresses = {
        "websocket.listen": config.websocket.address,
        "grpc.listen": config.grpc.address,
        "ops.listen": config.ops.address,
    }
    return {setting: address for setting, address in addresses.items() if isinstance(address, TcpAddress)}


def _check_addresses(config: Config) -> None:
    for (name, address), (other_name, other) in combinations(_listeners(config).items(), 2):
        if address.clashes_with(other):
            raise ConfigError(other_name, f"must not be the address of {name}")
    grpc = config.grpc
    if isinstance(grpc.address, TcpAddress) and not grpc.address.is_loopback and not grpc.allow_insecure:
        raise ConfigError("grpc.listen", "plain TCP must stay on loopback unless grpc.allow_insecure is true")


def _check_issuers(issuers: tuple[UserTokenSettings, ...]) -> None:
    for issuer in issuers:
        if issuer.key_file is None:
            raise ConfigError("user_tokens.key_file", "is required")
    if len({issuer.issuer for issuer in issuers}) < len(issuers):
        raise ConfigError("user_tokens.issuer", "an issuer must not be repeated")
    if len(issuers) > 1 and any(issuer.tenants is None for issuer in issuers):
        raise ConfigError("user_tokens.tenants", "each of several issuers must name its tenants")
    tenants = [tenant for issuer in issuers for tenant in set(issuer.tenants or ())]
    if len(set(tenants)) < len(tenants):
        raise ConfigError("user_tokens.tenants", "a tenant must not have two issuers")


def _check_sizes(config: Config) -> None:
    """Whatever one limit lets through must fit into the next."""
    limits, outbox = config.limits, config.outbox
    largest = limits.max_message_bytes + MESSAGE_OVERHEAD_BYTES
    holds = f"must hold a message of limits.max_message_bytes + {MESSAGE_OVERHEAD_BYTES}"
    if outbox.max_bytes < largest:
        raise ConfigError("outbox.max_bytes", holds)
    if outbox.critical_reserve and outbox.critical_reserve_bytes < largest:
        raise ConfigError("outbox.critical_reserve_bytes", holds)
    if limits.queued_bytes_per_user < largest:
        raise ConfigError("limits.queued_bytes_per_user", holds)
    if config.grpc.max_request_bytes <= limits.max_message_bytes:
        raise ConfigError("grpc.max_request_bytes", "must be above limits.max_message_bytes")
    if config.websocket.bytes_per_second < limits.max_inbound_bytes:
        raise ConfigError("websocket.bytes_per_second", "must not be below limits.max_inbound_bytes")


def _check_development(config: Config) -> None:
    for setting, address in _listeners(config).items():
        if not address.is_loopback:
            raise ConfigError(setting, "must be on loopback in development")


def _check_service(config: Config) -> None:
    if "*" in config.websocket.allowed_origins:
        raise ConfigError("websocket.allowed_origins", '"*" is allowed only in development')
    if config.grpc.reflection:
        raise ConfigError("grpc.reflection", "is allowed only in development")
    if not config.user_tokens:
        raise ConfigError("user_tokens", "issuer, audience and key_file are required outside development")
