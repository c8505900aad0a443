"""Sender and SyncSender against a real sidecar: order, isolation, bounds, broken streams, deadlines, cancellation."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from sidecar_client import AsyncSidecarClient, SenderLimits
from sidecar_client.errors import (
    BadRequest,
    IsolationViolation,
    ManagerGone,
    MessageIdReused,
    OutcomeUnknown,
    TokenError,
)
from sidecar_client.values import DeliveryState
from tests.clients.python.both import opened
from tests.support.faulty_sidecar import UNKNOWN
from tests.support.restarting import restarting_sidecar
from tests.support.running import RunningSidecar, User


async def received(user: User, count: int) -> list[Any]:
    """The payloads of that many messages; their sequences rise by one."""
    frames = [await user.frame() for _ in range(count)]
    first = frames[0]["sequence"]
    assert [frame["sequence"] for frame in frames] == list(range(first, first + count))
    return [frame["data"] for frame in frames]


async def test_a_thousand_at_once_arrive_in_order_key_by_key(sidecar: RunningSidecar) -> None:
    async with (
        AsyncSidecarClient(endpoint=sidecar.grpc_target) as client,
        sidecar.user("alice") as alice,
        sidecar.user("bob") as bob,
        client.sender() as sender,
    ):
        users = (alice, bob)
        sends = [sender.send(users[n % 2].isolation_key, users[n % 2].context_token, json=n) for n in range(1_000)]
        receipts = await asyncio.gather(*sends)
        assert await received(alice, 500) == list(range(0, 1_000, 2))
        assert await received(bob, 500) == list(range(1, 1_000, 2))
        assert [receipt.sequence for receipt in receipts[::2]] == list(range(1, 501))
        assert sender.in_flight == 0


async def test_threads_share_a_sender(sidecar: RunningSidecar) -> None:
    async with opened("threads", endpoint=sidecar.grpc_target) as client, sidecar.user("alice") as alice:
        sender = client.sender()

        async def one_after_the_other(worker: int) -> None:
            for n in range(20):
                await sender.send(alice.isolation_key, alice.context_token, json=[worker, n])

        await asyncio.gather(*(one_after_the_other(worker) for worker in range(16)))
        payloads = await received(alice, 320)
    for worker in range(16):
        assert [n for who, n in payloads if who == worker] == list(range(20))


async def test_another_users_token_sends_nothing_on_an_open_lane(sidecar: RunningSidecar, client: Any) -> None:
    """A lane of Alice's is open; what comes with her key and another token must not ride on it."""
    async with sidecar.user("alice") as alice, sidecar.user("mallory") as mallory:
        sender = client.sender()
        await sender.send(alice.isolation_key, alice.context_token, json="hers")
        for token in (mallory.context_token, alice.context_token[:-4] + "AAAA", "garbage"):
            with pytest.raises((IsolationViolation, TokenError)):
                await sender.send(alice.isolation_key, token, json="not hers")
        with pytest.raises(IsolationViolation):
            await sender.send(alice.isolation_key, alice.context_token, json="meant for bob", expected_user_id="bob")
        with pytest.raises(TokenError):
            await sender.send(alice.isolation_key, "line\nbreak", json="not hers")
        await sender.send(alice.isolation_key, alice.context_token, json="hers too", expected_user_id="alice")
        assert [frame["data"] for frame in await alice.frames_before_answer_to("probe")] == ["hers", "hers too"]
        assert await mallory.frames_before_answer_to("probe") == []
        await sender.close()


async def test_bad_and_good_in_one_frame_do_not_touch_each_other(sidecar: RunningSidecar) -> None:
    async with (
        AsyncSidecarClient(endpoint=sidecar.grpc_target) as client,
        sidecar.user("alice") as alice,
        sidecar.user("bob") as bob,
        client.sender() as sender,
    ):
        outcomes = await asyncio.gather(
            sender.send(alice.isolation_key, alice.context_token, json=1, message_id="m"),
            sender.send(alice.isolation_key, bob.context_token, json=2),
            sender.send(alice.isolation_key, bob.context_token, json=3),
            sender.send(alice.isolation_key, alice.context_token, b"{"),
            sender.send(alice.isolation_key, alice.context_token, json=4, message_id="m"),
            sender.send(bob.isolation_key, bob.context_token, json=5),
            return_exceptions=True,
        )
        kinds = [type(outcome) for outcome in outcomes]
        assert kinds[1:5] == [IsolationViolation, IsolationViolation, BadRequest, MessageIdReused]
        assert outcomes[1] is not outcomes[2]
        assert [frame["data"] for frame in await alice.frames_before_answer_to("probe")] == [1]
        assert [frame["data"] for frame in await bob.frames_before_answer_to("probe")] == [5]


async def test_a_renewed_token_goes_on_where_the_old_one_was(sidecar: RunningSidecar, client: Any) -> None:
    async with sidecar.user("alice") as alice:
        sender = client.sender()
        first = await sender.send(alice.isolation_key, alice.context_token, json=1)
        grant = await client.exchange_context_token(
            sidecar.user_token("alice"), str(alice.welcome["connection_id"]), ["send"]
        )
        second = await sender.send(alice.isolation_key, grant.token.text, json=2)
        await client.revoke_context_token(alice.context_token)
        with pytest.raises(TokenError) as revoked:
            await sender.send(alice.isolation_key, alice.context_token, json=3)
        third = await sender.send(alice.isolation_key, grant.token.text, json=4)
        assert await received(alice, 3) == [1, 2, 4]
        await sender.close()
    assert [first.sequence, second.sequence, third.sequence] == [1, 2, 3]
    assert revoked.value.reason == "TOKEN_REVOKED"


async def test_the_lane_used_longest_ago_gives_way(sidecar: RunningSidecar) -> None:
    """With room for two lanes four users are served, again and again, and at once."""
    async with (
        AsyncSidecarClient(endpoint=sidecar.grpc_target) as client,
        client.sender(limits=SenderLimits(max_lanes=2)) as sender,
        sidecar.user("u1") as u1,
        sidecar.user("u2") as u2,
        sidecar.user("u3") as u3,
        sidecar.user("u4") as u4,
    ):
        users = (u1, u2, u3, u4)
        for n in range(3):
            for user in users:
                await sender.send(user.isolation_key, user.context_token, json=n)
        sends = [sender.send(user.isolation_key, user.context_token, json=n) for n in range(3, 20) for user in users]
        await asyncio.gather(*sends)
        for user in users:
            assert await received(user, 20) == list(range(20))


async def test_the_end_of_a_context_is_its_own_users_alone(sidecar: RunningSidecar, client: Any) -> None:
    async with sidecar.user("alice") as alice, sidecar.user("bob") as bob:
        sender = client.sender()
        await sender.send(alice.isolation_key, alice.context_token, json=1)
        await sender.send(bob.isolation_key, bob.context_token, json=1)
        await alice.socket.close()
        for _ in range(2):
            with pytest.raises(ManagerGone):
                await sender.send(alice.isolation_key, alice.context_token, json=2)
        assert (await sender.send(bob.isolation_key, bob.context_token, json=2)).sequence == 2
        await sender.close()


async def test_a_message_that_would_break_the_stream_is_refused_here(sidecar: RunningSidecar, client: Any) -> None:
    async with sidecar.user("alice") as alice:
        sender = client.sender()
        with pytest.raises(BadRequest) as sidecars_own:
            await sender.send(alice.isolation_key, alice.context_token, json="x" * 2_000_000)
        with pytest.raises(BadRequest) as ours:
            await sender.send(alice.isolation_key, alice.context_token, json="x" * 4_200_000)
        assert ours.value.violations[0][0] == sidecars_own.value.violations[0][0] == "message.payload"
        assert (await sender.send(alice.isolation_key, alice.context_token, json=1)).sequence == 1
        await sender.close()


async def test_large_messages_are_spread_over_frames(sidecar: RunningSidecar) -> None:
    async with (
        AsyncSidecarClient(endpoint=sidecar.grpc_target) as client,
        sidecar.user("alice") as alice,
        client.sender() as sender,
    ):
        # Read as it comes: the outbox holds 2 MiB.
        reading = asyncio.create_task(received(alice, 40))
        sends = [sender.send(alice.isolation_key, alice.context_token, json=[n, "x" * 40_000]) for n in range(40)]
        await asyncio.gather(*sends)
        assert [n for n, _ in await reading] == list(range(40))


async def test_what_is_in_flight_is_bounded_and_the_order_kept(sidecar: RunningSidecar) -> None:
    async with (
        AsyncSidecarClient(endpoint=sidecar.grpc_target) as client,
        sidecar.user("alice") as alice,
        client.sender(limits=SenderLimits(max_in_flight=3)) as sender,
    ):
        to = (alice.isolation_key, alice.context_token)
        sends = [asyncio.create_task(sender.send(*to, json=n)) for n in range(60)]
        await asyncio.sleep(0)
        assert sender.in_flight == 3
        await asyncio.gather(*sends)
        assert await received(alice, 60) == list(range(60))


async def test_acknowledgements_are_waited_for(sidecar: RunningSidecar, client: Any) -> None:
    async with sidecar.user("alice") as alice:
        sender = client.sender(report_acknowledged=True)
        to = (alice.isolation_key, alice.context_token)
        sends = [asyncio.ensure_future(sender.send(*to, json=n, wait_for_ack_s=30)) for n in range(3)]
        assert sorted(await received(alice, 3)) == [0, 1, 2]
        await alice.socket.send('{"type":"ack","sequence":2}')
        await asyncio.wait(sends, return_when=asyncio.FIRST_COMPLETED)
        await alice.socket.send('{"type":"ack","sequence":3}')
        receipts = await asyncio.gather(*sends)
        assert {receipt.state for receipt in receipts} == {DeliveryState.ACKNOWLEDGED}
        unheeded = await sender.send(*to, json=3, wait_for_ack_s=0.05)
        assert unheeded.state is DeliveryState.WRITTEN
        assert sender.in_flight == 0
        await sender.close()
    with pytest.raises(ValueError, match="report_acknowledged"):
        await client.sender().send("key", "token", json=1, wait_for_ack_s=1)


async def test_what_expires_unread_was_dropped(tmp_path: Path, kind: str) -> None:
    async with restarting_sidecar(tmp_path) as lives, opened(kind, endpoint=lives.running.grpc_target) as client:
        sender = client.sender(report_acknowledged=True)
        async with lives.running.user("alice") as alice:
            to = (alice.isolation_key, alice.context_token)
            alice.socket.transport.abort()
            first = await sender.send(*to, json=1, ttl_s=0.2, wait_for_ack_s=30)
            assert first.state is DeliveryState.DROPPED
        await sender.close()


async def test_the_end_of_a_context_ends_the_wait(sidecar: RunningSidecar, client: Any) -> None:
    async with sidecar.user("alice") as alice:
        sender = client.sender(report_acknowledged=True)
        sending = asyncio.ensure_future(
            sender.send(alice.isolation_key, alice.context_token, json=1, wait_for_ack_s=30)
        )
        await alice.frame()
        await alice.socket.close()
        assert (await sending).state is DeliveryState.WRITTEN
        assert sender.in_flight == 0
        await sender.close()


async def test_an_unknown_outcome_is_the_callers_to_repeat(faulty: RunningSidecar, kind: str) -> None:
    async with faulty.user("alice") as alice, opened(kind, endpoint=faulty.grpc_target) as client:
        sender = client.sender()
        to = (alice.isolation_key, alice.context_token)
        with pytest.raises(OutcomeUnknown):
            await sender.send(*to, UNKNOWN.encode())
        assert (await sender.send(*to, json=1)).sequence == 1
        await sender.close()
