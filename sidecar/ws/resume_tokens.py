"""Resume tokens: what a client shows to come back to its context. Only their hashes are kept, by the factory."""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from sidecar.core.identity import VerifiedUser
    from sidecar.core.manager import IsolatedWebSocketManager
    from sidecar.core.ports import Randomness

_TOKEN_BYTES: Final = 32


def new_resume_token(randomness: Randomness) -> str:
    """256 random bits; one a context, useless without a user token of the same issuer, tenant and user."""
    return randomness(_TOKEN_BYTES)


def digest_of(token: str) -> bytes:
    """The SHA-256 of a token: what a context is found by."""
    return sha256(token.encode()).digest()


def belongs_to(manager: IsolatedWebSocketManager, user: VerifiedUser) -> bool:
    """True when the context is of that user: the same issuer, tenant and subject."""
    context = manager.context
    return context.issuer == user.issuer and context.identity == user.identity
