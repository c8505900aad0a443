"""The store of a sidecar that keeps everything in memory."""

from __future__ import annotations

from sidecar.core.message import Durability
from sidecar.core.outbox import Outbox, OutboxLimits
from sidecar.core.stored import MessageIdentity
from sidecar.storage.memory import MemoryOutboxStore
from tests.support.core import Core
from tests.support.doubles import FakeClock


def refuse(error: Exception | None) -> None:
    raise AssertionError("answered a second time")


def test_every_append_is_confirmed_at_once_and_once() -> None:
    store, at = MemoryOutboxStore(), FakeClock().now()
    entry = Outbox(OutboxLimits()).append(b"frame", 261, at.monotonic, None, critical=False)
    assert store.durability is Durability.MEMORY
    assert store.survives is False
    assert store.append("key", 1, entry, None, at, refuse) is True
    assert store.append("key", 1, entry, MessageIdentity("m-1", b"print"), at, refuse) is True


def test_a_context_is_kept_at_once() -> None:
    assert Core(store=MemoryOutboxStore()).create().creation is None


def test_there_is_nothing_to_forget() -> None:
    store = MemoryOutboxStore()
    store.changed("key")
    store.forget("key", 1)
    store.dispose("key")
    store.dispose("key")
    assert not vars(store)
