"""The store of a sidecar that keeps everything in memory."""

from __future__ import annotations

from sidecar.core.message import Durability
from sidecar.storage.memory import MemoryOutboxStore


def refuse(error: Exception | None) -> None:
    raise AssertionError("answered a second time")


def test_every_append_is_confirmed_at_once_and_once() -> None:
    store = MemoryOutboxStore()
    assert store.durability is Durability.MEMORY
    assert store.append("key", 1, 1, b"frame", refuse) is True


def test_there_is_nothing_to_forget() -> None:
    store = MemoryOutboxStore()
    store.append("key", 1, 1, b"frame", refuse)
    store.discard("key", 1)
    store.dispose("key")
    store.dispose("key")
    assert not vars(store)
