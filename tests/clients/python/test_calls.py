"""What the clients make of a sidecar that refuses once, falls silent, or answers oddly: a scripted one."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest

from sidecar.api.v1 import delivery_service_pb2 as pb
from sidecar_client.errors import (
    Draining,
    ManagerGone,
    OutboxFull,
    TransportError,
)
from sidecar_client.values import DeliveryState, Durability
from tests.clients.python.both import opened
from tests.clients.python.scripted import receipt, scripted_sidecar, status
from tests.support.restarting import free_ports

UNAVAILABLE, NOT_FOUND = grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.NOT_FOUND


def refuse(code: grpc.StatusCode, reason: str, retry_after_s: float | None = None) -> Any:
    return lambda request, call: status(code, reason, retry_after_s)


def accept(request: Any, call: Any) -> Any:
    return pb.SendToUserResponse(receipt=receipt(request.message))


async def fall_silent(request: Any, call: Any) -> Any:
    await asyncio.Event().wait()


def client_of(kind: str, target: str, **settings: Any) -> Any:
    return opened(kind, endpoint=target, uniform=lambda: 0.0, **settings)


async def test_what_was_refused_for_now_is_sent_again_as_it_was(kind: str) -> None:
    script = (refuse(UNAVAILABLE, "DRAINING", 0.2), refuse(UNAVAILABLE, "OUTCOME_UNKNOWN", 0.2), accept)
    async with scripted_sidecar(*script) as scripted, client_of(kind, scripted.target) as client:
        loop = asyncio.get_running_loop()
        started = loop.time()
        answer = await client.send_to_user("key", "token", json=1)
        assert loop.time() - started >= 0.4  # both RetryInfos were waited out
    ids = {request.message.message_id for request in scripted.requests}
    assert len(scripted.requests) == 3
    assert ids == {answer.message_id}
    assert len(answer.message_id) == 32
    # One deadline over all tries; it travels in tenths of a second.
    assert scripted.time_left_s[0] <= 5.1
    assert scripted.time_left_s[2] <= 4.7


async def test_no_try_more_than_allowed(kind: str) -> None:
    async with (
        scripted_sidecar(refuse(UNAVAILABLE, "DRAINING", 0.0)) as scripted,
        client_of(kind, scripted.target, max_attempts=3) as client,
    ):
        with pytest.raises(Draining):
            await client.send_to_user("key", "token", json=1)
    assert len(scripted.requests) == 3


async def test_a_retry_that_could_not_be_in_time_is_not_waited_for(kind: str) -> None:
    async with (
        scripted_sidecar(refuse(UNAVAILABLE, "DRAINING", 30.0)) as scripted,
        client_of(kind, scripted.target) as client,
    ):
        loop = asyncio.get_running_loop()
        started = loop.time()
        with pytest.raises(Draining) as refused:
            await client.send_to_user("key", "token", json=1, timeout_s=20)
        assert loop.time() - started < 10
    assert refused.value.retry_after_s == 30.0
    assert len(scripted.requests) == 1


@pytest.mark.parametrize(
    "act", [refuse(grpc.StatusCode.RESOURCE_EXHAUSTED, "OUTBOX_FULL", 0.01), refuse(NOT_FOUND, "MANAGER_GONE")]
)
async def test_what_is_the_callers_to_decide_is_asked_once(kind: str, act: Any) -> None:
    async with scripted_sidecar(act) as scripted, client_of(kind, scripted.target) as client:
        with pytest.raises((OutboxFull, ManagerGone)) as refused:
            await client.send_to_user("key", "token", json=1)
    assert refused.value.definite
    assert len(scripted.requests) == 1


async def test_what_is_not_idempotent_is_asked_once(kind: str) -> None:
    async with (
        scripted_sidecar(refuse(UNAVAILABLE, "DRAINING", 0.0)) as scripted,
        client_of(kind, scripted.target) as client,
    ):
        with pytest.raises(Draining):
            await client.close_manager("key", "token")
    assert len(scripted.requests) == 1


async def test_a_refusal_behind_an_unknown_outcome_is_not_definite(kind: str) -> None:
    script = (refuse(UNAVAILABLE, "OUTCOME_UNKNOWN", 0.0), refuse(NOT_FOUND, "MANAGER_GONE"))
    async with scripted_sidecar(*script) as scripted, client_of(kind, scripted.target) as client:
        with pytest.raises(ManagerGone) as refused:
            await client.send_to_user("key", "token", json=1)
    assert not refused.value.definite


async def test_silence_ends_with_the_deadline_and_is_not_repeated(kind: str) -> None:
    async with scripted_sidecar(accept, fall_silent) as silent, client_of(kind, silent.target) as client:
        await client.send_to_user("key", "token", json=1)  # it is connected
        with pytest.raises(TransportError) as late:
            await client.send_to_user("key", "token", json=2, timeout_s=0.5)
    assert late.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert not late.value.definite
    assert len(silent.requests) == 2


async def test_a_sidecar_that_is_back_is_found_within_the_tries_of_a_call(kind: str) -> None:
    (port,) = free_ports(1)
    async with client_of(kind, f"127.0.0.1:{port}") as client:
        for _ in range(4):  # the pause between two connections grows meanwhile
            with pytest.raises(TransportError):
                await client.send_to_user("key", "token", json=1)
        async with scripted_sidecar(accept, port=port) as back:
            await client.send_to_user("key", "token", json=1)
            assert len(back.requests) == 1


async def test_a_cancelled_call_is_cancelled() -> None:
    async with scripted_sidecar(fall_silent) as silent, client_of("aio", silent.target) as client:
        sending = asyncio.ensure_future(client.send_to_user("key", "token", json=1))
        await silent.asked.wait()
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending


@pytest.mark.parametrize("act", [fall_silent, refuse(UNAVAILABLE, "DRAINING", 3.0)], ids=["answer", "next try"])
async def test_closing_the_client_ends_what_waits(kind: str, act: Any) -> None:
    async with scripted_sidecar(act) as scripted, client_of(kind, scripted.target) as client:
        sending = asyncio.ensure_future(client.send_to_user("key", "token", json=1))
        await scripted.asked.wait()
        await client.close()
        with pytest.raises((TransportError, Draining)) as ended:
            await sending
        assert ended.value.code in (grpc.StatusCode.CANCELLED, UNAVAILABLE)
        assert len(scripted.requests) == 1


async def test_closing_the_client_ends_the_wait_for_the_sidecar(kind: str) -> None:
    async with scripted_sidecar(accept) as scripted, client_of(kind, scripted.target) as client:
        # It has no health service: asked again and again.
        waiting = asyncio.ensure_future(client.wait_until_ready(30))
        await client.send_to_user("key", "token", json=1)
        await client.close()
        with pytest.raises(TransportError):
            await waiting


async def test_it_does_so_whenever_it_is_closed(kind: str) -> None:
    """Between two tries too: a channel that is closed takes no call, and says so in gRPC's own words."""
    async with scripted_sidecar(accept) as scripted:
        for turns in range(60):
            async with client_of(kind, scripted.target) as client:
                waiting = asyncio.ensure_future(client.wait_until_ready(30))
                await client.send_to_user("key", "token", json=1)
                for _ in range(turns):
                    await asyncio.sleep(0)
                await client.close()
                with pytest.raises(TransportError):
                    await waiting


async def test_the_deadline_is_later_by_what_the_answer_may_be_held(kind: str) -> None:
    async with scripted_sidecar(accept) as scripted, client_of(kind, scripted.target, timeout_s=3) as client:
        await client.send_to_user("key", "token", json=1)
        await client.send_to_user("key", "token", json=1, wait_for_ack_s=20)
        await client.send_to_user("key", "token", json=1, wait_for_ack_s=20, timeout_s=7)
    for left_s, most_s in zip(scripted.time_left_s, (3, 23, 27), strict=True):
        assert most_s - 2 < left_s <= most_s + 0.1
    assert scripted.requests[1].wait_for_ack.seconds == 20
    assert not scripted.requests[0].HasField("wait_for_ack")


async def test_states_to_come_are_read_as_the_least(kind: str) -> None:
    def odd(request: Any, call: Any) -> Any:
        made = receipt(request.message)
        made.state, made.durability = 99, 99  # type: ignore[assignment]
        return pb.SendToUserResponse(receipt=made)

    async with scripted_sidecar(odd) as scripted, client_of(kind, scripted.target) as client:
        answer = await client.send_to_user("key", "token", json=1)
    assert (answer.state, answer.durability) == (DeliveryState.QUEUED, Durability.MEMORY)


async def test_a_method_that_is_not_there_is_the_transports_word(kind: str) -> None:
    async with scripted_sidecar(accept) as scripted, client_of(kind, scripted.target) as client:
        with pytest.raises(TransportError) as missing:
            await client.get_context("token")
    assert missing.value.code is grpc.StatusCode.UNIMPLEMENTED
    assert missing.value.definite


async def test_a_proxy_in_the_environment_is_not_used(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A token must not go through it to a sidecar on the same host."""
    for name in ("http_proxy", "https_proxy", "grpc_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    async with (
        scripted_sidecar(accept) as scripted,
        client_of(kind, scripted.target.replace("127.0.0.1", "localhost")) as client,
    ):
        await client.send_to_user("key", "token", json=1)
