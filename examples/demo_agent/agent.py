"""The demo agent: attached to the sidecar, it answers word by word, stops when told to, and tries what must fail."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import Any, Final

from answers import answer  # type: ignore[import-not-found] # beside this file

from sidecar_client import Agent, AgentContext, AsyncSidecarClient, InboundMessage, SidecarError

PAUSE_S: Final = 0.04
MAX_QUESTION_CHARACTERS: Final = 2_000

logger = logging.getLogger("demo_agent")


def make_agent(client: AsyncSidecarClient) -> Agent:
    """The agent and its two handlers; `client` is its connection to the sidecar, closed by whoever made it."""
    agent = Agent("demo", client=client)

    @agent.on_message("ask")
    async def ask(context: AgentContext, message: InboundMessage) -> None:
        """Answers a question word by word, until it is all said or the user has heard enough."""
        said = 0
        try:
            async with message.reply(event_type="agent.word") as stream:
                for word in answer(context.user.user_id, text_of(message.data, "question")):
                    await stream.send(text=word)
                    said += 1
                    await asyncio.sleep(PAUSE_S)  # a model would be thinking
        except asyncio.CancelledError:
            logger.info("stopped after %d words", said)
            if message.cancelled and not context.ended:
                with suppress(SidecarError):
                    await context.send(json={"words": said}, event_type="agent.stopped", reply_to=message.id)
            raise

    @agent.on_message("attack")
    async def attack(context: AgentContext, message: InboundMessage) -> None:
        """Sends into a context that the user chose, with the user's own token; says what the sidecar answered."""
        victim = text_of(message.data, "victim_isolation_key")
        user = context.user.user_id
        verdict = {"code": "OK", "reason": ""}
        try:
            await client.send_to_user(
                victim, context.context_token, json={"from": user}, event_type="agent.attack", expected_user_id=user
            )
        except SidecarError as refusal:
            verdict = {"code": refusal.code.name, "reason": refusal.reason}
        await context.send(json=verdict, event_type="agent.verdict", reply_to=message.id)

    return agent


def text_of(data: Any, name: str) -> str:
    """That member of what a page sent, as far as it is text: what a user says is never trusted to be anything."""
    value = data.get(name) if isinstance(data, dict) else None
    return value[:MAX_QUESTION_CHARACTERS] if isinstance(value, str) else ""
