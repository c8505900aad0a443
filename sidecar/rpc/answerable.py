"""The tokens that a worker is given with its events, to answer with: one a context, until half of its life is over."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

from sidecar.api.v1 import agent_service_pb2 as pb
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

MAX_TOKENS: Final = 10_000
"""Of contexts that one worker was given events of, kept for their next event."""


class _Answerable(NamedTuple):
    """What the events of a context have in common: `fields`, serialised once for the token that is in them.

    The token is good for answers, but not handed out any more from `renew_at` on (Unix seconds).
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

    def clear(self) -> None:
        """The service may be minted other scopes from now on."""
        self._minted.clear()

    def forget(self, context: UserExecutionContext) -> None:
        """The context is over. Idempotent."""
        self._minted.pop(context.isolation_key, None)

    def fields(self, context: UserExecutionContext) -> bytes | None:
        """What stands in each of its events, a token in it; None when that needs another: revoked, or its half over."""
        known = self._minted.get(context.isolation_key)
        if known is None or known.token.family in self._tokens.revocations or self._clock.time() >= known.renew_at:
            return None
        return known.fields

    def has(self, context: UserExecutionContext) -> bool:
        """Whether it can be told of without another token."""
        return self.fields(context) is not None

    async def mint(self, context: UserExecutionContext, coming: Iterable[UserExecutionContext]) -> bytes:
        """Have a token for it, minted with its record first; `fields` from now on.

        Those that come next have theirs by the same write of the audit trail: a worker that has just attached is told
        of many. Again, should the service's scopes be others by the time that it is written. Raises Unavailable.
        """
        contexts = [context, *(each for each in coming if each is not context and not self.has(each))]
        while True:
            service = self._service()
            tokens = [self._tokens.mint(each, service.scopes) for each in contexts]
            await self._audit.grant(*map(partial(_record, service), contexts, tokens))
            if service.scopes == self._service().scopes:
                break
        half_s = self._tokens.ttl_s / 2
        made = {
            each.isolation_key: _Answerable(token, token.expires_at - half_s, fields_of(each, token.text))
            for each, token in zip(contexts, tokens, strict=True)
        }
        self._minted |= made
        while len(self._minted) > MAX_TOKENS:
            self._minted.popitem(last=False)
        return made[context.isolation_key].fields


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
