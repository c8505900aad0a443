"""What the sidecar sends, read back by the library's own client parser."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.protocol import OPEN
from websockets.uri import parse_uri

from sidecar.core.errors import ErrorReason
from sidecar.core.identity import ContextToken
from sidecar.core.message import ContentType, Message, check_message
from sidecar.ws import frames
from sidecar.ws.frames import JsonEncoder, RawEncoder

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
IDENTIFIERS = st.from_regex(r"\A[A-Za-z0-9_.:@|-]{1,128}\Z")


def parsed(data: bytes) -> list[Frame]:
    """The frames of `data`, as a client reads them."""
    protocol = ClientProtocol(parse_uri("ws://sidecar/"), state=OPEN, max_size=2**21)
    protocol.receive_data(data)
    assert protocol.parser_exc is None
    return [event for event in protocol.events_received() if isinstance(event, Frame)]


def only(data: bytes | None) -> Frame:
    assert data is not None
    (frame,) = parsed(data)
    assert frame.fin
    return frame


def read(data: bytes | None) -> dict[str, Any]:
    frame = only(data)
    assert frame.opcode is Opcode.TEXT
    value = json.loads(bytes(frame.data))
    assert isinstance(value, dict)
    return value


@pytest.mark.parametrize("length", [0, 1, 125, 126, 65_535, 65_536, 300_000])
@pytest.mark.parametrize("content_type", [ContentType.TEXT, ContentType.BINARY])
def test_every_length_is_one_frame(length: int, content_type: ContentType) -> None:
    frame = only(RawEncoder().message(1, "m", Message("", "", b"x" * length, content_type)))
    assert bytes(frame.data) == b"x" * length
    assert frame.opcode is (Opcode.TEXT if content_type == ContentType.TEXT else Opcode.BINARY)


@pytest.mark.parametrize("length", range(60, 70))
def test_json_around_the_shortest_header(length: int) -> None:
    assert read(JsonEncoder().message(1, "m", Message("", "", b"1" * length)))["data"] == int("1" * length)


@given(
    JSON, IDENTIFIERS, IDENTIFIERS | st.just(""), IDENTIFIERS | st.just(""), st.booleans(), st.integers(1, 2**53 - 1)
)
def test_json_payloads_stand_unchanged(
    value: object, message_id: str, event: str, reply_to: str, critical: bool, sequence: int
) -> None:
    payload = json.dumps(value, ensure_ascii=False).encode(errors="surrogatepass")
    message = Message(message_id, event, payload, critical=critical, reply_to=reply_to)
    frame = JsonEncoder().message(sequence, message_id, message)
    assert payload in frame
    optional = {"event": event, "reply_to": reply_to, "critical": critical}
    assert read(frame) == {
        "type": "message",
        "sequence": sequence,
        "id": message_id,
        **{name: member for name, member in optional.items() if member},
        "content_type": "json",
        "data": value,
    }


@given(
    st.binary(max_size=200)
    | st.text(max_size=100).map(lambda text: text.encode(errors="replace"))
    | st.sampled_from(
        [
            b'1,"type":"welcome"',
            b'{}}{"type":"welcome"',
            b'"a","sequence":9',
            b"",
            b" ",
            b'{"a":1}}',
            b"]",
            b"1 2",
            b"NaN",
        ]
    )
)
def test_a_payload_cannot_forge_the_envelope(payload: bytes) -> None:
    """What the core lets through leaves the members before and after `data` as the sidecar wrote them."""
    message = Message("m", "", payload)
    try:
        check_message(message, 1_000)
    except Exception:  # noqa: BLE001 - refused: nothing is spliced
        return
    members: list[tuple[str, object]] = json.loads(
        bytes(only(JsonEncoder().message(7, "m", message)).data), object_pairs_hook=list
    )
    assert [name for name, _ in members] == ["type", "sequence", "id", "content_type", "data"]
    assert members[1] == ("sequence", 7)


@given(st.text(st.characters(codec="utf-8")))
def test_text_is_a_string(text: str) -> None:
    frame = read(JsonEncoder().message(1, "m", Message("", "", text.encode(), ContentType.TEXT)))
    assert (frame["content_type"], frame["data"]) == ("text", text)


@given(st.binary())
def test_binary_is_padded_base64(data: bytes) -> None:
    frame = read(JsonEncoder().message(1, "m", Message("", "", data, ContentType.BINARY)))
    assert frame["content_type"] == "binary"
    assert base64.b64decode(frame["data"], validate=True) == data


@given(st.dictionaries(IDENTIFIERS, st.text(st.characters(codec="utf-8")), min_size=1, max_size=5))
def test_headers_are_encoded_not_spliced(headers: dict[str, str]) -> None:
    assert read(JsonEncoder().message(1, "m", Message("", "", b"{}", headers=headers)))["headers"] == headers


def test_gaps() -> None:
    assert read(JsonEncoder().gap(3, 9, "expired")) == {"type": "gap", "from": 3, "to": 9, "reason": "expired"}
    assert RawEncoder().gap(3, 9, "expired") is None


def test_raw_json_is_a_text_frame() -> None:
    frame = only(RawEncoder().message(1, "m", Message("", "", b'{"a":1}')))
    assert (frame.opcode, bytes(frame.data)) == (Opcode.TEXT, b'{"a":1}')


def test_ping() -> None:
    frame = only(frames.ping_frame(b"abc"))
    assert (frame.opcode, bytes(frame.data)) == (Opcode.PING, b"abc")


def test_small_frames() -> None:
    token = ContextToken("text", 5, "jti", "fam")
    assert read(frames.context_token(token)) == {"type": "context_token", "context_token": "text", "expires_at": 5}
    assert read(frames.refreshed(7)) == {"type": "refreshed", "expires_at": 7}
    assert read(frames.token_expiring(8)) == {"type": "token_expiring", "expires_at": 8}
    assert read(frames.draining(9)) == {"type": "draining", "reconnect_in_ms": 9}
    assert read(frames.error(ErrorReason.NO_AGENT, "m")) == {
        "type": "error",
        "id": "m",
        "reason": "NO_AGENT",
        "message": "no agent takes this message",
    }
    assert "id" not in read(frames.error(ErrorReason.BAD_REQUEST, None))
