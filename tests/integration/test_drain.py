"""The end of a running sidecar: who is told what, in which order, what is still accepted, and how long it takes."""

from __future__ import annotations

import asyncio
import json
import signal
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from grpc_health.v1 import health_pb2, health_pb2_grpc
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from sidecar.api.v1 import admin_service_pb2, delivery_service_pb2, types_pb2
from sidecar.ws.edge import RECONNECT_SPREAD_MS
from tests.support.running import RunningSidecar, User, refusal, running_sidecar

SLOW = "[drain]\nwindow_s = 600\ngrace_s = 700\n"
"""Longer than any test lasts: what ends before was hurried."""
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


def sqlite(folder: Path) -> str:
    return f'[storage]\nkind = "sqlite"\npath = "{folder}/outbox.db"\nkey_file = "{folder}/outbox.key"\n'


async def sent_away(user: User) -> int:
    """Once the user is told to go, and closed with 1012; when it is to come back, in milliseconds."""
    frame = await user.frame()
    assert frame["type"] == "draining"
    with pytest.raises(ConnectionClosed) as closed:
        await user.frame()
    assert closed.value.rcvd is not None
    assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (1012, "restart")
    return int(frame["reconnect_in_ms"])


async def health(sidecar: RunningSidecar, service: str = "") -> int:
    async with grpc.aio.insecure_channel(sidecar.grpc_target) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        answer = await stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=5)
        return int(answer.status)


async def first_to_go(users: list[User]) -> tuple[User, list[User]]:
    """Whoever is sent away first, and the others, who are still there."""
    leaving = {asyncio.ensure_future(sent_away(user)): user for user in users}
    done, staying = await asyncio.wait(leaving, return_when=asyncio.FIRST_COMPLETED, timeout=20)
    for task in staying:
        task.cancel()
    await asyncio.gather(*staying, return_exceptions=True)
    (gone,) = done
    await gone
    return leaving[gone], [leaving[task] for task in staying]


async def exit_code(sidecar: RunningSidecar) -> int:
    return await asyncio.to_thread(sidecar.process.wait, 30)


@pytest.fixture
def slow(tmp_path: Path) -> Any:
    with running_sidecar(tmp_path, SLOW) as sidecar:
        yield sidecar
        sidecar.process.kill()


async def test_sockets_close_one_after_the_other_and_what_is_left_goes_on(slow: RunningSidecar) -> None:
    users = slow.user("alice"), slow.user("bob"), slow.user("carol")
    async with users[0] as alice, users[1] as bob, users[2] as carol, slow.service() as service:
        slow.process.send_signal(signal.SIGTERM)
        gone, (one, other) = await first_to_go([alice, bob, carol])
        assert await health(slow) == NOT_SERVING
        assert await health(slow, "sidecar.api.v1.DeliveryService") == SERVING
        for user in (one, other):
            receipt = await service.send(user.isolation_key, user.context_token, b'"still here"')
            assert receipt.state == types_pb2.DELIVERY_STATE_WRITTEN
            assert (await user.frame())["data"] == "still here"
        refused = await refusal(service.send(gone.isolation_key, gone.context_token))
        assert (refused.code, refused.reason) == ("UNAVAILABLE", "DRAINING")
        assert [type(detail).__name__ for detail in refused.details] == ["ErrorInfo", "RetryInfo"]
        with pytest.raises(InvalidStatus) as new:
            await connect(slow.websocket_url, subprotocols=["sidecar.v1.json"])  # type: ignore[list-item]
        assert (new.value.response.status_code, new.value.response.body) == (503, b"draining\n")
        assert "Retry-After" in new.value.response.headers


async def test_a_second_signal_hurries(slow: RunningSidecar) -> None:
    async with slow.user("alice") as alice, slow.user("bob") as bob, slow.user("carol") as carol:
        slow.process.send_signal(signal.SIGTERM)
        _, staying = await first_to_go([alice, bob, carol])
        slow.process.send_signal(signal.SIGTERM)
        for user in staying:
            assert 0 <= await sent_away(user) < RECONNECT_SPREAD_MS
        assert await exit_code(slow) == 0


async def test_whoever_waits_for_an_acknowledgement_is_answered_before_the_end(slow: RunningSidecar) -> None:
    async with slow.user("alice") as alice, slow.service() as service:
        request = delivery_service_pb2.SendToUserRequest(
            isolation_key=alice.isolation_key,
            message=types_pb2.Message(payload=b"1"),
            wait_for_ack=Duration(seconds=60),
        )
        metadata = (("x-context-token", alice.context_token),)
        call = asyncio.ensure_future(service.delivery.SendToUser(request, metadata=metadata, timeout=70))
        assert (await alice.frame())["type"] == "message"
        slow.process.send_signal(signal.SIGTERM)
        await sent_away(alice)  # the only one: first at once, and the stop goes on
        assert (await call).receipt.state == types_pb2.DELIVERY_STATE_WRITTEN
    assert await exit_code(slow) == 0


async def test_an_operator_drains_it_to_its_end(tmp_path: Path) -> None:
    with running_sidecar(tmp_path, SLOW) as sidecar:
        async with sidecar.user("alice") as alice, sidecar.user("bob") as bob, sidecar.service() as service:

            async def drain(window: Duration) -> int:
                request = admin_service_pb2.DrainRequest(window=window)
                return int((await service.admin.Drain(request, metadata=service.as_operator)).connections)

            assert await drain(Duration(seconds=3_000)) == 2
            await first_to_go([alice, bob])
            assert await drain(Duration()) == 1  # changes nothing: the other one is still there
            sidecar.process.send_signal(signal.SIGTERM)  # the first: that drain goes on
            assert await health(sidecar) == NOT_SERVING
            sidecar.process.send_signal(signal.SIGTERM)
            assert await exit_code(sidecar) == 0
        trail = [json.loads(line) for line in sidecar.audit_path.read_text().splitlines()]
        events = [record["event"] for record in trail]
        assert events.count("sidecar_draining") == events.count("sidecar_stopped") == 1
        assert events.count("admin_call") == 2
        assert events[-1] == "sidecar_stopped"


async def test_the_grace_time_is_kept_whatever_the_window(tmp_path: Path) -> None:
    with running_sidecar(tmp_path, "[drain]\nwindow_s = 1\ngrace_s = 9\n") as sidecar:
        async with sidecar.user("alice"), sidecar.user("bob"), sidecar.service() as service:
            request = admin_service_pb2.DrainRequest(window=Duration(seconds=3_600))
            await service.admin.Drain(request, metadata=service.as_operator)
            assert await exit_code(sidecar) == 0


async def test_a_socket_that_has_not_said_hello_goes_too(tmp_path: Path) -> None:
    with running_sidecar(tmp_path) as sidecar:
        async with connect(sidecar.websocket_url, subprotocols=["sidecar.v1.json"]) as silent:  # type: ignore[list-item]
            sidecar.process.send_signal(signal.SIGTERM)
            with pytest.raises(ConnectionClosed) as closed:
                await silent.recv()
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 1012
            assert await exit_code(sidecar) == 0


async def test_a_store_that_survives_takes_messages_for_those_who_have_gone(tmp_path: Path) -> None:
    with running_sidecar(tmp_path, SLOW + sqlite(tmp_path)) as sidecar:
        async with sidecar.user("alice") as alice, sidecar.user("bob") as bob, sidecar.service() as service:
            sidecar.process.send_signal(signal.SIGTERM)
            gone, _ = await first_to_go([alice, bob])
            receipt = await service.send(gone.isolation_key, gone.context_token, b"1")
            assert receipt.state == types_pb2.DELIVERY_STATE_QUEUED
            assert receipt.durability == types_pb2.DURABILITY_DISK
            sidecar.process.send_signal(signal.SIGTERM)
            assert await exit_code(sidecar) == 0
        events = [json.loads(line)["event"] for line in sidecar.audit_path.read_text().splitlines()]
        assert "context_closed" not in events  # they are there again at the next start


async def test_a_sidecar_without_sockets_ends_at_once(tmp_path: Path) -> None:
    with running_sidecar(tmp_path, SLOW) as sidecar:
        sidecar.process.send_signal(signal.SIGTERM)
        assert await exit_code(sidecar) == 0
