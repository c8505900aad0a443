"""Which connection contexts a user has now, for calls that name only a user. Pure: it is told, it opens nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from sidecar_client.agent_context import AgentContext


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
    """The living contexts by user."""

    def __init__(self) -> None:
        self._of: dict[str, dict[str, AgentContext]] = {}
        self._away: set[str] = set()

    def opened(self, context: AgentContext) -> None:
        """A context is there, with a client."""
        self._of.setdefault(context.user.user_id, {})[context.isolation_key] = context
        self._away.discard(context.isolation_key)

    def away(self, context: AgentContext) -> None:
        """Its client is not there now."""
        self._away.add(context.isolation_key)

    def closed(self, context: AgentContext) -> None:
        """It has ended. Idempotent."""
        contexts = self._of.get(context.user.user_id, {})
        contexts.pop(context.isolation_key, None)
        if not contexts:
            self._of.pop(context.user.user_id, None)
        self._away.discard(context.isolation_key)

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

    def _living(self, user_id: str) -> list[AgentContext]:
        return [context for context in self._of.get(user_id, {}).values() if not context.ended]

    def _is_away(self, context: AgentContext) -> bool:
        return context.isolation_key in self._away
