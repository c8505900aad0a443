"""sidecar_client.connect against a real sidecar: order, acknowledgement, resume, tokens, slow and cancelled readers."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sidecar_client import (
    AsyncSidecarClient,
    ConnectionEnded,
    DeliveryState,
    Message,
    Tuning,
    UserConnection,
    connect,
)
from sidecar_client.dialing import CLOSE_TIMEOUT_S
from sidecar_client.errors import BadRequest, NoAgent, TransportError
from tests.clients.python.users import AT_ONCE, acknowledged, message, url_through
from tests.support.fault_proxy import fault_proxy
from tests.support.restarting import free_ports
from tests.support.running import RunningSidecar, running_sidecar


async def test_every_kind_of_message_comes_as_what_it_is(sidecar: RunningSidecar, service: AsyncSidecarClient) -> None:
    async with connect(sidecar.websocket_url, token=sidecar.user_token("alice")) as user:
        to = (user.isolation_key, user.context_token)
        await service.send_to_user(
            *to, json={"a": [1]}, event_type="e", reply_to="q", headers={"h": "1"}, message_id="m"
        )
        await service.send_to_user(*to, b"\x00\xff", content_type=3)  # type: ignore[arg-type]
        await service.emit_critical_event(*to, "alarm", "now")
        first, second, third = [await message(user) for _ in range(3)]
        assert user.recovery == "new"
        assert user.limits is not None
        assert user.limits.max_inbound_bytes == 65_536
        assert user.context_token not in f"{user!r} {user.resume_state!r}"
    assert first == Message(1, "m", "e", "json", {"a": [1]}, False, "q", None, {"h": "1"}, user.connection_id)
    assert (second.content_type, second.data) == ("binary", b"\x00\xff")
    assert (third.critical, third.event, third.data) == (True, "alarm", "now")


async def test_two_users_see_their_own(sidecar: RunningSidecar, service: AsyncSidecarClient) -> None:
    async with (
        connect(sidecar.websocket_url, token=sidecar.user_token("alice")) as alice,
        connect(sidecar.websocket_url, token=sidecar.user_token("bob")) as bob,
    ):
        for n in range(5):
            await service.send_to_user(alice.isolation_key, alice.context_token, json=["alice", n])
            await service.send_to_user(bob.isolation_key, bob.context_token, json=["bob", n])
        for n in range(5):
            assert (await message(alice)).data == ["alice", n]
            assert (await message(bob)).data == ["bob", n]


# Acknowledging


async def test_what_the_consumer_asks_past_is_acknowledged(
    sidecar: RunningSidecar, service: AsyncSidecarClient
) -> None:
    async with connect(sidecar.websocket_url, token=sidecar.user_token("alice")) as user:
        to = (user.isolation_key, user.context_token)
        sending = asyncio.create_task(service.send_to_user(*to, json=1, wait_for_ack_s=30))
        assert (await message(user)).data == 1
        unheeded = await service.send_to_user(*to, json=2, wait_for_ack_s=0.05)
        assert unheeded.state is DeliveryState.WRITTEN
        assert not sending.done()  # it is still in the consumer's hands
        assert (await message(user)).data == 2
        waiting = asyncio.create_task(anext(user))
        assert (await sending).state is DeliveryState.ACKNOWLEDGED
        await service.send_to_user(*to, json=3)
        assert isinstance(await waiting, Message)


async def test_acknowledging_oneself(sidecar: RunningSidecar, service: AsyncSidecarClient) -> None:
    async with connect(sidecar.websocket_url, token=sidecar.user_token("alice"), acknowledge=False) as user:
        to = (user.isolation_key, user.context_token)
        sends = [asyncio.create_task(service.send_to_user(*to, json=n, wait_for_ack_s=30)) for n in range(3)]
        events = [await message(user) for _ in range(3)]
        with pytest.raises(ValueError, match="handed out"):
            user.acknowledge(Message(9, "", "", "json", None, False, "", None, {}, user.connection_id))
        assert not any(send.done() for send in sends)
        user.acknowledge(events[1])
        await asyncio.wait(sends, return_when=asyncio.FIRST_COMPLETED)
        assert await acknowledged(service, user) == 2
        user.acknowledge()
        await asyncio.gather(*sends)
        assert await acknowledged(service, user) == 3


# Ends


async def test_an_end_for_good_comes_behind_what_was_sent(sidecar: RunningSidecar, service: AsyncSidecarClient) -> None:
    async with connect(sidecar.websocket_url, token=sidecar.user_token("erin")) as user:
        grant = await service.exchange_context_token(sidecar.user_token("erin"), user.connection_id, ["close", "send"])
        await service.send_to_user(user.isolation_key, grant.token.text, json="last words")
        await service.close_manager(user.isolation_key, grant.token.text, code=4_901, reason="enough")
        assert (await message(user)).data == "last words"
        for _ in range(2):
            with pytest.raises(ConnectionEnded) as ended:
                await anext(user)
            assert (ended.value.code, ended.value.reason) == (4_901, "enough")
        with pytest.raises(ConnectionEnded):
            await user.send("anybody?")


async def test_a_bad_token_ends_at_once(sidecar: RunningSidecar) -> None:
    with pytest.raises(ConnectionEnded) as ended:
        async with connect(sidecar.websocket_url, token="garbage"):
            pass
    assert ended.value.code == 4_501


async def test_closing_ends_the_context(sidecar: RunningSidecar, service: AsyncSidecarClient) -> None:
    async with connect(sidecar.websocket_url, token=sidecar.user_token("alice")) as user:
        state = user.resume_state
        await user.close()
        await user.close()
        assert await user.detach() == state
        with pytest.raises(StopAsyncIteration):
            await anext(user)
        with pytest.raises(RuntimeError):
            await user.send(1)
    async with connect(sidecar.websocket_url, token=sidecar.user_token("alice"), resume=state) as user:
        assert user.recovery == "denied"


async def test_nobody_there_is_said_in_time() -> None:
    (port,) = free_ports(1)
    with pytest.raises(TransportError) as late:
        async with connect(f"ws://127.0.0.1:{port}/v1/connect", token="t", open_timeout_s=0.3):
            pass
    assert isinstance(late.value.__cause__, OSError)
    with pytest.raises(ValueError, match="ws://"):
        connect("http://127.0.0.1/v1/connect", token="t")


# Tokens


async def test_the_user_token_is_renewed_in_band(tmp_path: Path) -> None:
    """A token of less than a minute is announced as expiring at the first health check."""
    asked = 0

    with running_sidecar(tmp_path, "\n[limits]\nhealth_check_interval_s = 1\n") as running:

        async def token() -> str:
            nonlocal asked
            asked += 1
            return running.user_token("alice", ttl_s=600 if asked > 1 else 58)

        async with (
            AsyncSidecarClient(endpoint=running.grpc_target) as service,
            connect(running.websocket_url, token=token) as user,
        ):
            records: list[dict[str, Any]] = []
            while not records:
                await service.send_to_user(user.isolation_key, user.context_token, json=1)
                await message(user)
                records = await running.audit_records("user_token_refreshed")
            assert asked == 2


async def test_an_expired_token_is_asked_for_again(sidecar: RunningSidecar, service: AsyncSidecarClient) -> None:
    """A socket ends with its token (4000); the next hello brings another, and resumes."""
    tokens = iter([sidecar.user_token("alice", ttl_s=1, now=time.time() - 25)])
    async with connect(
        sidecar.websocket_url, token=lambda: next(tokens, sidecar.user_token("alice")), tuning=AT_ONCE
    ) as user:
        key = user.isolation_key
        while user.recovery != "full":
            await service.send_to_user(key, user.context_token, json=1)
            await message(user)
        assert user.isolation_key == key


async def test_no_log_holds_a_token(
    sidecar: RunningSidecar, service: AsyncSidecarClient, caplog: pytest.LogCaptureFixture
) -> None:
    """The library's own log has every frame in it, where somebody turns everything on."""
    caplog.set_level(logging.DEBUG)
    token = sidecar.user_token("alice")
    async with connect(sidecar.websocket_url, token=token, tuning=AT_ONCE) as user:
        await service.send_to_user(user.isolation_key, user.context_token, json="a canary")
        await message(user)
        state = user.resume_state
        secrets = (token, user.context_token, state.token if state else "", "a canary")
    assert [secret for secret in secrets if secret in caplog.text] == []


async def test_what_the_token_source_raises_comes_out(sidecar: RunningSidecar) -> None:
    def tokens() -> Iterator[str]:
        yield sidecar.user_token("alice")
        raise LookupError("logged out")

    source = tokens()
    async with (
        fault_proxy(f"127.0.0.1:{sidecar.websocket_port}") as proxy,
        connect(url_through(proxy), token=lambda: next(source), tuning=AT_ONCE) as user,
    ):
        proxy.latest.cut()
        with pytest.raises(LookupError, match="logged out"):
            await anext(user)


# What the user sends


async def test_a_question_without_an_agent(sidecar: RunningSidecar) -> None:
    async with connect(sidecar.websocket_url, token=sidecar.user_token("alice")) as user:
        for _ in range(2):
            with pytest.raises(NoAgent) as refused:
                await user.send({"text": "anybody?"}, event="question", id="q-1")
            assert refused.value.reason == "NO_AGENT"
        user.cancel(id="q-1")
        user.cancel(stream_id="s-1", id="q-1")
        # The socket still lives after each of these, which the sidecar would have ended it for.
        deep: Any = 1
        for _ in range(32):
            deep = [deep]
        for data in (float("nan"), "\ud800", deep, "x" * 70_000, {1, 2}):
            with pytest.raises(BadRequest):
                await user.send(data)
        for name in ("", "no spaces", "ü", "x" * 129):
            with pytest.raises(BadRequest):
                user.cancel(stream_id=name)
            if name:
                with pytest.raises(BadRequest):
                    await user.send(1, id=name)
        with pytest.raises(NoAgent):
            await user.send(deep[0])
        assert user.recovery == "new"


async def test_many_questions_do_not_trip_the_rate_limit(sidecar: RunningSidecar) -> None:
    """The sidecar ends a socket for more than 100 frames a second."""
    async with connect(sidecar.websocket_url, token=sidecar.user_token("alice")) as user:
        answers = await asyncio.gather(*(user.send(n, timeout_s=30) for n in range(150)), return_exceptions=True)
        assert {type(answer) for answer in answers} == {NoAgent}
        assert user.recovery == "new"


async def test_a_question_lost_on_its_way_is_asked_again(sidecar: RunningSidecar) -> None:
    async with (
        fault_proxy(f"127.0.0.1:{sidecar.websocket_port}") as proxy,
        connect(url_through(proxy), token=sidecar.user_token("alice"), tuning=AT_ONCE) as user,
    ):
        proxy.latest.up.cut_after(20)
        with pytest.raises(NoAgent):
            await user.send("anybody?", timeout_s=15)
        assert (proxy.accepted, user.recovery) == (2, "full")
        proxy.latest.stall()
        with pytest.raises(TransportError) as late:
            await user.send("anybody?", timeout_s=0.2)
        assert not late.value.definite
        proxy.latest.resume()


# Slow and cancelled consumers


async def test_a_slow_consumer_holds_the_sidecar_back_and_gets_all(
    sidecar: RunningSidecar, service: AsyncSidecarClient
) -> None:
    """With room for four the rest waits in the outbox."""
    tuning = Tuning(max_events=4, uniform=lambda: 0.0)
    async with (
        fault_proxy(f"127.0.0.1:{sidecar.websocket_port}", buffer_bytes=4_096) as proxy,
        connect(url_through(proxy), token=sidecar.user_token("alice"), tuning=tuning) as user,
    ):
        body = "x" * 20_000
        to = (user.isolation_key, user.context_token)
        for n in range(60):
            await service.send_to_user(*to, json=[n, body])
        assert [(await message(user)).data[0] for _ in range(60)] == list(range(60))
        assert proxy.accepted == 1


async def test_closing_with_unread_messages_is_bounded(sidecar: RunningSidecar, service: AsyncSidecarClient) -> None:
    loop = asyncio.get_running_loop()
    async with connect(sidecar.websocket_url, token=sidecar.user_token("alice"), tuning=Tuning(max_events=1)) as user:
        for n in range(80):
            await service.send_to_user(user.isolation_key, user.context_token, json=[n, "x" * 10_000])
        started = loop.time()
    assert loop.time() - started < CLOSE_TIMEOUT_S


async def test_a_consumer_cancelled_at_every_turn_loses_nothing(
    sidecar: RunningSidecar, service: AsyncSidecarClient
) -> None:
    async with connect(sidecar.websocket_url, token=sidecar.user_token("alice")) as user:
        got: list[int] = []
        for turns in range(30):
            await service.send_to_user(user.isolation_key, user.context_token, json=turns)
            consumer = asyncio.create_task(anext(user))
            for _ in range(turns % 6):
                await asyncio.sleep(0)
            consumer.cancel()
            (event,) = await asyncio.gather(consumer, return_exceptions=True)
            if isinstance(event, Message):
                got.append(event.data)
        while len(got) < 30:
            got.append((await message(user)).data)
        assert got == list(range(30))


async def test_connecting_cancelled_leaves_no_socket(sidecar: RunningSidecar) -> None:
    async with fault_proxy(f"127.0.0.1:{sidecar.websocket_port}") as proxy:
        for turns in range(0, 40, 3):
            connection = connect(url_through(proxy), token=sidecar.user_token("alice"), tuning=AT_ONCE)
            entering = asyncio.create_task(connection.__aenter__())
            for _ in range(turns):
                await asyncio.sleep(0)
            entering.cancel()
            outcome = await asyncio.gather(entering, return_exceptions=True)
            assert isinstance(outcome[0], asyncio.CancelledError | UserConnection)
            await connection.close()
        while proxy.connections:
            await proxy.latest.over.wait()
            await asyncio.sleep(0)
