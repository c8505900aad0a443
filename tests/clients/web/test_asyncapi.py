"""docs/asyncapi.yaml: an AsyncAPI 3 document, of what a running sidecar says and takes, frame by frame."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft7Validator
from websockets.asyncio.client import ClientConnection, connect

from sidecar.config import Config
from sidecar.core.close_codes import CloseCode
from sidecar.core.errors import CATALOGUE, ErrorReason
from sidecar.core.gaps import GapReason
from sidecar.ws.handshake import JSON_PROTOCOL, PATH, RAW_PROTOCOL, Refusal
from sidecar_client import AgentContext, InboundMessage
from tests.clients.built import built
from tests.clients.python.agents import agent_for, attached
from tests.clients.web import document
from tests.clients.web.document import CLIENT, DOCUMENT, SIDECAR, allowed, check, found, frames, mutants, references
from tests.support.running import RunningSidecar, Service, running_sidecar

pytestmark = pytest.mark.timeout(180)
SCHEMAS = DOCUMENT["components"]["schemas"]
FINAL = {1000, 1002, 1003, 1007, 1009}


# The document in itself


def meta_schema() -> Draft7Validator:
    folder = built("web") / "node_modules" / "@asyncapi" / "specs" / "schemas"
    return Draft7Validator(json.loads((folder / f"{DOCUMENT['asyncapi']}-without-$id.json").read_text("utf-8")))


def test_it_is_a_document_of_asyncapi_3() -> None:
    assert [f"{error.json_path}: {error.message}" for error in meta_schema().iter_errors(DOCUMENT)] == []


@pytest.mark.parametrize(
    "path",
    [
        ("info", "version"),
        ("channels", "json", "address"),
        ("operations", "receiveHello", "action"),
        ("operations", "sendMessages", "channel"),
        ("components", "schemas", "ack", "type"),
        ("components", "securitySchemes", "bearerHeader", "type"),
    ],
)
def test_a_document_with_something_wrong_is_none(path: tuple[str, ...]) -> None:
    broken = deepcopy(DOCUMENT)
    node = broken
    for part in path[:-1]:
        node = node[part]
    node[path[-1]] = 17
    assert not meta_schema().is_valid(broken)


def test_every_reference_leads_somewhere_and_everything_is_used() -> None:
    for reference in references():
        assert found(reference) is not None
    used = {reference["$ref"] for reference in references()}
    for kind in ("messages", "schemas", "securitySchemes"):
        assert {f"#/components/{kind}/{name}" for name in DOCUMENT["components"][kind]} <= used
    for channel, told in DOCUMENT["channels"].items():
        assert {f"#/channels/{channel}/messages/{name}" for name in told["messages"]} <= used


def test_its_channels_are_the_sidecars() -> None:
    channels = DOCUMENT["channels"].values()
    assert {channel["address"] for channel in channels} == {PATH}
    assert [channel["x-subprotocol"] for channel in channels] == [JSON_PROTOCOL, RAW_PROTOCOL]


# The closed lists


def test_its_close_codes_are_those_of_the_catalogue() -> None:
    for channel in DOCUMENT["channels"].values():
        assert channel["x-close-codes"] == [
            {"code": int(code), "name": code.name.lower(), "reconnect": code < 4500 and code not in FINAL}
            for code in CloseCode
        ]


def test_its_refused_handshakes_are_the_sidecars() -> None:
    answers = {(answer.status, answer.body.strip()) for answer in Refusal if answer is not Refusal.HANDSHAKE_TIMEOUT}
    for channel in DOCUMENT["channels"].values():
        assert {(row["status"], row["body"]) for row in channel["x-refused-handshakes"]} == answers


def test_its_limits_are_the_defaults() -> None:
    defaults = Config.model_construct()
    codes = {int(code) for code in CloseCode}
    for limit in DOCUMENT["channels"]["json"]["x-limits"]:
        section, _, name = limit["key"].partition(".")
        assert getattr(getattr(defaults, section), name) == limit["value"], limit["key"]
        assert isinstance(limit["over"], str) or limit["over"] in codes


def test_its_reasons_are_the_catalogues() -> None:
    members = SCHEMAS["error"]["properties"]
    reasons = [ErrorReason(reason) for reason in members["reason"]["enum"]]
    assert [CATALOGUE[reason][1] for reason in reasons] == members["message"]["enum"]
    assert SCHEMAS["gap"]["properties"]["reason"]["enum"] == [str(reason) for reason in GapReason]


# The sidecar


class Recorder:
    """A socket whose frames are checked by the document, both ways, and kept."""

    def __init__(self, socket: ClientConnection, said: list[tuple[str, dict[str, Any]]]) -> None:
        self._socket = socket
        self._said = said

    async def say(self, **frame: Any) -> None:
        check(CLIENT, frame)
        self._said.append((CLIENT, frame))
        await self._socket.send(json.dumps(frame))

    async def hear(self, kind: str) -> dict[str, Any]:
        """The next frame of that type; the others are checked all the same."""
        while True:
            frame = json.loads(await asyncio.wait_for(self._socket.recv(), 20))
            assert isinstance(frame, dict)
            check(SIDECAR, frame)
            self._said.append((SIDECAR, frame))
            if frame["type"] == kind:
                return frame

    async def leave(self) -> None:
        await self._socket.close(3000)


@asynccontextmanager
async def opened(sidecar: RunningSidecar, said: list[Any]) -> AsyncIterator[Recorder]:
    async with connect(sidecar.websocket_url, subprotocols=[JSON_PROTOCOL], compression=None) as socket:  # type: ignore[list-item]
        yield Recorder(socket, said)


async def test_what_is_said_is_what_it_says_and_nothing_else_would_be(sidecar: RunningSidecar, tmp_path: Path) -> None:
    said: list[tuple[str, dict[str, Any]]] = []
    agent = agent_for(sidecar)

    @agent.on_message("question")
    async def answer(context: AgentContext, message: InboundMessage) -> None:
        async with message.reply(event_type="answer", stream_id="answer-17") as stream:
            await stream.send(text="It is ")

    async with attached(agent), sidecar.service() as service, opened(sidecar, said) as first:
        token = sidecar.user_token("alice", "asyncapi")
        await first.say(type="hello", token=token)
        welcome = await first.hear("welcome")
        await messages(first, service, welcome)
        await questions(first)
        await first.say(type="refresh", token=token)
        await first.hear("refreshed")
        await greetings(first, sidecar, service, welcome, said)
    await raw(sidecar)
    await the_passing_of_time(tmp_path, said)
    assert {(who, frame["type"]) for who, frame in said} == frames().keys()
    recoveries = {frame["recovery"] for _, frame in said if frame["type"] == "welcome"}
    assert recoveries == set(SCHEMAS["welcome"]["properties"]["recovery"]["enum"])
    assert refused_with_one_thing_wrong(said) > 500


async def messages(user: Recorder, service: Service, welcome: dict[str, Any]) -> None:
    key, token = welcome["isolation_key"], welcome["context_token"]
    for kind, payload in (("JSON", b"[1, null]"), ("TEXT", "𝄞".encode()), ("BINARY", b""), ("BINARY", b"\xff\x00")):
        await service.send(key, token, payload, content_type=f"CONTENT_TYPE_{kind}", headers={"trace": "4bf92f35"})
    await service.send(key, token, b"{}", critical=True, event_type="news", message_id="m-1", reply_to="q-1")
    assert [(await user.hear("message"))["sequence"] for _ in range(5)] == [1, 2, 3, 4, 5]
    await user.say(type="ack", sequence=5)


async def questions(user: Recorder) -> None:
    for _ in range(2):  # the second is a duplicate
        await user.say(type="message", id="question-17", event="question", data={"text": "How warm is it?"})
        await user.hear("accepted")
    parts = [await user.hear("message"), await user.hear("message")]
    assert [part["stream"]["state"] for part in parts] == ["open", "end"]
    await user.say(type="message", id="question-17", event="question", data=None)
    assert (await user.hear("error"))["reason"] == "MESSAGE_ID_REUSED"
    await user.say(type="message", id="question-18", data=[])
    assert (await user.hear("error"))["reason"] == "NO_AGENT"
    for named in ({"id": "question-17"}, {"stream_id": "answer-17"}, {"id": "question-18", "stream_id": "answer-18"}):
        await user.say(type="cancel", **named)


async def greetings(
    first: Recorder, sidecar: RunningSidecar, service: Service, welcome: dict[str, Any], said: list[Any]
) -> None:
    token, resume = sidecar.user_token("alice", "asyncapi"), welcome["resume_token"]
    async with opened(sidecar, said) as mirror:
        await mirror.say(type="hello", token=token, mirror={"token": resume})
        await mirror.hear("welcome")
    await first.leave()
    async with opened(sidecar, said) as back:
        await back.say(type="hello", token=token, resume={"token": resume, "last_sequence": 7, "attempt": 1})
        assert (await back.hear("welcome"))["recovery"] == "full"
        await back.leave()
    async with opened(sidecar, said) as behind:
        await behind.say(type="hello", token=token, resume={"token": resume, "last_sequence": 0, "attempt": 2})
        assert (await behind.hear("welcome"))["recovery"] == "gap"
        await behind.hear("gap")
    async with opened(sidecar, said) as stranger:
        other = sidecar.user_token("bob", "asyncapi")
        await stranger.say(type="hello", token=other, resume={"token": resume, "last_sequence": 0, "attempt": 3})
        assert (await stranger.hear("welcome"))["recovery"] == "denied"
    headers = {"Authorization": f"Bearer {token}"}
    async with connect(sidecar.websocket_url, subprotocols=[JSON_PROTOCOL], additional_headers=headers) as socket:  # type: ignore[list-item]
        handshaken = Recorder(socket, said)
        await handshaken.say(type="hello")
        await handshaken.hear("welcome")


async def raw(sidecar: RunningSidecar) -> None:
    """The connection id in the answer to the handshake is as the document says."""
    offers = [RAW_PROTOCOL, f"bearer.{sidecar.user_token('carol')}"]
    async with connect(sidecar.websocket_url, subprotocols=offers) as socket:  # type: ignore[arg-type]
        assert socket.response is not None
        header = DOCUMENT["channels"]["raw"]["x-handshake-answer-headers"]["Sidecar-Connection-Id"]
        assert document.validator(header).is_valid(socket.response.headers["Sidecar-Connection-Id"])


async def the_passing_of_time(folder: Path, said: list[Any]) -> None:
    """Tokens that end soon, and a sidecar that is told to stop."""
    with running_sidecar(folder, SIDECAR_CONTEXT_TOKENS__TTL_S="2") as hasty:
        async with opened(hasty, said) as user:
            await user.say(type="hello", token=hasty.user_token("alice", ttl_s=60))
            await user.hear("welcome")
            await user.hear("token_expiring")
            await user.hear("context_token")
            stopping = asyncio.create_task(asyncio.to_thread(hasty.stop))
            await user.hear("draining")
            assert await stopping == 0


def refused_with_one_thing_wrong(said: list[tuple[str, dict[str, Any]]]) -> int:
    """How many frames with something wrong were tried."""
    tried = 0
    for who, frame in said:
        for mutant in mutants(frame):
            tried += 1
            assert not allowed(who, mutant), mutant
    return tried
