"""The manager's machine over a real store: the same model and the same invariants, and what stands in the file.

SIDECAR_TEST_EXAMPLES=N runs N times as many examples, and looks for the shortest story of a failure, which takes
minutes over a disk.
"""

from __future__ import annotations

import os
import sqlite3

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, precondition, rule

from sidecar.core.errors import ErrorReason
from tests.core.manager_machine import OneUser
from tests.core.manager_model import LIMITS, Modelled
from tests.storage.sqlite.driven import Driven

FACTOR = int(os.environ.get("SIDECAR_TEST_EXAMPLES", "1"))
SOME = st.lists(st.integers(0, 1), max_size=3)
FAILURES = {sqlite3.SQLITE_FULL: ErrorReason.STORAGE_UNAVAILABLE, sqlite3.SQLITE_IOERR: ErrorReason.OUTCOME_UNKNOWN}


PHASES = (Phase.generate,) if FACTOR == 1 else (Phase.generate, Phase.shrink)
pytestmark = pytest.mark.timeout(60 if FACTOR == 1 else 600 + 60 * FACTOR)


class OnSqlite(OneUser):
    """Appends are answered a batch at a time; some stand behind one that is under way, and some come as it fails."""

    answers_later = True

    @initialize()
    def start(self) -> None:
        self.driven = Driven(LIMITS)
        stage = self.driven.stage
        self.begin(stage.core, [self.driven.run(stage.create()) for _ in range(2)])
        self.under_way: list[Modelled] = []

    @property
    def waiting(self) -> bool:
        return any(one.unconfirmed for one in self.both)

    @precondition(lambda self: self.waiting)
    @rule()
    def store_writes(self) -> None:
        self.driven.write()
        self.under_way = []
        self.all_confirmed()

    @precondition(lambda self: self.waiting and not self.driven.held)
    @rule()
    def store_is_slow(self) -> None:
        self.driven.hold()
        self.under_way = [one for one in self.both if one.unconfirmed]

    @precondition(lambda self: self.waiting)
    @rule(code=st.sampled_from(sorted(FAILURES)), behind=SOME, again=SOME)
    def store_fails(self, code: int, behind: list[int], again: list[int]) -> None:
        if not self.driven.held:
            self.store_is_slow()
        self.send_to(behind)
        self.driven.fail(code, lambda: self.told_of_failure(FAILURES[code], again))
        self.all_confirmed()

    def told_of_failure(self, reason: ErrorReason, again: list[int]) -> None:
        """Whatever of those contexts was under way or stood behind has failed; somebody tries again at once."""
        for one in self.under_way:
            failed = list(one.unconfirmed)
            one.fall_back()
            self.check_failed(failed, reason)
            assert one.manager.outbox.head == one.confirmed
        self.under_way = []
        self.send_to(again)

    def send_to(self, those: list[int]) -> None:
        for which in those:
            self.send_one(self.both[which], b"1", "", False, None)

    def all_confirmed(self) -> None:
        for one in self.both:
            while one.unconfirmed:
                self.confirm_first(one)

    @precondition(lambda self: not self.driven.held)
    @rule()
    def look_in_the_file(self) -> None:
        """Were it killed now, the next process would find what the manager has."""
        found = self.driven.in_the_file()
        self.all_confirmed()
        for one in self.both:
            outbox, kept = one.manager.outbox, found[one.manager.isolation_key]
            frames = {message.sequence: message.frame for message in kept.messages if message.frame is not None}
            assert frames == {sequence: entry.frame for sequence, entry in outbox.entries.items()}
            head = max(kept.state.head, *(message.sequence for message in kept.messages), 0)
            assert (head, kept.state.acknowledged) == (outbox.confirmed, outbox.acknowledged)
            assert kept.state.gaps == outbox.gaps()

    def teardown(self) -> None:
        try:
            super().teardown()
        finally:
            if hasattr(self, "driven"):
                self.driven.close()


TestOnSqlite = OnSqlite.TestCase
TestOnSqlite.settings = settings(
    max_examples=40 * FACTOR,
    stateful_step_count=40,
    derandomize=FACTOR == 1,
    database=None,
    phases=PHASES,
)
