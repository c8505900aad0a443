"""A caller that goes at any await of the send path: nothing of its call is left over, its append is carried through."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message as ProtoMessage

from sidecar.api.v1 import delivery_service_pb2 as pb
from sidecar.api.v1 import types_pb2
from sidecar.core.message import Message as CoreMessage
from sidecar.core.message import PendingReceipt, Receipt
from sidecar.rpc.acceptance import Acceptance
from sidecar.rpc.boundary import Boundary
from sidecar.rpc.callers import Callers
from sidecar.rpc.delivery import SLICE_BYTES, DeliveryMethods
from sidecar.rpc.refusals import RefusalRecorder
from tests.rpc.conftest import MakeRig
from tests.rpc.rig import Client, Metadata, Rig
from tests.support.doubles import LaterStore

WAIT = Duration(seconds=30)
Turns = Mapping[int, Callable[[], object]]


class Call:
    """What a handler may ask of gRPC's own call."""

    def __init__(self, metadata: Metadata) -> None:
        self._metadata = metadata

    def invocation_metadata(self) -> Metadata:
        return self._metadata

    def peer(self) -> str:
        return "ipv4:127.0.0.1:1"


@dataclass
class Desk:
    """The methods behind their boundary, with a store that answers when it is told to."""

    rig: Rig
    store: LaterStore
    boundary: Boundary = field(init=False)
    methods: DeliveryMethods = field(init=False)
    _calls: int = 0

    def __post_init__(self) -> None:
        rig = self.rig
        recorder = RefusalRecorder(rig.audit, rig.floods, rig.counters)
        self.boundary = Boundary(recorder, max_concurrent_calls=10)
        callers = Callers(rig.tokens, rig.services, rig.factory)
        self.methods = DeliveryMethods(callers, Acceptance(rig.factory), rig.factory, rig.clock, recorder)

    def client(self, name: str = "alice") -> Client:
        """A user nobody has sent anything to."""
        self._calls += 1
        return self.rig.connect(f"{name}-{self._calls}")

    async def cancelled(self, turns: int, behaviour: Any, request: ProtoMessage, client: Client, then: Turns) -> bool:
        """Call, do what is to be done `then`, by turn of the loop, and cancel after so many. Whether it had ended."""
        handler: Any = self.boundary.unary("Method", type(request), behaviour).unary_unary
        before = asyncio.all_tasks()
        task = asyncio.create_task(handler(request.SerializeToString(), Call(client.metadata)))
        for turn in range(turns):
            if turn in then:
                then[turn]()
            await asyncio.sleep(0)
        ended = task.done()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert task.cancelled() is not ended
        assert asyncio.all_tasks() == before
        assert self.boundary.active_calls == len(self.methods._waits) == 0
        assert self.boundary.idle.is_set()
        return ended

    def nothing_left(self, client: Client) -> None:
        """Of the call, in the manager that it was for. A wait that was given up goes when its message has."""
        outbox = client.manager.outbox
        outcomes = client.manager._outcomes
        assert not client.manager.end_watchers
        assert outcomes is None or not any(wait.waiting for _, _, wait in outcomes._waits)
        client.manager.acknowledge(client.socket.attach_id, outbox.head, self.rig.at())
        assert outbox.acknowledged == outbox.head
        assert not client.manager._outcomes

    def carried_through(self, client: Client, messages: int) -> None:
        """The store answers, and the client has what was accepted though nobody waits for the receipts."""
        self.store.confirm_all()
        outbox = client.manager.outbox
        assert outbox.head == outbox.confirmed == outbox.cursor == messages
        assert len(client.socket.frames) == messages

    def repeat(self, client: Client, message: CoreMessage) -> Receipt | PendingReceipt:
        return client.manager.send_to_user(client.manager.context, message, self.rig.at())


@pytest.fixture
async def desk(make_rig: MakeRig) -> Desk:
    store = LaterStore()
    return Desk(await make_rig(store=store), store)


def send(client: Client, **members: Any) -> pb.SendToUserRequest:
    return pb.SendToUserRequest(
        isolation_key=client.key, message=types_pb2.Message(payload=b"{}", message_id="m-1"), **members
    )


def acknowledging(desk: Desk, client: Client) -> Turns:
    """The store answers after a while, and some time later the client does."""
    return {
        4: desk.store.confirm_all,
        9: lambda: client.manager.acknowledge(client.socket.attach_id, 1, desk.rig.at()),
    }


@pytest.mark.parametrize("waits", [False, True])
async def test_a_send(desk: Desk, waits: bool) -> None:
    turns, ended = -1, False
    while not ended:
        turns += 1
        client = desk.client()
        request = send(client, wait_for_ack=WAIT) if waits else send(client)
        ended = await desk.cancelled(turns, desk.methods.send_to_user, request, client, acknowledging(desk, client))
        desk.carried_through(client, min(turns, 1))
        desk.nothing_left(client)
        if turns:
            repeat = desk.repeat(client, CoreMessage("m-1", "", b"{}"))
            assert isinstance(repeat, Receipt)
            assert (repeat.sequence, repeat.duplicate) == (1, True)
    assert turns > (9 if waits else 4)


async def test_a_critical_event(desk: Desk) -> None:
    turns, ended = -1, False
    while not ended:
        turns += 1
        client = desk.client()
        request = pb.EmitCriticalEventRequest(
            isolation_key=client.key, event_type="alarm", data=b"{}", message_id="m-1", wait_for_ack=WAIT
        )
        then = acknowledging(desk, client)
        ended = await desk.cancelled(turns, desk.methods.emit_critical_event, request, client, then)
        desk.carried_through(client, min(turns, 1))
        desk.nothing_left(client)
        if turns:
            assert isinstance(desk.repeat(client, CoreMessage("m-1", "alarm", b"{}", critical=True)), Receipt)
    assert turns > 9


async def test_a_send_that_the_store_refuses(desk: Desk) -> None:
    """Its caller has gone, and there is nobody to tell: its id and its place are free again."""
    for turns in range(1, 4):
        client = desk.client()
        assert not await desk.cancelled(turns, desk.methods.send_to_user, send(client), client, {})
        desk.store.fail()
        assert client.manager.outbox.head == 0
        assert client.socket.frames == []
        assert client.manager._account.queued_bytes == 0
        assert isinstance(desk.repeat(client, CoreMessage("m-1", "", b'"other"')), PendingReceipt)
        desk.carried_through(client, 1)


async def test_a_wait_whose_context_ends(desk: Desk) -> None:
    turns, ended = -1, False
    while not ended:
        turns += 1
        client = desk.client()
        then: Turns = {
            3: desk.store.confirm_all,
            6: partial(client.manager.end, "closed_by_service", None, desk.rig.at()),
        }
        request = send(client, wait_for_ack=WAIT)
        ended = await desk.cancelled(turns, desk.methods.send_to_user, request, client, then)
        desk.store.confirm_all()
        client.manager.end("closed_by_service", None, desk.rig.at())
        assert not client.manager.end_watchers
        assert not client.manager._outcomes
    assert turns > 6


async def test_a_wait_that_another_caller_shares(desk: Desk) -> None:
    """Two wait for the same message; one of them goes, the other is told."""
    client = desk.client()
    handler: Any = desk.boundary.unary("Method", pb.SendToUserRequest, desk.methods.send_to_user).unary_unary
    data = send(client, wait_for_ack=WAIT).SerializeToString()
    staying = asyncio.create_task(handler(data, Call(client.metadata)))
    leaving = asyncio.create_task(handler(data, Call(client.metadata)))
    await asyncio.sleep(0)
    desk.store.confirm_all()
    for _ in range(3):
        await asyncio.sleep(0)
    assert len(desk.methods._waits) == 2
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    assert len(desk.methods._waits) == 1
    client.manager.acknowledge(client.socket.attach_id, 1, desk.rig.at())
    answer = pb.SendToUserResponse.FromString(await staying)
    assert answer.receipt.state == types_pb2.DELIVERY_STATE_ACKNOWLEDGED
    assert not client.manager.end_watchers
    assert not client.manager._outcomes


async def test_a_batch(desk: Desk) -> None:
    """What was not read of it before its caller went is not sent; what was is carried through."""
    large = b'"%s"' % (b"x" * (SLICE_BYTES // 2))
    sent = set()
    turns, ended = -1, False
    while not ended:
        turns += 1
        clients = [desk.client(), desk.client("carol")]
        items = [
            pb.SendBatchItem(
                isolation_key=client.key, context_token=client.token, message=types_pb2.Message(payload=large)
            )
            for client in clients * 3
        ]
        request = pb.SendBatchRequest(items=items)
        ended = await desk.cancelled(turns, desk.methods.send_batch, request, clients[0], {5: desk.store.confirm_all})
        heads = [client.manager.outbox.head for client in clients]
        sent.add(sum(heads))
        for client, head in zip(clients, heads, strict=True):
            desk.carried_through(client, head)
            desk.nothing_left(client)
    assert sent == {0, 2, 4, 6}


async def test_a_broadcast(desk: Desk) -> None:
    reached = set()
    turns, ended = -1, False
    while not ended:
        turns += 1
        first = desk.client()
        clients = [first, *(desk.rig.connect(first.manager.context.user_id) for _ in range(2))]
        request = pb.BroadcastRequest(
            scope=pb.BROADCAST_SCOPE_USER, message=types_pb2.Message(payload=b"{}", message_id="m-1")
        )
        ended = await desk.cancelled(turns, desk.methods.broadcast, request, first, {5: desk.store.confirm_all})
        heads = [client.manager.outbox.head for client in clients]
        reached.add(sum(heads))
        for client in clients:
            desk.carried_through(client, client.manager.outbox.head)
            desk.nothing_left(client)
    assert reached == {0, 3}  # appended in one step, whoever waits for it
