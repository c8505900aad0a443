"""The connection context that an agent's handler answers in: who it is, and what may be sent there."""

from __future__ import annotations

import json
from base64 import urlsafe_b64decode
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from math import inf
from typing import Any, Final, TypeVar, Unpack

from sidecar_client.client import AsyncSidecarClient
from sidecar_client.errors import ManagerGone, TokenError
from sidecar_client.messages import MessageOptions
from sidecar_client.sender import Sender
from sidecar_client.values import Receipt, UserContext

T = TypeVar("T")
REFRESH_AT: Final = 0.4
"""Of a token's life since it came. The sidecar hands a token out until half of its life is over."""


@dataclass(frozen=True, slots=True)
class AgentPorts:
    """What every context of an agent sends through. `now`: monotonic seconds."""

    client: AsyncSidecarClient
    sender: Sender
    now: Callable[[], float]


class AgentContext:
    """One connection context of one user. Its token is always the newest that came; it is a secret and not printed."""

    __slots__ = ("__weakref__", "_ports", "_token", "ended", "isolation_key", "refresh_at", "user")

    def __init__(self, isolation_key: str, user: UserContext, ports: AgentPorts) -> None:
        self.isolation_key = isolation_key
        self.user = user
        self.ended = False
        """The context has ended: it was closed, or the sidecar has answered MANAGER_GONE."""
        self.refresh_at = inf
        """When the token is to be refreshed, in monotonic seconds."""
        self._token = ""
        self._ports = ports

    def __repr__(self) -> str:
        return f"AgentContext(user_id={self.user.user_id!r}, connection_id={self.user.connection_id!r})"

    @property
    def context_token(self) -> str:
        """The newest context token. Read it each time."""
        return self._token

    def renew(self, token: str) -> None:
        """A newer token has come."""
        if token and token != self._token:
            self._token = token
            self.refresh_at = self._ports.now() + REFRESH_AT * _life_s(token)

    async def send(
        self,
        payload: bytes | None = None,
        *,
        wait_for_ack_s: float | None = None,
        timeout_s: float | None = None,
        **options: Unpack[MessageOptions],
    ) -> Receipt:
        """Send one message to this context, as `payload` bytes or `json=`; see `MessageOptions` for the rest.

        `wait_for_ack_s`: hold the answer until the client has acknowledged it or that long. Raises as
        `AsyncSidecarClient.send_to_user` does; ManagerGone when the context has ended.
        """
        user_id = self.user.user_id
        if wait_for_ack_s is None:
            sending = lambda token: self._ports.sender.send(  # noqa: E731 - one argument is all that differs
                self.isolation_key, token, payload, expected_user_id=user_id, timeout_s=timeout_s, **options
            )
        else:
            sending = lambda token: self._ports.client.send_to_user(  # noqa: E731
                self.isolation_key,
                token,
                payload,
                expected_user_id=user_id,
                wait_for_ack_s=wait_for_ack_s,
                timeout_s=timeout_s,
                **options,
            )
        return await self.call(sending)

    async def emit_critical_event(
        self,
        event_type: str,
        data: Any,
        *,
        message_id: str | None = None,
        wait_for_ack_s: float | None = None,
        timeout_s: float | None = None,
    ) -> Receipt:
        """Send one critical event: never dropped for another. `data`: JSON as bytes, or any value it can say."""
        return await self.call(
            lambda token: self._ports.client.emit_critical_event(
                self.isolation_key,
                token,
                event_type,
                data,
                message_id=message_id,
                expected_user_id=self.user.user_id,
                wait_for_ack_s=wait_for_ack_s,
                timeout_s=timeout_s,
            )
        )

    async def close(self, *, code: int = 4505, reason: str = "", timeout_s: float | None = None) -> int:
        """End the context; how many sockets it had. `code`: 4505, or 4900 to 4999. Needs the scope `close`."""
        return await self.call(
            lambda token: self._ports.client.close_manager(
                self.isolation_key, token, code=code, reason=reason, timeout_s=timeout_s
            )
        )

    async def call(self, make: Callable[[str], Awaitable[T]]) -> T:
        """Make a call by the newest token; again where a newer one came while the first was refused."""
        while True:
            token = self._token
            try:
                return await make(token)
            except TokenError:
                if token == self._token:
                    raise
            except ManagerGone:
                self.ended = True
                raise


def _life_s(token: str) -> float:
    """How long the token lives in all, by its own claims (RFC 7519 §4.1); inf where it does not say.

    From one clock, the sidecar's: how far it is from this one does not matter.
    """
    try:
        body = token.split(".")[1]
        claims = json.loads(urlsafe_b64decode(body + "=" * (-len(body) % 4)))
        return float(claims["exp"] - claims["iat"])
    except (IndexError, ValueError, KeyError, TypeError):
        return inf
