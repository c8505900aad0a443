"""Which live context a resume token leads to. Only hashes are kept; as many as there are managers."""

from __future__ import annotations

from functools import partial
from hashlib import sha256
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from sidecar.core.identity import VerifiedUser
    from sidecar.core.manager import IsolatedWebSocketManager
    from sidecar.core.ports import Randomness

_TOKEN_BYTES: Final = 32


class ResumeTokens:
    """One token of 256 random bits a context, useless without a user token of the same issuer, tenant and user.

    Looked up by its SHA-256: how long that takes tells nothing of any token, since nobody chooses a hash's bytes.
    """

    def __init__(self, randomness: Randomness) -> None:
        self._randomness = randomness
        self._managers: dict[bytes, IsolatedWebSocketManager] = {}

    def __len__(self) -> int:
        return len(self._managers)

    def issue(self, manager: IsolatedWebSocketManager) -> str:
        """The token of a new context; forgotten when its manager ends. Call once a manager."""
        token = self._randomness(_TOKEN_BYTES)
        digest = sha256(token.encode()).digest()
        self._managers[digest] = manager
        manager.end_watchers.add(partial(self._forget, digest))
        return token

    def find(self, token: str) -> IsolatedWebSocketManager | None:
        """The live manager of that token, whoever's it is."""
        return self._managers.get(sha256(token.encode()).digest())

    def _forget(self, digest: bytes) -> None:
        self._managers.pop(digest, None)


def belongs_to(manager: IsolatedWebSocketManager, user: VerifiedUser) -> bool:
    """True when the context is of that user: the same issuer, tenant and subject."""
    context = manager.context
    return context.issuer == user.issuer and context.identity == user.identity
