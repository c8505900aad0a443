"""Who handles what, when: without a sidecar, one step at a time."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from sidecar_client.agent_context import AgentContext
from sidecar_client.agent_events import AgentEvent, InboundMessage
from sidecar_client.dispatch import MAX_BACKLOG, Dispatcher
from sidecar_client.values import ContentType, UserContext

USER = UserContext("default", "alice", "s", "c", "r", 0.0, (), {})


def message(message_id: str, key: str = "alice") -> InboundMessage:
    context = AgentContext(key, USER, cast("Any", None))
    return InboundMessage(context, message_id, "message", b"1", ContentType.JSON, redelivered=False)


class Setting:
    """Handlers that end when they are told to, and what came of them."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.ended: list[str] = []
        self.acknowledged: list[str] = []
        self.room = 0
        self.gates: dict[str, asyncio.Event] = {}
        self.dispatcher = Dispatcher(self.handle, self.on_room)

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
        self.dispatcher.receive(event, cancelled=cancelled, acknowledge=lambda: self.acknowledged.append(event.id))

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


async def test_a_long_backlog_stays_the_sidecars_until_it_is_begun() -> None:
    setting = Setting()
    ids = [f"a-{number}" for number in range(MAX_BACKLOG + 3)]
    for each in ids:
        setting.receive(message(each))
    assert setting.acknowledged == ids[: MAX_BACKLOG + 1]
    await setting.end(*ids)
    assert setting.acknowledged == setting.begun == setting.ended == ids


async def test_what_is_given_back_is_what_was_not_acknowledged() -> None:
    setting = Setting()
    ids = [f"a-{number}" for number in range(MAX_BACKLOG + 3)]
    for each in ids:
        setting.receive(message(each))
    setting.receive(message("b-0", "bob"))
    await settle()
    setting.dispatcher.give_back()
    ours = [*ids[: MAX_BACKLOG + 1], "b-0"]
    await setting.end(*ours)
    assert sorted(setting.acknowledged) == sorted(setting.begun) == sorted(setting.ended) == sorted(ours)
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
