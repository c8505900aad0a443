"""Deliver streams with several lanes, and what their client may conclude from the answers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import grpc

from sidecar.api.v1 import delivery_service_pb2 as pb
from tests.integration.isolation.aims import Aim, Operation
from tests.integration.isolation.calls import Answer
from tests.integration.isolation.model import Credential, Isolation
from tests.integration.isolation.screens import PATIENCE_S
from tests.integration.isolation.sends import PLAIN, Body, Sending, outcome
from tests.integration.isolation.world import World
from tests.support.running import refusal_in

OPENED = ""
ENDS = frozenset({"MANAGER_GONE", "TOKEN_REVOKED"})
"""How a lane ends of itself."""
BAD = Body(good=False)


@dataclass(frozen=True)
class Open:
    """Open a lane, or open it again while it is open; then one message on it."""

    lane: int
    aim: Aim


@dataclass(frozen=True)
class Say:
    """One frame with a message on each of these lanes, open or not."""

    lanes: tuple[int, ...]
    body: Body = PLAIN


@dataclass(frozen=True)
class Shut:
    """Close a lane; then one message on it."""

    lane: int


Action = Open | Say | Shut


@dataclass(frozen=True)
class Deliver(Operation):
    """A stream of several lanes; a bad lane or message fails alone."""

    script: tuple[Action, ...]

    async def run(self, world: World) -> None:
        stream = _Stream(world)
        for action in self.script:
            match action:
                case Open():
                    await stream.open(action.lane, action.aim)
                case Say():
                    await stream.say(action.lanes, action.body)
                case Shut():
                    await stream.shut(action.lane)
        await stream.finish()


class _Stream:
    """One Deliver call, and what its client knows of its lanes.

    Each action is followed by messages, and read up to their receipts: what comes on a lane before is about it.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._call: Any = world.service.delivery.Deliver(timeout=PATIENCE_S)
        self._held: dict[int, Credential] = {}
        self._numbers: dict[int, int] = {}
        self._events: dict[int, list[str]] = {}

    async def open(self, lane: int, aim: Aim) -> None:
        credential = aim.at(self._world)
        if credential is None:
            return
        await self._write(
            open_lane=pb.DeliverRequest.OpenLane(
                lane=lane,
                isolation_key=credential.key,
                context_token=credential.token.text,
                expected_user_id=credential.expected_user_id,
            )
        )
        held = self._held.get(lane)
        # Whose the lane will be is not certain while another holds it: then a message that nobody takes shows it.
        same = held is None or held.token.owner is credential.token.owner
        sending = self._sending(credential if held is None else held, Body() if same else BAD)
        await self._messages([(lane, sending)])
        number, result = (await self._receipts(1))[0][1:]
        self._opened(lane, held, credential)
        if not same and self._held.get(lane) is credential and result.reason == "BAD_REQUEST":
            sending = self._sending(credential, BAD)  # the lane had ended, and is now the other's
        self._settle(lane, sending, number, result)

    async def say(self, lanes: Iterable[int], body: Body) -> None:
        sendings = [(lane, self._sending(self._held.get(lane), body)) for lane in lanes]
        if not sendings:
            return
        await self._messages(sendings)
        receipts = await self._receipts(len(sendings))
        for lane, events in list(self._events.items()):
            self._ended(lane, events)
        for lane, sending in sendings:
            place = next(place for place, receipt in enumerate(receipts) if receipt[0] == lane)
            self._settle(lane, sending, *receipts.pop(place)[1:])

    async def shut(self, lane: int) -> None:
        held = self._held.get(lane)
        await self._write(close_lane=pb.DeliverRequest.CloseLane(lane=lane))
        await self._messages([(lane, self._sending(None, Body()))])
        number, result = (await self._receipts(1))[0][1:]
        self._ended(lane, self._events.get(lane, []))
        if held is not None:
            self._held.pop(lane, None)
        self._settle(lane, None, number, result)

    async def finish(self) -> None:
        """Half-close; what comes then are ends of lanes."""
        await self._call.done_writing()
        while (frame := await self._call.read()) is not grpc.aio.EOF:
            self._note(frame)
        for lane, events in self._events.items():
            self._ended(lane, events)
        assert await self._call.code() is grpc.StatusCode.OK

    # Frames

    def _sending(self, held: Credential | None, body: Body) -> Sending:
        """A message by what is known of its lane now; on a lane that is not open it is nobody's."""
        if held is None:
            credential = Credential("", self._world.nobody)
        else:
            credential = Credential(held.key, held.token, held.expected_user_id)
        return Sending(self._world, credential, body, "Deliver")

    async def _write(self, **frame: Any) -> None:
        await self._call.write(pb.DeliverRequest(**frame))

    async def _messages(self, sendings: Iterable[tuple[int, Sending]]) -> None:
        items = [pb.DeliverRequest.LaneMessage(lane=lane, message=one.message) for lane, one in sendings]
        await self._write(messages=pb.DeliverRequest.Messages(items=items))

    async def _receipts(self, count: int) -> list[tuple[int, int, Answer]]:
        """The receipts of the last frame: lane, number and outcome, in order within a lane."""
        found: list[tuple[int, int, Answer]] = []
        while len(found) < count:
            frame = await self._call.read()
            assert frame is not grpc.aio.EOF, await self._call.code()
            if frame.WhichOneof("frame") == "receipts":
                found += [(item.lane, item.number, outcome(item)) for item in frame.receipts.items]
            else:
                self._note(frame)
        assert len(found) == count
        return found

    def _note(self, frame: Any) -> None:
        kind = frame.WhichOneof("frame")
        answer = getattr(frame, kind)
        reason = OPENED if kind == "lane_opened" else refusal_in(answer.error).reason
        assert kind in {"lane_opened", "lane_error"}
        self._events.setdefault(answer.lane, []).append(reason)

    # What the answers mean

    def _settle(self, lane: int, sending: Sending | None, number: int, answer: Answer) -> None:
        expected = self._numbers.get(lane, 0)
        assert number == expected, f"message {number} of lane {lane}, not {expected}"
        self._numbers[lane] = number + 1
        if answer.reason == "LANE_NOT_OPEN":
            assert lane not in self._held
            if sending is not None:
                sending.dropped()
            return
        if sending is None or lane not in self._held:
            raise Isolation(f"a message was taken on lane {lane}, which is not open")
        sending.settle(answer)

    def _opened(self, lane: int, held: Credential | None, credential: Credential) -> None:
        """One of the events is the answer to open_lane; any others are ends."""
        events = self._events.pop(lane)
        places = [place for place in range(len(events)) if _may_answer(events, place, held, credential)]
        if not places:
            raise Isolation(f"lane {lane} of {held} was answered {events} when opened with {credential.token}")
        place = places[0]
        before, reason, after = events[:place], events[place], events[place + 1 :]
        if before:
            self._end(lane, held, before)
            held = None
        if not reason:
            self._taken(lane, held, credential)
        elif len(places) == 1 or reason == events[places[1]]:
            self._refused(reason, held, credential)
        else:  # which of the two it was is not to be told, nor whether the end of a context is recorded as a refusal
            self._world.trail.refused_or_ended(events, "Deliver", credential)
            self._held.pop(lane, None)
            return
        if after:
            self._end(lane, self._held.get(lane), after)

    def _taken(self, lane: int, held: Credential | None, credential: Credential) -> None:
        if held is not None and held.token.owner is not credential.token.owner:
            raise Isolation(f"lane {lane} of {held.token.owner} was given to {credential.token.owner}")
        if not credential.verdict("send").ok:
            raise Isolation(f"lane {lane} was opened with {credential.token}")
        if held is None:
            self._numbers[lane] = 0
        self._held[lane] = credential

    def _refused(self, reason: str, held: Credential | None, credential: Credential) -> None:
        allowed = set(credential.verdict("send").reasons)
        if held is not None and held.token.owner is not credential.token.owner:
            allowed.add("ISOLATION_VIOLATION")
        if reason not in allowed:
            raise Isolation(f"a lane was refused {reason} with {credential.token}, not {allowed}")
        self._world.trail.refused(reason, "Deliver", credential)

    def _ended(self, lane: int, events: list[str]) -> None:
        if events:
            self._end(lane, self._held.get(lane), list(events))
            events.clear()

    def _end(self, lane: int, held: Credential | None, events: list[str]) -> None:
        """The lane ended of itself, once."""
        (reason,) = events
        assert reason in ENDS
        assert held is not None
        if not _may_end(held, reason):
            raise Isolation(f"lane {lane} of {held.token.owner} ended with {reason}, and nobody ended it")
        if reason == "TOKEN_REVOKED":
            self._world.trail.refused(reason, "Deliver", held)
        self._held.pop(lane, None)


def _may_answer(events: list[str], place: int, held: Credential | None, credential: Credential) -> bool:
    """Whether that event can be the answer to open_lane, and all others ends of what the lane was open for."""
    reason = events[place]
    ended = [(held, event) for event in events[:place]]
    ended += [(held if reason else credential, event) for event in events[place + 1 :]]
    return all(whose is not None and _may_end(whose, event) for whose, event in ended)


def _may_end(held: Credential, reason: str) -> bool:
    """Whether somebody ended the context, or took the token back, by which a lane is open."""
    owner = held.token.owner
    if reason == "MANAGER_GONE":
        return owner is not None and (owner.may_end or owner.ended)
    return reason in ENDS and held.token.family.may_be_revoked
