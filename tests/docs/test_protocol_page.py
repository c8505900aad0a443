"""docs/protocol.md against a running sidecar: every frame, every refusal, every close code, the whole client."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any, Final

import pytest
from websockets.asyncio.client import ClientConnection, connect

from sidecar.api.v1 import admin_service_pb2, types_pb2
from sidecar.core.close_codes import SERVICE_CODES, CloseCode
from sidecar.ws.handshake import Refusal
from tests.docs.pages import ROOT, Block, blocks, table
from tests.support.fault_proxy import fault_proxy
from tests.support.running import RunningSidecar, Service, User, running_sidecar

PAGE: Final = ROOT / "docs" / "protocol.md"
JSON_PROTOCOL: Final = "sidecar.v1.json"
FRAMES: Final = blocks("json", pages=(PAGE,))
FROM_THE_CLIENT: Final = {"hello", "ack", "cancel", "refresh"}
FINAL: Final = {1000, 1002, 1003, 1007, 1009}
"""Below 4500, and all the same the end."""
PAYLOAD: Final = b'{"text": "It is 21 degrees."}'


def from_the_client(block: Block) -> bool:
    frame = json.loads(block.text)
    return frame["type"] in FROM_THE_CLIENT or (frame["type"] == "message" and "sequence" not in frame)


def shape(frame: dict[str, Any]) -> str:
    """The frame with its values' types in their place, but for what says which kind it is."""
    fixed = {"type", "reason", "recovery", "content_type", "message"}
    free = {"headers"} | ({"data"} if frame.get("content_type") == "json" else set())

    def shaped(name: str, value: Any) -> Any:
        if name in free:
            return "any"
        if isinstance(value, dict):
            return {key: shaped(key, member) for key, member in sorted(value.items())}
        return value if name in fixed else type(value).__name__

    return json.dumps({name: shaped(name, value) for name, value in sorted(frame.items())}, sort_keys=True)


# What the sidecar sends


async def test_every_frame_on_the_page_is_one_that_is_sent(tmp_path: Path) -> None:
    """The documented shapes are exactly those of a conversation in which everything happens that this version does."""
    with running_sidecar(tmp_path, SIDECAR_CONTEXT_TOKENS__TTL_S="4") as sidecar:
        seen = await everything(sidecar)
    documented = [json.loads(block.text) for block in FRAMES if not from_the_client(block)]
    assert {shape(frame) for frame in documented} == {shape(frame) for frame in seen}


async def everything(sidecar: RunningSidecar) -> list[dict[str, Any]]:
    """Every kind of frame, from a user whose tokens end soon."""
    soon = sidecar.user_token("alice", ttl_s=50)
    async with sidecar.service() as service:
        async with sidecar.user("alice") as first:
            seen = [first.welcome, *await messages(service, first), *await gap(sidecar, service)]
            async with sidecar.user("alice", mirror={"token": first.welcome["resume_token"]}) as second:
                seen.append(second.welcome)
            seen += await coming_back(sidecar, first)
        seen += await evicted(sidecar, service)
        # The page tells of `denied` without showing it again: a fresh context's welcome but for that word.
        async with sidecar.user("alice", mirror={"token": "0" * 64}) as denied:
            assert denied.welcome["recovery"] == "denied"
            assert shape(denied.welcome | {"recovery": "new"}) == shape(first.welcome)
        async with connect(sidecar.websocket_url, subprotocols=[JSON_PROTOCOL], compression=None) as socket:  # type: ignore[list-item]
            await socket.send(json.dumps({"type": "hello", "token": soon}))
            user = User("alice", socket, json.loads(await socket.recv()))
            seen += await reminders(sidecar, user)
            sidecar.process.terminate()
            seen += await frames_until(user, "draining")
            await socket.wait_closed()
    return seen


async def frames_until(user: User, *kinds: str) -> list[dict[str, Any]]:
    """The next frames, as far as all these kinds have come: context tokens may come between whatever else."""
    frames: list[dict[str, Any]] = []
    while not {frame["type"] for frame in frames} >= set(kinds):
        frames.append(await user.frame())
    return frames


async def messages(service: Service, user: User) -> list[dict[str, Any]]:
    async def send(payload: bytes, **members: Any) -> list[dict[str, Any]]:
        await service.send(user.isolation_key, user.context_token, payload, **members)
        return await frames_until(user, "message")

    full = {"message_id": "answer-17", "event_type": "agent.answer", "critical": True, "reply_to": "question-17"}
    return [
        *await send(PAYLOAD),
        *await send(PAYLOAD, headers={"trace": "1"}, **full),
        *await send(b"text", content_type=types_pb2.CONTENT_TYPE_TEXT),
        *await send(b"\xff", content_type=types_pb2.CONTENT_TYPE_BINARY),
    ]


async def gap(sidecar: RunningSidecar, service: Service) -> list[dict[str, Any]]:
    """A client does not read until messages wait for it, one of them longer than it may."""
    async with connect(sidecar.websocket_url, subprotocols=[JSON_PROTOCOL], compression=None, max_queue=1) as socket:  # type: ignore[list-item]
        await socket.send(json.dumps({"type": "hello", "token": sidecar.user_token("slow")}))
        slow = User("slow", socket, json.loads(await socket.recv()))
        state = types_pb2.DELIVERY_STATE_WRITTEN
        while state == types_pb2.DELIVERY_STATE_WRITTEN:
            receipt = await service.send(slow.isolation_key, slow.context_token, b'"%b"' % (b"x" * 100_000))
            state = receipt.state
        brief = types_pb2.Message(payload=b"1")
        brief.ttl.FromMilliseconds(1)
        await service.send(slow.isolation_key, slow.context_token, b"1", ttl=brief.ttl)
        return (await frames_until(slow, "gap"))[-1:]


def resume_of(user: User, last_sequence: int, attempt: int) -> dict[str, Any]:
    return {"token": user.welcome["resume_token"], "last_sequence": last_sequence, "attempt": attempt}


async def coming_back(sidecar: RunningSidecar, former: User) -> list[dict[str, Any]]:
    """With all that was sent, then with less than was acknowledged."""
    await former.socket.send(json.dumps({"type": "ack", "sequence": 4}))
    async with sidecar.user("alice", resume=resume_of(former, 4, 1)) as with_all:
        assert (with_all.welcome["recovery"], with_all.welcome["sequence"]) == ("full", 4)
        async with sidecar.user("alice", resume=resume_of(former, 1, 2)) as with_less:
            seen = [with_all.welcome, with_less.welcome, *await frames_until(with_less, "gap")]
    assert (seen[-1]["from"], seen[-1]["to"]) == (2, 4)
    same = {"type", "connection_id", "session_id", "isolation_key", "resume_token", "limits"}
    assert all(former.welcome[name] == with_all.welcome[name] for name in same)
    assert all(former.welcome[name] != with_all.welcome[name] for name in ("attach_id", "context_token"))
    return seen


async def evicted(sidecar: RunningSidecar, service: Service) -> list[dict[str, Any]]:
    """A client reads and acknowledges nothing, until older messages give way; then it comes back for them."""
    async with sidecar.user("lazy") as lazy:
        for _ in range(10):
            await service.send(lazy.isolation_key, lazy.context_token, b'"%b"' % (b"x" * 250_000))
            await frames_until(lazy, "message")
        async with sidecar.user("lazy", resume=resume_of(lazy, 0, 1)) as again:
            return [again.welcome, *await frames_until(again, "gap")]


async def reminders(sidecar: RunningSidecar, user: User) -> list[dict[str, Any]]:
    """What comes by itself, in whatever order, then what is answered."""
    seen = await frames_until(user, "token_expiring", "context_token")
    for frame, answer in (
        ({"type": "refresh", "token": sidecar.user_token("alice", ttl_s=900)}, "refreshed"),
        ({"type": "message", "id": "question-17", "data": 1}, "error"),
        ({"type": "no such type"}, "error"),
    ):
        await user.socket.send(json.dumps(frame))
        seen += await frames_until(user, answer)
    return seen


async def answers_so_far(user: User) -> list[dict[str, Any]]:
    """What has been answered, up to the answer to a frame of unknown type."""
    await user.socket.send(json.dumps({"type": "probe", "id": "probe"}))
    answers = []
    while (answer := await user.frame()).get("id") != "probe":
        answers.append(answer)
    return answers


# What a client sends

ANSWERS: Final = {"ack": None, "cancel": None, "refresh": "refreshed", "message": "error"}


@pytest.mark.parametrize("block", [each for each in FRAMES if from_the_client(each)], ids=lambda block: block.name)
async def test_every_client_frame_on_the_page_is_taken(block: Block, sidecar: RunningSidecar) -> None:
    frame = json.loads(block.text)
    if frame["type"] == "hello":
        await greets(frame, sidecar)
        return
    if frame["type"] == "refresh":
        frame["token"] = sidecar.user_token("alice", ttl_s=900)
    async with sidecar.user("alice") as user, sidecar.service() as service:
        for _ in range(4):
            await service.send(user.isolation_key, user.context_token)
            await user.frame()
        await user.socket.send(json.dumps(frame))
        answers = await answers_so_far(user)
    expected = ANSWERS[frame["type"]]
    assert [answer["type"] for answer in answers] == ([expected] if expected else [])
    if frame["type"] == "message":
        assert (answers[0]["id"], answers[0]["reason"]) == (frame["id"], "NO_AGENT")


async def greets(frame: dict[str, Any], sidecar: RunningSidecar) -> None:
    """A hello with the token in it, or after a handshake that had it."""
    token = sidecar.user_token("alice")
    headers = {} if "token" in frame else {"Authorization": f"Bearer {token}"}
    async with sidecar.user("alice") as first:
        if "token" in frame:
            frame["token"] = token
        if "mirror" in frame:
            frame["mirror"]["token"] = first.welcome["resume_token"]
        if "resume" in frame:
            frame["resume"]["token"] = first.welcome["resume_token"]
            await receives_up_to(frame["resume"]["last_sequence"], first, sidecar)
        recovery = "mirror" if "mirror" in frame else "full" if "resume" in frame else "new"
        arguments: dict[str, Any] = {"additional_headers": headers, "subprotocols": [JSON_PROTOCOL]}
        async with connect(sidecar.websocket_url, compression=None, **arguments) as socket:
            await socket.send(json.dumps(frame))
            welcome = json.loads(await socket.recv())
            assert (welcome["type"], welcome["recovery"]) == ("welcome", recovery)


async def receives_up_to(last_sequence: int, user: User, sidecar: RunningSidecar) -> None:
    async with sidecar.service() as service:
        for _ in range(last_sequence):
            await service.send(user.isolation_key, user.context_token)
            await user.frame()


async def test_a_token_goes_by_header_by_subprotocol_or_by_hello(sidecar: RunningSidecar) -> None:
    token = sidecar.user_token("bob")
    ways: list[tuple[dict[str, Any], dict[str, str]]] = [
        ({"additional_headers": {"Authorization": f"Bearer {token}"}}, {}),
        ({"subprotocols": [JSON_PROTOCOL, f"bearer.{token}"]}, {}),
        ({}, {"token": token}),
    ]
    for arguments, hello in ways:
        async with connect(sidecar.websocket_url, **{"subprotocols": [JSON_PROTOCOL]} | arguments) as socket:
            assert socket.subprotocol == JSON_PROTOCOL
            await socket.send(json.dumps({"type": "hello", **hello}))
            assert json.loads(await socket.recv())["type"] == "welcome"


# The handshake


async def test_the_handshake_on_the_page_is_answered_as_it_says(sidecar: RunningSidecar) -> None:
    request, answer = (block.text for block in blocks("http", pages=(PAGE,)))
    request = request.replace("$TOKEN", sidecar.user_token("alice")).replace("\n", "\r\n")
    reader, writer = await asyncio.open_connection("127.0.0.1", sidecar.websocket_port)
    writer.write(request.encode() + b"\r\n")
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    writer.close()
    await writer.wait_closed()
    assert undated(head.replace("\r\n", "\n").strip()) == undated(answer.strip())


def undated(head: str) -> str:
    return re.sub(r"^Date: .*$", "Date:", head, flags=re.MULTILINE)


def test_every_refused_handshake_is_in_the_table() -> None:
    rows = {(int(status), body) for status, body, _ in table(PAGE, "status", "body", "why")}
    answered = {(each.status, each.body.strip()) for each in Refusal if each is not Refusal.HANDSHAKE_TIMEOUT}
    assert rows == answered


# Close codes


def test_the_close_codes_are_those_of_the_catalogue() -> None:
    rows = table(PAGE, "code", "name", "what happened", "connect again", "what to do")
    *catalogued, own = rows
    assert {int(code): name for code, name, *_ in catalogued} == {int(code): code.name.lower() for code in CloseCode}
    assert own[0] == f"{SERVICE_CODES.start}–{SERVICE_CODES.stop - 1}"
    again = {int(code) for code, _, _, yes, _ in catalogued if yes == "yes"}
    assert again == {int(code) for code in CloseCode if code < 4500 and code not in FINAL}


# The whole client


async def test_the_whole_client_follows_comes_back_and_ends_when_it_is_no_use(sidecar: RunningSidecar) -> None:
    (block,) = blocks("python", pages=(PAGE,))
    names: dict[str, Any] = {}
    exec(compile(block.text, block.name, "exec"), names)
    heard: asyncio.Queue[tuple[str, Any]] = asyncio.Queue()
    async with fault_proxy(f"127.0.0.1:{sidecar.websocket_port}") as proxy, sidecar.service() as service:
        listening = asyncio.create_task(
            names["listen"](
                f"ws://{proxy.target}/v1/connect",
                lambda: sidecar.user_token("carol"),
                lambda *heard_of: heard.put_nowait(heard_of),
            )
        )
        manager = await listed(service, "carol")
        assert await next_of(heard) == ("new", manager.context.connection_id)
        token = await exchanged(sidecar, service, manager.context.connection_id)
        for number in range(3):
            payload = b"%d" % number
            await service.send(manager.isolation_key, token, payload, event_type="answer")
            assert await next_of(heard) == ("answer", number)
            proxy.reset_all()  # each message on a socket of its own, and none of them twice
            await service.send(manager.isolation_key, token, b"null", event_type="while.away")
            assert await next_of(heard) == ("while.away", None)
        request = admin_service_pb2.DisconnectUserRequest(user_id="carol")
        await service.admin.DisconnectUser(request, metadata=service.as_operator, timeout=10)
        assert await asyncio.wait_for(listening, 10) == CloseCode.CLOSED_BY_SERVICE
    assert heard.empty()


async def next_of(heard: asyncio.Queue[tuple[str, Any]]) -> tuple[str, Any]:
    return await asyncio.wait_for(heard.get(), 10)


async def listed(service: Service, user_id: str) -> admin_service_pb2.ManagerSummary:
    """The user's manager, once there is one."""
    request = admin_service_pb2.ListManagersRequest(user_id=user_id)
    async with asyncio.timeout(10):
        while True:
            answer = await service.admin.ListManagers(request, metadata=service.as_operator, timeout=10)
            for manager in answer.managers:
                assert isinstance(manager, admin_service_pb2.ManagerSummary)
                return manager


async def exchanged(sidecar: RunningSidecar, service: Service, connection_id: str) -> str:
    from sidecar.api.v1.context_service_pb2 import ExchangeContextTokenRequest

    request = ExchangeContextTokenRequest(user_token=sidecar.user_token("carol"), connection_id=connection_id)
    answer = await service.context.ExchangeContextToken(request, metadata=service.as_operator, timeout=10)
    return str(answer.context_token)


# The raw protocol


@pytest.mark.parametrize("offered", [["sidecar.v1.raw"], None])
async def test_a_raw_client_gets_payloads_as_they_are(offered: Any, sidecar: RunningSidecar) -> None:
    headers = {"Authorization": f"Bearer {sidecar.user_token('carol')}"}
    async with connect(sidecar.websocket_url, subprotocols=offered, additional_headers=headers) as socket:
        await receives(socket, sidecar)


async def receives(socket: ClientConnection, sidecar: RunningSidecar) -> None:
    assert socket.response is not None
    async with sidecar.service() as service:
        token = await exchanged(sidecar, service, socket.response.headers["Sidecar-Connection-Id"])
        from sidecar.api.v1.context_service_pb2 import GetContextRequest

        key = (
            await service.context.GetContext(GetContextRequest(), metadata=(("x-context-token", token),))
        ).isolation_key
        await service.send(key, token, PAYLOAD)
        await service.send(key, token, b"\xff", content_type=types_pb2.CONTENT_TYPE_BINARY)
        assert [await socket.recv(), await socket.recv()] == [PAYLOAD.decode(), b"\xff"]
