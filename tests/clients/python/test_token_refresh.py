"""Tokens of contexts, refreshed in time: on a clock of the test's."""

from __future__ import annotations

import asyncio
import gc
from base64 import urlsafe_b64encode
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from math import inf
from typing import Any, cast

import grpc
import pytest

from sidecar_client.agent_context import AgentContext, AgentPorts
from sidecar_client.errors import ManagerGone, SidecarError, StorageUnavailable, TokenError
from sidecar_client.token_refresh import TokenRefresh, wait_until
from sidecar_client.values import ContextToken, UserContext

USER = UserContext("default", "alice", "s", "c", "r", 0.0, (), {})
LIFE_S = 1_000


def token(name: str, claims: str = f'"iat":5000,"exp":{5000 + LIFE_S}') -> str:
    body = urlsafe_b64encode(f'{{"jti":"{name}",{claims}}}'.encode()).decode().rstrip("=")
    return f"head.{body}.signature"


class Setting:
    """A clock that a test moves, and a sidecar that refreshes."""

    def __init__(self) -> None:
        self.now = 0.0
        self.asked: list[str] = []
        self.answers: list[SidecarError | str] = []
        self.meanwhile: Callable[[], None] = lambda: None
        self.until = 0.0
        self.waiting = asyncio.Event()
        self.moved = asyncio.Event()
        self.refresh = TokenRefresh(self.answer, lambda: self.now, self.wait)

    async def answer(self, old: str) -> ContextToken:
        self.asked.append(old)
        answer = self.answers.pop(0)
        self.meanwhile()
        if isinstance(answer, SidecarError):
            raise answer
        return ContextToken(answer, 0.0)

    async def wait(self, sooner: asyncio.Event, timeout_s: float) -> None:
        """Until the clock has been moved as far, or something is due sooner."""
        self.until = self.now + timeout_s
        while self.now < self.until and not sooner.is_set():
            self.waiting.set()
            self.moved.clear()
            waits = [asyncio.create_task(event.wait()) for event in (self.moved, sooner)]
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            for each in waits:
                each.cancel()
            await asyncio.gather(*waits, return_exceptions=True)

    async def at(self, now: float) -> None:
        """Move the clock; returns when all that was due has been done."""
        await self.waiting.wait()
        self.waiting.clear()
        self.now = now
        self.moved.set()
        await self.waiting.wait()

    def context(self, text: str) -> AgentContext:
        made = AgentContext("key", USER, cast("AgentPorts", self.ports()))
        made.renew(text)
        return made

    def ports(self) -> Any:
        return AgentPorts(cast("Any", None), cast("Any", None), lambda: self.now)


@asynccontextmanager
async def running(*answers: SidecarError | str) -> AsyncIterator[Setting]:
    setting = Setting()
    setting.answers = list(answers)
    task = asyncio.create_task(setting.refresh.run())
    await setting.waiting.wait()
    yield setting
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_a_token_is_refreshed_well_before_its_end_and_again() -> None:
    async with running(token("b"), token("c")) as setting:
        context = setting.context(token("a"))
        setting.refresh.keep(context)
        await setting.at(399.0)
        assert setting.asked == []
        await setting.at(400.0)
        assert (setting.asked, context.context_token) == ([token("a")], token("b"))
        await setting.at(800.0)
        assert context.context_token == token("c")


async def test_a_newer_token_from_an_event_puts_it_off() -> None:
    async with running(token("c")) as setting:
        context = setting.context(token("a"))
        setting.refresh.keep(context)
        await setting.at(300.0)
        context.renew(token("b"))
        await setting.at(400.0)
        assert setting.asked == []
        await setting.at(700.0)
        assert setting.asked == [token("b")]


async def test_what_nobody_holds_is_forgotten() -> None:
    async with running() as setting:
        setting.refresh.keep(setting.context(token("a")))
        gc.collect()
        await setting.at(500.0)
        assert (setting.asked, len(setting.refresh)) == ([], 0)


async def test_a_context_that_has_ended_is_known_to_have() -> None:
    gone = ManagerGone(grpc.StatusCode.NOT_FOUND, "MANAGER_GONE")
    async with running(gone) as setting:
        context = setting.context(token("a"))
        setting.refresh.keep(context)
        await setting.at(400.0)
        assert (context.ended, len(setting.refresh)) == (True, 0)


async def test_a_token_that_is_good_no_more_waits_for_an_event() -> None:
    async with running(TokenError(grpc.StatusCode.UNAUTHENTICATED, "TOKEN_REVOKED")) as setting:
        context = setting.context(token("a"))
        setting.refresh.keep(context)
        await setting.at(400.0)
        assert (context.ended, len(setting.refresh)) == (False, 0)
        setting.refresh.renewed(context)  # by an event with the same token
        assert len(setting.refresh) == 0
        await setting.at(500.0)
        context.renew(token("b"))
        setting.refresh.renewed(context)
        setting.refresh.renewed(context)
        assert len(setting.refresh) == 1
        setting.answers.append(token("c"))
        await setting.at(900.0)
        assert (setting.asked, context.context_token) == ([token("a"), token("b")], token("c"))


async def test_a_token_that_comes_while_the_one_before_is_refused_is_refreshed() -> None:
    async with running(TokenError(grpc.StatusCode.UNAUTHENTICATED, "TOKEN_REVOKED"), token("c")) as setting:
        context = setting.context(token("a"))
        setting.refresh.keep(context)

        def event() -> None:
            context.renew(token("b"))
            setting.refresh.renewed(context)

        setting.meanwhile = event
        await setting.at(400.0)
        setting.meanwhile = lambda: None
        assert len(setting.refresh) == 1
        await setting.at(900.0)
        assert (setting.asked, context.context_token) == ([token("a"), token("b")], token("c"))


async def test_what_fails_for_now_is_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    later = StorageUnavailable(grpc.StatusCode.UNAVAILABLE, "STORAGE_UNAVAILABLE")
    async with running(later, token("b")) as setting:
        context = setting.context(token("a"))
        setting.refresh.keep(context)
        await setting.at(400.0)
        assert "STORAGE_UNAVAILABLE" in caplog.text
        assert token("a") not in caplog.text
        await setting.at(405.0)
        assert context.context_token == token("b")


@pytest.mark.parametrize("text", ["opaque", "a.b.c", token("a", '"exp":1'), token("a", '"exp":"x","iat":1'), ""])
async def test_a_token_that_does_not_say_its_end_is_left_alone(text: str) -> None:
    setting = Setting()
    assert setting.context(text).refresh_at == inf


async def test_waiting_ends_by_the_event_or_by_time() -> None:
    event = asyncio.Event()
    await wait_until(event, 0.001)
    event.set()
    await wait_until(event, inf)
