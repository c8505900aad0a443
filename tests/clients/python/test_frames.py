"""The frames of the WebSocket protocol, read and written; what breaks the protocol is told from what is new."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sidecar.ws import inbound
from sidecar_client import frames
from sidecar_client.errors import BadRequest
from sidecar_client.events import StreamChunk
from sidecar_client.frames import GapFrame, MessageFrame, ProtocolError, parse

MESSAGE = {"type": "message", "sequence": 1, "id": "m", "content_type": "json", "data": 1}
WELCOME = {
    "type": "welcome",
    "connection_id": "c",
    "session_id": "s",
    "attach_id": "a",
    "isolation_key": "k",
    "context_token": "t",
    "context_token_expires_at": 9,
    "resume_token": "r",
    "recovery": "new",
    "sequence": 0,
    "limits": {"max_message_bytes": 1, "max_inbound_bytes": 65_536, "idle_timeout_s": 3, "resume_window_s": 0.5},
}


def without(frame: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in frame.items() if key != name}


def test_a_message_with_everything() -> None:
    frame = MESSAGE | {
        "event": "e",
        "critical": True,
        "reply_to": "q",
        "headers": {"h": "1"},
        "stream": {"id": "s", "index": 3, "state": "end"},
        "content_type": "binary",
        "data": "AP8=",
        "to_come": {"x": 1},
    }
    chunk = StreamChunk("s", 3, "end")
    assert parse(json.dumps(frame)) == MessageFrame(1, "m", "e", "binary", b"\x00\xff", True, "q", chunk, {"h": "1"})


def test_what_is_new_is_left_alone() -> None:
    assert parse('{"type":"weather","forecast":[]}') is None
    assert parse('{"type":"gap","from":1,"to":2,"reason":"bored","x":1}') == GapFrame(1, 2, "bored")


@pytest.mark.parametrize(
    "text",
    [
        b"{}",
        "",
        "{",
        "[]",
        "1",
        '"message"',
        "{}",
        '{"type":1}',
        '{"type":null}',
        "[" * 100_000,
        json.dumps(MESSAGE | {"sequence": "1"}),
        json.dumps(MESSAGE | {"sequence": True}),
        json.dumps(MESSAGE | {"sequence": -1}),
        json.dumps(MESSAGE | {"sequence": 2**53}),
        json.dumps(MESSAGE | {"sequence": 1.0}),
        json.dumps(MESSAGE | {"id": None}),
        json.dumps(MESSAGE | {"content_type": "text"}),
        json.dumps(MESSAGE | {"content_type": "binary", "data": "!"}),
        json.dumps(MESSAGE | {"stream": {"id": "s"}}),
        json.dumps(without(MESSAGE, "data")),
        '{"type":"gap","from":3,"to":2,"reason":"expired"}',
        '{"type":"gap","from":0,"to":2,"reason":"expired"}',
        '{"type":"accepted"}',
        '{"type":"draining","reconnect_in_ms":-1}',
        *(json.dumps(without(WELCOME, name)) for name in ("connection_id", "isolation_key", "limits", "sequence")),
    ],
)
def test_what_breaks_the_protocol_is_a_protocol_error(text: Any) -> None:
    with pytest.raises(ProtocolError):
        parse(text)


def test_a_mirror_has_no_resume_token() -> None:
    welcome = parse(json.dumps(without(WELCOME, "resume_token")))
    assert isinstance(welcome, frames.Welcome)
    assert (welcome.resume_token, welcome.limits.resume_window_s) == ("", 0.5)


def test_the_sidecar_reads_what_is_written() -> None:
    resume = {"token": "r", "last_sequence": 4, "attempt": 2}
    assert inbound.parse(frames.hello("jwt", resume)) == inbound.Hello("jwt", inbound.Resume("r", 4, 2), None)
    assert inbound.parse(frames.hello("jwt", None)) == inbound.Hello("jwt", None, None)
    assert inbound.parse(frames.ack(7)) == inbound.Acknowledge(7)
    assert inbound.parse(frames.refresh("jwt")) == inbound.Refresh("jwt")
    assert inbound.parse(frames.message("q", "", {"a": "\u2028ü"})) == inbound.ClientMessage(
        "q", "message", {"a": "\u2028ü"}
    )
    assert inbound.parse(frames.cancel("s", "q")) == inbound.Cancel("s", "q")
    assert inbound.parse(frames.cancel("", "q")) == inbound.Cancel(None, "q")


@pytest.mark.parametrize("kind", [lambda inner: [inner], lambda inner: {"a": inner}, lambda inner: (inner,)])
def test_as_deep_as_the_sidecar_takes_and_one_level_more(kind: Any) -> None:
    data: Any = 1
    for _ in range(31):
        data = kind(data)
    assert isinstance(inbound.parse(frames.message("q", "", data)), inbound.ClientMessage)
    with pytest.raises(inbound.BadFrame):
        inbound.parse(json.dumps({"type": "message", "id": "q", "data": kind(data)}))
    with pytest.raises(BadRequest):
        frames.message("q", "", kind(data))


def test_a_circle_is_refused() -> None:
    circle: list[Any] = []
    circle.append(circle)
    with pytest.raises(BadRequest):
        frames.message("q", "", circle)
