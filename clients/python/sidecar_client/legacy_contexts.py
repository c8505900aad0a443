"""Which connection contexts a user has now, for calls that name only a user. Pure: it is told, it opens nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from sidecar_client.agent_context import AgentContext
from sidecar_client.errors import IsolationViolation, ManagerGone, SidecarError


class GivenContext(NamedTuple):
    """What a request brings along: where the answer goes, and the token (a secret, not printed) that opens it."""

    isolation_key: str
    context_token: str

    def __repr__(self) -> str:
        return f"GivenContext(isolation_key={self.isolation_key!r})"


class AmbiguousUser(Exception):
    """The user has several contexts: which one is meant cannot be known, and is not guessed. Give a context."""

    def __init__(self, count: int) -> None:
        self.count = count
        super().__init__(f"the user has {count} connection contexts: give the one that is meant")


class UserContexts:
    """The living contexts by user. One that was told of on an earlier attachment is in doubt until it is confirmed.

    In doubt it counts: whoever has it and another is not guessed.
    """

    def __init__(self) -> None:
        self._of: dict[str, dict[str, AgentContext]] = {}
        self._away: set[str] = set()
        self._in_doubt: set[str] = set()
        self.attachment = 0
        """Which one this is, counted from 1."""

    def attached(self) -> None:
        """A new attachment: what is known may have ended unheard, with the process of the sidecar that told of it."""
        self.attachment += 1
        for context in self._all():
            if context.ended:
                self.closed(context)
            else:
                self._in_doubt.add(context.isolation_key)

    def opened(self, context: AgentContext) -> None:
        """A context is there, with a client."""
        self._of.setdefault(context.user.user_id, {})[context.isolation_key] = context
        self._away.discard(context.isolation_key)
        self.confirmed(context)

    def away(self, context: AgentContext) -> None:
        """Its client is not there now."""
        self._away.add(context.isolation_key)
        self.confirmed(context)

    def confirmed(self, context: AgentContext) -> None:
        """It lives, as the sidecar has said on this attachment."""
        self._in_doubt.discard(context.isolation_key)

    def closed(self, context: AgentContext) -> None:
        """It has ended, or cannot be reached any more. Idempotent."""
        contexts = self._of.get(context.user.user_id, {})
        contexts.pop(context.isolation_key, None)
        if not contexts:
            self._of.pop(context.user.user_id, None)
        self._away.discard(context.isolation_key)
        self._in_doubt.discard(context.isolation_key)

    def refused(self, context: AgentContext, error: SidecarError) -> bool:
        """A call there, by its newest token, was refused so: whether that says that it is gone. It is forgotten then.

        MANAGER_GONE says so. TOKEN_INVALID does too: a sidecar made the token, and this one has other keys.
        A token that has run out or was revoked says nothing of its context, which still counts, unless it is in doubt.
        What answers ISOLATION_VIOLATION is never used again; but it has not ended, and that is no answer to hide.
        """
        if isinstance(error, IsolationViolation):
            self.closed(context)
            return False
        gone = isinstance(error, ManagerGone) or error.reason == "TOKEN_INVALID" or self.is_in_doubt(context)
        if gone:
            self.closed(context)
        return gone

    def in_doubt(self) -> list[AgentContext]:
        """Those to ask about."""
        return [context for context in self._all() if not context.ended and self.is_in_doubt(context)]

    def is_in_doubt(self, context: AgentContext) -> bool:
        """Whether it was told of on an earlier attachment and not confirmed since."""
        return context.isolation_key in self._in_doubt

    def to_ask(self, user_id: str) -> list[AgentContext]:
        """Those of a user to ask about before one is chosen: none where there is no choice, the call itself asks."""
        contexts = self._living(user_id)
        return [context for context in contexts if self.is_in_doubt(context)] if len(contexts) > 1 else []

    def the_one_of(self, user_id: str) -> AgentContext | None:
        """The user's one context; None for no context. Raises AmbiguousUser for several."""
        contexts = self._living(user_id)
        if len(contexts) > 1:
            raise AmbiguousUser(len(contexts))
        return contexts[0] if contexts else None

    def any_of(self, user_id: str) -> AgentContext | None:
        """One of the user's contexts, for what goes to all of them. Raises AmbiguousUser for users of two tenants."""
        contexts = self._living(user_id)
        if len({context.user.tenant_id for context in contexts}) > 1:
            raise AmbiguousUser(len(contexts))
        return contexts[0] if contexts else None

    def connections(self, user_id: str) -> list[str]:
        """The connection_id of each context that has a client now."""
        return [context.user.connection_id for context in self._living(user_id) if not self._is_away(context)]

    def users(self) -> Iterator[str]:
        """The users who have a context."""
        return iter(tuple(self._of))

    def _all(self) -> list[AgentContext]:
        return [context for contexts in self._of.values() for context in contexts.values()]

    def _living(self, user_id: str) -> list[AgentContext]:
        return [context for context in self._of.get(user_id, {}).values() if not context.ended]

    def _is_away(self, context: AgentContext) -> bool:
        return context.isolation_key in self._away
