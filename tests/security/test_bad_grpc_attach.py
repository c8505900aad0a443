"""Bad callers, frames and workers on Attach streams of a running sidecar: each ends its own stream, and nothing else.

Each case: the exact refusal, the records that it adds, nothing appended, and a bystander whose traffic goes on.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
from google.protobuf.duration_pb2 import Duration

from sidecar.api.v1 import agent_service_pb2 as pb
from sidecar.api.v1 import agent_service_pb2_grpc
from tests.rpc.rig import TIMEOUT_S, Refused, ended_with, summary
from tests.rpc.workers import Register, Worker, registration
from tests.support.running import RunningSidecar, User, running_sidecar
from tests.support.stage import DELIVERER, LOCAL, OPERATOR, Caller, Stage, check_status, staged

pytestmark = pytest.mark.asyncio(loop_scope="module")

ATTACH = "/sidecar.api.v1.AgentService/Attach"
SERVICE_DENIED = Refused("PERMISSION_DENIED", "SERVICE_DENIED")
TOKEN_MISSING, TOKEN_INVALID = (Refused("UNAUTHENTICATED", f"TOKEN_{what}") for what in ("MISSING", "INVALID"))
MAX_SUBSCRIPTIONS, MAX_CREDITS, MAX_IDS = 1_000, 1_000_000, 10_000
HOUR_S = 3_600


def bad(name: str) -> Refused:
    return Refused("INVALID_ARGUMENT", "BAD_REQUEST", field=name)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    async with staged(tmp_path_factory.mktemp("attach")) as stage:
        yield stage


def raw_stream(caller: Caller, *tokens: str) -> Any:
    metadata = tuple(("x-service-token", token) for token in tokens)
    return caller.channel.stream_stream(ATTACH)(metadata=metadata, timeout=TIMEOUT_S)


def worker_of(caller: Caller, token: str = OPERATOR) -> Worker:
    return Worker(caller.agent, token)


# Who calls


@pytest.mark.parametrize(
    ("tokens", "refusal", "event"),
    [
        ((), TOKEN_MISSING, "token_denied"),
        (("",), TOKEN_MISSING, "token_denied"),
        (("a-token-that-nobody-has-given",), TOKEN_INVALID, "token_denied"),
        ((OPERATOR[:-1],), TOKEN_INVALID, "token_denied"),
        (("x" * 5_000,), TOKEN_INVALID, "token_denied"),
        ((OPERATOR, OPERATOR), TOKEN_INVALID, "token_denied"),
        ((DELIVERER,), SERVICE_DENIED, "service_denied"),
    ],
)
async def test_whoever_may_not_attach_is_refused_before_a_word_and_recorded(
    stage: Stage, tokens: tuple[str, ...], refusal: Refused, event: str
) -> None:
    async with stage.caller() as caller, stage.seen(**{event: 1}) as records:
        assert check_status(await ended_with(raw_stream(caller, *tokens)), *tokens) == refusal
    (record,) = records
    assert (record["reason"], record["method"]) == (refusal.reason, "Attach")


async def test_a_context_token_is_no_service_token(stage: Stage) -> None:
    async with stage.caller() as caller, stage.seen(token_denied=1):
        assert check_status(await ended_with(raw_stream(caller, stage.alice.context_token))) == TOKEN_INVALID


async def test_a_tenant_that_the_service_may_not_have_is_refused_and_recorded(stage: Stage) -> None:
    async with stage.caller() as caller, stage.seen(service_denied=1):
        worker = worker_of(caller, LOCAL)
        await worker.write(register=registration("local", ("elsewhere", ""), ("default", "")))
        assert check_status(await ended_with(worker.call)) == SERVICE_DENIED


async def test_every_tenant_is_every_tenant_that_the_service_may_have(stage: Stage) -> None:
    """What Alice says is not for it; what the stranger of its own tenant says is."""
    async with stage.caller() as caller, stage.seen(agent_attached=1, agent_detached=1, token_minted=1):
        worker = await worker_of(caller, LOCAL).register()
        await say(stage.alice, "m-1", "NO_AGENT")
        await say(stage.stranger, "m-1", None)
        event = await worker.event("message")
        assert (event.context.tenant_id, event.isolation_key) == ("elsewhere", stage.stranger.isolation_key)
        await worker.acknowledge(event)
        await worker.finish()


async def say(user: User, message_id: str, reason: str | None) -> None:
    """The client's message is accepted, or refused for that."""
    await user.socket.send(json.dumps({"type": "message", "id": message_id, "data": 1}))
    answer = await user.frame()
    assert (answer["type"], answer["id"]) == ("error" if reason else "accepted", message_id)
    assert answer.get("reason") == reason


# What it says first


def framed(**frame: Any) -> bytes:
    return pb.AttachRequest(**frame).SerializeToString()


def registering(
    subscriptions: list[pb.AttachRequest.Subscription] | None = None,
    ack_timeout: Duration | None = None,
    **changes: Any,
) -> bytes:
    """A good register, but for what is given."""
    register = registration()
    if subscriptions is not None:
        del register.subscriptions[:]
        register.subscriptions.extend(subscriptions)
    if ack_timeout is not None:
        register.ack_timeout.CopyFrom(ack_timeout)
    for name, value in changes.items():
        setattr(register, name, value)
    return framed(register=register)


def pairs(*named: tuple[str, str]) -> list[pb.AttachRequest.Subscription]:
    return [pb.AttachRequest.Subscription(tenant_id=tenant_id, event=event) for tenant_id, event in named]


@dataclass(frozen=True)
class BadFirst:
    """The bytes of the first frame, and the field that the stream's end names."""

    id: str
    data: bytes
    field: str


NAMES = ("", "*", ">", "../x", "a b", "a\0b", "a\nb", "ä", "x" * 129)
TENANT, EVENT = "register.subscriptions.tenant_id", "register.subscriptions.event"
TIMEOUT = "register.ack_timeout"
FIRST = (
    BadFirst("garbage", b"\xff", "request"),
    BadFirst("cut short", b"\x0a\x05a", "request"),
    BadFirst("not UTF-8", b"\x0a\x04\x0a\x02\xed\xa0", "request"),
    BadFirst("empty", b"", "frame"),
    BadFirst("unknown fields only", b"\xfa\x7f\x03abc", "frame"),
    BadFirst("an acknowledgement", framed(acknowledge=pb.AttachRequest.Acknowledge(delivery_ids=["d"])), "frame"),
    BadFirst("credit", framed(credit=pb.AttachRequest.Credit(credits=1)), "frame"),
    *(BadFirst(f"named {name!r}"[:20], registering(service_name=name), "register.service_name") for name in NAMES),
    *(BadFirst(f"tenant {name!r}"[:20], registering(subscriptions=pairs((name, ""))), TENANT) for name in NAMES[1:]),
    *(BadFirst(f"event {name!r}"[:20], registering(subscriptions=pairs(("", name))), EVENT) for name in NAMES[2:]),
    BadFirst("nothing subscribed", registering(subscriptions=[]), "register.subscriptions"),
    BadFirst(
        "1,001 subscriptions",
        registering(subscriptions=pairs(("", "")) * (MAX_SUBSCRIPTIONS + 1)),
        "register.subscriptions",
    ),
    BadFirst("a credit too many", registering(credits=MAX_CREDITS + 1), "register.credits"),
    BadFirst("2^32 - 1 credits", registering(credits=2**32 - 1), "register.credits"),
    *(
        BadFirst(f"{seconds} s {nanos} ns", registering(None, Duration(seconds=seconds, nanos=nanos)), TIMEOUT)
        for seconds, nanos in ((0, 0), (-1, 0), (0, -1), (1, -1), (0, 10**9), (HOUR_S, 1), (2**62, 0))
    ),
)


@pytest.mark.parametrize("case", FIRST, ids=lambda case: case.id)
async def test_a_bad_first_frame_ends_the_stream(stage: Stage, case: BadFirst) -> None:
    async with stage.caller() as caller, stage.seen():
        stream = raw_stream(caller, OPERATOR)
        await stream.write(case.data)
        assert check_status(await ended_with(stream), OPERATOR) == bad(case.field)


async def test_a_stream_that_says_nothing_ends(stage: Stage) -> None:
    async with stage.caller() as caller, stage.seen():
        stream = raw_stream(caller, OPERATOR)
        await stream.done_writing()
        assert check_status(await ended_with(stream)) == bad("frame")


@pytest.mark.parametrize(
    "register",
    [
        registration("x" * 128, *((f"tenant-{number}", "*") for number in range(MAX_SUBSCRIPTIONS)), credits_=0),
        registration(credits_=MAX_CREDITS, ack_timeout_s=HOUR_S),
        registration(ack_timeout_s=1e-9),
    ],
    ids=["1,000 subscriptions", "1,000,000 credits, an hour", "a nanosecond"],
)
async def test_what_is_at_the_limit_is_registered(stage: Stage, register: Register) -> None:
    async with stage.caller() as caller, stage.seen(agent_attached=1, agent_detached=1):
        await (await worker_of(caller).register(register)).finish()


# What it says then


THEN = (
    BadFirst("garbage", b"\xff", "request"),
    BadFirst("empty", b"", "frame"),
    BadFirst("a second register", registering(), "frame"),
    BadFirst("a credit too many", framed(credit=pb.AttachRequest.Credit(credits=MAX_CREDITS - 998)), "credit.credits"),
    BadFirst("2^32 - 1 credits", framed(credit=pb.AttachRequest.Credit(credits=2**32 - 1)), "credit.credits"),
    BadFirst(
        "10,001 ids",
        framed(acknowledge=pb.AttachRequest.Acknowledge(delivery_ids=["d"] * (MAX_IDS + 1))),
        "acknowledge.delivery_ids",
    ),
)


@pytest.mark.parametrize("case", THEN, ids=lambda case: case.id)
async def test_a_bad_frame_ends_the_stream_and_what_it_held_goes_on(stage: Stage, case: BadFirst) -> None:
    async with stage.caller() as caller, stage.seen(agent_attached=2, agent_detached=2, token_minted=2):
        stream = raw_stream(caller, OPERATOR)
        await stream.write(registering())
        await stream.read()
        await say(stage.alice, f"before {case.id}".replace(" ", "-").translate({ord(c): None for c in ",^"}), None)
        held = pb.AttachResponse.FromString(await stream.read()).event
        await stream.write(case.data)
        assert check_status(await ended_with(stream), held.context_token) == bad(case.field)
        worker = await worker_of(caller).register()
        again = await worker.event("message")
        assert (again.delivery_id, again.redelivered) == (held.delivery_id, True)
        await worker.acknowledge(again)
        await worker.finish()


async def test_ids_that_nobody_was_given_are_passed_over(stage: Stage) -> None:
    ids = ["", "*", ">", "d-1", "a\0b", "x" * 100_000, *[f"d-{number}" for number in range(MAX_IDS - 6)]]
    async with stage.caller() as caller, stage.seen(agent_attached=1, agent_detached=1):
        worker = await worker_of(caller).register()
        await worker.write(acknowledge=pb.AttachRequest.Acknowledge(delivery_ids=ids))
        await worker.finish()


async def test_no_worker_acknowledges_what_another_service_was_given(stage: Stage) -> None:
    records = {"agent_attached": 2, "agent_detached": 2, "token_minted": 1}
    async with stage.caller() as caller, stage.seen(**records):
        worker = await worker_of(caller).register(registration("support", ("default", ""), ack_timeout_s=0.1))
        thief = await worker_of(caller).register(registration("thief", ("default", "else")))
        await say(stage.alice, "not-yours", None)
        event = await worker.event("message")
        await thief.acknowledge(event)
        await thief.finish()
        again = await worker.event("message")  # after its time, a tick of the sidecar's
        assert (again.delivery_id, again.redelivered) == (event.delivery_id, True)
        await worker.acknowledge(again)
        await worker.finish()


async def test_what_another_service_holds_is_refused(stage: Stage) -> None:
    taken = Refused("ALREADY_EXISTS", "SUBSCRIPTION_TAKEN")
    async with stage.caller() as caller, stage.seen(agent_attached=2, agent_detached=2):
        holder = await worker_of(caller).register(registration("support", ("default", "ask"), ("default", "*")))
        for pair in (("default", "ask"), ("", "ask"), ("default", ""), ("", "")):
            other = worker_of(caller)
            await other.write(register=registration("other", ("default", "free"), pair))
            assert check_status(await ended_with(other.call)) == taken
        # A service of another tenant learns nothing of it.
        await (await worker_of(caller, LOCAL).register(registration("theirs", ("", "ask"), ("", "")))).finish()
        await holder.finish()


# Floods, and workers that do not read


async def test_a_flood_of_frames_costs_nobody_else(stage: Stage) -> None:
    async with stage.caller() as caller, stage.seen(agent_attached=1, agent_detached=1):
        worker = await worker_of(caller).register()
        for _ in range(5_000):
            await worker.credit(0)
            await worker.acknowledge()
        await worker.finish()


async def test_a_worker_that_does_not_read_holds_no_more_than_the_inbox(stage: Stage) -> None:
    """64 messages of a context, whatever credits there are: then its client is told."""
    frame = {"type": "message", "data": "x" * 15_000}
    resident = resident_bytes(stage.sidecar)
    async with stage.caller() as caller, stage.caller() as other:
        stalled = await worker_of(caller).register(registration(credits_=MAX_CREDITS))
        for number in range(70):
            await stage.alice.socket.send(json.dumps(frame | {"id": f"stalled-{number}"}))
            answer = await stage.alice.frame()
            assert answer.get("reason") == (None if number < 64 else "AGENT_BUSY"), number
        assert resident_bytes(stage.sidecar) - resident < 32 * 1024 * 1024
        stalled.call.cancel()
        worker = await worker_of(other).register()
        events = await worker.events(64)
        assert [event.message.message_id for event in events] == [f"stalled-{number}" for number in range(64)]
        await worker.acknowledge(*events)
        await worker.finish()
    await stage.trail.mark()


def resident_bytes(sidecar: RunningSidecar) -> int:
    status = Path(f"/proc/{sidecar.process.pid}/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) * 1024


# A service token that is taken away


async def test_a_worker_whose_service_token_is_taken_from_the_file_is_detached(tmp_path: Path) -> None:
    with running_sidecar(tmp_path) as sidecar:
        async with sidecar.user("alice") as alice, grpc.aio.insecure_channel(sidecar.grpc_target) as channel:
            stub = agent_service_pb2_grpc.AgentServiceStub(channel)
            worker = await Worker(stub, sidecar.service_token).register()
            (tmp_path / "service-tokens").write_text("another-token-than-there-was")
            async with asyncio.timeout(10):  # the file is looked at once a second, and streams once a second
                assert summary(await ended_with(worker.call)) == TOKEN_INVALID
            await say(alice, "m-1", "NO_AGENT")
