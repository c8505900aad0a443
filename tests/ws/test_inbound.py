"""What a client may say, and the exact outcome of everything else."""

from __future__ import annotations

import json
from contextlib import suppress

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.config.sections import LimitSettings
from sidecar.ws.inbound import (
    MAX_DEPTH,
    Acknowledge,
    BadFrame,
    Cancel,
    ClientFrame,
    ClientMessage,
    Hello,
    Refresh,
    Rejected,
    Resume,
    parse,
)


@pytest.mark.parametrize(
    ("text", "frame"),
    [
        ('{"type":"hello"}', Hello(None, None, None)),
        ('{"type":"hello","token":"t","more":1}', Hello("t", None, None)),
        (
            '{"type":"hello","resume":{"token":"r","last_sequence":0,"attempt":2}}',
            Hello(None, Resume("r", 0, 2), None),
        ),
        ('{"type":"hello","mirror":{"token":"r"}}', Hello(None, None, "r")),
        ('{"type":"ack","sequence":0}', Acknowledge(0)),
        ('{"type":"ack","sequence":999999999999999}', Acknowledge(10**15 - 1)),
        ('{"type":"ack","sequence":1000000000000000}', Acknowledge(10**15)),
        ('{"type":"ack","sequence":9007199254740991}', Acknowledge(2**53 - 1)),
        ('{"type":"ack","sequence":7} ', Acknowledge(7)),
        ('{"type":"message","id":"a","data":null}', ClientMessage("a", "message", None)),
        ('{"type":"message","id":"a","event":"e","data":[1]}', ClientMessage("a", "e", [1])),
        ('{"type":"message","id":"a"}', Rejected("a")),
        ('{"type":"message","data":1}', Rejected(None)),
        ('{"type":"message","id":7,"data":1}', Rejected(None)),
        ('{"type":"message","id":"a b","data":1}', Rejected(None)),
        (json.dumps({"type": "message", "id": "x" * 128, "data": 1}), ClientMessage("x" * 128, "message", 1)),
        (json.dumps({"type": "message", "id": "x" * 129, "data": 1}), Rejected(None)),
        ('{"type":"message","id":"a","event":"no spaces","data":1}', Rejected("a")),
        ('{"type":"message","id":"a","event":null,"data":1}', Rejected("a")),
        ('{"type":"cancel","stream_id":"s"}', Cancel("s", None)),
        ('{"type":"cancel","id":"m"}', Cancel(None, "m")),
        ('{"type":"cancel"}', Rejected(None)),
        ('{"type":"cancel","id":"m","stream_id":1}', Rejected("m")),
        ('{"type":"refresh","token":"t"}', Refresh("t")),
        ('{"type":"unheard","id":"q"}', Rejected("q")),
        ('{"type":""}', Rejected(None)),
    ],
)
def test_frames(text: str, frame: ClientFrame) -> None:
    assert parse(text) == frame


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "1",
        '"hello"',
        "null",
        "{",
        '{"type":"hello"} {"type":"hello"}',
        "{}",
        '{"type":1}',
        '{"type":null}',
        '{"type":["hello"]}',
        '{"type":"ack"}',
        '{"type":"ack","sequence":-1}',
        '{"type":"ack","sequence":01}',
        '{"type":"ack","sequence":\u0667}',
        '{"type":"ack","sequence":7}{}',
        '{"type":"ack","sequence":"1"}',
        '{"type":"ack","sequence":1.0}',
        '{"type":"ack","sequence":true}',
        '{"type":"ack","sequence":null}',
        '{"type":"ack","sequence":9007199254740992}',
        '{"type":"ack","sequence":NaN}',
        '{"type":"ack","sequence":1e999}',
        '{"type":"message","id":"a","data":"\\ud800"}',
        '{"type":"message","id":"a","data":NaN}',
        '{"type":"message","id":"a","data":"\x00"}',
        '{"type":"hello","token":null}',
        '{"type":"hello","token":7}',
        '{"type":"hello","resume":[]}',
        '{"type":"hello","resume":null}',
        '{"type":"hello","resume":{"token":"r","last_sequence":-1,"attempt":1}}',
        '{"type":"hello","resume":{"token":"r","attempt":1}}',
        '{"type":"hello","resume":{"token":1,"last_sequence":0,"attempt":1}}',
        '{"type":"hello","mirror":{}}',
        '{"type":"hello","mirror":{"token":"r"},"resume":{"token":"r","last_sequence":0,"attempt":1}}',
        '{"type":"refresh"}',
        '{"type":"refresh","token":1}',
    ],
)
def test_bad_frames(text: str) -> None:
    with pytest.raises(BadFrame):
        parse(text)


def nested(depth: int, opening: str = "[", closing: str = "]") -> str:
    """A frame that nests that deep, its own object included."""
    inner = opening * (depth - 1) + "1" + closing * (depth - 1)
    return f'{{"type":"message","id":"a","data":{inner}}}'


@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}")])
def test_depth(opening: str, closing: str) -> None:
    assert isinstance(parse(nested(MAX_DEPTH, opening, closing)), ClientMessage)
    for depth in (MAX_DEPTH + 1, 1_000, 10_000):
        with pytest.raises(BadFrame):
            parse(nested(depth, opening, closing))


def test_many_brackets_are_not_depth() -> None:
    assert isinstance(parse(json.dumps({"type": "message", "id": "a", "data": [[]] * 100 + ["[[{{"]})), ClientMessage)


@given(st.text() | st.recursive(st.none() | st.text() | st.integers(), st.lists).map(json.dumps))
def test_nothing_but_bad_frames_is_raised(text: str) -> None:
    with suppress(BadFrame):
        parse(text)


@pytest.mark.parametrize("number", ["1e15", "9E15", "1e14", "-1e15", "1e-5", "1e22"])
def test_what_a_client_may_say_grows_to_no_more_than_a_workers_client_receives(number: str) -> None:
    """Written anew it may be longer; 4 MiB is what gRPC's clients receive by default, the event around it included."""
    (longest,) = (rule.le for rule in LimitSettings.model_fields["max_inbound_bytes"].metadata if hasattr(rule, "le"))
    data = ",".join([number] * (longest // (len(number) + 1)))
    frame = parse(f'{{"type":"message","id":"m","data":[{data}]}}')
    assert isinstance(frame, ClientMessage)
    assert len(orjson.dumps(frame.data)) < 4 * 1024 * 1024 - 64 * 1024
