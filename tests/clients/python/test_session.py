"""UserSession: positions, acknowledgements and questions over sockets, as values; what no sidecar does is tried too."""

from __future__ import annotations

import json
from asyncio import Future, get_running_loop
from typing import Any

import pytest

from sidecar_client.errors import BadRequest, NoAgent, TransportError
from sidecar_client.events import ContextReplaced, Gap, Limits, Message, ResumeState
from sidecar_client.frames import ErrorFrame, GapFrame, MessageFrame, ProtocolError, Welcome
from sidecar_client.session import UserSession

LIMITS = Limits(262_144, 200, 1800.0, 120.0)


def session(resume: ResumeState | None = None, **settings: Any) -> UserSession:
    given: dict[str, Any] = {"max_events": 100, "max_bytes": 1_000, "acknowledges": True}
    return UserSession(resume, **(given | settings))


def welcome(recovery: str = "new", sequence: int = 0, connection_id: str = "c-1") -> Welcome:
    return Welcome(
        connection_id, f"key of {connection_id}", "context", 99, f"r-{connection_id}", recovery, sequence, LIMITS
    )


def say(made: UserSession, *sequences: int) -> None:
    for sequence in sequences:
        made.message(MessageFrame(sequence, f"m-{sequence}", "", "json", sequence, False, "", None, {}), 10)


def hand_out(made: UserSession) -> list[int]:
    """The sequences of all that is there."""
    taken = []
    while isinstance(event := made.next_event(), Message):
        taken.append(event.sequence)
    return taken


def hello(made: UserSession) -> dict[str, Any]:
    said = json.loads(made.hello("jwt"))
    assert (said.pop("type"), said.pop("token")) == ("hello", "jwt")
    return dict(said)


def acks(made: UserSession) -> list[int]:
    said = []
    while frame := made.next_frame():
        said.append(json.loads(frame)["sequence"])
    return said


def opened(**settings: Any) -> UserSession:
    made = session(**settings)
    assert hello(made) == {}
    made.welcomed(welcome())
    return made


def test_each_hello_after_the_first_resumes_with_a_higher_attempt() -> None:
    made = opened()
    say(made, 1, 2, 3)
    assert made.next_event() is not None
    assert made.next_event() is not None
    assert hello(made)["resume"] == {"token": "r-c-1", "last_sequence": 1, "attempt": 1}
    assert hello(made)["resume"]["attempt"] == 2  # lost before its welcome: the next one is higher all the same
    made.welcomed(welcome("full", 1))
    assert made.resume_state == ResumeState("r-c-1", 1, 2)
    later = session(made.resume_state)
    assert hello(later)["resume"] == {"token": "r-c-1", "last_sequence": 1, "attempt": 3}


def test_acknowledged_is_what_was_asked_past_and_in_batches() -> None:
    made = opened()
    say(made, *range(1, 41))
    for _ in range(16):
        made.next_event()
    assert acks(made) == []  # 15 dealt with, the 16th in hand
    made.next_event()
    assert acks(made) == [16]
    made.starving = True
    made.next_event()
    assert not made.starving
    assert acks(made) == []
    assert hand_out(made) == list(range(19, 41))
    made.starving = True
    assert acks(made) == [40]
    assert acks(made) == []


def test_never_acknowledged_above_what_was_written_on_this_socket() -> None:
    made = opened()
    say(made, *range(1, 31))
    assert made.next_event() is not None
    hello(made)
    assert len(hand_out(made)) == 29  # from the buffer, while there is no socket
    made.welcomed(welcome("full", 0))
    made.starving = True
    assert acks(made) == []
    say(made, 1, 2, 3)
    assert acks(made) == [3]
    say(made, *range(4, 31))
    assert acks(made) == [30]
    assert hand_out(made) == []


def test_what_is_known_is_passed_over_and_what_is_new_is_not() -> None:
    made = opened()
    say(made, 1, 2, 3)
    hello(made)
    made.welcomed(welcome("full", 0))
    say(made, 1, 2, 3, 4)
    say(made, 4, 2)  # sent again on the same socket
    assert hand_out(made) == [1, 2, 3, 4]


def test_a_critical_event_sent_again_is_acknowledged_again() -> None:
    made = opened()
    say(made, 1, 2)
    assert hand_out(made) == [1, 2]
    made.starving = True
    assert acks(made) == [2]
    say(made, 1)
    assert acks(made) == [2]


@pytest.mark.parametrize("sequences", [(2,), (1, 3), (1, 2, 9)])
def test_a_hole_is_never_passed_over(sequences: tuple[int, ...]) -> None:
    made = opened()
    with pytest.raises(ProtocolError):
        say(made, *sequences)
    assert hand_out(made) == list(sequences[:-1])


def test_a_hole_before_a_gap_is_none_the_less_one() -> None:
    made = opened()
    with pytest.raises(ProtocolError):
        made.gap(GapFrame(2, 3, "expired"))
    made.gap(GapFrame(1, 3, "expired"))
    say(made, 4)
    assert made.next_event() == Gap(1, 3, "expired", "c-1")
    assert hand_out(made) == [4]
    made.starving = True
    assert acks(made) == [4]


def test_of_a_gap_only_the_unknown_part_is_one() -> None:
    made = opened()
    say(made, 1, 2, 3)
    hello(made)
    made.welcomed(welcome("gap", 0))
    made.gap(GapFrame(1, 2, "expired"))
    made.gap(GapFrame(3, 5, "evicted"))
    made.gap(GapFrame(3, 5, "evicted"))
    assert hand_out(made) == [1, 2, 3]
    made = opened()
    say(made, 1, 2, 3)
    hello(made)
    made.welcomed(welcome("gap", 0))
    made.gap(GapFrame(1, 5, "evicted"))
    assert [made.next_event() for _ in range(4)][3] == Gap(4, 5, "evicted", "c-1")


def test_a_position_above_what_came_is_said_to_be_lost() -> None:
    made = opened()
    say(made, 1)
    hello(made)
    made.welcomed(welcome("full", 4))
    say(made, 5)
    assert hand_out(made) == [1]
    made = opened()
    hello(made)
    made.welcomed(welcome("full", 4))
    assert made.next_event() == Gap(1, 4, "lost", "c-1")


def test_a_replaced_context_begins_anew_behind_what_had_come() -> None:
    made = opened()
    say(made, 1, 2)
    hello(made)
    made.welcomed(welcome("denied", 0, "c-2"))
    say(made, 1)
    first = made.next_event()
    assert isinstance(first, Message)
    assert first.connection_id == "c-1"
    made.next_event()
    made.starving = True
    assert acks(made) == []  # of the context before: nobody's any more
    assert made.resume_state == ResumeState("r-c-2", 0, 1)
    assert made.next_event() == ContextReplaced("c-2", "key of c-2")
    last = made.next_event()
    assert isinstance(last, Message)
    assert (last.connection_id, last.sequence) == ("c-2", 1)
    made.acknowledge(first)
    assert made.resume_state == ResumeState("r-c-2", 0, 1)
    assert made.next_event() is None
    made.starving = True
    assert acks(made) == [1]


def test_a_resume_from_before_that_is_denied_is_said() -> None:
    made = session(ResumeState("old", 7, 3))
    assert hello(made)["resume"] == {"token": "old", "last_sequence": 7, "attempt": 4}
    made.welcomed(welcome("denied"))
    assert made.next_event() == ContextReplaced("c-1", "key of c-1")
    say(made, 1)
    assert hand_out(made) == [1]


def test_reading_ahead_is_bounded_by_number_and_size() -> None:
    made = opened(max_events=3)
    say(made, 1, 2)
    assert not made.full
    say(made, 3)
    assert made.full
    made.next_event()
    assert not made.full
    made = opened(max_bytes=20)
    say(made, 1)
    assert not made.full
    say(made, 2)
    assert made.full


def test_only_what_was_handed_out_can_be_acknowledged() -> None:
    made = opened(acknowledges=False)
    say(made, 1, 2, 3)
    made.acknowledge()
    first = made.next_event()
    made.next_event()
    assert acks(made) == []
    made.acknowledge(first)
    assert acks(made) == [1]
    with pytest.raises(ValueError, match="handed out"):
        made.acknowledge(Message(3, "", "", "json", 3, False, "", None, {}, "c-1"))
    made.acknowledge()
    made.acknowledge(first)
    assert acks(made) == [2]


# Questions


def answer() -> Future[None]:
    return get_running_loop().create_future()


async def test_a_question_is_asked_again_until_it_is_answered() -> None:
    made = opened()
    waiting, refused = answer(), answer()
    made.ask("q-1", "ask", {"a": 1}, waiting)
    made.ask("q-2", "", 2, refused)
    made.cancel('{"type":"cancel"}')
    texts = [made.next_frame() for _ in range(4)]
    assert [json.loads(text)["type"] if text else None for text in texts] == ["message", "message", "cancel", None]
    with pytest.raises(BadRequest):
        made.ask("q-1", "", 1, answer())
    hello(made)
    made.welcomed(welcome("full"))
    assert [made.next_frame() for _ in range(3)] == [*texts[:2], None]
    made.accepted("q-1")
    made.accepted("q-1")
    made.accepted("unknown")
    assert made.refused(ErrorFrame("q-2", "NO_AGENT", "no agent"))
    assert not made.refused(ErrorFrame("q-2", "NO_AGENT", "no agent"))
    assert not made.refused(ErrorFrame("", "AUDIT_UNAVAILABLE", ""))
    assert waiting.result() is None
    assert isinstance(refused.exception(), NoAgent)


async def test_a_question_of_a_replaced_context_may_have_been_taken() -> None:
    made = opened()
    asked, unasked, forgotten = answer(), answer(), answer()
    made.ask("q-1", "", 1, asked)
    assert made.next_frame() is not None
    made.ask("q-2", "", 2, unasked)
    made.forget(made.ask("q-3", "", 3, forgotten))
    hello(made)
    made.welcomed(welcome("denied", 0, "c-2"))
    failure = asked.exception()
    assert isinstance(failure, TransportError)
    assert not failure.definite
    assert json.loads(made.next_frame() or "")["id"] == "q-2"
    assert made.next_frame() is None
    made.fail_questions("over")
    assert isinstance(unasked.exception(), TransportError)
    assert not forgotten.done()


async def test_a_frame_at_the_limit_and_one_past_it() -> None:
    made = opened()
    overhead = len('{"type":"message","id":"q","data":""}')
    made.ask("q", "", "x" * (200 - overhead), answer())
    with pytest.raises(BadRequest):
        made.ask("r", "", "x" * (201 - overhead), answer())
    with pytest.raises(BadRequest):
        made.ask("r", "", "ü" * 100, answer())


def test_cancels_that_nobody_takes_are_bounded() -> None:
    made = opened()
    for n in range(300):
        made.cancel(str(n))
    taken = [made.next_frame() for _ in range(257)]
    assert (taken[0], taken[255], taken[256]) == ("44", "299", None)
