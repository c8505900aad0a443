"""Every breach between users and agents is seen to be told, and a talk without one to pass."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import Any

import pytest

from tests.faults.soak.talk import Handling, Said, Talk, breaches, lost, unanswered

ALICE = ("acme", "alice")
Answers = list[tuple[str, str, str]]


class Story:
    """One context's talk, told in the fewest words."""

    def __init__(self) -> None:
        self.talk = Talk(ALICE, "c-1")
        self.handlings: list[Handling] = []
        self.answers: Answers = []
        self._times = count(1.0)

    def say(self, name: str = "m-1", *, mine: bool = False, accepted: bool = True) -> Said:
        document = {"tenant": "acme", "user": "alice", "context": "c-1", "uuid": f"u {name}", "mine": mine, "chunks": 2}
        one = self.talk.said[name] = Said(name, document, accepted=accepted)
        return one

    def handle(self, one: Said, *, redelivered: bool = False, **members: Any) -> None:
        handling = Handling(next(self._times), "worker-1", ALICE, "c-1", one.id, one.document, redelivered, 1)
        self.handlings.append(handling._replace(**members))

    def chunk(self, one: Said, index: int, state: str = "open", **document: Any) -> None:
        own = {name: one.document[name] for name in ("tenant", "user", "context", "uuid")} | {"index": index}
        place = {"id": f"to-{one.id}", "index": index, "state": state}
        self.talk.came({"type": "message", "reply_to": one.id, "stream": place, "data": own | document})

    def fall_silent(self, one: Said, index: int, state: str = "error", **members: Any) -> None:
        """The sidecar ends the answer."""
        place = {"id": f"to-{one.id}", "index": index, "state": state}
        self.talk.came({"type": "message", "stream": place, "data": None, **members})

    def whole(self, name: str = "m-1") -> Said:
        """Said, handled and answered."""
        one = self.say(name)
        self.handle(one)
        self.chunk(one, 0)
        self.chunk(one, 1, "end")
        self.answers.append(("c-1", name, "whole"))
        return one

    def told(self) -> list[str]:
        return breaches([self.talk], self.handlings, self.answers) + self.owed()

    def owed(self) -> list[str]:
        return lost([self.talk], self.handlings) + unanswered(self.talk)


def whole(story: Story) -> None:
    story.whole()
    story.whole("m-2")


def again_and_marked(story: Story) -> None:
    story.handle(story.whole(), redelivered=True)


def moved_and_moved_back(story: Story) -> None:
    """From the oldest that nobody had acknowledged, each time."""
    story.whole()
    second, third = story.whole("m-2"), story.whole("m-3")
    for one in (second, third, third):
        story.handle(one, redelivered=True)


def first_read_late(story: Story) -> None:
    """What was handed over unmarked is read after it was handed over to another, marked."""
    one = story.whole()
    story.handlings[0] = story.handlings[0]._replace(redelivered=True)
    story.handle(one)


def nobody_was_told(story: Story) -> None:
    """Whether it was accepted its user never heard."""
    story.handle(story.say(accepted=False))


def fell_silent(story: Story) -> None:
    one = story.say()
    story.handle(one)
    story.chunk(one, 0)
    story.fall_silent(one, 1, reply_to="m-1")


def fell_silent_over_a_kill(story: Story) -> None:
    """What it answered is not known any more."""
    one = story.say()
    story.handle(one)
    story.chunk(one, 0)
    story.fall_silent(one, 1)


def cancelled(story: Story) -> None:
    one = story.say()
    one.cancelled = True
    story.handle(one)
    story.chunk(one, 0)
    story.answers.append(("c-1", "m-1", "STREAM_CANCELLED"))


def killed_before_it_answered(story: Story) -> None:
    story.handle(story.say(mine=True))


def ended(story: Story) -> None:
    story.say()
    story.talk.ended = True


def announced(story: Story) -> None:
    one = story.say()
    story.handle(one)
    story.chunk(one, 1, "end")
    story.talk.missed = 1


@pytest.mark.parametrize(
    "tell",
    [
        *(
            whole,
            again_and_marked,
            moved_and_moved_back,
            first_read_late,
            nobody_was_told,
            fell_silent,
            fell_silent_over_a_kill,
            cancelled,
            killed_before_it_answered,
        ),
        *(ended, announced),
    ],
)
def test_what_may_be_is_no_breach(tell: Callable[[Story], None]) -> None:
    story = Story()
    tell(story)
    assert story.told() == []


def test_what_has_not_come_yet_is_owed_and_no_other_breach() -> None:
    story = Story()
    story.say()
    assert len(story.owed()) == 2
    assert story.told() == story.owed()


def sent_again_backwards(story: Story) -> None:
    first, second = story.whole(), story.whole("m-2")
    for one in (second, first):
        story.handle(one, redelivered=True, worker="worker-2")


def never_handled(story: Story) -> None:
    one = story.say()
    story.chunk(one, 0, "end")


def out_of_order(story: Story) -> None:
    first, second = story.whole(), story.whole("m-2")
    story.handlings.clear()
    story.handle(second)
    story.handle(first)


def again_without_a_mark(story: Story) -> None:
    story.handle(story.whole())


def of_another_user(story: Story) -> None:
    story.handle(story.whole(), redelivered=True, person=("acme", "bob"))


def of_another_tenant(story: Story) -> None:
    story.handle(story.whole(), redelivered=True, person=("other", "alice"))


def changed_on_its_way(story: Story) -> None:
    story.handle(story.whole(), redelivered=True, said={"tenant": "acme"})


def never_said(story: Story) -> None:
    story.handle(story.whole(), redelivered=True, id="m-9")


def in_a_context_of_nobodys(story: Story) -> None:
    story.handle(story.whole(), context="c-9")


def chunks_out_of_order(story: Story) -> None:
    one = story.whole()
    one.chunks.reverse()


def a_chunk_twice(story: Story) -> None:
    one = story.whole()
    one.chunks.insert(0, one.chunks[0])


def a_chunk_missing(story: Story) -> None:
    del story.whole().chunks[0]


def on_after_its_end(story: Story) -> None:
    story.chunk(story.whole(), 2)


def neither_ended_nor_failed(story: Story) -> None:
    story.whole().chunks.pop()


def killed_and_never_said_so(story: Story) -> None:
    one = story.say(mine=True)
    story.handle(one)
    story.chunk(one, 0)


def never_answered(story: Story) -> None:
    story.whole().chunks.clear()


def another_users_answer(story: Story) -> None:
    story.chunk(story.whole(), 2, user="bob")


def another_answers_chunk(story: Story) -> None:
    one = story.say()
    story.handle(one)
    story.chunk(one, 0, "end", uuid="u m-2")


def an_answer_to_nothing(story: Story) -> None:
    story.chunk(Said("m-9", story.whole().document), 0)


def an_answer_to_something_else(story: Story) -> None:
    one, two = story.whole(), story.whole("m-2")
    story.fall_silent(one, 2, reply_to=two.id)


def an_end_of_the_sidecars(story: Story) -> None:
    one = story.say()
    story.handle(one)
    story.fall_silent(one, 0, "end")


def refused_its_place(story: Story) -> None:
    story.whole()
    story.answers.append(("c-1", "m-1", "STREAM_OUT_OF_ORDER"))


@pytest.mark.parametrize(
    ("tell", "told"),
    [
        (never_handled, "never handled"),
        (out_of_order, "handled in ['m-2', 'm-1']"),
        (sent_again_backwards, "worker-2 was handed over [1, 0], out of order"),
        (again_without_a_mark, "2 times without a mark"),
        (of_another_user, "of ('acme', 'bob')"),
        (of_another_tenant, "of ('other', 'alice')"),
        (changed_on_its_way, "was handed {'tenant': 'acme'}"),
        (never_said, "as m-9"),
        (in_a_context_of_nobodys, "nobody talks there"),
        (chunks_out_of_order, "came as [1, 0]"),
        (a_chunk_twice, "came as [0, 0, 1]"),
        (a_chunk_missing, "1 chunks are missing"),
        (on_after_its_end, "went on after its end"),
        (neither_ended_nor_failed, "neither ended nor failed"),
        (killed_and_never_said_so, "neither ended nor failed"),
        (never_answered, "neither ended nor failed"),
        (another_users_answer, "'user': 'bob'"),
        (another_answers_chunk, "'uuid': 'u m-2'"),
        (an_answer_to_nothing, "was sent {"),
        (an_answer_to_something_else, "was sent {"),
        (an_end_of_the_sidecars, "document=None"),
        (refused_its_place, "refused STREAM_OUT_OF_ORDER"),
    ],
)
def test_a_breach_is_told(tell: Callable[[Story], None], told: str) -> None:
    story = Story()
    tell(story)
    assert any(told in line for line in story.told()), story.told()
