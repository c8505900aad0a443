"""Which contexts are asked about after a break, and what each answer makes of them; by a sidecar that the test is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest

from sidecar_client.agent_context import AgentContext, AgentPorts
from sidecar_client.errors import SidecarError, error_from_reason
from sidecar_client.legacy_contexts import AmbiguousUser, UserContexts
from sidecar_client.legacy_survivors import AGAIN_S, AT_ONCE, Survivors
from sidecar_client.values import ContextFacts, UserContext

PORTS = AgentPorts(cast("Any", None), cast("Any", None), lambda: 0.0)
REFUSALS = ("MANAGER_GONE", "TOKEN_MISSING", "TOKEN_INVALID", "TOKEN_EXPIRED", "TOKEN_REVOKED", "ISOLATION_VIOLATION")
UNAVAILABLE = error_from_reason("STORAGE_UNAVAILABLE", "")


def user_context(user_id: str, key: str, tenant_id: str = "default") -> UserContext:
    return UserContext(tenant_id, user_id, "s", f"c-{key}", "r", 0.0, (), {})


def facts(user_id: str, key: str, tenant_id: str = "default") -> ContextFacts:
    return ContextFacts(key, user_context(user_id, key, tenant_id), (), 0.0)


class Sidecar:
    """Answers by token what the test says, else that the context lives. Of a held token it answers on release."""

    def __init__(self) -> None:
        self.contexts = UserContexts()
        self.survivors = Survivors(self.contexts, self.get_context, self.pause)
        self.answers: dict[str, SidecarError | ContextFacts] = {}
        self.asked: list[str] = []
        self.held: dict[str, asyncio.Event] = {}
        self.at_once = 0
        self.most_at_once = 0
        self.pauses: asyncio.Queue[float] = asyncio.Queue()
        self.go_on = asyncio.Event()
        self._lives: dict[str, ContextFacts] = {}

    def opens(self, user_id: str, key: str) -> AgentContext:
        """The adapter is told of a context."""
        context = AgentContext(key, user_context(user_id, key), PORTS)
        context.renew(f"token-{key}")
        self._lives[context.context_token] = facts(user_id, key)
        self.contexts.opened(context)
        return context

    async def get_context(self, token: str) -> ContextFacts:
        self.asked.append(token)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await self.held[token].wait() if token in self.held else await asyncio.sleep(0)
        finally:
            self.at_once -= 1
        answer = self.answers.get(token) or self._lives[token]
        if isinstance(answer, SidecarError):
            raise answer
        return answer

    async def pause(self, wait_s: float) -> None:
        self.pauses.put_nowait(wait_s)
        self.go_on.clear()
        await self.go_on.wait()

    async def settled(self) -> None:
        """Returns when all have been asked about; none is in doubt."""
        await quiet()
        assert self.contexts.in_doubt() == []


async def quiet() -> None:
    """Let every task run to where it waits for the test."""
    for _ in range(100):
        await asyncio.sleep(0)


@asynccontextmanager
async def asking() -> AsyncIterator[Sidecar]:
    sidecar = Sidecar()
    sidecar.survivors.attached()
    yield sidecar
    await sidecar.survivors.close()
    assert sidecar.at_once == 0
    await sidecar.survivors.close()


@pytest.mark.parametrize(
    "answer",
    [
        *(error_from_reason(reason, "") for reason in REFUSALS),
        facts("bob", "old"),
        facts("alice", "another"),
        facts("alice", "old", "another"),
    ],
)
async def test_what_is_gone_or_not_the_users_is_forgotten(answer: SidecarError | ContextFacts) -> None:
    async with asking() as sidecar:
        old = sidecar.opens("alice", "old")
        sidecar.answers[old.context_token] = answer
        sidecar.survivors.attached()
        assert sidecar.contexts.connections("alice") == ["c-old"]
        await sidecar.settled()
        assert sidecar.contexts.the_one_of("alice") is None
        assert list(sidecar.contexts.users()) == []
        new = sidecar.opens("alice", "new")
        assert sidecar.contexts.the_one_of("alice") is new


async def test_what_lives_stays_known_and_is_asked_about_once() -> None:
    async with asking() as sidecar:
        kept = sidecar.opens("alice", "kept")
        sidecar.survivors.attached()
        await sidecar.settled()
        new = sidecar.opens("alice", "new")
        assert sidecar.contexts.to_ask("alice") == []
        with pytest.raises(AmbiguousUser):
            sidecar.contexts.the_one_of("alice")
        assert sidecar.asked == [kept.context_token]
        sidecar.contexts.closed(new)
        assert sidecar.contexts.the_one_of("alice") is kept


async def test_what_the_sidecar_tells_of_need_not_be_asked_about() -> None:
    async with asking() as sidecar:
        back, away, ended = (sidecar.opens("alice", key) for key in ("back", "away", "ended"))
        ended.ended = True
        sidecar.survivors.attached()
        sidecar.contexts.opened(back)
        sidecar.contexts.away(away)
        await sidecar.settled()
        assert sidecar.asked == []
        assert sidecar.contexts.connections("alice") == ["c-back"]


async def test_without_an_answer_it_counts_and_is_asked_about_again() -> None:
    async with asking() as sidecar:
        old, new = sidecar.opens("alice", "old"), sidecar.opens("bob", "new")
        sidecar.answers[old.context_token] = UNAVAILABLE
        sidecar.survivors.attached()
        assert await sidecar.pauses.get() == AGAIN_S
        new = sidecar.opens("alice", "new")
        await sidecar.survivors.ask(sidecar.contexts.to_ask("alice"))
        with pytest.raises(AmbiguousUser):
            sidecar.contexts.the_one_of("alice")
        sidecar.answers[old.context_token] = error_from_reason("MANAGER_GONE", "")
        sidecar.go_on.set()
        await sidecar.settled()
        assert sidecar.contexts.the_one_of("alice") is new
        assert old.ended


async def test_many_are_asked_about_a_few_at_a_time() -> None:
    async with asking() as sidecar:
        count = 3 * AT_ONCE + 1
        for number in range(count):
            sidecar.opens(f"user-{number}", f"{number}")
        sidecar.survivors.attached()
        await sidecar.settled()
        assert (len(sidecar.asked), sidecar.most_at_once) == (count, AT_ONCE)


async def test_who_waits_for_the_same_context_asks_once() -> None:
    async with asking() as sidecar:
        old = sidecar.opens("alice", "old")
        sidecar.held[old.context_token] = asyncio.Event()
        sidecar.survivors.attached()
        new = sidecar.opens("alice", "new")
        to_ask = sidecar.contexts.to_ask("alice")
        assert to_ask == [old]
        calls = [asyncio.create_task(sidecar.survivors.ask(to_ask)) for _ in range(5)]
        await quiet()
        calls[0].cancel()
        sidecar.answers[old.context_token] = error_from_reason("MANAGER_GONE", "")
        sidecar.held[old.context_token].set()
        await asyncio.gather(*calls[1:])
        assert sidecar.asked == [old.context_token]
        assert sidecar.contexts.the_one_of("alice") is new
        await asyncio.gather(*calls, return_exceptions=True)
        assert [call.cancelled() for call in calls] == [True, False, False, False, False]


async def test_an_answer_of_before_the_next_break_confirms_nothing() -> None:
    async with asking() as sidecar:
        old = sidecar.opens("alice", "old")
        sidecar.held[old.context_token] = first = asyncio.Event()
        sidecar.survivors.attached()
        await quiet()
        sidecar.held[old.context_token] = second = asyncio.Event()
        sidecar.survivors.attached()
        await quiet()
        first.set()
        await quiet()
        assert sidecar.contexts.in_doubt() == [old]
        sidecar.answers[old.context_token] = error_from_reason("MANAGER_GONE", "")
        second.set()
        await sidecar.settled()
        assert sidecar.contexts.the_one_of("alice") is None


async def test_a_refusal_of_a_token_that_was_replaced_meanwhile_is_none() -> None:
    async with asking() as sidecar:
        old = sidecar.opens("alice", "old")
        sidecar.held[old.context_token] = asked = asyncio.Event()
        sidecar.answers[old.context_token] = error_from_reason("TOKEN_EXPIRED", "")
        sidecar.answers["newer"] = facts("alice", "old")
        sidecar.survivors.attached()
        await quiet()
        old.renew("newer")
        asked.set()
        await sidecar.settled()
        assert sidecar.contexts.the_one_of("alice") is old


async def test_closed_while_a_call_waits_it_asks_no_more() -> None:
    async with asking() as sidecar:
        old = sidecar.opens("alice", "old")
        sidecar.held[old.context_token] = asyncio.Event()
        sidecar.survivors.attached()
        call = asyncio.create_task(sidecar.survivors.ask([old]))
        await quiet()
        await sidecar.survivors.close()
        await call
        assert sidecar.contexts.in_doubt() == [old]


@pytest.mark.parametrize(
    ("reason", "in_doubt", "gone", "still_known"),
    [
        ("MANAGER_GONE", False, True, False),
        ("TOKEN_INVALID", False, True, False),
        ("TOKEN_EXPIRED", False, False, True),
        ("TOKEN_EXPIRED", True, True, False),
        ("TOKEN_REVOKED", False, False, True),
        ("TOKEN_REVOKED", True, True, False),
        ("ISOLATION_VIOLATION", False, False, False),
        ("ISOLATION_VIOLATION", True, False, False),
    ],
)
async def test_what_the_refusal_of_a_call_makes_of_its_context(
    reason: str, in_doubt: bool, gone: bool, still_known: bool
) -> None:
    sidecar = Sidecar()
    context = sidecar.opens("alice", "key")
    if in_doubt:
        sidecar.contexts.attached()
    assert sidecar.contexts.refused(context, error_from_reason(reason, "")) is gone
    assert (sidecar.contexts.the_one_of("alice") is context) is still_known


async def test_a_failure_that_is_not_the_sidecars_is_raised_to_who_waits() -> None:
    async with asking() as sidecar:
        old = sidecar.opens("alice", "old")
        del sidecar._lives[old.context_token]
        with pytest.raises(KeyError):
            await sidecar.survivors.ask([old])
