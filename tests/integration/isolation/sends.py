"""The ways of a message: unary, critical, in a batch, by broadcast; to clients that read and to those that do not."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sidecar.api.v1 import delivery_service_pb2 as pb
from sidecar.api.v1 import types_pb2
from tests.integration.isolation.aims import Aim, Operation, judge
from tests.integration.isolation.calls import Answer, answer_to, as_client
from tests.integration.isolation.model import (
    CRITICAL_RESERVE,
    MANAGERS_PER_USER,
    SOCKETS_PER_MANAGER,
    Attempt,
    Context,
    Credential,
    Isolation,
)
from tests.integration.isolation.world import World
from tests.support.running import refusal_in

BIG_BYTES = 60_000
BRIEF_S = 0.001
ENOUGH_BIG = 200
"""More than any socket's buffers hold."""


@dataclass(frozen=True)
class Body:
    """What is sent. `id` is the caller's message_id, `variant` tells payloads of one id apart."""

    good: bool = True
    critical: bool = False
    brief: bool = False
    """With a ttl that is over before anybody can look."""
    id: int | None = None
    variant: int = 0
    size: int = 0


PLAIN = Body()
SOON_OVER = (Body(brief=True), Body(brief=True), PLAIN, Body(brief=True))


class Sending:
    """One message on its way: written down before it is sent, settled when it was answered."""

    def __init__(self, world: World, credential: Credential, body: Body, method: str, scope: str = "send") -> None:
        self._world, self._body, self._method, self._scope = world, body, method, scope
        self.credential = credential
        self._context = context = credential.may_open
        self.attempt = self._written_down()
        self._was_critical = 0 if context is None else context.accepted_critical
        if context is None:
            return
        context.offered_critical += body.critical
        if self.attempt.message_id:
            context.offered.setdefault(self.attempt.message_id, set()).add(self.attempt.id)

    def _written_down(self) -> Attempt:
        world, body, context = self._world, self._body, self._context
        owner = self.credential.token.owner
        sender = f"{self._method} by {owner.connection_id if owner else 'nobody'} of {self.credential.claimed}"
        targets = () if context is None else (context,)
        if body.id is None or context is None or not body.good:
            ttl_s = BRIEF_S if body.brief else None
            return world.attempt(sender, targets=targets, critical=body.critical, ttl_s=ttl_s, size=body.size)
        # The same message again has the same payload; the id belongs to its context, and others use it too.
        name = f"m-{body.id}"
        number = f"{context.connection_id} {name} {body.variant} {body.critical}"
        known = world.repeats.get(number)
        if known is None:
            known = world.attempt("the same", targets=targets, critical=body.critical, message_id=name)
            world.repeats[number] = known
        return known

    @property
    def message(self) -> types_pb2.Message:
        return self._world.message(self.attempt, None if self._body.good else b'{"not": "one value"')

    def settle(self, answer: Answer) -> None:
        """The answer, a receipt or a reason, must be one that this message may have."""
        if not answer.reason:
            judge(self._world, answer, self.credential, self._scope, self._method)
            self._world.seen["sent with a former token"] += self.credential.token.former
            self._taken(answer.value)
            return
        if answer.reason in {"OUTBOX_FULL", "BAD_REQUEST", "MESSAGE_ID_REUSED"}:
            judge(self._world, Answer(""), self.credential, self._scope, self._method)
            assert self._context is not None
            self._context.failed += 1
            self._refused(self._context, answer.reason)
            return
        if answer.reason == "SCOPE_MISSING" and self._body.critical and self._scope == "send":
            judge(self._world, answer, self.credential, "emit", self._method)
        else:
            judge(self._world, answer, self.credential, self._scope, self._method)
        self._unanswered(answer.reason)

    def _taken(self, receipt: Any) -> None:
        context, attempt = self._context, self.attempt
        assert context is not None
        if not self._body.good:
            raise Isolation(f"{attempt} is not JSON, and was taken")
        if attempt.critical:
            assert "emit" in self.credential.token.scopes
            if self._was_critical >= CRITICAL_RESERVE and not context.acknowledging:
                raise Isolation(f"{context} keeps more critical events than its reserve")
            context.accepted_critical += not receipt.duplicate
        assert receipt.connections <= SOCKETS_PER_MANAGER
        if attempt.message_id:
            assert receipt.message_id == attempt.message_id
        context.take(receipt.sequence, attempt, receipt.duplicate)

    def _refused(self, context: Context, reason: str) -> None:
        body, attempt = self._body, self.attempt
        if reason == "BAD_REQUEST":
            assert not body.good
        elif reason == "MESSAGE_ID_REUSED":
            assert len(context.offered[attempt.message_id]) > 1
        elif body.critical:
            assert context.offered_critical > CRITICAL_RESERVE
        else:
            assert not context.flowing, f"the outbox of {context} was full"
        self._unanswered(reason)

    def dropped(self) -> None:
        """Nobody took it: its lane was not open."""
        self._unanswered("LANE_NOT_OPEN")

    def _unanswered(self, reason: str) -> None:
        if not self.attempt.message_id:
            self.attempt.answer = reason
            self.attempt.targets = ()


@dataclass(frozen=True)
class Send(Operation):
    """SendToUser."""

    aim: Aim
    body: Body = PLAIN

    async def run(self, world: World) -> None:
        credential = self.aim.at(world)
        if credential is None:
            return
        sending = Sending(world, credential, self.body, "SendToUser")
        request = pb.SendToUserRequest(
            isolation_key=credential.key, message=sending.message, expected_user_id=credential.expected_user_id
        )
        call = world.service.delivery.SendToUser(request, metadata=as_client(credential.token))
        sending.settle(_receipt(await answer_to(call)))


@dataclass(frozen=True)
class Emit(Operation):
    """EmitCriticalEvent."""

    aim: Aim

    async def run(self, world: World) -> None:
        credential = self.aim.at(world)
        if credential is None:
            return
        sending = Sending(world, credential, Body(critical=True), "EmitCriticalEvent", "emit")
        request = pb.EmitCriticalEventRequest(
            isolation_key=credential.key,
            event_type="event",
            data=sending.attempt.payload,
            expected_user_id=credential.expected_user_id,
        )
        call = world.service.delivery.EmitCriticalEvent(request, metadata=as_client(credential.token))
        sending.settle(_receipt(await answer_to(call)))


def _receipt(answer: Answer) -> Answer:
    return answer if answer.reason else Answer("", answer.value.receipt)


def outcome(result: Any) -> Answer:
    """Of a batch's item, or of a lane's message."""
    if result.WhichOneof("result") == "receipt":
        return Answer("", result.receipt)
    return Answer(refusal_in(result.error).reason)


@dataclass(frozen=True)
class Batch(Operation):
    """SendBatch: each item stands or falls alone."""

    items: tuple[tuple[Aim, Body], ...]

    async def run(self, world: World) -> None:
        aimed = [(aim.at(world), body) for aim, body in self.items]
        sendings = [Sending(world, credential, body, "SendBatch") for credential, body in aimed if credential]
        items = [
            pb.SendBatchItem(
                isolation_key=sending.credential.key,
                context_token=sending.credential.token.text,
                message=sending.message,
                expected_user_id=sending.credential.expected_user_id,
            )
            for sending in sendings
        ]
        answer = await answer_to(world.service.delivery.SendBatch(pb.SendBatchRequest(items=items)))
        assert not answer.reason, "a batch fails item by item"
        for sending, result in zip(sendings, answer.value.results, strict=True):
            sending.settle(outcome(result))


@dataclass(frozen=True)
class Broadcast(Operation):
    """One message to all contexts of a user, or of a tenant; never to another's."""

    aim: Aim
    tenant: bool = False

    async def run(self, world: World) -> None:
        credential = self.aim.at(world)
        if credential is None:
            return
        credential.key = credential.expected_user_id = ""
        reach = "tenant" if self.tenant else "user"
        may_open = credential.may_open if f"broadcast:{reach}" in credential.token.scopes else None
        targets = () if may_open is None else (may_open,)
        attempt = world.attempt(f"broadcast by {credential.token}", targets=targets, reach=reach)
        sure = [one for one in world.contexts if one.flowing and attempt.may_reach(one)]
        scope = pb.BROADCAST_SCOPE_TENANT if self.tenant else pb.BROADCAST_SCOPE_USER
        request = pb.BroadcastRequest(scope=scope, message=world.message(attempt))
        call = world.service.delivery.Broadcast(request, metadata=as_client(credential.token))
        answer = await answer_to(call)
        if not judge(world, answer, credential, f"broadcast:{reach}", "Broadcast"):
            attempt.answer, attempt.targets = answer.reason, ()
            return
        assert may_open is not None
        attempt.answer = "ok"
        who = may_open.person
        world.trail.expect("broadcast", who.tenant, who.subject, may_open.connection_id, f"broadcast:{reach}")
        self._check_reach(world, attempt, sure, answer.value)

    def _check_reach(self, world: World, attempt: Attempt, sure: Iterable[Context], response: Any) -> None:
        sure = [one for one in sure if one.flowing]
        possible = [one for one in world.contexts if attempt.may_reach(one)]
        welcomes = sum(person.connects for person in world.people if self._means(attempt, person))
        assert len(sure) <= response.managers + response.refused <= len(possible) + welcomes
        assert self.tenant or response.managers + response.refused <= MANAGERS_PER_USER
        world.broadcasts.append((world.step, attempt, bool(response.refused)))
        for context in sure:
            context.owed.append(attempt)

    def _means(self, attempt: Attempt, person: Any) -> bool:
        owner = attempt.targets[0].person
        return bool(owner.tenant == person.tenant) if self.tenant else owner is person


@dataclass(frozen=True)
class Stall(Operation):
    """A slow client stops reading; it is sent to until nothing more is written, then `more`, and what soon expires."""

    context: int
    more: int = 0

    async def run(self, world: World) -> None:
        context = world.context(self.context)
        if context is None or not (context.primary.slow and context.primary.live):
            return
        context.may_stall = True
        for mirror in context.mirrors:
            mirror.close_codes.add(4003)
        context.primary.pause()
        for _ in range(ENOUGH_BIG):
            state = await send_as_observer(world, context, Body(size=BIG_BYTES))
            if state != types_pb2.DELIVERY_STATE_WRITTEN:
                break
        for body in [*SOON_OVER, *[Body(size=BIG_BYTES)] * self.more]:
            await send_as_observer(world, context, body)


async def send_as_observer(world: World, context: Context, body: Body) -> int:
    """Send with a token that is always good; the state, or 0 for a refusal."""
    sending = Sending(world, Credential(context.key, world.observer(context)), body, "SendToUser")
    request = pb.SendToUserRequest(isolation_key=context.key, message=sending.message)
    call = world.service.delivery.SendToUser(request, metadata=as_client(sending.credential.token))
    answer = _receipt(await answer_to(call))
    sending.settle(answer)
    return 0 if answer.reason else int(answer.value.state)


@dataclass(frozen=True)
class Thaw(Operation):
    """The client reads on."""

    context: int

    async def run(self, world: World) -> None:
        context = world.context(self.context)
        if context is not None:
            context.primary.unpause()
