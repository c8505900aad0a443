"""What a client says, once and kept before it is accepted, and what services are told of its coming and going."""

from __future__ import annotations

from functools import partial

import pytest

from sidecar.core.close_codes import CloseCode, catalogued
from sidecar.core.deliveries import Delivery, EventKind, InboundMessage
from sidecar.core.errors import ErrorReason, SidecarError
from sidecar.core.inbox import INBOUND_WINDOW, MAX_REPEATS, fingerprint_of
from sidecar.core.manager import IsolatedWebSocketManager
from sidecar.core.message import ContentType
from sidecar.core.stored import MessageIdentity, StoredInbound
from sidecar.core.workers import AgentWorker, Subscription
from tests.support.agents import read
from tests.support.core import Core
from tests.support.doubles import LaterStore, RecordingSocket, StoreFailed

Answers = list[tuple[str, ErrorReason | None, bool]]


class Line:
    """One client, one agent worker, and what both are told."""

    def __init__(self, store: LaterStore | None = None, *, announced: bool = True, attached: bool = True) -> None:
        self.core = Core(store=store)
        self.answers: Answers = []
        self.registry = self.core.factory.agents
        self.worker = AgentWorker(
            "w",
            "support",
            [Subscription(None, None)],
            tenants=None,
            credits_left=1_000_000,
            ack_timeout_s=60.0,
            wake=lambda: None,
        )
        if attached:
            self.registry.register(self.worker)
        self.manager: IsolatedWebSocketManager
        self.manager, self.socket = self.core.connect()
        if announced:
            self.manager.conversation.announce(self.core.clock.now())

    def say(self, message_id: str = "m", payload: bytes = b"{}", event: str = "message") -> None:
        """The client says it; the answer is among `answers`, now or later."""
        message = InboundMessage(message_id, event, payload, ContentType.JSON)
        try:
            self.manager.receive(message, self.core.clock.now(), partial(self._answer, message_id))
        except SidecarError as error:
            self._answer(message_id, error, False)

    def _answer(self, message_id: str, error: SidecarError | None, duplicate: bool) -> None:
        self.answers.append((message_id, None if error is None else error.reason, duplicate))

    def take(self) -> list[Delivery]:
        taken = []
        while (delivery := self.registry.next(self.worker, self.core.clock.now())) is not None:
            taken.append(delivery)
        return taken

    def told(self) -> list[str]:
        return [read(delivery).replace("alice ", "") for delivery in self.take()]

    def settle(self) -> None:
        self.registry.acknowledge(self.worker, [delivery.delivery_id for delivery in self.take()])

    def resume(self) -> RecordingSocket:
        socket = self.core.socket()
        self.manager.resume(self.manager.context, socket, 0, self.core.clock.now())
        return socket


@pytest.fixture
def line() -> Line:
    return Line()


def accepted(message_id: str = "m", *, duplicate: bool = False) -> tuple[str, None, bool]:
    return (message_id, None, duplicate)


# Once, by its id


def test_a_message_is_accepted_once_it_is_queued_and_a_repeat_says_so(line: Line) -> None:
    for _ in range(2):
        line.say()
    assert line.answers == [accepted(), accepted(duplicate=True)]
    assert line.told() == ["opened", "m"]


def test_a_repeat_is_known_across_resumes_and_whoever_has_taken_it(line: Line) -> None:
    line.say()
    line.settle()
    line.core.lose(line.manager, line.socket)
    line.resume()
    line.registry.unregister(line.worker, line.core.clock.now())
    line.say()
    assert line.answers == [accepted(), accepted(duplicate=True)]


@pytest.mark.parametrize("other", [{"payload": b"[]"}, {"event": "else"}])
def test_an_id_is_one_message_s(line: Line, other: dict[str, str]) -> None:
    line.say()
    line.say(**other)  # type: ignore[arg-type]
    assert line.answers == [accepted(), ("m", ErrorReason.MESSAGE_ID_REUSED, False)]
    assert line.told() == ["opened", "m"]


def test_so_many_ids_are_known(line: Line) -> None:
    for number in range(INBOUND_WINDOW + 1):
        line.say(f"m-{number}")
        line.settle()
    line.say("m-1")
    line.say("m-0")
    assert line.answers[-2:] == [accepted("m-1", duplicate=True), accepted("m-0")]


def test_messages_without_an_id_are_all_new(line: Line) -> None:
    for _ in range(2):
        line.say("")
    assert line.answers == [accepted("")] * 2
    assert len(line.take()) == 3


def test_a_refusal_is_not_remembered() -> None:
    line = Line(attached=False)
    line.say()
    line.registry.register(line.worker)
    line.say()
    assert line.answers == [("m", ErrorReason.NO_AGENT, False), accepted()]


def test_a_message_is_activity_though_it_is_refused() -> None:
    line = Line(attached=False)
    line.core.clock.advance(100.0)
    line.say()
    assert line.manager.last_activity == line.core.clock.now()


# Kept before it is accepted


@pytest.fixture
def store() -> LaterStore:
    return LaterStore()


def keep(store: LaterStore, error: Exception | None = None) -> StoredInbound:
    """The store answers the oldest message that it was given."""
    stored, confirmed = store.received.popleft()
    confirmed(error)
    assert isinstance(stored, StoredInbound)
    return stored


def test_nothing_is_accepted_or_handed_over_before_the_store_has_it(store: LaterStore) -> None:
    line = Line(store)
    for _ in range(2):
        line.say()
    assert (line.answers, line.told()) == ([], ["opened"])
    stored = keep(store)
    assert (stored.number, stored.service) == (1, "support")
    assert (line.answers, line.told()) == ([accepted(), accepted(duplicate=True)], ["m"])
    assert not store.received
    line.say()
    assert line.answers[-1] == accepted(duplicate=True)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (StoreFailed(), ErrorReason.STORAGE_UNAVAILABLE),
        (SidecarError(ErrorReason.OUTCOME_UNKNOWN), ErrorReason.OUTCOME_UNKNOWN),
    ],
)
def test_what_the_store_does_not_keep_is_refused_and_may_be_said_again(
    store: LaterStore, error: Exception, reason: ErrorReason
) -> None:
    line = Line(store)
    for _ in range(2):
        line.say()
    keep(store, error)
    assert (line.answers, line.told()) == ([("m", reason, False)] * 2, ["opened"])
    line.say(payload=b"[1]")
    assert keep(store).number == 2
    assert (line.answers[2:], line.told()) == ([accepted()], ["m"])


def test_what_waits_for_the_store_has_its_place(store: LaterStore) -> None:
    line = Line(store)
    for number in range(65):
        line.say(f"m-{number}")
    assert line.answers == [("m-64", ErrorReason.AGENT_BUSY, False)]
    keep(store, StoreFailed())
    line.say("m-64")
    assert len(store.received) == 64


def test_so_many_repeats_of_a_message_wait_for_the_store(store: LaterStore) -> None:
    line = Line(store)
    for _ in range(MAX_REPEATS + 2):
        line.say()
    assert line.answers == [("m", ErrorReason.AGENT_BUSY, False)]
    keep(store)
    assert line.answers[1:] == [accepted(), *[accepted(duplicate=True)] * MAX_REPEATS]


def test_a_context_that_ends_meanwhile_leaves_nothing(store: LaterStore) -> None:
    line = Line(store)
    line.settle()
    line.say()
    line.manager.end("closed_by_service", None, line.core.clock.now())
    keep(store)
    assert line.answers == []
    assert line.told() == ["closed"]
    line.registry.acknowledge(line.worker, list(line.worker.sent))
    assert not line.worker.queues


def test_the_store_is_told_what_was_taken_and_which_ids_are_forgotten(store: LaterStore) -> None:
    line = Line(store)
    for number in range(INBOUND_WINDOW + 1):
        line.say(f"m-{number}")
        keep(store)
        line.settle()
    key = line.manager.isolation_key
    assert store.takings == [(key, number + 1) for number in range(INBOUND_WINDOW + 1)]
    assert store.forgotten == [(key, -1)]


def test_what_was_kept_is_known_after_a_restart_and_waits_for_its_service(store: LaterStore) -> None:
    line = Line(store)
    line.settle()
    message = InboundMessage("m-1", "message", b"{}", ContentType.JSON)
    taken = StoredInbound(1, "support", None, MessageIdentity("m-0", fingerprint_of(message)))
    line.manager.conversation.restore([taken, StoredInbound(3, "support", message, None)], line.core.clock.now())
    assert line.told() == ["*m-1"]
    line.say("m-0")
    line.say("m-1")
    assert line.answers == [accepted("m-0", duplicate=True)]
    assert keep(store).number == 4


# Coming and going


def test_a_life_is_told_with_how_it_ended(line: Line) -> None:
    assert line.told() == ["opened"]
    line.core.lose(line.manager, line.socket)
    assert line.told() == ["away"]
    line.resume()
    assert line.told() == ["back"]
    assert line.manager.primary is not None
    line.manager.remove_connection(
        line.manager.context, line.manager.primary.attach_id, CloseCode.NORMAL, line.core.clock.now()
    )
    (closed,) = line.take()
    assert (closed.kind, closed.closing) == (EventKind.CLOSED, (1000, "client_closed"))


def test_a_resume_that_fences_the_former_socket_is_nothing_to_tell(line: Line) -> None:
    line.settle()
    line.resume()
    assert line.take() == []


@pytest.mark.parametrize("attached", [True, False])
def test_an_end_without_a_socket_has_no_code(line: Line, attached: bool) -> None:
    line.settle()
    if not attached:
        line.core.lose(line.manager, line.socket)
        line.settle()
    line.manager.end("revoked", catalogued(CloseCode.REVOKED), line.core.clock.now())
    (closed,) = line.take()
    assert closed.closing == (4506 if attached else 0, "revoked")


def test_a_context_that_its_client_never_knew_of_is_told_nobody() -> None:
    line = Line(announced=False)
    line.core.lose(line.manager, line.socket)
    line.resume()
    line.manager.end("lost_before_welcome", None, line.core.clock.now())
    assert line.take() == []


def test_a_raw_client_is_never_away(line: Line) -> None:
    line.settle()
    manager = line.core.create(raw=True)
    socket = line.core.attach(manager)
    manager.conversation.announce(line.core.clock.now())
    line.settle()
    line.core.lose(manager, socket)
    (closed,) = line.take()
    assert closed.closing == (1006, "socket_lost")
