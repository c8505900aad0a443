"""The manager's machine over the memory store, and over one that answers when it is told to.

tests/storage/sqlite/test_manager_machine.py runs it over the store in a file.
"""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, precondition, rule

from sidecar.core.errors import ErrorReason
from tests.core.manager_machine import OneUser
from tests.core.manager_model import LIMITS, Modelled
from tests.support.core import Core
from tests.support.doubles import Append, LaterStore


class OnMemory(OneUser):
    """What is appended is confirmed in the same step."""

    @initialize()
    def start(self) -> None:
        core = Core(LIMITS)
        self.begin(core, [core.create(), core.create()])


class OnLaterStore(OneUser):
    """Appends are answered one by one, when and as the test says."""

    answers_later = True

    @initialize()
    def start(self) -> None:
        self.store = LaterStore()
        core = Core(LIMITS, self.store)
        self.begin(core, [core.create(), core.create()])

    @precondition(lambda self: self.store.waiting)
    @rule(count=st.integers(1, 4))
    def store_confirms(self, count: int) -> None:
        for _ in range(min(count, len(self.store.waiting))):
            append = self.store.waiting[0]
            one = self.owner(append)
            if self.is_current(append, one):
                self.store.confirm()
                self.confirm_first(one)
                continue
            before = one.snapshot()
            self.store.confirm()
            assert one.snapshot() == before

    @precondition(lambda self: self.store.waiting)
    @rule()
    def store_fails(self) -> None:
        append = self.store.waiting[0]
        one = self.owner(append)
        if self.is_current(append, one):
            failed = list(one.unconfirmed)
            one.fall_back()
            self.store.fail()
            self.check_failed(failed, ErrorReason.STORAGE_UNAVAILABLE)
            assert one.manager.outbox.head == one.confirmed

    def owner(self, append: Append) -> Modelled:
        return next(one for one in self.both if one.manager.isolation_key == append.isolation_key)

    def is_current(self, append: Append, one: Modelled) -> bool:
        """Answers to what has failed already are passed over: those appends are no longer in the model."""
        first = one.unconfirmed[0] if one.unconfirmed else None
        return first is not None and append.frame is one.manager.outbox.entries[first.sequence].frame

    def close_store(self) -> None:
        self.store.confirm_all()


SETTINGS = settings(stateful_step_count=40, derandomize=True, database=None)
TestOnMemory = OnMemory.TestCase
TestOnMemory.settings = settings(SETTINGS, max_examples=60)
TestOnLaterStore = OnLaterStore.TestCase
TestOnLaterStore.settings = settings(SETTINGS, max_examples=100)
