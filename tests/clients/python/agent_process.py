"""An agent as a process of its own, to be killed: answers with its own name, and stays in answers to "stay"."""

from __future__ import annotations

import asyncio
import sys

from sidecar_client import Agent, AgentContext, InboundMessage

agent = Agent("answers")


@agent.on_message
async def answer(context: AgentContext, message: InboundMessage) -> None:
    """Says who it is."""
    async with message.reply() as stream:
        await stream.send(text=sys.argv[1])
        if message.data == "stay" and not message.redelivered:
            await asyncio.Event().wait()


agent.run_forever()
