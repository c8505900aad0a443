"""Both senders when things go wrong: streams that break, sidecars killed, deadlines, cancellation, the end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from sidecar_client import AsyncSidecarClient, SenderLimits
from sidecar_client.errors import (
    ManagerGone,
    TransportError,
)
from sidecar_client.sender import CLOSE_TIMEOUT_S
from sidecar_client.values import DeliveryState, Receipt
from tests.clients.python.both import opened
from tests.support.fault_proxy import Admission, FaultProxy, fault_proxy
from tests.support.restarting import free_ports, restarting_sidecar
from tests.support.running import RunningSidecar


@asynccontextmanager
async def behind_a_proxy(sidecar: RunningSidecar, kind: str) -> AsyncIterator[tuple[FaultProxy, Any]]:
    async with (
        fault_proxy(sidecar.grpc_target) as proxy,
        opened(kind, endpoint=proxy.target, uniform=lambda: 0.0) as client,
    ):
        yield proxy, client


async def all_have_one(*senders: Any) -> None:
    """Once each has a message on its way."""
    while not all(sender.in_flight for sender in senders):  # noqa: ASYNC110 - a thread's sender has no event to wait for
        await asyncio.sleep(0)


@pytest.mark.parametrize("spoil", ["cut", "reset"])
async def test_a_stream_that_breaks_loses_and_doubles_nothing(sidecar: RunningSidecar, kind: str, spoil: str) -> None:
    async with behind_a_proxy(sidecar, kind) as (proxy, client), sidecar.user("alice") as alice:
        sender = client.sender()
        to = (alice.isolation_key, alice.context_token)
        await sender.send(*to, json=-1)
        for broken in range(3):
            # In the middle of a frame of many messages, on its way there or of its receipts on their way back.
            flow = proxy.latest.up if broken % 2 == 0 else proxy.latest.down
            (flow.cut_after if spoil == "cut" else flow.reset_after)(700)
            sends = [asyncio.ensure_future(sender.send(*to, json=broken * 50 + n, timeout_s=20)) for n in range(50)]
            receipts = await asyncio.gather(*sends)
            assert len({receipt.sequence for receipt in receipts}) == 50
        assert proxy.accepted >= 4
        frames = await alice.frames_before_answer_to("probe")
        assert [frame["sequence"] for frame in frames] == list(range(1, 152))
        payloads = [frame["data"] for frame in frames]
        assert sorted(payloads) == list(range(-1, 150))
        if kind == "aio":  # threads have no order among each other
            assert payloads == sorted(payloads)
        await sender.close()


async def test_waiting_for_an_acknowledgement_outlives_the_stream(sidecar: RunningSidecar, kind: str) -> None:
    async with behind_a_proxy(sidecar, kind) as (proxy, client), sidecar.user("alice") as alice:
        sender = client.sender(report_acknowledged=True)
        sending = asyncio.ensure_future(
            sender.send(alice.isolation_key, alice.context_token, json=1, wait_for_ack_s=30)
        )
        await alice.frame()
        passed = proxy.latest.down.passed
        proxy.latest.cut()
        await alice.socket.send('{"type":"ack","sequence":1}')
        assert (await sending).state is DeliveryState.ACKNOWLEDGED
        assert passed
        assert await alice.frames_before_answer_to("probe") == []
        await sender.close()


async def test_a_sidecar_killed_under_load_is_found_again(tmp_path: Path, kind: str) -> None:
    """Its contexts are gone with it; the sender is not."""
    async with restarting_sidecar(tmp_path) as lives, opened(kind, endpoint=lives.running.grpc_target) as client:
        sender = client.sender()
        async with lives.running.user("alice") as alice:
            await sender.send(alice.isolation_key, alice.context_token, json=1)
            sends = [
                asyncio.ensure_future(sender.send(alice.isolation_key, alice.context_token, json=n, timeout_s=30))
                for n in range(40)
            ]
            await lives.kill()
            alice.socket.transport.abort()  # it has not read all, and so does not see the end
        await lives.start()
        outcomes = await asyncio.gather(*sends, return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} <= {Receipt, ManagerGone}
        # What was written may have been taken by the process before: the new one's refusal does not say. What had yet
        # to be written when that was killed is refused for good, and stands behind it.
        fates = [1 + outcome.definite if isinstance(outcome, ManagerGone) else 0 for outcome in outcomes]
        assert kind == "threads" or fates == sorted(fates)  # forty threads have no order to keep
        async with lives.running.user("alice") as again:
            receipt = await sender.send(again.isolation_key, again.context_token, json="again", timeout_s=30)
            assert receipt.sequence == 1
            assert (await again.frame())["data"] == "again"
        await sender.close()


async def test_the_deadline_passes_while_nobody_is_there(kind: str) -> None:
    (port,) = free_ports(1)
    async with opened(kind, endpoint=f"127.0.0.1:{port}") as client:
        sender = client.sender()
        with pytest.raises(TransportError) as late:
            await sender.send("key", "token", json=1, timeout_s=0.3)
        assert late.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
        assert not late.value.definite
        assert sender.in_flight == 0
        await sender.close(0.1)


async def test_what_was_not_sent_in_time_is_not_sent_later(sidecar: RunningSidecar, kind: str) -> None:
    """Somebody takes the connection and says nothing: gRPC would keep the frame, and write it when it can."""
    async with behind_a_proxy(sidecar, kind) as (proxy, client), sidecar.user("alice") as alice:
        sender = client.sender()
        to = (alice.isolation_key, alice.context_token)
        proxy.admission = Admission.BLACKHOLE
        with pytest.raises(TransportError) as late:
            await sender.send(*to, json="too late", timeout_s=0.5)
        assert late.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
        assert sender.in_flight == 0
        proxy.calm()
        await sender.send(*to, json="in time", timeout_s=30)
        assert [frame["data"] for frame in await alice.frames_before_answer_to("probe")] == ["in time"]
        await sender.close()


async def test_a_sidecar_that_falls_silent_keeps_nobody_beyond_the_deadline(sidecar: RunningSidecar, kind: str) -> None:
    async with behind_a_proxy(sidecar, kind) as (proxy, client), sidecar.user("alice") as alice:
        sender = client.sender()
        to = (alice.isolation_key, alice.context_token)
        await sender.send(*to, json=1)
        proxy.latest.stall()
        with pytest.raises(TransportError):
            await sender.send(*to, json=2, timeout_s=2)
        proxy.latest.resume()
        assert (await sender.send(*to, json=3)).sequence == 3  # the second had been written, and was taken
        await sender.close()


# Cancellation and the end


async def test_a_cancelled_send_leaves_nothing_and_breaks_nothing(sidecar: RunningSidecar) -> None:
    async with behind_a_proxy(sidecar, "aio") as (proxy, client), sidecar.user("alice") as alice:
        sender = client.sender(limits=SenderLimits(max_in_flight=4))
        to = (alice.isolation_key, alice.context_token)
        await sender.send(*to, json="first")
        proxy.latest.stall()
        sends = [asyncio.create_task(sender.send(*to, json=n, timeout_s=30)) for n in range(8)]
        await asyncio.sleep(0)
        # Before it was queued, while it waits for room, once it was written: the same.
        for send in sends[1::2]:
            send.cancel()
        assert all(
            isinstance(e, asyncio.CancelledError) for e in await asyncio.gather(*sends[1::2], return_exceptions=True)
        )
        proxy.latest.resume()
        await asyncio.gather(*sends[0::2])
        last = await sender.send(*to, json="last")
        frames = await alice.frames_before_answer_to("probe")
        kept = [frame["data"] for frame in frames if frame["data"] not in (1, 3, 5, 7)]
        assert kept == ["first", 0, 2, 4, 6, "last"]
        assert last.sequence == len(frames)
        assert sender.in_flight == 0
        assert len(proxy.connections) == 1
        await sender.close()


async def test_cancelled_at_every_turn_of_the_loop(sidecar: RunningSidecar) -> None:
    async with (
        AsyncSidecarClient(endpoint=sidecar.grpc_target) as client,
        sidecar.user("alice") as alice,
        client.sender() as sender,
    ):
        for turns in range(25):
            send = asyncio.create_task(sender.send(alice.isolation_key, alice.context_token, json=turns))
            for _ in range(turns):
                await asyncio.sleep(0)
            send.cancel()
            await asyncio.gather(send, return_exceptions=True)
        await sender.send(alice.isolation_key, alice.context_token, json="last")
        assert sender.in_flight == 0
        assert (await alice.frames_before_answer_to("probe"))[-1]["data"] == "last"


async def test_closing_waits_for_what_was_sent(sidecar: RunningSidecar, client: Any) -> None:
    async with sidecar.user("alice") as alice:
        sender = client.sender()
        await sender.send(alice.isolation_key, alice.context_token, json=-1)
        sends = [
            asyncio.ensure_future(sender.send(alice.isolation_key, alice.context_token, json=n)) for n in range(30)
        ]
        await asyncio.wait(sends, return_when=asyncio.FIRST_COMPLETED)
        await sender.close()
        await sender.close()
        outcomes = await asyncio.gather(*sends, return_exceptions=True)
        taken = [outcome for outcome in outcomes if isinstance(outcome, Receipt)]
        assert all(isinstance(outcome, Receipt | RuntimeError) for outcome in outcomes)
        frames = await alice.frames_before_answer_to("probe")
        assert [outcome.sequence for outcome in sorted(taken, key=lambda each: each.sequence)] == [
            frame["sequence"] for frame in frames[1:]
        ]
        with pytest.raises(RuntimeError):
            await sender.send(alice.isolation_key, alice.context_token, json=2)


async def test_closing_is_bounded_and_fails_what_has_no_answer(sidecar: RunningSidecar, kind: str) -> None:
    async with behind_a_proxy(sidecar, kind) as (proxy, client), sidecar.user("alice") as alice:
        sender = client.sender()
        await sender.send(alice.isolation_key, alice.context_token, json=1)
        proxy.latest.stall()
        send = asyncio.ensure_future(sender.send(alice.isolation_key, alice.context_token, json=2, timeout_s=40))
        await asyncio.sleep(0)
        await sender.close(0.2)
        with pytest.raises((TransportError, RuntimeError)) as failed:
            await send
        if isinstance(failed.value, TransportError):
            assert failed.value.code is grpc.StatusCode.CANCELLED
            assert not failed.value.definite


async def test_closing_with_nothing_to_do_takes_no_time_while_nobody_is_there(kind: str) -> None:
    (port,) = free_ports(1)
    async with opened(kind, endpoint=f"127.0.0.1:{port}") as client:
        senders = [client.sender() for _ in range(3)]
        for sender in senders:
            with pytest.raises(TransportError):
                await sender.send("key", "token", json=1, timeout_s=0.1)
        async with asyncio.timeout(CLOSE_TIMEOUT_S / 2):
            await client.close()


async def test_closing_with_nothing_to_do_does_not_wait_for_a_connection_that_is_dead(
    sidecar: RunningSidecar, kind: str
) -> None:
    async with behind_a_proxy(sidecar, kind) as (proxy, client), sidecar.user("alice") as alice:
        sender = client.sender()
        await sender.send(alice.isolation_key, alice.context_token, json=1)
        proxy.latest.stall()
        async with asyncio.timeout(CLOSE_TIMEOUT_S / 2):
            await sender.close()


async def test_closing_ends_with_the_deadline_of_the_last_message(kind: str) -> None:
    (port,) = free_ports(1)
    async with opened(kind, endpoint=f"127.0.0.1:{port}") as client:
        sender = client.sender()
        send = asyncio.ensure_future(sender.send("key", "token", json=1, timeout_s=0.3))
        await all_have_one(sender)
        async with asyncio.timeout(CLOSE_TIMEOUT_S / 2):
            await sender.close()
        with pytest.raises(TransportError) as late:
            await send
        assert late.value.code is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_the_senders_of_a_client_close_side_by_side(kind: str) -> None:
    """While the first has something to wait for, the others take no more either."""
    (port,) = free_ports(1)
    async with opened(kind, endpoint=f"127.0.0.1:{port}") as client:
        senders = [client.sender() for _ in range(3)]
        sends = [asyncio.ensure_future(sender.send("key", "token", json=1, timeout_s=1.5)) for sender in senders]
        await all_have_one(*senders)
        closing = asyncio.ensure_future(client.close())
        still_open = list(senders)
        while still_open and not any(send.done() for send in sends):
            try:
                await still_open[-1].send("key", "token", json=2, timeout_s=0.01)
            except RuntimeError:
                still_open.pop()
            except TransportError:
                continue
        assert not still_open
        await closing
        assert {type(error) for error in await asyncio.gather(*sends, return_exceptions=True)} == {TransportError}


def test_limits_of_a_sender_are_checked() -> None:
    for limits in ({"max_lanes": 1_025}, {"max_lanes": 0}, {"max_frame_items": 1_001}, {"max_in_flight": 0}):
        with pytest.raises(ValueError, match=next(iter(limits))):
            SenderLimits(**limits)
