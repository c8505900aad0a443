"""The sidecar's own keys: those that sign context tokens, in rotation, and the secret behind isolation keys.

What the keys become is decided in values (`KeyRing`); reading and writing the file is blocking and apart.
"""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Final

from sidecar.core.identity import IDENTIFIER
from sidecar.security.files import SettingError, create_private, naming, read_file, replace_private
from sidecar.security.jose import MAX_INTEGER, decode_segment, encode_json, encode_segment
from sidecar.security.strict_json import parse_object

CONTEXT_TOKEN_TYPE: Final = "ctx+jwt"
SECRET_BYTES: Final = 32
MAX_RING: Final = 64
ROTATE_AFTER_S: Final = 24 * 3600
KEEP_RETIRED_S: Final = 3600 + 300
"""How long after its successor was made a key still verifies: the longest life of a token, and room for two clocks
and a slow disk."""


@dataclass(frozen=True, slots=True)
class SigningKey:
    """One HMAC key. `header` is the encoded header of the tokens that it signs; `created_at` is Unix seconds."""

    kid: str
    secret: bytes = field(repr=False)
    created_at: int
    header: str = field(repr=False)

    @classmethod
    def make(cls, kid: str, secret: bytes, created_at: int) -> SigningKey:
        header = encode_json({"alg": "HS256", "kid": kid, "typ": CONTEXT_TOKEN_TYPE})
        return cls(kid, secret, created_at, header)

    @classmethod
    def generate(cls, now: float) -> SigningKey:
        return cls.make(secrets.token_hex(8), secrets.token_bytes(SECRET_BYTES), int(now))


@dataclass(frozen=True, slots=True)
class KeyRing:
    """All keys at one time, oldest first: the last signs, each verifies. The isolation secret stays for ever."""

    isolation_secret: bytes = field(repr=False)
    keys: tuple[SigningKey, ...]

    @classmethod
    def generate(cls, now: float) -> KeyRing:
        return cls(secrets.token_bytes(SECRET_BYTES), (SigningKey.generate(now),))

    def rotated(self, now: float) -> KeyRing:
        """This ring with a new key to sign, and without those that no living token was signed with."""
        keys = (*self.keys, SigningKey.generate(now))
        kept = [key for key, successor in pairwise(keys) if successor.created_at > now - KEEP_RETIRED_S]
        return replace(self, keys=(*kept[1 - MAX_RING :], keys[-1]))

    def find(self, kid: str | None) -> SigningKey | None:
        """The key of exactly that name."""
        return next((key for key in self.keys if key.kid == kid), None)

    def encode(self) -> bytes:
        """The text of the key file."""
        keys = [{"kid": k.kid, "secret": encode_segment(k.secret), "created_at": k.created_at} for k in self.keys]
        document = {"version": 1, "isolation_secret": encode_segment(self.isolation_secret), "keys": keys}
        return json.dumps(document, indent=1).encode("ascii") + b"\n"

    @classmethod
    def decode(cls, data: bytes) -> KeyRing:
        """Read the text of a key file. Raises ValueError."""
        document = parse_object(data)
        keys = document.get("keys")
        if document.get("version") != 1 or not isinstance(keys, list) or not 0 < len(keys) <= MAX_RING:
            raise ValueError("not a key file")
        ring = cls(_secret(document.get("isolation_secret")), tuple(map(_signing_key, keys)))
        if len({key.kid for key in ring.keys}) != len(ring.keys):
            raise ValueError("a repeated kid")
        return ring


class ContextTokenKeys:
    """The keys in use: one immutable ring that rotation swaps whole, so readers on other threads need no lock."""

    def __init__(
        self,
        key_file: Path | None,
        *,
        now: float,
        rotate_after_s: int = ROTATE_AFTER_S,
        setting: str = "context_tokens.key_file",
    ) -> None:
        """Load the keys, or make the file where there is none; None keeps them in memory. Blocking.

        `now` is Unix seconds. Raises SettingError.
        """
        self._key_file = key_file
        self._setting = setting
        self._rotate_after_s = rotate_after_s
        self._ring = KeyRing.generate(now) if key_file is None else _load_or_create(key_file, now, setting)

    def __repr__(self) -> str:
        return f"ContextTokenKeys(kids={[key.kid for key in self._ring.keys]!r})"

    @property
    def ring(self) -> KeyRing:
        """The keys of now."""
        return self._ring

    @property
    def isolation_secret(self) -> bytes:
        """The secret that isolation keys are derived with; the same through every rotation."""
        return self._ring.isolation_secret

    def rotation_due(self, now: float) -> bool:
        """Whether the signing key is old, or from a future that a clock set back has taken away."""
        return not 0 <= now - self._ring.keys[-1].created_at < self._rotate_after_s

    def rotate(self, now: float) -> str:
        """Sign with a new key from now on; returns its kid. Blocking where there is a file: run it in a thread.

        The file is written first: a token is never signed with a key that a crash could take away. One rotation at a
        time. On a SettingError nothing has changed.
        """
        ring = self._ring.rotated(now)
        if self._key_file is not None:
            with naming(self._setting, "written"):
                replace_private(self._key_file, ring.encode())
        self._ring = ring
        return ring.keys[-1].kid


def _load_or_create(path: Path, now: float, setting: str) -> KeyRing:
    """Of several that start at once, one makes the file and all use it."""
    with naming(setting, "written"):
        if not path.exists():
            ring = KeyRing.generate(now)
            if create_private(path, ring.encode()):
                return ring
    data, _ = read_file(path, setting, private=True)
    try:
        return KeyRing.decode(data)
    except ValueError:
        raise SettingError(setting, "must be a key file that the sidecar wrote") from None


def _signing_key(value: object) -> SigningKey:
    if not isinstance(value, dict):
        raise ValueError("not a key")
    kid, created_at = value.get("kid"), value.get("created_at")
    if not isinstance(kid, str) or IDENTIFIER.fullmatch(kid) is None:
        raise ValueError("not a kid")
    if type(created_at) is not int or not 0 <= created_at <= MAX_INTEGER:
        raise ValueError("not a time")
    return SigningKey.make(kid, _secret(value.get("secret")), created_at)


def _secret(value: object) -> bytes:
    if not isinstance(value, str):
        raise ValueError("not a secret")
    secret = decode_segment(value)
    if len(secret) < SECRET_BYTES:
        raise ValueError("a short secret")
    return secret
