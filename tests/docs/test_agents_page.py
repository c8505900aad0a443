"""docs/agents.md: every promise names tests that exist, every number is the code's, every event the contract's."""

from __future__ import annotations

import inspect
import re
from typing import Final

import pytest

from sidecar.api.v1 import agent_service_pb2 as pb
from sidecar.core.agents import KEEP_S, MAX_CLOSED, AgentRegistry
from sidecar.core.inbox import INBOUND_WINDOW
from sidecar.core.streams import MAX_CHUNKS, MAX_OPEN, MAX_REMEMBERED
from sidecar.rpc.attach import DEFAULT_ACK_TIMEOUT_S, MAX_ACK_TIMEOUT_S, MAX_CREDITS, MAX_SUBSCRIPTIONS
from tests.docs.pages import ROOT, prose, table

PAGE: Final = ROOT / "docs" / "agents.md"
PROMISES: Final = table(PAGE, "promise", "test")


@pytest.mark.parametrize("row", PROMISES, ids=lambda row: row[0])
def test_each_promise_names_tests_that_are_there(row: list[str]) -> None:
    for name in re.findall(r"tests/[\w./]+", row[1]):
        assert re.search(r"^(async )?def test_|^Test\w+ = ", (ROOT / name).read_text(), re.MULTILINE), name


def test_the_events_are_those_of_the_contract() -> None:
    named = {row[0] for row in table(PAGE, "event", "when", "goes to")}
    kinds = pb.AttachResponse.Event.DESCRIPTOR.oneofs_by_name["kind"].fields
    assert named == {field.name for field in kinds}


def test_the_fields_of_register_are_those_of_the_contract() -> None:
    named = {row[0] for row in table(PAGE, "field", "meaning")}
    assert named == {field.name for field in pb.AttachRequest.Register.DESCRIPTOR.fields}


def test_the_numbers_are_the_codes() -> None:
    text = " ".join(prose(PAGE).split())
    max_inbound = inspect.signature(AgentRegistry).parameters["max_inbound"].default
    for number, words in (
        (max_inbound, "{} messages of this context wait already"),
        (MAX_OPEN, "open streams of one context | {}"),
        (MAX_CHUNKS, "the last {}"),
        (INBOUND_WINDOW, "the last {} of a context"),
        (MAX_REMEMBERED, "the last {} of each"),
        (MAX_CREDITS, "at most {}"),
        (MAX_SUBSCRIPTIONS, "subscriptions of a worker | {}"),
        (MAX_CLOSED, "24 hours and {} a service"),
        (int(DEFAULT_ACK_TIMEOUT_S), "{} s unless said"),
    ):
        assert words.format(f"{number:,}") in text, words
    assert (KEEP_S, MAX_ACK_TIMEOUT_S) == (24 * 3600, 3600)
