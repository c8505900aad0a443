"""Whom somebody means and what they present: plain values, resolved against what is known when a call begins."""

from __future__ import annotations

import secrets
from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import Enum

from tests.integration.isolation.calls import Answer
from tests.integration.isolation.model import (
    EVERY_SCOPE,
    Context,
    Credential,
    Isolation,
    Person,
    Token,
)
from tests.integration.isolation.setting import DEPUTY, LOCAL, OPERATOR
from tests.integration.isolation.trail import ADDRESS
from tests.integration.isolation.world import World


class By(Enum):
    """Which token is presented."""

    OWN = "own"
    """What its client was given."""
    FORMER = "former"
    """What its client was given before it last came back, if it did."""
    WIDE = "wide"
    """A service's, with every scope."""
    NARROW = "narrow"
    """A service's, with the scope `send` alone."""
    OTHER = "other"
    """Another context's, good for that one."""
    SPLICED = "spliced"
    """Signed by the sidecar's own key, with this context's key and another user's name."""
    EXPIRED = "expired"
    GARBAGE = "garbage"
    MISSING = "missing"
    GUESS = "guess"
    """Its own, for a key that nobody has."""

    def __repr__(self) -> str:
        return f"By.{self.name}"


@dataclass(frozen=True)
class Aim:
    """The context that is meant, and what is presented. `user` is whom the caller expects: nobody, its own, another."""

    to: int
    by: By = By.OWN
    other: int = 0
    user: str = ""

    def at(self, world: World) -> Credential | None:
        """The key and the token, with all that is known of them now."""
        context, other = world.context(self.to), world.context(self.other)
        if context is None or other is None:
            return None
        key = secrets.token_hex(32) if self.by is By.GUESS else context.key
        expected = {"": "", "own": context.person.subject, "other": "somebody-else"}[self.user]
        return Credential(key, self._token(world, context, other), expected)

    def _token(self, world: World, context: Context, other: Context) -> Token:
        match self.by:
            case By.OWN | By.GUESS:
                return context.tokens["own"]
            case By.WIDE | By.NARROW | By.FORMER:
                return context.tokens.get(self.by.value, context.tokens["own"])
            case By.OTHER:
                return other.tokens["own"]
            case By.SPLICED:
                claimed = other.person
                if claimed is context.person:
                    claimed = Person(context.person.tenant, "nobody")
                token = world.signed(context, EVERY_SCOPE, sub=claimed.subject, tid=claimed.tenant)
                token.claimed = claimed
                return token
            case By.EXPIRED:
                token = world.signed(context, EVERY_SCOPE, iat=1_000, nbf=1_000, exp=2_000)
                token.fault = "TOKEN_EXPIRED"
                return token
            case By.GARBAGE:
                return Token("not.a.token", fault="TOKEN_INVALID")
            case By.MISSING:
                return Token("", fault="TOKEN_MISSING")


class Operation(ABC):
    """Something that somebody does. `run` asserts that it ended as it may."""

    @abstractmethod
    async def run(self, world: World) -> None:
        """Do it, while others do other things."""


def judge(world: World, answer: Answer, credential: Credential, scope: str, method: str) -> bool:
    """Whether the call was answered OK; raises where it must not have been answered so."""
    verdict = credential.verdict(scope)
    if not answer.reason:
        if not verdict.ok:
            raise Isolation(f"{method} with {credential.token} was answered OK, not {set(verdict.reasons)}")
        return True
    if answer.reason not in verdict.reasons:
        raise Isolation(f"{method} with {credential.token} was refused {answer.reason}, not {set(verdict.reasons)}")
    world.trail.refused(answer.reason, method, credential)
    return False


SERVICES = {"operator": OPERATOR, "deputy": DEPUTY, "local": LOCAL, "nobody": "no-such-service"}


def as_service(name: str) -> tuple[tuple[str, str], ...]:
    return (("x-service-token", SERVICES[name]),)


def service_refused(world: World, service: str, answer: Answer, method: str) -> bool:
    """Whether the caller is none of those who may; then it was refused."""
    if service == "nobody":
        assert answer.reason == "TOKEN_INVALID"
        world.trail.floods[ADDRESS] += 1
    elif service == "deputy":
        assert answer.reason == "SERVICE_DENIED"
        world.trail.expect("service_denied", method, None, None)
    return service in {"nobody", "deputy"}
