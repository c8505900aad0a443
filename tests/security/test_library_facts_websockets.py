"""What websockets and uvloop do of themselves and the sidecar must not: each test fails when our defence is gone.

Most such facts are held by the tables of test_bad_websocket_*.py; docs/security.md says which by which.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import AsyncExitStack

import pytest
from websockets.frames import Close
from websockets.http11 import Request

from sidecar.api.v1 import context_service_pb2, delivery_service_pb2, types_pb2
from sidecar.ws.protocol import EdgeProtocol
from tests.security.websocket_watch import stall
from tests.support.raw_websocket import JSON_OFFER, JSON_PROTOCOL, PING, frame, raw_websocket, request, text
from tests.support.running import RunningSidecar, Service, User, running_sidecar
from tests.support.trail import Trail
from tests.ws.harness import Harness


@pytest.fixture(scope="module")
def sidecar(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningSidecar]:
    with running_sidecar(tmp_path_factory.mktemp("facts"), SIDECAR_LOG__LEVEL="debug") as running:
        yield running


@pytest.mark.parametrize("place", ["header", "subprotocol", "hello"])
async def test_no_level_of_the_log_shows_a_handshake(sidecar: RunningSidecar, place: str) -> None:
    """websockets keeps the request, and at DEBUG logs each of its headers and every frame."""
    token = sidecar.user_token("alice")
    headers = {
        "header": (JSON_OFFER, ("Authorization", f"Bearer {token}")),
        "subprotocol": (("Sec-WebSocket-Protocol", f"{JSON_PROTOCOL}, bearer.{token}"),),
        "hello": (JSON_OFFER,),
    }[place]
    async with raw_websocket(sidecar.websocket_port) as client:
        await client.upgrade(*headers)
        client.send(text(json.dumps({"type": "hello"} | ({"token": token} if place == "hello" else {}))))
        assert (await client.json())["type"] == "welcome"
        await client.leave()
    log = sidecar.audit_path.with_name("log.jsonl").read_text()
    assert '"serving"' in log
    assert "Sec-WebSocket" not in log
    assert "welcome" not in log
    assert not any(part in log for part in token.split("."))


async def test_the_librarys_keepalive_is_off() -> None:
    """It closes 1011, and under uvloop believes latencies of 0.0; without pongs the sidecar's own closes 4002."""
    edge = Harness()
    await edge.start()
    try:
        await edge.welcomed()
        await edge.raw("bob")
        assert [served.keepalive_task for served in edge.edge._open] == [None, None]
    finally:
        await edge.close()


def test_what_goes_wrong_within_is_not_told_as_1011() -> None:
    """The library closes 1011 when its parser meets an exception that it does not know."""

    def broken() -> bool:
        raise RuntimeError("text that nobody is to see")

    failed: list[int] = []
    protocol = EdgeProtocol(
        max_inbound_bytes=1_024,
        logger=logging.getLogger("websockets.server"),
        admit_frame=broken,
        on_fail=failed.append,
        on_refused=lambda _: None,
    )
    protocol.receive_data(request(JSON_OFFER))
    (asked,) = protocol.events_received()
    assert isinstance(asked, Request)
    protocol.send_response(protocol.accept(asked))
    protocol.receive_data(frame(PING))
    assert protocol.close_sent == Close(1002, "protocol_error")
    assert failed == [1002]


async def test_a_broadcast_tells_whom_it_was_written_to(sidecar: RunningSidecar) -> None:
    """The library's writes into any buffer without a limit, passes lost sockets by, and tells nobody."""
    async with AsyncExitStack() as stack:
        service = await stack.enter_async_context(sidecar.service())
        bob = await stack.enter_async_context(sidecar.user("bob"))
        lost, slow = [
            await stack.enter_async_context(raw_websocket(sidecar.websocket_port, receive_buffer_bytes=4_096))
            for _ in range(2)
        ]
        await lost.hello(sidecar.user_token("bob"))
        lost.reset()
        await Trail(sidecar).until("socket_closed", user_id="bob", code=1006)
        await stall(sidecar, service, slow, "bob")
        told = await service.delivery.Broadcast(
            delivery_service_pb2.BroadcastRequest(
                scope=delivery_service_pb2.BROADCAST_SCOPE_USER, message=types_pb2.Message(payload=b'"to all"')
            ),
            metadata=(("x-context-token", await allowed_to_broadcast(sidecar, service, bob)),),
        )
        assert (told.managers, told.connections, told.refused) == (3, 1, 0)
        assert (await bob.frame())["data"] == "to all"


async def allowed_to_broadcast(sidecar: RunningSidecar, service: Service, user: User) -> str:
    """A context token with the scope for it, which a client is not given."""
    request = context_service_pb2.ExchangeContextTokenRequest(
        user_token=sidecar.user_token(user.subject),
        connection_id=user.welcome["connection_id"],
        scopes=["broadcast:user"],
    )
    answer = await service.context.ExchangeContextToken(request, metadata=service.as_operator)
    return str(answer.context_token)
