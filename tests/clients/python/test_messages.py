"""What a caller says of a message becomes the contract's fields, or is refused before it goes anywhere."""

from __future__ import annotations

import pytest

from sidecar.api.v1 import types_pb2
from sidecar_client.errors import BadRequest
from sidecar_client.messages import MessageOptions, build_message, duration, new_message_id
from sidecar_client.values import ContentType, Durability, StreamPlace, StreamState


def test_every_option_has_its_field() -> None:
    message = build_message(
        None,
        MessageOptions(
            json={"ü": [1, 2]},
            event_type="e",
            message_id="m",
            ttl_s=1.5,
            headers={"h": "1"},
            min_durability=Durability.DISK,
            critical=True,
            reply_to="q",
            stream=StreamPlace("s", 4, StreamState.END),
        ),
    )
    assert message == types_pb2.Message(
        message_id="m",
        event_type="e",
        payload='{"ü":[1,2]}'.encode(),
        content_type=types_pb2.CONTENT_TYPE_JSON,
        ttl=duration(1.5, ""),
        headers={"h": "1"},
        min_durability=types_pb2.DURABILITY_DISK,
        critical=True,
        reply_to="q",
        stream=types_pb2.Stream(stream_id="s", index=4, state=types_pb2.STREAM_STATE_END),
    )
    # Nothing that the contract's message has cannot be said.
    assert {field.name for field, _ in message.ListFields()} == set(types_pb2.Message.DESCRIPTOR.fields_by_name)


@pytest.mark.parametrize("payload", [b"x", bytearray(b"x"), memoryview(b"x")])
def test_bytes_of_every_kind(payload: bytes) -> None:
    message = build_message(payload, MessageOptions(content_type=ContentType.BINARY))
    assert (message.payload, message.content_type) == (b"x", types_pb2.CONTENT_TYPE_BINARY)
    assert not message.HasField("ttl")
    assert not message.HasField("stream")


def test_every_message_has_an_id_of_its_own() -> None:
    ids = {build_message(b"1", MessageOptions()).message_id for _ in range(100)} | {new_message_id()}
    assert len(ids) == 101
    assert build_message(b"1", MessageOptions(message_id="")).message_id


def test_what_contradicts_itself_is_a_type_error() -> None:
    with pytest.raises(TypeError, match=r"json="):
        build_message(None, MessageOptions(json="1", content_type=ContentType.TEXT))
    with pytest.raises(TypeError, match="expected_user"):
        build_message(b"1", {"expected_user": "alice"})  # type: ignore[typeddict-unknown-key]


@pytest.mark.parametrize("index", [-1, 2**64])
def test_a_number_that_the_field_cannot_hold(index: int) -> None:
    with pytest.raises(BadRequest):
        build_message(b"1", MessageOptions(stream=StreamPlace("s", index)))


@pytest.mark.parametrize("seconds", [float("nan"), float("inf"), 1e300])
def test_a_time_that_is_none(seconds: float) -> None:
    with pytest.raises(BadRequest):
        duration(seconds, "message.ttl")
