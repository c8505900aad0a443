"""Context tokens are exchanged, refreshed and taken back; and whoever holds one looks at what it opens."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sidecar.api.v1 import context_service_pb2 as context_pb
from sidecar.api.v1 import delivery_service_pb2 as pb
from tests.integration.isolation.aims import Aim, Operation, as_service, judge, service_refused
from tests.integration.isolation.calls import answer_to, as_client
from tests.integration.isolation.model import (
    EVERY_SCOPE,
    SOCKETS_PER_MANAGER,
    Context,
    Credential,
    Isolation,
    Person,
    Token,
)
from tests.integration.isolation.world import World


@dataclass(frozen=True)
class Exchange(Operation):
    """A service exchanges the token of the user of context `by` for one of context `to`."""

    to: int
    by: int
    service: str = "operator"
    wide: bool = True

    async def run(self, world: World) -> None:
        context, other = world.context(self.to), world.context(self.by)
        if context is not None and other is not None:
            name, scopes = ("wide", EVERY_SCOPE) if self.wide else ("narrow", {"send"})
            await self.token(world, context, name, scopes, person=other.person, service=self.service)

    @staticmethod
    async def token(
        world: World,
        context: Context,
        name: str,
        scopes: Iterable[str],
        *,
        person: Person | None = None,
        service: str = "operator",
    ) -> None:
        """Exchange, and keep the token under that name."""
        person = person or context.person
        was_ended = context.ended
        request = context_pb.ExchangeContextTokenRequest(
            user_token=world.user_token(person), connection_id=context.connection_id, scopes=scopes
        )
        call = world.service.context.ExchangeContextToken(request, metadata=as_service(service))
        answer = await answer_to(call)
        if service_refused(world, service, answer, "ExchangeContextToken"):
            return
        who = (person.tenant, person.subject)
        if service == "local" and not person.tenant.startswith("green"):
            assert answer.reason == "SERVICE_DENIED"
            world.trail.expect("service_denied", "ExchangeContextToken", *who)
            return
        if answer.reason:
            assert answer.reason == "ISOLATION_VIOLATION"
            if person is context.person and not context.may_end:
                raise Isolation(f"{person} was refused a token of {context}")
            world.trail.expect("isolation_violation", "ExchangeContextToken", *who, None)
            return
        if person is not context.person or was_ended:
            raise Isolation(f"{person} has a token of {context}")
        assert answer.value.isolation_key == context.key
        assert answer.value.context.user_id == person.subject
        context.tokens[name] = Token(answer.value.context_token, context, frozenset(scopes))
        world.trail.expect("token_exchanged", *who, context.connection_id)


@dataclass(frozen=True)
class Refresh(Operation):
    """Whoever holds a token asks for a newer one."""

    aim: Aim

    async def run(self, world: World) -> None:
        credential = self.aim.at(world)
        if credential is None:
            return
        credential.key = credential.expected_user_id = ""
        token = credential.token
        request = context_pb.RefreshContextTokenRequest()
        answer = await answer_to(world.service.context.RefreshContextToken(request, metadata=as_client(token)))
        if judge(world, answer, credential, "", "RefreshContextToken") and token.owner is not None:
            owner = token.owner
            fresh = Token(answer.value.context_token, owner, token.scopes, family=token.family)
            owner.tokens["own"] = fresh
            await look_with(world, fresh)
            person = owner.person
            world.trail.expect("token_refreshed", person.tenant, person.subject, owner.connection_id)


@dataclass(frozen=True)
class Revoke(Operation):
    """Whoever holds a token takes it back."""

    aim: Aim

    async def run(self, world: World) -> None:
        credential = self.aim.at(world)
        if credential is None:
            return
        credential.key = credential.expected_user_id = ""
        token, owner = credential.token, credential.token.owner
        token.family.may_be_revoked = token.family.may_be_revoked or not token.fault
        request = context_pb.RevokeContextTokenRequest()
        answer = await answer_to(world.service.context.RevokeContextToken(request, metadata=as_client(token)))
        if answer.reason:
            judge(world, answer, credential, "", "RevokeContextToken")
            return
        # Where the context has ended there is nothing left to take back, and that is no refusal.
        verdict = credential.verdict("")
        if owner is None or not (verdict.ok or "MANAGER_GONE" in verdict.reasons):
            raise Isolation(f"{token} was taken back, not refused {set(verdict.reasons)}")
        token.family.revoked = True
        claimed = token.claimed or owner.person
        world.trail.expect("token_revoked", claimed.tenant, claimed.subject, owner.connection_id)


@dataclass(frozen=True)
class Stats(Operation):
    """Whoever holds a token reads counters."""

    aim: Aim

    async def run(self, world: World) -> None:
        credential = self.aim.at(world)
        if credential is None:
            return
        credential.expected_user_id = ""
        request = pb.GetManagerStatsRequest(isolation_key=credential.key)
        call = world.service.delivery.GetManagerStats(request, metadata=as_client(credential.token))
        answer = await answer_to(call)
        if judge(world, answer, credential, "stats", "GetManagerStats"):
            assert 0 <= answer.value.connections_managed <= SOCKETS_PER_MANAGER


@dataclass(frozen=True)
class Look(Operation):
    """Whoever holds a token asks what it opens."""

    aim: Aim

    async def run(self, world: World) -> None:
        credential = self.aim.at(world)
        if credential is not None:
            await look_with(world, credential.token)


async def look_with(world: World, token: Token) -> None:
    """GetContext: what the token opens is its owner, with its scopes and no others."""
    credential = Credential("", token)
    request = context_pb.GetContextRequest()
    answer = await answer_to(world.service.context.GetContext(request, metadata=as_client(token)))
    if judge(world, answer, credential, "", "GetContext"):
        owner = token.owner
        assert owner is not None
        found = answer.value
        assert (found.isolation_key, found.context.connection_id) == (owner.key, owner.connection_id)
        assert (found.context.tenant_id, found.context.user_id) == (owner.person.tenant, owner.person.subject)
        if set(found.scopes) != token.scopes:
            raise Isolation(f"{token} has the scopes {set(found.scopes)}")


@dataclass(frozen=True)
class LookAround(Operation):
    """An operator lists everybody, while all the rest goes on."""

    async def run(self, world: World) -> None:
        await world.look_around()
