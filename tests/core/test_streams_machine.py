"""Response streams against a simple model: chunks, repeats, cancels, silence, and a store that answers or fails."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from sidecar.core.errors import ErrorReason, SidecarError
from sidecar.core.limits import Limits
from sidecar.core.message import PendingReceipt, Receipt, StreamPlace, StreamState
from sidecar.core.outbox import OutboxLimits
from sidecar.ws.frames import JsonEncoder
from tests.support.core import Core, attempt
from tests.support.doubles import LaterStore, StoreFailed

IDLE_S = 120.0
LOOK_S = 60.0
LIMITS = Limits(
    idle_timeout_s=1e9,
    health_check_interval_s=LOOK_S,
    outbox=OutboxLimits(ttl_s=1e6, max_messages=1_000_000, max_bytes=10**9),
    queued_bytes_per_user=10**9,
)
STREAMS = st.sampled_from(["a", "b", "c"])
MESSAGES = st.sampled_from(["", "m-1", "m-2"])
STATES = st.sampled_from([StreamState.OPEN, StreamState.OPEN, StreamState.OPEN, StreamState.END, StreamState.ERROR])


@dataclass
class Modelled:
    """One stream that was begun."""

    reply_to: str
    next_index: int = 0
    over: bool = False
    cancelled: bool = False
    silenced: bool = False
    silent_since: float = 0.0
    open_since: float = 0.0
    """When its last chunk was taken, or taken back."""


@dataclass
class Model:
    """What was begun, what was cancelled, and the chunks that the store has yet to answer, oldest first."""

    streams: dict[str, Modelled] = field(default_factory=dict)
    cancelled_streams: set[str] = field(default_factory=set)
    cancelled_messages: set[str] = field(default_factory=set)
    pending: list[tuple[str, int]] = field(default_factory=list)
    written: list[tuple[str, int]] = field(default_factory=list)

    def outcome_of(self, stream_id: str, index: int, reply_to: str) -> ErrorReason | bool:
        """Why the chunk is refused; else whether it is a repeat."""
        stream = self.streams.get(stream_id)
        if stream is None:
            if stream_id in self.cancelled_streams or reply_to in self.cancelled_messages:
                return ErrorReason.STREAM_CANCELLED
            return ErrorReason.STREAM_OUT_OF_ORDER if index else False
        if not stream.reply_to and not stream.over and reply_to in self.cancelled_messages:
            stream.over = stream.cancelled = True  # what it answers may come to be known later
        if stream.cancelled:
            return ErrorReason.STREAM_CANCELLED
        if index < stream.next_index - stream.silenced:
            return True
        if stream.over:
            return ErrorReason.STREAM_ENDED
        return ErrorReason.STREAM_OUT_OF_ORDER if index > stream.next_index else False

    def take(self, stream_id: str, state: StreamState, reply_to: str, now: float) -> None:
        stream = self.streams.setdefault(stream_id, Modelled(reply_to))
        stream.reply_to = stream.reply_to or reply_to
        self.pending.append((stream_id, stream.next_index))
        stream.next_index += 1
        stream.over = state is not StreamState.OPEN
        stream.silent_since = stream.open_since = now

    def fail(self, now: float) -> None:
        """Every chunk that the store has yet to answer is taken back."""
        for stream_id, index in reversed(self.pending):
            stream = self.streams[stream_id]
            stream.next_index, stream.silenced, stream.over = index, False, stream.cancelled
            stream.open_since = now
            if not index and not stream.cancelled:
                del self.streams[stream_id]
        self.pending.clear()

    def cancel(self, stream_id: str | None, message_id: str | None) -> set[tuple[str, str]]:
        told: set[tuple[str, str]] = set()
        if stream_id is not None and stream_id not in self.cancelled_streams:
            self.cancelled_streams.add(stream_id)
            stream = self.streams.get(stream_id)
            if stream is None:
                told.add((stream_id, message_id or ""))
            elif not stream.over:
                stream.over = stream.cancelled = True
                told.add((stream_id, stream.reply_to))
        if message_id is not None and message_id not in self.cancelled_messages:
            self.cancelled_messages.add(message_id)
            for name, stream in self.streams.items():
                if stream.reply_to == message_id and not stream.over:
                    stream.over = stream.cancelled = True
                    told.add((name, message_id))
            if message_id not in {reply_to for _, reply_to in told}:
                told.add(("", message_id))
        return told


class StreamsMachine(RuleBasedStateMachine):
    """Every outcome, everything told and every frame is the model's."""

    @initialize()
    def begin(self) -> None:
        self.store = LaterStore()
        self.core = Core(LIMITS, self.store)
        self.manager = self.core.create(encoder=JsonEncoder())
        self.socket = self.core.attach(self.manager, token_life_s=10**8)
        self.model = Model()
        self.told: list[tuple[str, str]] = []
        self.manager.conversation.watch_cancels(lambda *told: self.told.append(told))

    @rule(stream_id=STREAMS, offset=st.integers(-2, 2), state=STATES, reply_to=MESSAGES)
    def send(self, stream_id: str, offset: int, state: StreamState, reply_to: str) -> None:
        known = self.model.streams.get(stream_id)
        index = max(0, (known.next_index if known else 0) + offset)
        self.offer(stream_id, index, state, reply_to)

    @rule(stream_id=STREAMS, state=STATES)
    def send_next(self, stream_id: str, state: StreamState) -> None:
        known = self.model.streams.get(stream_id)
        self.offer(stream_id, known.next_index if known else 0, state, known.reply_to if known else "")

    def offer(self, stream_id: str, index: int, state: StreamState, reply_to: str) -> None:
        expected = self.model.outcome_of(stream_id, index, reply_to)
        place = StreamPlace(stream_id, index, state)
        outcome = attempt(lambda: self.core.offer(self.manager, b"{}", stream=place, reply_to=reply_to))
        if isinstance(expected, ErrorReason):
            assert isinstance(outcome, SidecarError)
            assert outcome.reason is expected
        elif expected:
            confirmed = (stream_id, index) not in self.model.pending
            assert isinstance(outcome, Receipt if confirmed else PendingReceipt)
        else:
            assert isinstance(outcome, PendingReceipt)
            self.model.take(stream_id, state, reply_to, self.core.clock.monotonic())

    @rule(stream_id=st.none() | STREAMS, message_id=st.none() | st.sampled_from(["m-1", "m-2"]))
    def cancel(self, stream_id: str | None, message_id: str | None) -> None:
        self.manager.cancel(stream_id, message_id, self.core.clock.now())
        told, self.told = self.told, []
        assert len(told) == len(set(told))
        assert set(told) == self.model.cancel(stream_id, message_id)

    @precondition(lambda self: self.model.pending)
    @rule()
    def confirm(self) -> None:
        self.store.confirm()
        self.model.written.append(self.model.pending.pop(0))

    @precondition(lambda self: self.model.pending)
    @rule()
    def fail(self) -> None:
        self.store.fail(StoreFailed())
        self.store.confirm_all()  # those behind it cannot succeed
        self.model.fail(self.core.clock.monotonic())

    @rule(seconds=st.sampled_from([1, 30, 70, 130]))
    def wait(self, seconds: int) -> None:
        """What the sidecar appends of itself is the end of a stream that was silent for so long, in its place."""
        for _ in range(seconds):
            before = len(self.store.waiting)
            self.core.tick(1.0)
            self.manager.lifecycle.pong_received(self.socket.attach_id)
            now = self.core.clock.monotonic()
            for append in list(self.store.waiting)[before:]:
                place = frame_of(append.frame)["stream"]
                stream = self.model.streams[place["id"]]
                assert (place["index"], place["state"], stream.over) == (stream.next_index, "error", False)
                assert now >= stream.silent_since + IDLE_S
                self.model.take(place["id"], StreamState.ERROR, "", now)
                stream.silenced = True
            for stream in self.model.streams.values():
                assert stream.over or now <= max(stream.silent_since + IDLE_S, stream.open_since) + LOOK_S + 1

    @invariant()
    def what_was_confirmed_was_written_once_in_order(self) -> None:
        places = [frame_of(frame)["stream"] for frame in self.socket.frames]
        assert [(place["id"], place["index"]) for place in places] == self.model.written
        for stream_id in "abc":
            of_it = [place for place in places if place["id"] == stream_id]
            assert [place["index"] for place in of_it] == list(range(len(of_it)))
            assert all(place["state"] == "open" for place in of_it[:-1])

    @invariant()
    def open_streams_are_activity(self) -> None:
        assert self.manager.conversation.streaming == any(not each.over for each in self.model.streams.values())


def frame_of(frame: bytes) -> dict[str, Any]:
    """A short server frame's JSON."""
    found = json.loads(frame[frame.index(b"{") :])
    assert isinstance(found, dict)
    return found


StreamsMachine.TestCase.settings = settings(max_examples=100, stateful_step_count=40)
TestStreams = StreamsMachine.TestCase
