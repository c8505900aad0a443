"""The machine of resumes over a real store: the same model, and what a client would find after a crash.

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

from tests.core.resume_machine import LIMITS, OneClient
from tests.storage.sqlite.driven import Driven

FACTOR = int(os.environ.get("SIDECAR_TEST_EXAMPLES", "1"))
FAILURES = [sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR]


PHASES = (Phase.generate,) if FACTOR == 1 else (Phase.generate, Phase.shrink)
pytestmark = pytest.mark.timeout(60 if FACTOR == 1 else 600 + 60 * FACTOR)


class OnSqlite(OneClient):
    """Appends are answered a batch at a time, and the client comes and goes while one is under way."""

    @initialize()
    def start(self) -> None:
        self.driven = Driven(LIMITS)
        stage = self.driven.stage
        self.begin_with(stage.core, self.driven.run(stage.create()))

    @property
    def waiting(self) -> bool:
        return self.manager.outbox.confirmed < self.manager.outbox.head

    @precondition(lambda self: self.waiting)
    @rule()
    def store_writes(self) -> None:
        self.driven.write()
        assert self.manager.outbox.confirmed == self.manager.outbox.head == len(self.sent)

    @precondition(lambda self: self.waiting and not self.driven.held)
    @rule()
    def store_is_slow(self) -> None:
        self.driven.hold()

    @precondition(lambda self: self.waiting)
    @rule(code=st.sampled_from(FAILURES))
    def store_fails(self, code: int) -> None:
        if not self.driven.held:
            self.driven.hold()
        confirmed = self.manager.outbox.confirmed
        self.driven.fail(code, lambda: self.failed_after(confirmed))

    @precondition(lambda self: not self.driven.held)
    @rule()
    def look_in_the_file(self) -> None:
        """Were it killed now, the next process would know what the client has and what it is still owed."""
        found = self.driven.in_the_file()[self.manager.isolation_key]
        outbox = self.manager.outbox
        frames = {message.sequence: message.frame for message in found.messages if message.frame is not None}
        assert frames == {sequence: entry.frame for sequence, entry in outbox.entries.items()}
        assert found.state.acknowledged == outbox.acknowledged
        assert found.state.attempt == self.manager.attempt
        assert max(found.state.head, *(message.sequence for message in found.messages), 0) == outbox.confirmed

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
