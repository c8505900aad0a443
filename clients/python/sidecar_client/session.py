"""What a user's side knows of its context across sockets: position, acknowledgements, what waits. No I/O, no clock.

Three positions, each at or behind the next: `acked` was said to the sidecar on this socket, `processed` was dealt with
by the consumer, `received` was taken into the buffer. A resume names `processed`; what the sidecar sends again up to
`received` is known already and passed over. So nothing is lost with this process, nor handed out twice in it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any, Final

import grpc

from sidecar_client import frames
from sidecar_client.errors import TransportError, bad_request, error_from_reason
from sidecar_client.events import ContextReplaced, Event, Gap, Limits, Message, ResumeState
from sidecar_client.frames import ErrorFrame, GapFrame, MessageFrame, ProtocolError, Welcome
from sidecar_client.lanes import Outcome

ACK_EVERY: Final = 16
MAX_QUEUED_CANCELS: Final = 256
_RESUMED: Final = {"full", "gap"}


class Question:
    """A message of the client's that has no answer yet."""

    __slots__ = ("answer", "id", "text", "written")

    def __init__(self, message_id: str, text: str, answer: Outcome) -> None:
        self.id = message_id
        self.text = text
        self.answer = answer
        self.written = False


class UserSession:
    """One user's context, or one after the other."""

    def __init__(self, resume: ResumeState | None, *, max_events: int, max_bytes: int, acknowledges: bool) -> None:
        """`max_events`, `max_bytes`: what is read ahead. `acknowledges`: taking the next event deals with the last."""
        self._max_events = max_events
        self._max_bytes = max_bytes
        self._acknowledges = acknowledges
        self._resume_token = "" if resume is None else resume.token
        self._attempt = 0 if resume is None else resume.attempt
        self._processed = self._received = 0 if resume is None else resume.last_sequence
        self._handed: Event | None = None
        self._buffer: deque[tuple[Event, int]] = deque()
        self._buffered_bytes = 0
        self._socket_position = 0
        self._acked = 0
        self._questions: dict[str, Question] = {}
        self._cancels: deque[str] = deque(maxlen=MAX_QUEUED_CANCELS)
        self.starving = False
        """The consumer waits: what it has dealt with is acknowledged without waiting for more."""
        self.connection_id = ""
        self.isolation_key = ""
        self.context_token = ""
        self.context_token_expires_at = 0
        self.recovery = ""
        self.limits: Limits | None = None

    # The first two frames

    def hello(self, token: str) -> str:
        """The first frame of the next socket; each says a higher attempt."""
        if not self._resume_token:
            return frames.hello(token, None)
        self._attempt += 1
        resume = {"token": self._resume_token, "last_sequence": self._processed, "attempt": self._attempt}
        return frames.hello(token, resume)

    @property
    def resume_state(self) -> ResumeState | None:
        """What it takes to come back; None before there is a context."""
        if not self._resume_token:
            return None
        return ResumeState(self._resume_token, self._processed, self._attempt)

    def welcomed(self, welcome: Welcome) -> None:
        """The socket is ready. Resumed, what had no answer is asked again; else everything begins anew."""
        asked = bool(self._resume_token)
        resumed = asked and welcome.recovery in _RESUMED
        self.connection_id = welcome.connection_id
        self.isolation_key = welcome.isolation_key
        self.context_token = welcome.context_token
        self.context_token_expires_at = welcome.context_token_expires_at
        self.recovery = welcome.recovery
        self.limits = welcome.limits
        self._resume_token = welcome.resume_token
        self._socket_position = self._acked = welcome.sequence
        if resumed:
            self._pass_over(welcome.sequence)
        else:
            self._begin_anew(welcome, replaced=asked)
        for question in self._questions.values():
            question.written = False

    def _pass_over(self, position: int) -> None:
        if position > self._received:  # the sidecar forgot what was never here; it is said, not hidden
            self._put(Gap(self._received + 1, position, "lost", self.connection_id), 0)
            self._received = position

    def _begin_anew(self, welcome: Welcome, *, replaced: bool) -> None:
        self._processed = self._received = welcome.sequence
        if replaced:
            self._put(ContextReplaced(welcome.connection_id, welcome.isolation_key), 0)
            # They may have been taken in the context before, and would be asked twice in this one.
            self.fail_questions("the context was replaced", written_only=True)

    # In

    def message(self, frame: MessageFrame, size: int) -> None:
        """Take one message of `size` bytes. Raises ProtocolError for a hole before it."""
        if frame.sequence <= self._socket_position:  # sent again, such as a critical event not acknowledged
            self._acked = min(self._acked, frame.sequence - 1)
            return
        self._advance(frame.sequence, frame.sequence)
        if frame.sequence > self._received:
            self._received = frame.sequence
            self._put(Message(*frame, self.connection_id), size)

    def gap(self, frame: GapFrame) -> None:
        """Take one gap. Raises ProtocolError for a hole before it."""
        if frame.last <= self._socket_position:
            return
        self._advance(frame.first, frame.last)
        if frame.last > self._received:
            self._put(Gap(max(frame.first, self._received + 1), frame.last, frame.reason, self.connection_id), 0)
            self._received = frame.last

    def _advance(self, first: int, last: int) -> None:
        if first > self._socket_position + 1:
            raise ProtocolError("a hole in the sequence")
        self._socket_position = last

    def _put(self, event: Event, size: int) -> None:
        self._buffer.append((event, size))
        self._buffered_bytes += size

    @property
    def full(self) -> bool:
        """Nothing more is to be read before the consumer takes some."""
        return len(self._buffer) >= self._max_events or self._buffered_bytes >= self._max_bytes

    # Out to the consumer

    def next_event(self) -> Event | None:
        """The next event, when there is one. Asking for it deals with the one before, unless that is the caller's."""
        if self._acknowledges:
            self.acknowledge()
        if not self._buffer:
            return None
        self.starving = False
        event, size = self._buffer.popleft()
        self._buffered_bytes -= size
        self._handed = event
        return event

    def acknowledge(self, event: Event | None = None) -> None:
        """The consumer has dealt with everything up to that event, or up to the last that it was handed. Idempotent.

        What belongs to a context that was replaced counts for nothing. Raises ValueError for what was not handed out.
        """
        event = event or self._handed
        if event is None or event.connection_id != self.connection_id or isinstance(event, ContextReplaced):
            return
        sequence = _last_of(event)
        if self._handed is None or self._handed.connection_id != self.connection_id or sequence > self._handed_last:
            raise ValueError("only what was handed out can be acknowledged")
        self._processed = max(self._processed, sequence)

    @property
    def _handed_last(self) -> int:
        return 0 if self._handed is None or isinstance(self._handed, ContextReplaced) else _last_of(self._handed)

    # Out to the sidecar

    def next_frame(self) -> str | None:
        """The next frame to write; None when there is nothing to say."""
        for question in self._questions.values():
            if not question.written:
                question.written = True
                return question.text
        if self._cancels:
            return self._cancels.popleft()
        return self._next_ack()

    def _next_ack(self) -> str | None:
        """Never above what was written on this socket, which may be behind what came on the one before."""
        sequence = min(self._processed, self._socket_position)
        due = sequence - self._acked
        if due >= ACK_EVERY or (due > 0 and (self.starving or not self._acknowledges)):
            self._acked = sequence
            return frames.ack(sequence)
        return None

    def ask(self, message_id: str, event: str, data: Any, answer: Outcome) -> Question:
        """A message to the agents. Raises BadRequest for one that would end the socket, or an id that waits already."""
        text = frames.message(message_id, event, data)
        if self.limits is not None and len(text.encode()) > self.limits.max_inbound_bytes:
            raise bad_request("data", f"a frame of at most {self.limits.max_inbound_bytes} bytes")
        if message_id in self._questions:
            raise bad_request("id", "another message of this id has no answer yet")
        question = self._questions[message_id] = Question(message_id, text, answer)
        return question

    def forget(self, question: Question) -> None:
        """Nobody waits for that answer any more. Idempotent."""
        if self._questions.get(question.id) is question:
            del self._questions[question.id]

    def cancel(self, text: str) -> None:
        """Say that something is no longer wanted; of more than 256 that wait the oldest are forgotten."""
        self._cancels.append(text)

    def accepted(self, message_id: str) -> None:
        """The sidecar took that message."""
        question = self._questions.pop(message_id, None)
        if question is not None and not question.answer.done():
            question.answer.set_result(None)

    def refused(self, frame: ErrorFrame) -> bool:
        """The sidecar refused that message. False when it was none of them."""
        question = self._questions.pop(frame.id, None)
        if question is None:
            return False
        if not question.answer.done():
            question.answer.set_exception(error_from_reason(frame.reason, frame.message))
        return True

    def fail_questions(self, why: str, *, written_only: bool = False) -> None:
        """Nobody will answer; they may have been taken all the same."""
        for question in self._unanswered(written_only):
            del self._questions[question.id]
            if not question.answer.done():
                question.answer.set_exception(TransportError(grpc.StatusCode.CANCELLED, "", why))

    def _unanswered(self, written_only: bool) -> Iterator[Question]:
        return iter([each for each in self._questions.values() if each.written or not written_only])


def _last_of(event: Message | Gap) -> int:
    return event.sequence if isinstance(event, Message) else event.last
