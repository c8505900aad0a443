"""What an agent takes for a repeat, and how much of it is remembered."""

from __future__ import annotations

from typing import Any, cast

from sidecar_client.agent_context import AgentContext
from sidecar_client.agent_events import InboundMessage, Opened
from sidecar_client.agent_memory import AgentMemory, Recent
from sidecar_client.values import ContentType, UserContext

USER = UserContext("default", "alice", "s", "c", "r", 0.0, (), {})


def context(key: str = "key") -> AgentContext:
    return AgentContext(key, USER, cast("Any", None))


def message(message_id: str, key: str = "key") -> InboundMessage:
    return InboundMessage(context(key), message_id, "message", b"1", ContentType.JSON, redelivered=False)


def test_an_event_is_new_once() -> None:
    memory = AgentMemory()
    assert memory.is_new("d-1", Opened(context()), redelivered=False)
    assert not memory.is_new("d-1", Opened(context()), redelivered=True)
    assert memory.is_new("d-2", Opened(context()), redelivered=True)


def test_a_message_that_a_store_kept_is_known_by_the_clients_own_id() -> None:
    memory = AgentMemory()
    assert memory.is_new("d-1", message("q-1"), redelivered=False)
    assert not memory.is_new("e-9", message("q-1"), redelivered=True)
    assert memory.is_new("e-10", message("q-1", "another key"), redelivered=True)


def test_a_client_may_use_an_id_again_after_its_window() -> None:
    memory = AgentMemory()
    assert memory.is_new("d-1", message("q-1"), redelivered=False)
    assert memory.is_new("d-2000", message("q-1"), redelivered=False)


def test_a_message_without_an_id_is_known_by_its_delivery_alone() -> None:
    memory = AgentMemory()
    assert memory.is_new("d-1", message(""), redelivered=False)
    assert memory.is_new("d-2", message(""), redelivered=True)
    assert not memory.is_cancelled(message(""))


def test_what_was_cancelled_before_it_came() -> None:
    memory = AgentMemory()
    memory.cancelled("key", "q-1")
    assert memory.is_cancelled(message("q-1"))
    assert not memory.is_cancelled(message("q-1", "another key"))
    assert not memory.is_cancelled(Opened(context()))


def test_the_latest_are_remembered() -> None:
    recent = Recent(2)
    for name in "abc":
        recent.add(name)
    assert (len(recent), "a" in recent, "b" in recent, "c" in recent) == (2, False, True, True)
