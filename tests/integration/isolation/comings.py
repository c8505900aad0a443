"""Users come, join with a second screen, acknowledge and go; some come who must not."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from tests.integration.isolation.aims import Operation
from tests.integration.isolation.calls import greeted
from tests.integration.isolation.model import (
    EVERY_SCOPE,
    MANAGERS_PER_USER,
    SOCKETS_PER_MANAGER,
    Context,
    Isolation,
    Person,
)
from tests.integration.isolation.screens import Screen, dial
from tests.integration.isolation.tokens import Exchange
from tests.integration.isolation.trail import ADDRESS
from tests.integration.isolation.world import World


@dataclass(frozen=True)
class Connect(Operation):
    """A user comes. `brief`: with a token that ends at once. `slow`: over a connection that holds little."""

    who: int
    brief: bool = False
    slow: bool = False

    async def run(self, world: World) -> None:
        person = world.person(self.who)
        person.connects += 1
        before = [context for context in world.of_person(person) if not context.ended]
        greeting = await world.hello(person, brief=self.brief, slow=self.slow)
        context = arrived(world, person, before, greeting, brief=self.brief, slow=self.slow)
        if context is None:
            return
        if self.brief:
            await context.primary.end()
        else:
            await asyncio.gather(
                Exchange.token(world, context, "wide", EVERY_SCOPE), Exchange.token(world, context, "narrow", {"send"})
            )


def arrived(
    world: World, person: Person, before: Iterable[Context], greeting: Any, *, brief: bool = False, slow: bool = False
) -> Context | None:
    """A new context, or a refusal that the limit explains."""
    now = [context for context in world.of_person(person) if not context.ended]
    if greeting.welcome:
        sure = [context for context in before if not (context.ended or context.may_end)]
        assert len(sure) < MANAGERS_PER_USER, f"{person} has more contexts than allowed"
        return world.welcomed(person, greeting, brief=brief, slow=slow)
    if greeting.code == 4504:
        assert len({*before, *now}) + person.connects - 1 >= MANAGERS_PER_USER, f"{person} was refused a context"
        world.trail.expect("connect_refused", "user_limit", person.tenant, person.subject)
        return None
    assert greeting.code == 4505, greeting.code
    assert person.disconnecting
    person.unwelcomed += 1
    return None


@dataclass(frozen=True)
class Crowd(Operation):
    """One user comes many times at once."""

    who: int
    count: int

    async def run(self, world: World) -> None:
        await asyncio.gather(*(Connect(self.who).run(world) for _ in range(self.count)))


@dataclass(frozen=True)
class Intrude(Operation):
    """Somebody comes with a token that is not good: for another issuer's tenant, over, or none at all."""

    who: int
    how: str

    async def run(self, world: World) -> None:
        person = world.person(self.who)
        blue = person.tenant.startswith("blue")
        foreign = next(other.tenant for other in world.people if other.tenant.startswith("blue") is not blue)
        token = world.user_token(person, tenant=foreign) if self.how == "foreign tenant" else self.how
        connection = await dial(world.sidecar.websocket_url)
        greeting = await greeted(connection, {"type": "hello", "token": token})
        if greeting.code != 4501:
            raise Isolation(f"{person} came in with {self.how}: {greeting}")
        world.trail.floods[ADDRESS] += 1


@dataclass(frozen=True)
class Join(Operation):
    """A second screen, with the resume token of a context: its own user's, or somebody else's."""

    to: int
    who: int | None = None
    brief: bool = False

    async def run(self, world: World) -> None:
        context = world.context(self.to)
        if context is None:
            return
        person = context.person if self.who is None else world.person(self.who)
        was_ended, mirrors = context.ended, sum(mirror.live for mirror in context.mirrors)
        context.joins += 1
        before = [other for other in world.of_person(person) if not other.ended]
        person.connects += 1
        mirror = {"token": context.welcome["resume_token"]}
        greeting = await world.hello(person, brief=self.brief, mirror=mirror)
        if greeting.welcome.get("recovery") == "mirror":
            if person is not context.person or was_ended:
                raise Isolation(f"{person} joined {context}")
            await self._joined(world, context, greeting)
            return
        if greeting.code == 4504 and person is context.person and mirrors + context.joins >= SOCKETS_PER_MANAGER:
            self._full(world, context)
            return
        denied(world, "mirror", person, context, was_ended)
        context.joins_refused += person is context.person
        fresh = arrived(world, person, before, greeting, brief=self.brief)
        if fresh is not None:
            assert greeting.welcome["recovery"] == "denied"
            if self.brief:
                await fresh.primary.end()

    async def _joined(self, world: World, context: Context, greeting: Any) -> None:
        assert greeting.welcome["connection_id"] == context.connection_id
        assert greeting.welcome["isolation_key"] == context.key
        screen = Screen(greeting.connection, context, greeting.welcome, world.attempts, mirror=True)
        context.mirrors.append(screen)
        if sum(one.live for one in context.screens) > SOCKETS_PER_MANAGER:
            raise Isolation(f"{context} has more sockets than allowed")
        if context.may_stall:
            screen.close_codes.add(4003)
        if self.brief:
            screen.close_codes.add(4000)
            await screen.end()

    def _full(self, world: World, context: Context) -> None:
        context.joins_refused += 1
        who = (context.person.tenant, context.person.subject)
        full = ("connect_refused", "connections_per_manager", *who)
        if not context.may_end:
            world.trail.expect(*full)
            return
        # Or it had ended already, and its user may have no further context.
        world.trail.expect_either(full, ("connect_refused", "user_limit", *who))
        world.trail.optional["resume_denied", "mirror", "not_found", *who] += 1


def denied(world: World, kind: str, person: Person, context: Context, was_ended: bool) -> None:
    """A resume token led nowhere: its context has ended, or is somebody else's."""
    who = (person.tenant, person.subject)
    found = ("resume_denied", kind, "not_yours", *who)
    lost = ("resume_denied", kind, "not_found", *who)
    if person is context.person:
        if not (context.may_end or context.ended):
            raise Isolation(f"{person} was denied {context}")
        world.trail.expect(*lost)
    elif was_ended:
        world.trail.expect(*lost)
    elif context.may_end:
        world.trail.expect_either(found, lost)
    else:
        world.trail.expect(*found)


@dataclass(frozen=True)
class Leave(Operation):
    """A screen goes: with 1000, or without a word."""

    context: int
    screen: int = 0
    abruptly: bool = False

    async def run(self, world: World) -> None:
        context = world.context(self.context)
        if context is None:
            return
        screen = context.screens[self.screen % len(context.screens)]
        if not screen.live:
            return
        if screen is context.primary:
            context.may_be_left()
            if not self.abruptly:
                context.may_close("client_closed", 1000, 1001)
        if self.abruptly:
            await screen.abort()
        elif await screen.leave() == 1000 and screen is context.primary and not context.returns:
            context.ended = True  # had its client come back meanwhile, the close of a fenced socket would say nothing


@dataclass(frozen=True)
class Acknowledge(Operation):
    """The client acknowledges all that has come."""

    context: int

    async def run(self, world: World) -> None:
        context = world.context(self.context)
        if context is not None and context.primary.live and not context.may_stall:
            context.acknowledging = True
            await context.primary.acknowledge()
