"""The rules a message must keep, receipts that come later, and what makes two messages the same."""

from __future__ import annotations

import gc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.core.errors import BadRequest, ManagerGone
from sidecar.core.message import (
    MAX_HEADER_VALUE_CHARACTERS,
    MAX_HEADERS,
    MAX_TTL_S,
    ContentType,
    DeliveryState,
    Durability,
    Message,
    PendingReceipt,
    Receipt,
    check_message,
    fingerprint,
    is_json,
    parse_json,
)
from tests.support.speaker import Speaker

LIMIT = 64
RECEIPT = Receipt("m-1", 1, DeliveryState.WRITTEN, Durability.MEMORY, 1, False, 10.0)


def message(payload: bytes = b"{}", **members: Any) -> Message:
    return Message(members.pop("message_id", ""), members.pop("event_type", ""), payload, **members)


def message_with(member: str, value: Any) -> Message:
    """A message of which one member is that."""
    return message(**{member: value})


def refused(candidate: Message) -> str:
    """The field that the message is refused for."""
    with pytest.raises(BadRequest) as caught:
        check_message(candidate, LIMIT)
    ((field, description),) = caught.value.violations
    assert description
    return field


@pytest.mark.parametrize(
    "payload",
    [b"{}", b"[]", b"null", b"true", b"0", b"-1.5e10", b'"\\ud83d\\ude00"', '"é"'.encode(), b' {"a": [1, {"b": 2}]}\n'],
)
def test_one_json_value_is_taken(payload: bytes) -> None:
    assert is_json(payload)
    check_message(message(payload), LIMIT)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b" ",
        b"{} {}",
        b"{}}",
        b'{"a":1,}',
        b"{'a':1}",
        b"NaN",
        b"[Infinity]",
        b"-Infinity",
        b"01",
        b'"\\ud800"',
        b'"\\udc00\\ud800"',
        b'"\xed\xa0\x80"',
        b'"\xff"',
        b'"\x01"',
        b"\xef\xbb\xbf{}",
        b"// comment\n1",
        b'{"sequence":1},"data":{}',
        b"[" * 30_000 + b"]" * 30_000,
    ],
    ids=lambda payload: repr(payload[:12]),
)
def test_anything_else_is_no_json(payload: bytes) -> None:
    assert not is_json(payload)
    with pytest.raises(BadRequest) as caught:
        check_message(message(payload), 100_000)
    assert caught.value.violations[0][0] == "message.payload"


@pytest.mark.parametrize("items", [1, 10_000])
@pytest.mark.parametrize("collecting", [True, False])
def test_parsing_leaves_the_collector_as_it_was(items: int, collecting: bool) -> None:
    text = "[" + ",".join(["[]"] * items) + "]"
    if not collecting:
        gc.disable()
    try:
        assert parse_json(text) == [[]] * items
        assert gc.isenabled() is collecting
        with pytest.raises(ValueError, match="unexpected content"):
            parse_json(text.encode() + b"]")
        assert gc.isenabled() is collecting
    finally:
        gc.enable()


def test_the_payload_is_bounded() -> None:
    check_message(message(b"1" * LIMIT), LIMIT)
    assert refused(message(b"1" * (LIMIT + 1))) == "message.payload"
    assert refused(message(b"1" * (LIMIT + 1), content_type=ContentType.BINARY)) == "message.payload"


def test_text_is_utf8_and_binary_is_anything() -> None:
    check_message(message("é{".encode(), content_type=ContentType.TEXT), LIMIT)
    check_message(message(b"", content_type=ContentType.TEXT), LIMIT)
    check_message(message(b"\xff\x00", content_type=ContentType.BINARY), LIMIT)
    assert refused(message(b"\xff", content_type=ContentType.TEXT)) == "message.payload"


@pytest.mark.parametrize("unknown", [0, 4, -1])
def test_an_unknown_content_type_is_refused(unknown: int) -> None:
    assert refused(message(content_type=unknown)) == "message.content_type"


@pytest.mark.parametrize("content_type", [ContentType.TEXT, ContentType.BINARY])
def test_a_critical_event_is_json(content_type: ContentType) -> None:
    check_message(message(critical=True), LIMIT)
    assert refused(message(critical=True, content_type=content_type)) == "message.critical"


@pytest.mark.parametrize("field", ["message_id", "event_type", "reply_to"])
def test_identifiers_are_of_the_contracts_alphabet(field: str) -> None:
    check_message(message_with(field, "a.Z_0:@|-"), LIMIT)
    check_message(message_with(field, "x" * 128), LIMIT)
    for bad in ("x" * 129, "a b", "a\n", 'a"', "é", "\0"):
        assert refused(message_with(field, bad)) == f"message.{field}"


def test_a_ttl_is_more_than_nothing_and_at_most_a_day() -> None:
    check_message(message(ttl_s=0.001), LIMIT)
    check_message(message(ttl_s=MAX_TTL_S), LIMIT)
    for bad in (0.0, -1.0, MAX_TTL_S + 1, float("nan"), float("inf"), float("-inf")):
        assert refused(message(ttl_s=bad)) == "message.ttl"


def test_headers_are_bounded() -> None:
    check_message(message(headers={f"h{n}": "v" for n in range(MAX_HEADERS)}), LIMIT)
    check_message(message(headers={"h": "v" * MAX_HEADER_VALUE_CHARACTERS}), LIMIT)
    assert refused(message(headers={f"h{n}": "v" for n in range(MAX_HEADERS + 1)})) == "message.headers"
    assert refused(message(headers={"h": "v" * (MAX_HEADER_VALUE_CHARACTERS + 1)})) == "message.headers"
    assert refused(message(headers={"": "v"})) == "message.headers"
    assert refused(message(headers={"a b": "v"})) == "message.headers"


SAME = {"message_id": "id", "ttl_s": 5.0, "headers": {"h": "v"}, "min_durability": 2}
OTHER = [{"event_type": "e"}, {"content_type": 2}, {"critical": True}, {"reply_to": "r"}, {"payload": b"[]"}]


@pytest.mark.parametrize("name", SAME)
def test_what_does_not_make_a_message_another(name: str) -> None:
    assert fingerprint(message_with(name, SAME[name])) == fingerprint(message())


@pytest.mark.parametrize("change", OTHER, ids=lambda change: next(iter(change)))
def test_what_makes_a_message_another(change: dict[str, Any]) -> None:
    assert fingerprint(message(**change)) != fingerprint(message())


@given(
    st.tuples(st.sampled_from(["", "a", "ab"]), st.sampled_from(["", "a", "ab"]), st.binary(max_size=3)),
    st.tuples(st.sampled_from(["", "a", "ab"]), st.sampled_from(["", "a", "ab"]), st.binary(max_size=3)),
)
def test_no_two_messages_share_a_fingerprint_by_moving_text_between_members(
    one: tuple[str, str, bytes], other: tuple[str, str, bytes]
) -> None:
    prints = [fingerprint(message(payload, event_type=event, reply_to=reply)) for event, reply, payload in (one, other)]
    assert (prints[0] == prints[1]) == (one == other)


def test_a_fingerprint_is_the_same_in_every_process() -> None:
    assert fingerprint(message()).hex() == "fa1119bdd906e5797eb53dc98edac205"


def test_a_pending_receipt_tells_whoever_waits_in_order() -> None:
    pending, told = PendingReceipt(), list[str]()
    pending.add_done_callback(lambda one: told.append("first"))
    pending.add_done_callback(lambda one: told.append(one.receipt.message_id if one.receipt else ""))
    assert told == []
    pending.settle(RECEIPT, None)
    assert told == ["first", "m-1"]
    pending.add_done_callback(lambda one: told.append("late"))
    assert told == ["first", "m-1", "late"]


def test_a_pending_receipt_that_failed_tells_at_once() -> None:
    pending, told = PendingReceipt(), list[PendingReceipt]()
    pending.settle(None, ManagerGone())
    pending.add_done_callback(told.append)
    assert told == [pending]
    assert isinstance(pending.error, ManagerGone)
    assert pending.receipt is None


def test_a_repeat_of_a_pending_receipt_has_its_outcome_and_delivered_nothing() -> None:
    first = PendingReceipt()
    repeat = first.as_duplicate()
    assert repeat.receipt is None
    first.settle(RECEIPT, None)
    assert repeat.receipt == RECEIPT._replace(duplicate=True, connections=0)
    assert first.receipt == RECEIPT
    assert first.as_duplicate().receipt == repeat.receipt


def test_a_repeat_fails_as_the_first_did() -> None:
    first = PendingReceipt()
    repeat = first.as_duplicate()
    error = ManagerGone()
    first.settle(None, error)
    assert repeat.receipt is None
    assert repeat.error is error


def test_the_numbers_are_the_protos() -> None:
    assert [one.value for one in ContentType] == [1, 2, 3]
    assert [(one.name, one.value) for one in DeliveryState] == [
        ("QUEUED", 1),
        ("WRITTEN", 2),
        ("ACKNOWLEDGED", 3),
        ("DROPPED", 4),
    ]
    assert [(one.name, one.value) for one in Durability] == [("MEMORY", 1), ("DISK", 2), ("REPLICATED", 3)]


@pytest.mark.parametrize("name", ["event_type", "reply_to", "message_id", "stream_id"])
def test_names_are_looked_at_though_the_stream_goes_on(name: str) -> None:
    """What the chunks before had in common need not be; nothing else of a chunk is taken unseen."""
    speaker = Speaker()
    names: dict[str, Any] = {"event_type": "token", "reply_to": "q-1"}
    speaker.send(0, **names)
    with pytest.raises(BadRequest):
        speaker.offer(1, **(names | {name: "a b"}))
    assert speaker.send(1, **names).sequence == 2
