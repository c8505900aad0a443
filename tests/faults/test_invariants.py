"""Every invariant is seen to catch a history that breaks it, and to let one pass that does not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.faults.history import DISK, Attach, Attempt, Context, Count, History, Leftover, Receipt
from tests.faults.invariants import violations

ALICE, BOB = ("acme", "alice"), ("acme", "bob")


class Story:
    """A history told in the fewest words."""

    def __init__(self) -> None:
        self.history = History()
        self._uuids = 0
        self._attaches = 0

    def attach(
        self,
        person: tuple[str, str] = ALICE,
        context: str = "c-1",
        recovery: str = "new",
        *,
        position: int = 0,
        claimed: int | None = None,
        former: Context | None = None,
    ) -> Attach:
        self._attaches += 1
        welcome = {
            "attach_id": f"a-{self._attaches}",
            "connection_id": context,
            "isolation_key": f"key of {context}",
            "recovery": recovery,
            "sequence": position,
        }
        asked = self.history.now()
        return self.history.welcomed(
            person,
            welcome,
            asked=asked,
            durability=DISK,
            former=former,
            claimed=position if claimed is None else claimed,
        )

    def attempt(self, attach: Attach, message_id: str = "", **members: Any) -> Attempt:
        self._uuids += 1
        attempt = Attempt(f"uuid-{self._uuids}", attach.context, "sender", self._uuids, message_id, **members)
        return self.history.asked_for(attempt)

    def accept(self, attempt: Attempt, sequence: int, durability: str = DISK, **members: Any) -> None:
        one = self.history.begins(attempt)
        receipt = Receipt(attempt.message_id or f"m-{sequence}", sequence, durability, **members)
        self.history.answered(one, receipt)

    def refuse(self, attempt: Attempt) -> None:
        self.history.answered(self.history.begins(attempt), refused="OUTBOX_FULL")

    def break_off(self, attempt: Attempt) -> None:
        self.history.answered(self.history.begins(attempt))

    def come(self, attach: Attach, attempt: Attempt, sequence: int, message_id: str = "", **changes: Any) -> None:
        message_id = message_id or attempt.message_id or f"m-{sequence}"
        data = attempt.document | changes
        self.history.came(attach, {"type": "message", "sequence": sequence, "id": message_id, "data": data})

    def gap(self, attach: Attach, first: int, last: int, reason: str = "expired") -> None:
        self.history.came(attach, {"type": "gap", "from": first, "to": last, "reason": reason})

    def deliver(self, attach: Attach, sequence: int, **members: Any) -> Attempt:
        """Sent, accepted and come."""
        attempt = self.attempt(attach, **members)
        self.accept(attempt, sequence)
        self.come(attach, attempt, sequence)
        return attempt

    def found(self) -> set[int]:
        """The numbers of the invariants that are broken; each is told in one line."""
        told = violations(self.history)
        assert all("\n" not in str(one) and str(one).startswith("invariant ") for one in told)
        return {one.number for one in told}


def test_a_good_run_breaks_nothing() -> None:
    story = Story()
    history = story.history
    first = story.attach()
    for sequence in (1, 2):
        story.deliver(first, sequence, message_id=f"id-{sequence}")
    history.acknowledges(first.context, 1)
    history.acknowledgement_read(first.context, 1)
    retried = story.attempt(first, "id-3")
    story.break_off(retried)
    expired = story.attempt(first, ttl_s=0.1)
    story.accept(expired, 4)
    story.accept(retried, 3)
    unknown = story.attempt(first)
    story.break_off(unknown)
    history.closed("alice", 1006, first)
    second = story.attach(recovery="gap", position=2, claimed=2)
    story.come(second, retried, 3)
    story.gap(second, 4, 4)
    story.come(second, unknown, 5)
    story.refuse(story.attempt(second))
    third = story.attach(recovery="full", position=5, claimed=5)
    history.told_dropped(first.context, 4, 4)
    history.told_dropped(first.context, 6, 6)
    history.died()
    history.acknowledges(first.context, 5)
    story.accept(retried, 3, state="ACKNOWLEDGED", duplicate=True)
    mirror = story.attach(recovery="mirror", position=5)
    both = story.deliver(third, 6, critical=True)
    story.come(mirror, both, 6)
    other = story.attach(BOB, "c-2")
    owed = story.attempt(other)
    story.accept(owed, 1)
    history.ended("c-2", "client_closed")
    story.attach(BOB, "c-3", "denied", former=other.context)
    history.ended("c-nobody", "idle")
    history.counts.append(Count(first.context, 6))
    history.leftovers.append(Leftover("contexts", 0, 0))
    history.closed("bob", 4503)
    assert story.found() == set()


def another_users(story: Story) -> None:
    story.come(story.attach(BOB, "c-2"), story.deliver(story.attach(), 1), 1)


def another_contexts(story: Story) -> None:
    story.come(story.attach(ALICE, "c-2"), story.deliver(story.attach(), 1), 1)


def took_too_much(story: Story) -> None:
    attach = story.attach()
    story.deliver(attach, 1)
    story.history.counts.append(Count(attach.context, 2))


def took_too_little(story: Story) -> None:
    attach = story.attach()
    story.deliver(attach, 1)
    story.history.counts.append(Count(attach.context, 0))


def a_hole(story: Story) -> None:
    attach = story.attach()
    story.deliver(attach, 2)


def a_rewind(story: Story) -> None:
    attach = story.attach()
    attempt = story.deliver(attach, 1)
    story.come(attach, attempt, 1)


def a_gap_out_of_place(story: Story) -> None:
    attach = story.attach()
    story.gap(attach, 2, 3)


def a_gap_that_ends_before_it_begins(story: Story) -> None:
    story.gap(story.attach(), 1, 0)


def two_payloads(story: Story) -> None:
    attach = story.attach()
    story.deliver(attach, 1)
    story.accept(story.attempt(attach), 1)


def a_changed_payload(story: Story) -> None:
    attach = story.attach()
    attempt = story.attempt(attach)
    story.accept(attempt, 1)
    story.come(attach, attempt, 1, n=99)


def a_head_that_goes_back(story: Story) -> None:
    attach = story.attach()
    story.gap(attach, 1, 5)
    story.accept(story.attempt(attach), 5)


def a_head_that_goes_back_between_receipts(story: Story) -> None:
    attach = story.attach()
    story.accept(story.attempt(attach), 3)
    story.accept(story.attempt(attach), 2)


def lost(story: Story) -> None:
    story.accept(story.attempt(story.attach()), 1)


def lost_by_the_primary(story: Story) -> None:
    attempt = story.attempt(story.attach())
    story.accept(attempt, 1)
    story.come(story.attach(recovery="mirror"), attempt, 1)


def announced_as_lost(story: Story) -> None:
    attach = story.attach()
    story.accept(story.attempt(attach), 1)
    story.gap(attach, 1, 1, "lost")


def a_critical_one_expired(story: Story) -> None:
    attach = story.attach()
    story.accept(story.attempt(attach, critical=True), 1)
    story.gap(attach, 1, 1)


def less_than_its_durability(story: Story) -> None:
    attach = story.attach()
    attempt = story.attempt(attach)
    story.accept(attempt, 1, "MEMORY")
    story.come(attach, attempt, 1)


def out_of_nowhere(story: Story) -> None:
    attach = story.attach()
    story.history.came(attach, {"type": "message", "sequence": 1, "id": "m-1", "data": {"uuid": "uuid-9"}})


def no_document(story: Story) -> None:
    story.history.came(story.attach(), {"type": "message", "sequence": 1, "id": "m-1", "data": 5})


def a_refused_one(story: Story) -> None:
    attach = story.attach()
    attempt = story.attempt(attach, "id-1")
    story.refuse(attempt)
    story.refuse(attempt)
    story.come(attach, attempt, 1)


def doubled(story: Story) -> None:
    attach = story.attach()
    attempt = story.deliver(attach, 1)
    story.come(attach, attempt, 2)


def two_receipts(story: Story) -> None:
    attach = story.attach()
    attempt = story.deliver(attach, 1, message_id="id-1")
    story.accept(attempt, 2, duplicate=True)
    story.gap(attach, 2, 2)


def accepted_anew(story: Story) -> None:
    story.accept(story.deliver(story.attach(), 1, message_id="id-1"), 1)


def dropped_and_come(story: Story) -> None:
    attach = story.attach()
    story.deliver(attach, 1)
    story.history.told_dropped(attach.context, 1, 1)


def acknowledged_by_nobody(story: Story) -> None:
    attach = story.attach()
    story.deliver(attach, 1)
    story.history.acknowledgement_read(attach.context, 1)


def a_receipt_acknowledged_by_nobody(story: Story) -> None:
    attach = story.attach()
    attempt = story.attempt(attach)
    story.accept(attempt, 1, state="ACKNOWLEDGED")
    story.come(attach, attempt, 1)


def another_id(story: Story) -> None:
    attach = story.attach()
    attempt = story.attempt(attach, "id-1")
    story.accept(attempt, 1)
    story.come(attach, attempt, 1, "id-2")


def full_with_a_gap(story: Story) -> None:
    story.accept(story.attempt(story.attach()), 1)
    story.gap(story.attach(recovery="full"), 1, 1)


def a_gap_that_is_not_told(story: Story) -> None:
    attempt = story.attempt(story.attach())
    story.accept(attempt, 1)
    story.come(story.attach(recovery="gap"), attempt, 1)


def another_position(story: Story) -> None:
    attach = story.attach()
    for sequence in (1, 2):
        story.deliver(attach, sequence)
    story.attach(recovery="full", position=2, claimed=1)


def denied_to_its_own(story: Story) -> None:
    story.attach(context="c-2", recovery="denied", former=story.attach().context)


def sent_again(story: Story) -> None:
    attach = story.attach()
    attempt = story.deliver(attach, 1)
    story.history.acknowledges(attach.context, 1)
    story.history.acknowledgement_read(attach.context, 1)
    story.come(story.attach(recovery="full"), attempt, 1)


def sent_to_a_fenced_socket(story: Story) -> None:
    fenced = story.attach()
    story.attach(recovery="full")
    story.deliver(fenced, 1)


def a_context_left_over(story: Story) -> None:
    story.history.leftovers.append(Leftover("contexts", 0, 1))


def an_undocumented_code(story: Story) -> None:
    story.history.closed("alice", 1011)


@pytest.mark.parametrize(
    ("breach", "numbers"),
    [
        (another_users, {1}),
        (another_contexts, {2}),
        (took_too_much, {3}),
        (took_too_little, {3}),
        (a_hole, {4, 5}),
        (a_rewind, {4, 5}),
        (a_gap_out_of_place, {4, 5}),
        (a_gap_that_ends_before_it_begins, {4}),
        (two_payloads, {6, 7, 8}),
        (a_changed_payload, {6}),
        (a_head_that_goes_back, {7}),
        (a_head_that_goes_back_between_receipts, {7, 8}),
        (lost, {8}),
        (lost_by_the_primary, {8}),
        (announced_as_lost, {8}),
        (a_critical_one_expired, {8}),
        (less_than_its_durability, {8}),
        (out_of_nowhere, {9}),
        (no_document, {9}),
        (a_refused_one, {9}),
        (doubled, {10}),
        (two_receipts, {10}),
        (accepted_anew, {10}),
        (dropped_and_come, {5}),
        (acknowledged_by_nobody, {12}),
        (a_receipt_acknowledged_by_nobody, {12}),
        (another_id, {10}),
        (full_with_a_gap, {11}),
        (a_gap_that_is_not_told, {11}),
        (another_position, {11}),
        (denied_to_its_own, {11}),
        (sent_again, {12}),
        (sent_to_a_fenced_socket, {13}),
        (a_context_left_over, {16}),
        (an_undocumented_code, {30}),
    ],
)
def test_a_breach_is_found(breach: Callable[[Story], None], numbers: set[int]) -> None:
    story = Story()
    breach(story)
    assert story.found() == numbers


def test_what_may_be_under_way_is_no_breach_before_all_has_settled() -> None:
    story = Story()
    story.accept(story.attempt(story.attach()), 1)
    assert violations(story.history, settled=False) == []


def test_a_breach_says_where_to_look() -> None:
    story = Story()
    attach = story.attach()
    story.accept(story.attempt(attach, "id-1"), 1)
    (line,) = map(str, violations(story.history))
    assert line == (
        "invariant 8: sender#1 uuid-1 (id id-1), accepted at 1 (DISK, seen at 4) by c-1 of acme/alice, was neither "
        "delivered nor announced, and the context has not ended"
    )
