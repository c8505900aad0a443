"""The machine of resumes over the memory store, and over one that answers when it is told to.

tests/storage/sqlite/test_resume_machine.py runs it over the store in a file.
"""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, precondition, rule

from tests.core.resume_machine import LIMITS, OneClient
from tests.support.core import Core
from tests.support.doubles import LaterStore


class OnMemory(OneClient):
    """What is appended is confirmed in the same step."""

    @initialize()
    def start(self) -> None:
        core = Core(LIMITS)
        self.begin_with(core, core.create())


class OnLaterStore(OneClient):
    """Appends are answered one by one, when and as the test says."""

    @initialize()
    def start(self) -> None:
        self.store = LaterStore()
        core = Core(LIMITS, self.store)
        self.begin_with(core, core.create())

    @precondition(lambda self: self.store.waiting)
    @rule(count=st.integers(1, 3))
    def store_confirms(self, count: int) -> None:
        self.store.confirm(min(count, len(self.store.waiting)))

    @precondition(lambda self: self.store.waiting)
    @rule()
    def store_fails(self) -> None:
        confirmed = self.manager.outbox.confirmed
        self.store.fail()
        self.store.confirm_all()  # its late answers to what failed with it
        self.failed_after(confirmed)

    def close_store(self) -> None:
        self.store.confirm_all()


SETTINGS = settings(stateful_step_count=40, derandomize=True, database=None)
TestOnMemory = OnMemory.TestCase
TestOnMemory.settings = settings(SETTINGS, max_examples=250)
TestOnLaterStore = OnLaterStore.TestCase
TestOnLaterStore.settings = settings(SETTINGS, max_examples=250)
