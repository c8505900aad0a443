"""Service tokens: how agent services and operators say who they are, and what each may do.

`token_file` has a line each. A JSON object names everything: `name`, `token`, `allow` (of deliver, exchange, attach,
admin), `tenants` ("*" or absent: all) and `scopes` that it may be minted (absent: send, emit and stats). Any other line
is a token by itself: named default, it may do everything. Blank lines and those that begin with # are passed over.
A name may come twice, with two tokens (that is how one is exchanged); a token may not.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Final

from sidecar.core.errors import ErrorReason, PermissionDenied, TokenFault
from sidecar.core.identity import IDENTIFIER, Scope
from sidecar.core.ports import Clock
from sidecar.security.files import FileStamp, SettingError, read_file, stamp_of
from sidecar.security.jose import MAX_TOKEN_CHARS, invalid, missing
from sidecar.security.strict_json import parse_object

MIN_TOKEN_CHARS: Final = 16
MAX_SERVICE_TOKEN_CHARS: Final = 512
MAX_CREDENTIALS: Final = 1_000
CHECK_INTERVAL_S: Final = 1.0
DEFAULT_NAME: Final = "default"
DEFAULT_SCOPES: Final = frozenset({Scope.SEND, Scope.EMIT, Scope.STATS})
EVERY_TENANT: Final = "*"

_TOKEN: Final = re.compile(rf"[!-~]{{{MIN_TOKEN_CHARS},{MAX_SERVICE_TOKEN_CHARS}}}")
_MEMBERS: Final = frozenset({"name", "token", "allow", "tenants", "scopes"})


class Permission(StrEnum):
    """What a service may do."""

    DELIVER = "deliver"
    EXCHANGE = "exchange"
    ATTACH = "attach"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class ServiceIdentity:
    """A service that has proved its name. `tenants` None is every tenant; `scopes` is what it may be minted."""

    name: str
    allow: frozenset[Permission]
    tenants: frozenset[str] | None
    scopes: frozenset[Scope]

    def require(self, permission: Permission) -> None:
        """Raise PermissionDenied (SERVICE_DENIED) unless this service may do that."""
        if permission not in self.allow:
            raise PermissionDenied(ErrorReason.SERVICE_DENIED)

    def allows_tenant(self, tenant_id: str) -> bool:
        """Whether this service may have to do with that tenant."""
        return self.tenants is None or tenant_id in self.tenants


@dataclass(frozen=True, slots=True)
class ServiceCredential:
    """One token, kept only as its SHA-256, and whose it is."""

    digest: bytes = field(repr=False)
    identity: ServiceIdentity

    @classmethod
    def of(cls, token: str, identity: ServiceIdentity) -> ServiceCredential:
        return cls(_digest(token), identity)


UNRESTRICTED: Final = ServiceIdentity(DEFAULT_NAME, frozenset(Permission), None, frozenset(Scope))
"""Whose a bare token is."""


class ServiceAuthenticator:
    """Knows the services by their tokens. `authenticate` does no I/O; `refresh` follows the file."""

    def __init__(self, credentials: Iterable[ServiceCredential] = ()) -> None:
        """Without credentials nobody is let in."""
        self._credentials = tuple(credentials)
        self._source: TokenFile | None = None

    def __repr__(self) -> str:
        return f"ServiceAuthenticator(services={[credential.identity.name for credential in self._credentials]!r})"

    @classmethod
    def with_token(cls, token: str) -> ServiceAuthenticator:
        """One token that may do everything: development."""
        return cls([ServiceCredential.of(token, UNRESTRICTED)])

    @classmethod
    def from_file(cls, path: Path, clock: Clock, *, setting: str = "service_auth.token_file") -> ServiceAuthenticator:
        """The services of a token file. Blocking. Raises SettingError, also for a file without a token."""
        source = TokenFile(path, clock, setting)
        authenticator = cls(source.read())
        authenticator._source = source
        return authenticator

    def authenticate(self, token: str | None) -> ServiceIdentity:
        """Whose token this is. Raises Unauthenticated: TOKEN_MISSING or TOKEN_INVALID.

        Every digest is compared, whether or not one was equal already, so time tells nothing.
        """
        if not token:
            raise missing()
        if len(token) > MAX_TOKEN_CHARS:
            raise invalid(TokenFault.TOO_LONG)
        if not token.isascii():
            raise invalid(TokenFault.MALFORMED)
        digest, found = _digest(token), None
        for credential in self._credentials:
            if hmac.compare_digest(credential.digest, digest):
                found = credential.identity
        if found is None:
            raise invalid(TokenFault.KEY)
        return found

    def refresh(self) -> bool:
        """Read the file again if it changed; True when other tokens are good now. Looks at most once a second.

        Blocking, for a thread. Raises SettingError once for a changed file that cannot be used: the last good stays.
        """
        if self._source is None or not self._source.changed():
            return False
        self._credentials = self._source.read()
        return True


class TokenFile:
    """The token file and what it looked like when it was last read."""

    def __init__(self, path: Path, clock: Clock, setting: str) -> None:
        self._path = path
        self._clock = clock
        self._setting = setting
        self._stamp: FileStamp | None = None
        self._looked_at = clock.monotonic()

    def changed(self) -> bool:
        """Whether the file is another than the last one read, or tried; False within a second of the last look."""
        now = self._clock.monotonic()
        if now - self._looked_at < CHECK_INTERVAL_S:
            return False
        self._looked_at = now
        return stamp_of(self._path) != self._stamp

    def read(self) -> tuple[ServiceCredential, ...]:
        """The credentials of now. Raises SettingError."""
        self._stamp = stamp_of(self._path)
        data, self._stamp = read_file(self._path, self._setting, private=True)
        return parse_token_file(data, self._setting)


def parse_token_file(data: bytes, setting: str) -> tuple[ServiceCredential, ...]:
    """The credentials of a token file's text, in order. Raises SettingError naming the line and the rule."""
    credentials: dict[bytes, ServiceCredential] = {}
    for number, raw in enumerate(data.splitlines(), start=1):
        line = raw.strip()
        if not line or line.startswith(b"#"):
            continue
        try:
            credential = _credential(line)
        except _LineError as error:
            raise SettingError(setting, f"line {number}: {error}") from None
        if credential.digest in credentials:
            raise SettingError(setting, f"line {number}: a token must not be repeated")
        credentials[credential.digest] = credential
    if not 0 < len(credentials) <= MAX_CREDENTIALS:
        raise SettingError(setting, f"the file must hold 1 to {MAX_CREDENTIALS} tokens")
    return tuple(credentials.values())


class _LineError(Exception):
    """A rule that a line breaks; the text is ours and holds nothing of the line."""


def _credential(line: bytes) -> ServiceCredential:
    if not line.startswith(b"{"):
        return ServiceCredential.of(_token(line.decode("latin-1")), UNRESTRICTED)
    try:
        entry = parse_object(line)
    except ValueError:
        raise _LineError("must be a token or one JSON object without repeated members") from None
    if not _MEMBERS.issuperset(entry):
        raise _LineError(f"may have no members but {', '.join(sorted(_MEMBERS))}")
    identity = ServiceIdentity(_name(entry), _allow(entry), _tenants(entry), _scopes(entry))
    return ServiceCredential.of(_token(entry.get("token")), identity)


def _token(value: object) -> str:
    if not isinstance(value, str) or _TOKEN.fullmatch(value) is None:
        raise _LineError(f"a token must be {MIN_TOKEN_CHARS} to {MAX_SERVICE_TOKEN_CHARS} printable ASCII characters")
    return value


def _name(entry: Mapping[str, object]) -> str:
    value = entry.get("name")
    if not isinstance(value, str) or IDENTIFIER.fullmatch(value) is None:
        raise _LineError(f"name must match {IDENTIFIER.pattern}")
    return value


def _allow(entry: Mapping[str, object]) -> frozenset[Permission]:
    names = _strings(entry, "allow")
    if not names <= {permission.value for permission in Permission}:
        raise _LineError(f"allow must hold only {', '.join(Permission)}")
    return frozenset(map(Permission, names))


def _tenants(entry: Mapping[str, object]) -> frozenset[str] | None:
    names = _strings(entry, "tenants") if "tenants" in entry else frozenset({EVERY_TENANT})
    if EVERY_TENANT in names:
        return None
    if not all(IDENTIFIER.fullmatch(name) for name in names):
        raise _LineError(f"tenants must each be {EVERY_TENANT} or match {IDENTIFIER.pattern}")
    return names


def _scopes(entry: Mapping[str, object]) -> frozenset[Scope]:
    if "scopes" not in entry:
        return DEFAULT_SCOPES
    names = _strings(entry, "scopes")
    if not names <= {scope.value for scope in Scope}:
        raise _LineError(f"scopes must hold only {', '.join(Scope)}")
    return frozenset(map(Scope, names))


def _strings(entry: Mapping[str, object], member: str) -> frozenset[str]:
    value = entry.get(member)
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise _LineError(f"{member} must be a list of strings")
    return frozenset(value)


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("ascii")).digest()
