"""A user's connection that comes back: sockets lost in mid-frame, sidecars killed, contexts replaced, gaps."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from sidecar_client import (
    AsyncSidecarClient,
    ConnectionEnded,
    ContextReplaced,
    DeliveryState,
    Gap,
    connect,
)
from tests.clients.python.users import AT_ONCE, message, url_through
from tests.support.fault_proxy import fault_proxy
from tests.support.restarting import free_ports, restarting_sidecar
from tests.support.running import RunningSidecar, running_sidecar


@pytest.mark.parametrize("spoil", ["cut", "reset"])
async def test_a_socket_lost_in_mid_frame_loses_and_doubles_nothing(
    sidecar: RunningSidecar, service: AsyncSidecarClient, spoil: str
) -> None:
    async with (
        fault_proxy(f"127.0.0.1:{sidecar.websocket_port}") as proxy,
        connect(url_through(proxy), token=lambda: sidecar.user_token("alice"), tuning=AT_ONCE) as user,
    ):
        key = user.isolation_key
        total = 0
        for broken in range(4):
            down = proxy.latest.down
            (down.cut_after if spoil == "cut" else down.reset_after)(150 + 40 * broken)
            for n in range(total, total + 30):
                await service.send_to_user(key, user.context_token, json=n)
            for n in range(total, total + 30):
                event = await message(user)
                assert (event.data, event.sequence) == (n, n + 1)
            total += 30
        assert user.recovery == "full"
        assert user.isolation_key == key
        assert proxy.accepted == 5


async def test_acknowledgements_lost_on_their_way_are_said_again(
    sidecar: RunningSidecar, service: AsyncSidecarClient
) -> None:
    async with (
        fault_proxy(f"127.0.0.1:{sidecar.websocket_port}") as proxy,
        connect(url_through(proxy), token=sidecar.user_token("alice"), tuning=AT_ONCE) as user,
    ):
        proxy.latest.up.cut_after(0)
        to = (user.isolation_key, user.context_token)
        sends = [asyncio.create_task(service.send_to_user(*to, json=n, wait_for_ack_s=30)) for n in range(20)]
        for _ in range(20):
            await message(user)
        waiting = asyncio.create_task(anext(user))
        receipts = await asyncio.gather(*sends)
        assert {receipt.state for receipt in receipts} == {DeliveryState.ACKNOWLEDGED}
        assert proxy.accepted == 2
        waiting.cancel()


async def test_what_was_read_ahead_when_the_socket_was_lost_comes_once(
    sidecar: RunningSidecar, service: AsyncSidecarClient
) -> None:
    """Messages wait in the client's buffer, unacknowledged; the resumed socket brings them again."""
    async with (
        fault_proxy(f"127.0.0.1:{sidecar.websocket_port}") as proxy,
        connect(url_through(proxy), token=sidecar.user_token("alice"), tuning=AT_ONCE) as user,
    ):
        for n in range(10):
            await service.send_to_user(user.isolation_key, user.context_token, json=n)
        assert [(await message(user)).data for _ in range(4)] == [0, 1, 2, 3]
        proxy.latest.cut()
        await proxy.connected(2)
        await service.send_to_user(user.isolation_key, user.context_token, json=10)
        assert [(await message(user)).data for _ in range(7)] == [4, 5, 6, 7, 8, 9, 10]
        state = user.resume_state
        assert state is not None
        assert (state.last_sequence, state.attempt) == (10, 1)


async def test_leaving_and_coming_back_later(sidecar: RunningSidecar, service: AsyncSidecarClient) -> None:
    async with connect(sidecar.websocket_url, token=sidecar.user_token("alice")) as user:
        key, context_token = user.isolation_key, user.context_token
        for n in range(3):
            await service.send_to_user(key, context_token, json=n)
        for _ in range(2):
            await message(user)
        state = await user.detach()
        assert [event async for event in user] == []
    await service.send_to_user(key, context_token, json=3)
    assert state is not None
    assert state.token not in repr(state)
    async with connect(sidecar.websocket_url, token=sidecar.user_token("alice"), resume=state) as user:
        assert (user.recovery, user.isolation_key) == ("full", key)
        # The second had been handed out and not asked past.
        assert [(await message(user)).data for _ in range(3)] == [1, 2, 3]


async def test_another_user_cannot_come_back_to_it(sidecar: RunningSidecar, service: AsyncSidecarClient) -> None:
    async with connect(sidecar.websocket_url, token=sidecar.user_token("alice")) as alice:
        await service.send_to_user(alice.isolation_key, alice.context_token, json="hers")
        async with connect(
            sidecar.websocket_url, token=sidecar.user_token("mallory"), resume=alice.resume_state
        ) as mallory:
            assert mallory.recovery == "denied"
            assert mallory.isolation_key != alice.isolation_key
            assert await anext(mallory) == ContextReplaced(mallory.connection_id, mallory.isolation_key)
            await service.send_to_user(mallory.isolation_key, mallory.context_token, json="mine")
            assert (await message(mallory)).data == "mine"
        assert (await message(alice)).data == "hers"


async def test_whoever_comes_back_elsewhere_takes_the_place(
    sidecar: RunningSidecar, service: AsyncSidecarClient
) -> None:
    async with (
        connect(sidecar.websocket_url, token=sidecar.user_token("alice"), tuning=AT_ONCE) as here,
        connect(sidecar.websocket_url, token=sidecar.user_token("alice"), resume=here.resume_state) as there,
    ):
        assert (there.recovery, there.isolation_key) == ("full", here.isolation_key)
        with pytest.raises(ConnectionEnded) as ended:
            await anext(here)
        assert ended.value.code == 4_503
        await service.send_to_user(there.isolation_key, there.context_token, json=1)
        assert (await message(there)).data == 1


async def test_gaps_come_in_their_place(tmp_path: Path) -> None:
    with running_sidecar(tmp_path) as running:
        async with (
            fault_proxy(f"127.0.0.1:{running.websocket_port}") as proxy,
            AsyncSidecarClient(endpoint=running.grpc_target) as service,
            connect(url_through(proxy), token=running.user_token("alice"), tuning=AT_ONCE) as user,
        ):
            to = (user.isolation_key, user.context_token)
            await service.send_to_user(*to, json=1)
            assert (await message(user)).data == 1
            before = proxy.upstream
            proxy.upstream = ("127.0.0.1", free_ports(1)[0])
            proxy.latest.cut()
            async with service.sender(report_acknowledged=True) as sender:
                await service.send_to_user(*to, json=2, ttl_s=3600)
                dropped = await asyncio.gather(
                    *(sender.send(*to, json=n, ttl_s=0.1, wait_for_ack_s=30) for n in (3, 4))
                )
            assert [receipt.state for receipt in dropped] == [DeliveryState.DROPPED] * 2
            await service.send_to_user(*to, json=5)
            proxy.upstream = before
            assert (await message(user)).data == 2
            assert await anext(user) == Gap(3, 4, "expired", user.connection_id)
            last = await message(user)
            assert (last.data, last.sequence) == (5, 5)
            assert user.recovery == "gap"


async def test_a_restarted_sidecar_gives_a_fresh_context_and_says_so(tmp_path: Path) -> None:
    async with restarting_sidecar(tmp_path) as lives:
        token = lives.running.user_token("alice")
        async with (
            connect(lives.running.websocket_url, token=token, tuning=AT_ONCE) as user,
            AsyncSidecarClient(endpoint=lives.running.grpc_target, uniform=lambda: 0.0) as service,
        ):
            key = user.isolation_key
            for n in range(3):
                await service.send_to_user(key, user.context_token, json=n)
            assert (await message(user)).data == 0
            await lives.kill()
            await lives.start()
            # What had come is handed out, then the news.
            assert [(await message(user)).data for _ in range(2)] == [1, 2]
            replaced = await anext(user)
            assert replaced == ContextReplaced(user.connection_id, user.isolation_key)
            assert user.isolation_key != key
            await service.wait_until_ready(20)
            await service.send_to_user(user.isolation_key, user.context_token, json="anew")
            event = await message(user)
            assert (event.data, event.sequence) == ("anew", 1)
            user.acknowledge()
            state = user.resume_state
            assert state is not None
            assert state.last_sequence == 1
