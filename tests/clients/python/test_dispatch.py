"""Who handles what, when: without a sidecar, one step at a time."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from sidecar_client.agent_context import AgentContext
from sidecar_client.agent_events import AgentEvent, InboundMessage
from sidecar_client.dispatch import Dispatcher
from sidecar_client.values import ContentType, UserContext

USER = UserContext("default", "alice", "s", "c", "r", 0.0, (), {})


def message(message_id: str, key: str = "alice") -> InboundMessage:
    context = AgentContext(key, USER, cast("Any", None))
    return InboundMessage(context, message_id, "message", b"1", ContentType.JSON, redelivered=False)


class Setting:
    """Handlers that end when they are told to, and what came of them."""

    def __init__(self, patience_s: float = 600.0) -> None:
        self.begun: list[str] = []
        self.ended: list[str] = []
        self.acknowledged: asyncio.Queue[str] = asyncio.Queue()
        self.room = 0
        self.gates: dict[str, asyncio.Event] = {}
        self.dispatcher = Dispatcher(self.handle, self.on_room, self.acknowledged.put_nowait, patience_s)

    def on_room(self) -> None:
        self.room += 1

    async def handle(self, event: AgentEvent) -> None:
        assert isinstance(event, InboundMessage)
        self.begun.append(event.id)
        try:
            await self.gates.setdefault(event.id, asyncio.Event()).wait()
        finally:
            self.ended.append(event.id)

    def receive(self, event: InboundMessage, *, cancelled: bool = False) -> None:
        self.dispatcher.receive(event, event.id, cancelled=cancelled)

    def newly_acknowledged(self) -> list[str]:
        return [self.acknowledged.get_nowait() for _ in range(self.acknowledged.qsize())]

    async def end(self, *ids: str) -> None:
        for each in ids:
            self.gates.setdefault(each, asyncio.Event()).set()
            await settle()


async def settle() -> None:
    """Everything that can go on has."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_what_waits_for_its_own_context_takes_no_others_place() -> None:
    setting = Setting()
    for number in range(3):
        setting.receive(message(f"a-{number}"))
    await settle()
    assert (setting.begun, setting.room, len(setting.dispatcher)) == (["a-0"], 2, 1)
    setting.receive(message("b-0", "bob"))
    await settle()
    assert (setting.begun, setting.room) == (["a-0", "b-0"], 2)
    await setting.end("a-0", "a-1")
    assert (setting.begun, setting.room) == (["a-0", "b-0", "a-1", "a-2"], 2)
    await setting.end("a-2", "b-0")
    assert (setting.room, len(setting.dispatcher)) == (4, 0)


async def test_what_waits_stays_the_sidecars_until_it_is_begun() -> None:
    setting = Setting()
    for each in ("a-0", "a-1", "a-2"):
        setting.receive(message(each))
    assert setting.newly_acknowledged() == ["a-0"]
    await setting.end("a-0")
    assert setting.newly_acknowledged() == ["a-1"]
    await setting.end("a-1", "a-2")
    assert setting.newly_acknowledged() == ["a-2"]


async def test_what_waits_for_long_is_acknowledged_before_another_worker_is_given_it() -> None:
    setting = Setting(patience_s=0.01)
    for each in ("a-0", "a-1", "a-2"):
        setting.receive(message(each))
    assert [await setting.acknowledged.get() for _ in range(3)] == ["a-0", "a-1", "a-2"]
    assert setting.dispatcher.give_back() == []
    await setting.end("a-0", "a-1", "a-2")
    assert setting.begun == setting.ended == ["a-0", "a-1", "a-2"]
    assert setting.newly_acknowledged() == []


async def test_what_is_given_back_is_what_was_not_acknowledged() -> None:
    setting = Setting(patience_s=0.01)
    for each in ("a-0", "a-1", "a-2", "a-3"):
        setting.receive(message(each))
    setting.receive(message("b-0", "bob"))
    setting.dispatcher.own("alice", "a-2")
    setting.dispatcher.own("carol", "a-1")
    assert setting.newly_acknowledged() == ["a-0", "b-0", "a-2"]
    assert [each.delivery_id for each in setting.dispatcher.give_back()] == ["a-1", "a-3"]
    await setting.end("a-0", "a-2", "b-0")
    assert setting.begun == ["a-0", "b-0", "a-2"]
    setting.receive(message("c-0", "carol"))
    setting.receive(message("c-1", "carol"))
    assert [await setting.acknowledged.get() for _ in range(2)] == ["c-0", "c-1"]  # and those given back never were
    await setting.end("c-0", "c-1")
    await setting.dispatcher.finish(60.0)


async def test_a_cancel_hits_its_own_message_however_late() -> None:
    setting = Setting()
    setting.receive(message("a-0"))
    setting.receive(message("a-1"))
    setting.receive(message("a-2"), cancelled=True)
    await settle()
    setting.gates["a-0"].set()
    setting.dispatcher.cancel("alice", "", "a-0")  # it is about to end by itself
    setting.dispatcher.cancel("bob", "", "a-1")
    await settle()
    assert (setting.begun, setting.ended) == (["a-0", "a-1"], ["a-0"])
    await setting.end("a-1")
    assert (setting.begun, setting.room) == (["a-0", "a-1"], 3)


async def test_what_is_left_at_the_end_of_the_grace_is_cancelled_and_what_waits_is_not_begun() -> None:
    setting = Setting()
    for each in ("a-0", "a-1"):
        setting.receive(message(each))
    setting.receive(message("b-0", "bob"))
    finishing = asyncio.create_task(setting.dispatcher.finish(60.0))
    await settle()
    await setting.end("b-0")
    assert not finishing.done()
    setting.dispatcher.give_up()
    await finishing
    assert (setting.begun, sorted(setting.ended)) == (["a-0", "b-0"], ["a-0", "b-0"])
    await setting.dispatcher.finish(60.0)
