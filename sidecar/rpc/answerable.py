"""The tokens that a worker is given with its events, to answer with: one a context, until half of its life is over.

Where no other can be recorded then (a full disk), the one that it has is used until its end.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

from sidecar.api.v1 import agent_service_pb2 as pb
from sidecar.core.errors import Unavailable
from sidecar.core.ports import AuditEvent
from sidecar.rpc.translate import user_context
from sidecar.security.audit_record import AuditRecord

if TYPE_CHECKING:
    from collections.abc import Callable

    from sidecar.core.identity import ContextToken, UserExecutionContext
    from sidecar.core.ports import Clock
    from sidecar.security.audit import JsonLinesAuditTrail
    from sidecar.security.context_tokens import ContextTokenAuthority
    from sidecar.security.service_auth import ServiceIdentity

RENEW_AGAIN_S: Final = 5.0
"""After a failure to, tokens that are good are renewed again."""
MAX_TOKENS: Final = 10_000
"""Of contexts that one worker was given events of, kept for their next event."""


class _Answerable(NamedTuple):
    """What the events of a context have in common: `fields`, serialised once for the token that is in them.

    The token is good for answers, but from `renew_at` on (Unix seconds) another is handed out, where it can be.
    """

    token: ContextToken
    renew_at: float
    fields: bytes

    def __repr__(self) -> str:
        """Without the fields: the token's text is in them."""
        return f"_Answerable(token={self.token!r}, renew_at={self.renew_at})"


class AnswerableContexts:
    """The contexts that one worker can answer, as `service` allows it now."""

    def __init__(
        self,
        tokens: ContextTokenAuthority,
        audit: JsonLinesAuditTrail,
        clock: Clock,
        service: Callable[[], ServiceIdentity],
    ) -> None:
        self._tokens = tokens
        self._audit = audit
        self._clock = clock
        self._service = service
        self._minted: OrderedDict[str, _Answerable] = OrderedDict()
        self._renew_again_at = 0.0
        """None could be recorded: until then (Unix seconds) a token is used to its end."""

    def clear(self) -> None:
        """The service may be minted other scopes from now on."""
        self._minted.clear()

    def forget(self, context: UserExecutionContext) -> None:
        """The context is over. Idempotent."""
        self._minted.pop(context.isolation_key, None)

    def fields(self, context: UserExecutionContext) -> bytes | None:
        """What stands in each of its events, a token in it; None when that needs another: revoked, or its half over."""
        known = self._minted.get(context.isolation_key)
        if known is None or known.token.family in self._tokens.revocations:
            return None
        now = self._clock.time()
        until = known.renew_at if now >= self._renew_again_at else known.token.expires_at
        return known.fields if now < until else None

    def has(self, context: UserExecutionContext) -> bool:
        """Whether it can be told of without another token."""
        return self.fields(context) is not None

    async def mint(self, context: UserExecutionContext, coming: Iterable[UserExecutionContext]) -> bytes:
        """Have a token for it, minted with its record first; `fields` from now on.

        Those that come next have theirs by the same write of the audit trail: a worker that has just attached is told
        of many. Again, should the service's scopes be others by the time that it is written. Where none can be
        recorded, those that are still good are used for RENEW_AGAIN_S more. Raises Unavailable when this one is not.
        """
        contexts = [context, *(each for each in coming if each is not context and not self.has(each))]
        try:
            made = await self._mint(contexts)
        except Unavailable:
            self._renew_again_at = self._clock.time() + RENEW_AGAIN_S
            fields = self.fields(context)
            if fields is None:
                raise
            return fields
        self._minted |= made
        while len(self._minted) > MAX_TOKENS:
            self._minted.popitem(last=False)
        return made[context.isolation_key].fields

    async def _mint(self, contexts: list[UserExecutionContext]) -> dict[str, _Answerable]:
        while True:
            service = self._service()
            tokens = [self._tokens.mint(each, service.scopes) for each in contexts]
            await self._audit.grant(*map(partial(_record, service), contexts, tokens))
            if service.scopes == self._service().scopes:
                break
        half_s = self._tokens.ttl_s / 2
        return {
            each.isolation_key: _Answerable(token, token.expires_at - half_s, fields_of(each, token.text))
            for each, token in zip(contexts, tokens, strict=True)
        }


def fields_of(context: UserExecutionContext, context_token: str = "") -> bytes:
    """`Event`'s isolation_key, context_token and context."""
    return pb.AttachResponse.Event(
        isolation_key=context.isolation_key, context_token=context_token, context=user_context(context)
    ).SerializeToString()


def _record(service: ServiceIdentity, context: UserExecutionContext, token: ContextToken) -> AuditRecord:
    fields = {
        "token_id": token.token_id,
        "family": token.family,
        "service": service.name,
        "scopes": " ".join(sorted(service.scopes)),
    }
    return AuditRecord(AuditEvent.TOKEN_MINTED, context, fields)
