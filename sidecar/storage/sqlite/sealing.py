"""Encryption of what is stored: AES-256-GCM (NIST SP 800-38D) under a key of each context's own, wrapped by one more.

A sealed value is bound to its place: the kind of value, the row's context and sequence are authenticated with it, so
that rows cannot be exchanged for each other. Nonces are 96 random bits; a context would have to seal 2^32 values before
two of them became likely enough to matter. Destroying the wrapped key makes everything sealed under it unreadable.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from enum import IntEnum
from struct import Struct, error
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

KEY_BYTES: Final = 32
_NONCE_BYTES: Final = 12
_TAG_BYTES: Final = 16
NO_KEY: Final = bytes(_NONCE_BYTES + KEY_BYTES + _TAG_BYTES)
"""What stands in the place of a sealed key that was destroyed; as long as one."""
_place: Final = Struct("!BQq").pack


class Kind(IntEnum):
    """What a sealed value is."""

    KEY = 1
    CONTEXT = 2
    STATE = 3
    MESSAGE = 4
    IDENTITY = 5
    CHECK = 6


class Unsealable(Exception):
    """The value was not sealed under this key for this place, or was changed since."""


class Seal:
    """One key. Safe to use from any thread."""

    __slots__ = ("_cipher",)

    def __init__(self, key: bytes) -> None:
        self._cipher = AESGCM(key)

    def seal(self, kind: Kind, context: int, sequence: int, value: bytes, nonce: bytes = b"") -> bytes:
        """`value` encrypted for that place: nonce, ciphertext, tag. The nonce is one of `new_nonces`, or drawn here."""
        nonce = nonce or os.urandom(_NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, value, _place(kind, context, sequence))

    def open(self, kind: Kind, context: int, sequence: int, sealed: bytes) -> bytes:
        """The value. Raises Unsealable, also for what no file of ours holds in that column."""
        try:
            return self._cipher.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], _place(kind, context, sequence))
        except (InvalidTag, ValueError, TypeError, error):
            raise Unsealable from None


def new_nonces(count: int) -> Iterator[bytes]:
    """So many nonces, drawn at once: a system call for each costs as much as the encryption."""
    drawn = os.urandom(count * _NONCE_BYTES)
    return (drawn[start : start + _NONCE_BYTES] for start in range(0, len(drawn), _NONCE_BYTES))


def new_key() -> bytes:
    """A key of 256 random bits."""
    return os.urandom(KEY_BYTES)
