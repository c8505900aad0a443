"""Receipts and events in protobuf's wire format: what a generated message would say, for every value they can have."""

from google.rpc import status_pb2
from hypothesis import given
from hypothesis import strategies as st

from sidecar.api.v1 import agent_service_pb2 as agent_pb
from sidecar.api.v1 import delivery_service_pb2 as pb
from sidecar.config.sections import LimitSettings
from sidecar.core.message import DeliveryState, Durability, Receipt
from sidecar.rpc.translate import fill_receipt
from sidecar.rpc.wire import ReceiptFrame, events_frame, lane_field, varint

UINT32 = st.integers(0, 2**32 - 1)
UINT64 = st.integers(0, 2**64 - 1)
RECEIPTS = st.builds(
    Receipt,
    st.text("ABCabc019_.:@|-", min_size=1, max_size=128),
    UINT64,
    st.sampled_from(DeliveryState),
    st.sampled_from(Durability),
    st.integers(0, 100),
    st.booleans(),
    st.floats(0, 4e9),
)
ERRORS = st.builds(status_pb2.Status, code=st.integers(1, 16), message=st.text(max_size=300))
Items = list[tuple[int, int, Receipt | status_pb2.Status]]
ITEMS = st.lists(st.tuples(UINT32, UINT64, RECEIPTS | ERRORS), max_size=20)


@given(ITEMS)
def test_a_frame_says_what_the_generated_message_says(
    items: list[tuple[int, int, Receipt | status_pb2.Status]],
) -> None:
    frame, expected = ReceiptFrame(), pb.DeliverResponse()
    expected.receipts.SetInParent()
    for lane, number, outcome in items:
        item = expected.receipts.items.add(lane=lane, number=number)
        if isinstance(outcome, Receipt):
            frame.add_receipt(lane_field(lane), number, outcome)
            fill_receipt(item.receipt, outcome)
        else:
            frame.add_error(lane_field(lane), number, outcome)
            item.error.CopyFrom(outcome)
    assert pb.DeliverResponse.FromString(frame.encode()) == expected


def test_receipts_that_share_all_but_their_place_do_not_share_their_rest_by_mistake() -> None:
    frame = ReceiptFrame()
    first = Receipt("m-1", 1, DeliveryState.WRITTEN, Durability.MEMORY, 1, False, 1.5)
    others = [first._replace(sequence=2), first._replace(connections=0, state=DeliveryState.QUEUED), first]
    for receipt in (first, *others):
        frame.add_receipt(lane_field(0), 0, receipt)
    items = pb.DeliverResponse.FromString(frame.encode()).receipts.items
    assert [(item.receipt.sequence, item.receipt.connections, item.receipt.state) for item in items] == [
        (1, 1, 2),
        (2, 1, 2),
        (1, 0, 1),
        (1, 1, 2),
    ]


@given(UINT64)
def test_a_varint_is_as_short_as_it_can_be(value: int) -> None:
    digits = [ord(character) for character in varint(value)]
    assert sum((digit & 0x7F) << 7 * place for place, digit in enumerate(digits)) == value
    assert len(digits) == max(1, -(-value.bit_length() // 7))


@given(st.lists(st.tuples(st.text(max_size=300), st.text(max_size=300), st.binary(max_size=40_000)), min_size=1))
def test_events_of_parts_are_the_events(many: list[tuple[str, str, bytes]]) -> None:
    expected, parts = [], []
    for delivery_id, token, payload in many:
        own, known = agent_pb.AttachResponse.Event(delivery_id=delivery_id), agent_pb.AttachResponse.Event()
        own.message.payload = payload
        known.context_token, known.context.user_id = token, "alice"
        parts.append(known.SerializeToString() + own.SerializeToString())
        own.MergeFrom(known)
        expected.append(own)
    frame = agent_pb.AttachResponse.FromString(events_frame(parts))
    if len(expected) == 1:
        assert frame == agent_pb.AttachResponse(event=expected[0])
    else:
        assert frame == agent_pb.AttachResponse(events=agent_pb.AttachResponse.Events(items=expected))


def test_as_many_connections_as_there_may_be_are_one_byte() -> None:
    """What `_fields_of` relies on."""
    (at_most,) = (
        rule.le for rule in LimitSettings.model_fields["connections_per_manager"].metadata if hasattr(rule, "le")
    )
    assert at_most < 128
