"""Clients come back to their contexts, rightly or not; and others try to come in with what they found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tests.integration.isolation.aims import Operation
from tests.integration.isolation.calls import Greeted
from tests.integration.isolation.comings import arrived, denied
from tests.integration.isolation.model import Context, Isolation, Person
from tests.integration.isolation.screens import ABORTED, TAKEN_OVER
from tests.integration.isolation.sends import PLAIN, send_as_observer
from tests.integration.isolation.world import World

BEYOND = 1_000_000
"""No context ever has so many messages, nor a client so many attempts."""


class _Hello:
    """One hello that wants to resume, and what was known when it was sent."""

    def __init__(self, world: World, context: Context, person: Person, last_sequence: int, attempt: int) -> None:
        self._world, self._context, self._person = world, context, person
        self.was_ended = context.ended
        self.attempt = attempt
        self._resume = {
            "token": context.welcome["resume_token"],
            "last_sequence": last_sequence,
            "attempt": attempt,
        }
        self._before = [other for other in world.of_person(person) if not other.ended]

    async def say(self, **members: Any) -> Greeted:
        self._person.connects += 1
        return await self._world.hello(self._person, resume=self._resume, **members)

    def taken_over(self) -> None:
        """Its attempt was not above the highest."""
        if self.was_ended:
            raise Isolation(f"{self._context} has ended, and is said to be taken over")
        self._world.trail.expect("connect_refused", "stale_attempt", self._person.tenant, self._person.subject)

    def denied(self, greeting: Greeted, slow: bool = False) -> None:
        """It was: a fresh context, or whatever else a user may be told, which has nothing of the one asked for."""
        denied(self._world, "resume", self._person, self._context, self.was_ended)
        self.given_another(greeting, slow)

    def given_another(self, greeting: Greeted, slow: bool = False) -> None:
        fresh = arrived(self._world, self._person, self._before, greeting, slow=slow)
        if fresh is None:
            return
        assert (fresh.welcome["recovery"], fresh.welcome["sequence"]) == ("denied", 0)
        for name in ("connection_id", "isolation_key", "context_token", "resume_token", "attach_id"):
            if fresh.welcome[name] == self._context.welcome[name]:
                raise Isolation(f"{fresh} was denied {self._context}, and has its {name}")


@dataclass(frozen=True)
class Return(Operation):
    """The client of a context comes back, with the token, what it has, and a new attempt.

    Before that it was cut off and `missed` so many messages; or `early`: the sidecar knows of no loss yet. It may have
    forgotten the last few of what it had: it is `behind`.
    """

    to: int
    early: bool = False
    missed: int = 0
    behind: int = 0

    async def run(self, world: World) -> None:
        context = world.context(self.to)
        if context is None:
            return
        context.returns += 1
        context.may_be_left()
        if not self.early and context.primary.live:
            await context.primary.abort()
        for _ in range(0 if context.ended else self.missed):
            await send_as_observer(world, context, PLAIN)
        await self._come_back(world, context)

    async def _come_back(self, world: World, context: Context) -> None:
        former, asked = context.primary, len(world.attempts)
        last = max(former.last - self.behind, 0)
        context.attempt += 1
        context.acknowledging = True
        context.claimed = max(context.claimed, last)
        promised = max(context.accepted, default=0)
        for screen in context.primaries:
            screen.close_codes |= {TAKEN_OVER, ABORTED} if screen.paused else {TAKEN_OVER}
        hello = _Hello(world, context, context.person, last, context.attempt)
        greeting = await hello.say(slow=former.slow)
        if greeting.welcome.get("recovery") in {"full", "gap"}:
            if hello.was_ended:
                raise Isolation(f"{context.person} came back to {context}")
            assert greeting.welcome["sequence"] == last
            screen = world.welcomed_back(context, greeting, attempt=hello.attempt, promised=promised, slow=former.slow)
            world.returned.append((screen, asked))
            world.seen[f"came back {'early' if self.early else 'after a cut'}"] += 1
            return
        context.returns_refused += 1
        if greeting.code == TAKEN_OVER:
            if context.attempt == hello.attempt:
                raise Isolation(f"{context} was refused its newest attempt, {hello.attempt}")
            hello.taken_over()
        else:
            hello.denied(greeting, former.slow)


@dataclass(frozen=True)
class ReturnLate(Operation):
    """A hello that was sent before another comes after it: its attempt is not above the highest. Nobody is fenced."""

    to: int
    ago: int = 0

    async def run(self, world: World) -> None:
        context = world.context(self.to)
        if context is None or context.seen_attempt <= self.ago:
            return
        hello = _Hello(world, context, context.person, 0, context.seen_attempt - self.ago)
        greeting = await hello.say()
        if greeting.code == TAKEN_OVER:
            hello.taken_over()
            world.seen["came back late"] += 1
            return
        if greeting.welcome.get("recovery") in {"full", "gap"}:
            raise Isolation(f"{context} was given to the attempt {hello.attempt}")
        hello.denied(greeting)


@dataclass(frozen=True)
class ReturnAhead(Operation):
    """A client says that it has what was never sent: it is told what everybody is told who is denied."""

    to: int

    async def run(self, world: World) -> None:
        context = world.context(self.to)
        if context is None:
            return
        context.returns += 1
        context.attempt += 1
        hello = _Hello(world, context, context.person, BEYOND, context.attempt)
        greeting = await hello.say()
        if greeting.code == TAKEN_OVER:
            assert context.attempt > hello.attempt
            hello.taken_over()
            return
        context.seen_attempt = max(context.seen_attempt, hello.attempt)
        who = (context.person.tenant, context.person.subject)
        above, lost = (("resume_denied", "resume", reason, *who) for reason in ("above_head", "not_found"))
        if hello.was_ended:
            world.trail.expect(*lost)
        elif context.may_end:
            world.trail.expect_either(above, lost)
        else:
            world.trail.expect(*above)
            world.seen["came back ahead"] += 1
        hello.given_another(greeting)


@dataclass(frozen=True)
class Impersonate(Operation):
    """Somebody comes with the resume token of another user's context: they get a fresh one, which tells nothing.

    The other's client notices nothing: neither is it fenced, nor is its next attempt stale.
    """

    to: int
    who: int

    async def run(self, world: World) -> None:
        context, person = world.context(self.to), world.person(self.who)
        if context is None or context.person is person:
            return
        hello = _Hello(world, context, person, 0, BEYOND)
        greeting = await hello.say()
        if greeting.code == TAKEN_OVER or greeting.welcome.get("recovery") in {"full", "gap"}:
            raise Isolation(f"{person} came in to {context}: {greeting}")
        world.seen["came in as another"] += not hello.was_ended
        hello.denied(greeting)
