"""The running sidecar as one example uses it: who is there, the calls they make, and what must hold between steps."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any

from sidecar.api.v1 import admin_service_pb2 as admin_pb
from sidecar.api.v1 import context_service_pb2 as context_pb
from sidecar.api.v1 import delivery_service_pb2 as pb
from sidecar.api.v1 import types_pb2
from sidecar.security.context_keys import ContextTokenKeys
from sidecar.security.jose import sign
from sidecar.security.user_tokens import mint_user_token
from tests.integration.isolation.calls import Greeted, answer_to, as_client, greeted
from tests.integration.isolation.model import (
    CLIENT_SCOPES,
    CRITICAL_RESERVE,
    MANAGERS_PER_USER,
    SOCKETS_PER_MANAGER,
    Attempt,
    Context,
    Credential,
    Isolation,
    Person,
    Token,
)
from tests.integration.isolation.screens import PATIENCE_S, TAKEN_OVER, Screen, dial
from tests.integration.isolation.setting import COLOURS, MAX_MESSAGES, OTHER_ISSUER, tenant_of
from tests.integration.isolation.trail import ExpectedTrail
from tests.security.forge import read
from tests.support.running import AUDIENCE, ISSUER, RunningSidecar, Service


class World:
    """One example: its people, contexts and attempts."""

    def __init__(self, sidecar: RunningSidecar, service: Service, number: int, people: int) -> None:
        self.sidecar = sidecar
        self.service = service
        # The same names in every tenant: only the tenant tells them apart.
        self.people = [
            Person(tenant_of(colour, number), f"user-{number}-{name}") for name in range(people) for colour in COLOURS
        ]
        self.contexts: list[Context] = []
        self.present: Sequence[Context] = ()
        """The contexts at the start of the step: what its operations may mean."""
        self.attempts: dict[str, Attempt] = {}
        self.repeats: dict[str, Attempt] = {}
        """Messages with a caller's message_id, that may be sent again."""
        self.broadcasts: list[tuple[int, Attempt, bool]] = []
        """The step, the message, and whether some manager refused it."""
        self.returned: list[tuple[Screen, int]] = []
        """The sockets with which clients came back, and the number of attempts by then."""
        self.step = 0
        self.nobody = Token("", fault="LANE_NOT_OPEN")
        self.trail = ExpectedTrail(sidecar.audit_path, self._barrier)
        self._signer = ContextTokenKeys(sidecar.audit_path.parent / "context.keys", now=0).ring.keys[-1]
        self._observers: dict[str, Token] = {}
        self._managers_before = 0
        self.seen: Counter[str] = Counter()

    # Who

    def context(self, number: int) -> Context | None:
        """One of those present; None while there is nobody."""
        return self.present[number % len(self.present)] if self.present else None

    def person(self, number: int) -> Person:
        return self.people[number % len(self.people)]

    def of_person(self, person: Person) -> list[Context]:
        return [context for context in self.contexts if context.person is person]

    def user_token(self, person: Person, *, brief: bool = False, tenant: str | None = None) -> str:
        """A good user token; a brief one is over, but for the leeway."""
        blue = person.tenant.startswith(COLOURS[2])
        return mint_user_token(
            self.sidecar.secret,
            issuer=OTHER_ISSUER if blue else ISSUER,
            audience=AUDIENCE,
            subject=person.subject,
            tenant_id=tenant or person.tenant,
            session_id=None,
            ttl_s=5 if brief else 600,
            now=time.time() - (10 if brief else 0),
        )

    def observer(self, context: Context) -> Token:
        """A token of the context's that nobody takes back."""
        return self._observers[context.connection_id]

    def signed(self, context: Context, scopes: Iterable[str] = CLIENT_SCOPES, **claims: object) -> Token:
        """A context token that the sidecar could have minted, but for these claims."""
        own = read(str(context.welcome["context_token"]), 1)
        names = " ".join(sorted(scopes))
        changed = own | {"fam": f"f{len(self._observers)}", "jti": "made-here", "scope": names} | claims
        return Token(sign(self._signer.header, changed, self._signer.secret), context, frozenset(scopes))

    # Messages

    def attempt(self, sender: str, **members: Any) -> Attempt:
        """A payload with an owner, known before anybody can hear it."""
        one = Attempt(sender, number=len(self.attempts), **members)
        self.attempts[one.id] = one
        return one

    def message(self, attempt: Attempt, payload: bytes | None = None) -> types_pb2.Message:
        message = types_pb2.Message(
            payload=attempt.payload if payload is None else payload,
            message_id=attempt.message_id,
            critical=attempt.critical,
        )
        if attempt.ttl_s is not None:
            message.ttl.FromNanoseconds(int(attempt.ttl_s * 1e9))
        return message

    # Sockets

    async def hello(self, person: Person, *, brief: bool = False, slow: bool = False, **members: Any) -> Greeted:
        """Connect and say hello as that person."""
        connection = await dial(self.sidecar.websocket_url, slow=slow)
        hello = {"type": "hello", "token": self.user_token(person, brief=brief), **members}
        return await greeted(connection, hello)

    def welcomed(self, person: Person, greeted: Greeted, *, brief: bool = False, slow: bool = False) -> Context:
        """A new context, from here on in the model."""
        context = Context(person, greeted.welcome, born=self.step)
        if any(other.key == context.key for other in self.contexts):
            raise Isolation(f"two contexts have the key of {context}")
        if brief:
            context.may_be_left()
        if person.disconnecting:
            context.may_close("disconnected", 4505)
        context.attach(Screen(greeted.connection, context, greeted.welcome, self.attempts, mirror=False, slow=slow))
        context.primary.close_codes |= {4000} if brief else set()
        context.tokens["own"] = Token(str(greeted.welcome["context_token"]), context, CLIENT_SCOPES)
        self._observers[context.connection_id] = self.signed(context)
        self.contexts.append(context)
        return context

    def welcomed_back(self, context: Context, greeted: Greeted, *, attempt: int, promised: int, slow: bool) -> Screen:
        """A new primary of a context that is known: the others are fenced, but for those of a later attempt."""
        welcome = greeted.welcome
        for name in ("connection_id", "isolation_key", "session_id", "resume_token"):
            if welcome[name] != context.welcome[name]:
                raise Isolation(f"{context} came back with another {name}")
        screen = Screen(
            *(greeted.connection, context, welcome, self.attempts),
            mirror=False,
            slow=slow,
            attempt=attempt,
            promised=promised,
        )
        context.seen_attempt = max(context.seen_attempt, attempt)
        if context.attempt > attempt:
            screen.close_codes.add(TAKEN_OVER)
        context.attach(screen)
        for former in context.former_primaries:
            former.unpause()
            if former.fenced_from is None:
                former.fenced_from = len(self.attempts)
        context.tokens["former"] = context.tokens["own"]
        context.tokens["former"].former = True
        context.tokens["own"] = Token(str(welcome["context_token"]), context, CLIENT_SCOPES)
        return screen

    # Between steps

    async def start(self) -> None:
        self._managers_before = (await self.service.factory_stats()).active_managers
        self.trail.expect("admin_call", "GetFactoryStats")

    def begin_step(self) -> None:
        self.step += 1
        # In an order that no race decides, so that a program means the same each time.
        order = {person: number for number, person in enumerate(self.people)}
        key = lambda one: (one.born, order[one.person], not one.primary.slow)  # noqa: E731
        self.present = tuple(sorted(self.contexts, key=key))
        for person in self.people:
            person.connects = 0
            person.disconnecting = False
        for context in self.contexts:
            context.joins = context.returns = 0

    async def settle(self) -> None:
        """Nothing is under way: what holds now."""
        for context in self.contexts:
            for former in context.former_primaries:
                await former.end()
            if not context.ended:
                await self._look(context)
        await self._count()
        for context in self.contexts:
            context.may_stall = context.may_stall and context.primary.paused
            if context.flowing:
                await self._all_has_come(context)
        self.check_screens()

    def check_faults(self) -> None:
        """A frame on the wrong screen tells more than whatever it brought about."""
        for context in self.contexts:
            for screen in context.all_screens:
                if screen.fault is not None:
                    raise screen.fault

    def check_screens(self) -> None:
        for context in self.contexts:
            for screen in context.all_screens:
                screen.check()

    async def _look(self, context: Context) -> None:
        """Its counters are what was done to it with its own tokens, and nothing else."""
        open_sockets = sum(screen.live for screen in context.screens)
        async with asyncio.timeout(PATIENCE_S):
            while True:
                stats = await self.stats(context)
                if stats is None or stats.connections_managed == open_sockets:
                    break
                if stats.connections_managed < open_sockets:  # closed from the other side: wait until that is seen
                    reading = [screen.reading for screen in context.screens if screen.live]
                    await asyncio.wait(reading, timeout=PATIENCE_S, return_when=asyncio.FIRST_COMPLETED)
                open_sockets = sum(screen.live for screen in context.screens)
        if stats is None:
            if not context.may_end:
                raise Isolation(f"{context} has ended, and nobody ended it")
            context.ended = True
            return
        if context.ended:
            raise Isolation(f"{context} lives on")
        detached = not context.primary.live
        assert stats.cleanup_scheduled is detached
        context.may_end = context.may_detach = detached
        self._check_counters(context, stats)

    def _check_counters(self, context: Context, stats: Any) -> None:
        known = len(context.accepted)
        # A context that was made while a broadcast was under way may have it too.
        refused = [one[2] for one in self.broadcasts if one[0] >= context.born and one[1].may_reach(context)]
        broadcasts = len(refused)
        if not known <= stats.messages_sent_total <= known + broadcasts:
            raise Isolation(f"{context} took {stats.messages_sent_total} messages, not {known} and up to {broadcasts}")
        failed = stats.messages_failed_total - context.failed
        if not 0 <= failed <= sum(refused):
            raise Isolation(f"{context} refused {stats.messages_failed_total} messages, not {context.failed}")
        assert max(context.accepted, default=0) <= stats.messages_sent_total
        assert stats.outbox_messages <= MAX_MESSAGES + CRITICAL_RESERVE

    async def _all_has_come(self, context: Context) -> None:
        """Everything accepted is on the primary's screen; what is there is accounted for by `Screen.check`."""
        stats = await self.stats(context)
        if stats is None:
            raise Isolation(f"{context} has ended, and nobody ended it")
        primary = context.primary
        await primary.reached(stats.messages_sent_total)
        await primary.probe()
        if primary.last != stats.messages_sent_total:
            raise Isolation(f"{primary} has more than the {stats.messages_sent_total} that were accepted")
        if primary.recovery == "gap" and not primary.gaps:
            raise Isolation(f"{primary} was told that something is missing, and nothing is")
        came = {sequence: attempt for screen in context.primaries for sequence, attempt in screen.messages.items()}
        lost = {sequence: reason for screen in context.primaries for sequence, reason in screen.missed.items()}
        on_screen = set(came.values())
        # No receipt says which sequence a broadcast has: it may be one that was lost on its way to the one before.
        evicted = sum(reason == "evicted" and sequence not in context.accepted for sequence, reason in lost.items())
        missing = [attempt for attempt in context.owed if attempt not in on_screen]
        if len(missing) > evicted:
            raise Isolation(f"the broadcasts {missing} did not reach {context}")
        if not context.accepted.keys() <= came.keys() | lost.keys():
            raise Isolation(f"{context} lost {sorted(context.accepted.keys() - came.keys() - lost.keys())}")

    async def stats(self, context: Context) -> Any:
        """The context's counters; None once it has ended."""
        observer = self._observers[context.connection_id]
        request = pb.GetManagerStatsRequest(isolation_key=context.key)
        answer = await answer_to(self.service.delivery.GetManagerStats(request, metadata=as_client(observer)))
        if answer.reason:
            assert answer.reason == "MANAGER_GONE"
            self.trail.refused(answer.reason, "GetManagerStats", Credential(context.key, observer))
            return None
        assert answer.value.connections_managed <= SOCKETS_PER_MANAGER
        return answer.value

    async def _count(self) -> None:
        """Who is there, and how many each has."""
        listed = {summary.context.connection_id for summary in await self.look_around()}
        for context in self.contexts:
            sure = not context.ended and not context.may_end
            if (context.connection_id in listed) not in (
                {True} if sure else {False} if context.ended else {True, False}
            ):
                raise Isolation(f"{context} is {'not ' if sure else ''}listed")

    async def look_around(self) -> list[Any]:
        """Every manager, as an operator sees them at one instant: never more than the limits allow."""
        request = admin_pb.ListManagersRequest(page_size=1_000)
        answer = await self.service.admin.ListManagers(request, metadata=self.service.as_operator)
        self.trail.expect("admin_call", "ListManagers")
        managers = Counter((one.context.tenant_id, one.context.user_id) for one in answer.managers)
        assert max(managers.values(), default=0) <= MANAGERS_PER_USER
        assert max((one.connections_managed for one in answer.managers), default=0) <= SOCKETS_PER_MANAGER
        return list(answer.managers)

    # The end

    async def finish(self) -> None:
        """End everything; nothing is left, and the trail holds all that was done."""
        for context in self.contexts:
            context.primary.unpause()
        await self.settle()
        await self.disconnect_everybody()
        for context in self.contexts:
            for screen in context.all_screens:
                await screen.end()
        self.check_screens()
        stats = await self.service.factory_stats()
        self.trail.expect("admin_call", "GetFactoryStats")
        assert stats.active_managers == self._managers_before
        await self.trail.check(self.contexts, self.people)
        self._tell()

    def _tell(self) -> None:
        """What there was to see, so that a run can be asked whether it saw anything."""
        seen = self.seen
        seen.update(f"refused {reason}" for reason, _ in self.trail.refusals.elements())
        seen.update(f"ended {record['reason']}" for record in self.trail.records if record["event"] == "context_closed")
        seen.update(f"answered {one.answer}" for one in self.attempts.values() if one.answer)
        for screen, asked in self.returned:
            seen[f"recovered {screen.recovery}"] += 1
            seen["replayed"] += sum(attempt.number < asked for attempt in screen.messages.values())
            seen.update(f"missed {reason}" for reason in screen.missed.values())
        for context in self.contexts:
            seen["duplicates"] += context.duplicates
            seen["mirrors"] += len(context.mirrors)
            seen["refused joins"] += context.joins_refused
            seen["broadcasts"] += len(context.owed)
            for screen in context.all_screens:
                seen["frames"] += len(screen.messages)
                seen["gaps"] += len(screen.gaps)
                seen[f"closed {screen.closed}"] += 1

    async def disconnect_everybody(self) -> None:
        for person in self.people:
            for context in self.of_person(person):
                context.may_close("disconnected", 4505)
                for screen in context.all_screens:
                    screen.unpause()
            request = admin_pb.DisconnectUserRequest(tenant_id=person.tenant, user_id=person.subject)
            await self.service.admin.DisconnectUser(request, metadata=self.service.as_operator)
            self.trail.expect("admin_call", "DisconnectUser")

    async def abandon(self) -> None:
        """After a failure: leave nothing to the next example."""
        await self.disconnect_everybody()
        for context in self.contexts:
            for screen in context.all_screens:
                with suppress(Isolation):
                    await screen.abort()
        # So many bad tokens that some are counted: once that is told, so is all that was counted before.
        strangers = (self.service.context.GetContext(context_pb.GetContextRequest()) for _ in range(20))
        await asyncio.gather(*map(answer_to, strangers))
        await self.trail.told()

    async def _barrier(self) -> None:
        await self.service.security_stats()
