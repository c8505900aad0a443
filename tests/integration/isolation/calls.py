"""Calls and greetings, and what came of them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Any

import grpc
from websockets.exceptions import ConnectionClosed

from tests.integration.isolation.model import Token
from tests.integration.isolation.screens import PATIENCE_S
from tests.support.running import refusal_of


@dataclass(frozen=True)
class Answer:
    """What a call was answered: `reason` is empty for OK."""

    reason: str
    value: Any = None


async def answer_to(call: Awaitable[Any]) -> Answer:
    """Await a call. Every refusal has a reason; anything else is a failure."""
    try:
        return Answer("", await call)
    except grpc.aio.AioRpcError as error:
        reason = refusal_of(error).reason
    if not reason:
        raise AssertionError("a call was refused without a reason")
    return Answer(reason)


def as_client(token: Token) -> tuple[tuple[str, str], ...]:
    """The metadata of a unary call."""
    return (("x-context-token", token.text),) if token.text else ()


@dataclass(frozen=True)
class Greeted:
    """What came of a hello: a welcome, or the code of the close."""

    connection: Any
    welcome: dict[str, Any]
    code: int = 0


async def greeted(connection: Any, hello: dict[str, Any]) -> Greeted:
    """Say hello; the welcome or the refusal."""
    try:
        await connection.send(json.dumps(hello))
        welcome = json.loads(await asyncio.wait_for(connection.recv(), PATIENCE_S))
    except ConnectionClosed as closed:
        return Greeted(connection, {}, 1006 if closed.rcvd is None else closed.rcvd.code)
    assert welcome["type"] == "welcome"
    return Greeted(connection, welcome)
