"""What an agent is made of, and what it takes for a handler."""

from __future__ import annotations

import functools
from typing import Any

import pytest

from sidecar_client import Agent, AgentContext


async def plain(context: AgentContext) -> None:
    """A handler."""


class CallableHandler:
    """A handler that is an object."""

    async def __call__(self, context: AgentContext) -> None:
        """Does nothing."""


def test_handlers_are_async_functions_and_one_a_kind() -> None:
    agent = Agent("answers")

    def holds_up(context: AgentContext) -> None:
        """Not async."""

    async def yields(context: AgentContext) -> Any:
        yield context

    wrongs: list[Any] = [holds_up, yields, "opened"]
    for wrong in wrongs:
        with pytest.raises(TypeError, match="async def"):
            agent.on_opened(wrong)
        with pytest.raises(TypeError, match="async def"):
            agent.on_message("ask")(wrong)
    agent.on_opened(functools.partial(plain))
    agent.on_away(CallableHandler())
    with pytest.raises(ValueError, match="has a handler"):
        agent.on_opened(plain)


def test_what_an_agent_is_made_of_is_checked() -> None:
    with pytest.raises(ValueError, match="credits"):
        Agent("answers", credits=0)
    with pytest.raises(ValueError, match="endpoint"):
        Agent("answers", endpoint="nowhere")
    assert repr(Agent("answers", service_token="secret")) == "Agent('answers', idle)"
