"""docs/delivery.md: every promise names tests that exist, every bound is there, every number is the code's."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path
from typing import Final

import pytest

from sidecar.api.v1 import types_pb2
from sidecar.app import TICK_S
from sidecar.config import CLOSING_S, Config
from sidecar.core.gaps import MAX_HOLES, GapReason
from sidecar.core.idempotency import IDEMPOTENCY_WINDOW, IDEMPOTENCY_WINDOW_S
from sidecar.core.message import MAX_TTL_S, MESSAGE_OVERHEAD_BYTES
from sidecar.rpc.acceptance import DRAINING_RETRY_S
from sidecar.rpc.deliver import MAX_FRAME_ITEMS, MAX_LANE_UNCONFIRMED, MAX_LANES, MAX_UNSENT_ANSWERS
from sidecar.rpc.delivery import MAX_BATCH_ITEMS
from sidecar.rpc.lanes import MAX_UNTOLD_LOSSES
from sidecar.rpc.waiting import MAX_WAIT_S
from sidecar.storage.sqlite.store import FLUSH_S, MAX_BATCH_BYTES, MAX_BATCH_MESSAGES, TRUNCATE_S
from sidecar.ws.edge import RECONNECT_SPREAD_MS
from sidecar.ws.settings import WebSocketSettings
from tests.docs.pages import ROOT, prose, table

PAGE: Final = ROOT / "docs" / "delivery.md"
PROMISES: Final = table(PAGE, "promise", "what it covers", "what it does not cover", "held by")
BOUNDS: Final = table(PAGE, "what", "bound", "when it is reached")


@pytest.mark.parametrize("row", PROMISES, ids=lambda row: row[0])
def test_each_promise_names_the_tests_that_hold_it(row: list[str]) -> None:
    promise, covers, _, held_by = row
    assert promise
    assert covers
    named = re.findall(r"tests/[\w./]+(?:::\w+)?", held_by)
    assert named
    assert re.sub(r"tests/[\w./]+(?:::\w+)?|[`, ]", "", held_by) == ""
    for name in named:
        path, _, function = name.partition("::")
        found = defined_in(ROOT / path)
        assert found, path
        assert not function or function in found, name


@cache
def defined_in(path: Path) -> frozenset[str]:
    """The tests that a file defines: functions, and the state machines of Hypothesis."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    assigned = (node.targets[0] for node in tree.body if isinstance(node, ast.Assign))
    machines = {target.id for target in assigned if isinstance(target, ast.Name)}
    return frozenset(name for name in functions | machines if name.startswith(("test_", "Test")))


@pytest.mark.parametrize("section", ["limits", "outbox", "drain"])
def test_each_bound_that_can_be_set_is_in_the_table(section: str) -> None:
    named = set(re.findall(rf"\b{section}\.(\w+)\b", " ".join(bound + answer for _, bound, answer in BOUNDS)))
    kind = Config.model_fields[section].annotation
    assert named == set(kind.model_fields)  # type: ignore[union-attr]


@pytest.mark.parametrize("section", ["websocket", "grpc"])
def test_of_the_edges_those_with_a_number_are(section: str) -> None:
    named = set(re.findall(rf"\b{section}\.(\w+)\b", " ".join(bound for _, bound, _ in BOUNDS)))
    fields = Config.model_fields[section].annotation.model_fields  # type: ignore[union-attr]
    assert named == {name for name, field in fields.items() if field.annotation in {int, float}}


def test_each_bound_has_an_answer() -> None:
    for what, bound, answer in BOUNDS:
        assert what
        assert bound
        assert answer


@pytest.mark.parametrize(
    ("row", "numbers"),
    [
        ("messages of a context", [MESSAGE_OVERHEAD_BYTES]),
        ("how long one is kept", [MAX_TTL_S / 86_400]),
        ("what is written to a socket and not yet taken", [WebSocketSettings().write_buffer_bytes / 1024]),
        ("a held answer", [MAX_WAIT_S]),
        ("items of a batch, messages of a Deliver frame", [MAX_BATCH_ITEMS, MAX_FRAME_ITEMS]),
        ("lanes of a stream", [MAX_LANES]),
        ("answers of a stream that are not read, or wait for the store", [MAX_UNSENT_ANSWERS, MAX_LANE_UNCONFIRMED]),
        ("losses that a reporting lane has not read", [MAX_UNTOLD_LOSSES]),
        ("ids that are remembered", [IDEMPOTENCY_WINDOW, IDEMPOTENCY_WINDOW_S / 60]),
        ("gaps behind the client's position", [MAX_HOLES]),
        ("a commit to the database", [MAX_BATCH_MESSAGES, MAX_BATCH_BYTES / 1024**2]),
    ],
)
def test_the_bounds_that_are_fixed_are_the_codes(row: str, numbers: list[float]) -> None:
    (bound,) = (bound for what, bound, _ in BOUNDS if what == row)
    assert {f"{number:,.0f}" for number in numbers} <= set(re.findall(r"[\d,]*\d", bound))


@pytest.mark.parametrize(
    "sentence",
    [
        f"at least {CLOSING_S:.0f} s above",
        f"ends in any case {CLOSING_S:.0f} s before",
        f"`reconnect_in_ms` of 0 to {RECONNECT_SPREAD_MS / 1000:.0f} s",
        f"DRAINING, RetryInfo {DRAINING_RETRY_S:.0f} s",
        f"up to {WebSocketSettings().close_timeout_s + TICK_S:.0f} s for the closing handshakes",
        f"at most about {FLUSH_S:g} s later",
        f"in practice {TRUNCATE_S:.0f} s",
        f"the last {IDEMPOTENCY_WINDOW:,} such ids",
    ],
)
def test_the_numbers_in_the_sentences_are_the_codes(sentence: str) -> None:
    assert sentence in " ".join(prose(PAGE).split())


def test_the_states_and_durabilities_are_the_contracts() -> None:
    states = [state for state, *_ in table(PAGE, "state", "what it says", "what it does not say")]
    assert states == types_pb2.DeliveryState.keys()[1:]
    durabilities = [name for name, *_ in table(PAGE, "durability", "`storage.kind`", "an OK survives")]
    assert durabilities == types_pb2.Durability.keys()[1:]


def test_every_reason_of_a_gap_is_told() -> None:
    reasons = [reason for reason, _ in table(ROOT / "docs" / "protocol.md", "reason", "why it could not be kept")]
    assert reasons == [reason.value for reason in GapReason]
    assert all(f"`{reason}`" in prose(PAGE) for reason in reasons)
