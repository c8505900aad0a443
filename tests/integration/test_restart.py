"""What is there again after kill -9 with a store that survives, beside messages: streams, and what users said."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc

from sidecar.api.v1 import admin_service_pb2, agent_service_pb2_grpc, types_pb2
from sidecar.api.v1 import agent_service_pb2 as pb
from tests.support.restarting import restarting_sidecar
from tests.support.running import RunningSidecar, refusal

EVERYTHING = pb.AttachRequest.Subscription()


def settings(folder: Path) -> str:
    return f'[storage]\nkind = "sqlite"\npath = "{folder}/outbox.db"\nkey_file = "{folder}/outbox.key"\n'


@asynccontextmanager
async def attached(sidecar: RunningSidecar, service_name: str = "bot") -> AsyncIterator[Any]:
    async with grpc.aio.insecure_channel(sidecar.grpc_target) as channel:
        metadata = (("x-service-token", sidecar.service_token),)
        call: Any = agent_service_pb2_grpc.AgentServiceStub(channel).Attach(metadata=metadata)
        register = pb.AttachRequest.Register(service_name=service_name, subscriptions=[EVERYTHING], credits=100)
        await call.write(pb.AttachRequest(register=register))
        assert (await call.read()).WhichOneof("frame") == "registered"
        yield call
        call.cancel()


async def event(call: Any) -> pb.AttachResponse.Event:
    return (await call.read()).event  # type: ignore[no-any-return]


async def test_streams_go_on_where_they_were(tmp_path: Path) -> None:
    async with restarting_sidecar(tmp_path, settings(tmp_path)) as life:
        async with life.running.user("alice") as alice, life.running.service() as service:

            def stream(stream_id: str, index: int) -> types_pb2.Stream:
                return types_pb2.Stream(stream_id=stream_id, index=index)

            key, token = alice.isolation_key, alice.context_token
            for index in range(3):
                await service.send(key, token, b"1", stream=stream("open", index))
            await alice.frames_before_answer_to("probe")
            await alice.socket.send(json.dumps({"type": "ack", "sequence": 2}))
            await service.send(key, token, b"1", stream=stream("stopped", 0))
            await alice.socket.send(json.dumps({"type": "cancel", "stream_id": "stopped"}))
            await alice.socket.send(json.dumps({"type": "cancel", "id": "question"}))
            await alice.frames_before_answer_to("probe")
            assert (await refusal(service.send(key, token, b"1", stream=stream("stopped", 1)))).reason == (
                "STREAM_CANCELLED"
            )
            await service.send(key, token, b"2", message_id="after")  # with it, what changed before is written
            await service.send(key, token, b"2", stream=stream("other", 0))
            await life.kill()
        await life.start()
        async with life.running.service() as service:
            repeat = await service.send(key, token, b"1", stream=stream("open", 2))
            assert (repeat.duplicate, repeat.sequence) == (True, 3)
            assert (await service.send(key, token, b"1", stream=stream("open", 3))).duplicate is False
            ahead = service.send(key, token, b"1", stream=stream("open", 5))
            assert (await refusal(ahead)).reason == "STREAM_OUT_OF_ORDER"
            assert (await service.send(key, token, b"2", stream=stream("other", 1))).duplicate is False


async def test_what_a_user_was_told_accepted_reaches_an_agent_though_the_sidecar_was_killed(tmp_path: Path) -> None:
    async with restarting_sidecar(tmp_path, settings(tmp_path)) as life:
        async with attached(life.running) as agent, life.running.user("alice") as alice:
            assert (await event(agent)).WhichOneof("kind") == "opened"
            for name in ("taken", "left"):
                await alice.socket.send(json.dumps({"type": "message", "id": name, "data": {"say": name}}))
                assert await alice.frame() == {"type": "accepted", "id": name}
            first = await event(agent)
            await agent.write(
                pb.AttachRequest(acknowledge=pb.AttachRequest.Acknowledge(delivery_ids=[first.delivery_id]))
            )
            assert (await event(agent)).message.message_id == "left"
            # Something later in the same order, so that the acknowledgement has been written before the kill.
            await alice.socket.send(json.dumps({"type": "message", "id": "later", "data": 1}))
            assert (await alice.frame())["type"] == "accepted"
            assert (await event(agent)).message.message_id == "later"
            welcome = alice.welcome
            await life.kill()
        await life.start()
        async with attached(life.running) as agent:
            again = [await event(agent)]
            while again[-1].message.message_id != "later":
                again.append(await event(agent))
            # Whether the acknowledgement was written before the kill nobody was told: it may come again, marked.
            assert [each.message.message_id for each in again][-2:] == ["left", "later"]
            assert all(each.redelivered and each.context.user_id == "alice" for each in again)
            assert json.loads(again[-2].message.payload) == {"say": "left"}
            resume = {"token": welcome["resume_token"], "last_sequence": 0, "attempt": 1}
            async with life.running.user("alice", resume=resume) as alice:
                assert alice.welcome["recovery"] == "full"
                await alice.socket.send(json.dumps({"type": "message", "id": "left", "data": {"say": "left"}}))
                assert await alice.frame() == {"type": "accepted", "id": "left", "duplicate": True}
                await alice.socket.send(json.dumps({"type": "message", "id": "taken", "data": "other"}))
                assert (await alice.frame())["reason"] == "MESSAGE_ID_REUSED"


async def test_what_a_service_has_ended_does_not_come_back(tmp_path: Path) -> None:
    async with restarting_sidecar(tmp_path, settings(tmp_path)) as life:
        async with (
            life.running.user("alice") as alice,
            life.running.user("bob") as bob,
            life.running.service() as service,
        ):
            request = admin_service_pb2.CleanupManagerRequest(isolation_key=alice.isolation_key)
            await service.admin.CleanupManager(request, metadata=service.as_operator, timeout=10)
            life.strike()  # in the moment of the answer
            welcomes = alice.welcome, bob.welcome
        await life.kill()
        await life.start()
        recoveries = []
        for subject, welcome in zip(("alice", "bob"), welcomes, strict=True):
            resume = {"token": welcome["resume_token"], "last_sequence": 0, "attempt": 1}
            async with life.running.user(subject, resume=resume) as user:
                recoveries.append(user.welcome["recovery"])
        assert recoveries == ["denied", "full"]
