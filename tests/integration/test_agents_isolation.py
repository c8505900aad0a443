"""Isolation of the other direction: whatever many users say, cancel and lose at once, no agent hears another tenant's,
and no answer, chunk or cancel reaches another context.

Each message names its tenant, user and context, and so does each chunk of its answer: a stray one convicts itself.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import grpc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from websockets.exceptions import ConnectionClosed

from sidecar.api.v1 import agent_service_pb2_grpc, types_pb2
from tests.rpc.workers import Event, Worker, registration
from tests.support.running import RunningSidecar, Service, User, refusal, refusal_of, running_sidecar

FACTOR = int(os.environ.get("SIDECAR_TEST_EXAMPLES", "1"))
TENANTS = ("green", "blue")
PEOPLE = [(tenant, user) for tenant in TENANTS for user in ("alice", "bob")]
CHUNKS = 3
SETTLED_S = 20
NUMBERS = count()


@pytest.fixture(scope="module", params=["memory", "sqlite"])
def sidecar(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[RunningSidecar]:
    folder: Path = tmp_path_factory.mktemp("agents")
    tokens = folder / "services"
    lines = [
        {"name": tenant, "token": token_of(tenant), "allow": ["attach"], "tenants": [tenant]} for tenant in TENANTS
    ]
    tokens.write_text("\n".join(json.dumps(line) for line in lines))
    tokens.chmod(0o600)
    store = f'[storage]\nkind = "{request.param}"\n'
    if request.param == "sqlite":
        store += f'path = "{folder}/outbox.db"\nkey_file = "{folder}/outbox.key"\n'
    environment = {
        "SIDECAR_SERVICE_AUTH__TOKEN_FILE": str(tokens),
        "SIDECAR_LIMITS__MANAGERS_PER_USER": "100",
        "SIDECAR_WEBSOCKET__FRAMES_PER_SECOND": "100000",
    }
    with running_sidecar(folder, store, **environment) as running:
        yield running
    assert '"incident"' not in (folder / "log.jsonl").read_text()


def token_of(tenant: str) -> str:
    return f"service-token-of-{tenant}"


@dataclass
class Speaker:
    """One user's context over all its sockets: what it said, and what it was answered."""

    tenant: str
    subject: str
    stack: AsyncExitStack
    user: User
    said: set[str] = field(default_factory=set)
    accepted: set[str] = field(default_factory=set)
    cancelled: set[str] = field(default_factory=set)
    answers: dict[str, list[tuple[int, str]]] = field(default_factory=dict)
    position: int = 0
    attempt: int = 0
    reading: asyncio.Task[None] | None = None

    @property
    def name(self) -> list[str]:
        return [self.tenant, self.subject, str(self.user.welcome["connection_id"])]

    @property
    def missing(self) -> set[str]:
        """What was accepted and is neither answered to its end nor cancelled."""
        answered = {question for question, chunks in self.answers.items() if chunks and chunks[-1][1] == "end"}
        return self.accepted - answered - self.cancelled

    def take(self, frame: dict[str, Any]) -> None:
        """Look at one frame: it must be this context's own, and each answer one run of chunks."""
        if frame["type"] == "accepted":
            self.accepted.add(frame["id"])
        if frame["type"] != "message":
            assert frame["type"] == "accepted", frame
            return
        assert frame["sequence"] == self.position + 1
        self.position += 1
        assert frame["data"]["to"] == self.name, "another context's answer"
        assert frame["reply_to"] in self.said
        stream = frame["stream"]
        chunks = self.answers.setdefault(frame["reply_to"], [])
        assert stream["index"] == len(chunks), "a chunk is missing, or came twice"
        chunks.append((stream["index"], stream["state"]))


class Scene:
    """The people, their agents, and what everybody has heard."""

    def __init__(self, sidecar: RunningSidecar, service: Service) -> None:
        self.sidecar = sidecar
        self.service = service
        self.speakers: list[Speaker] = []
        self.faults: list[BaseException] = []
        self.news = asyncio.Event()
        self.keys: set[str] = set()
        self.tasks: set[asyncio.Task[Any]] = set()

    def spawn(self, coroutine: Any) -> asyncio.Task[Any]:
        task = asyncio.create_task(coroutine)
        self.tasks.add(task)
        task.add_done_callback(self.done)
        return task

    def begin(self, coroutine: Any) -> None:
        """The same, for what nobody waits for."""
        self.tasks.add(self.spawn(coroutine))

    def done(self, task: asyncio.Task[Any]) -> None:
        self.tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self.faults.append(task.exception())  # type: ignore[arg-type]
        self.news.set()

    async def until_answered(self) -> None:
        """Until all that was accepted is answered to its end, but for what was cancelled."""
        async with asyncio.timeout(SETTLED_S):
            while any(speaker.missing for speaker in self.speakers) and not self.faults:
                self.news.clear()
                await self.news.wait()
        if self.faults:
            raise self.faults[0]

    # The agents' side

    async def attend(self, worker: Worker, tenant: str) -> None:
        """One agent: acknowledge, and answer each message in a task of its own."""
        while True:
            event = (await worker.call.read()).event
            assert event.context.tenant_id == tenant, "another tenant's event"
            if event.delivery_id:
                await worker.acknowledge(event)
            self.keys.add(event.isolation_key)
            if event.WhichOneof("kind") == "message":
                said = json.loads(event.message.payload)
                context = event.context
                assert said["from"] == [context.tenant_id, context.user_id, context.connection_id]
                self.begin(self.answer(event, said))

    async def answer(self, event: Event, said: dict[str, Any]) -> None:
        question = event.message.message_id
        payload = json.dumps({"to": said["from"]}).encode()
        for index in range(CHUNKS):
            state = types_pb2.STREAM_STATE_END if index == CHUNKS - 1 else types_pb2.STREAM_STATE_OPEN
            stream = types_pb2.Stream(stream_id=f"to-{question}", index=index, state=state)
            try:
                await self.service.send(
                    event.isolation_key, event.context_token, payload, reply_to=question, stream=stream
                )
            except grpc.aio.AioRpcError as error:
                if refusal_of(error).reason != "STREAM_CANCELLED":
                    raise
                return
        for foreign in self.keys - {event.isolation_key}:
            refused = await refusal(self.service.send(foreign, event.context_token, payload))
            assert refused.reason == "ISOLATION_VIOLATION"
            break


# What users do


async def arrive(scene: Scene, who: int) -> None:
    tenant, subject = PEOPLE[who]
    stack = AsyncExitStack()
    user = await stack.enter_async_context(scene.sidecar.user(subject, tenant))
    speaker = Speaker(tenant, subject, stack, user)
    scene.speakers.append(speaker)
    speaker.reading = scene.spawn(read(scene, speaker))


async def read(scene: Scene, speaker: Speaker) -> None:
    with suppress(ConnectionClosed):
        async for text in speaker.user.socket:
            speaker.take(json.loads(text))
            scene.news.set()


async def say(scene: Scene, speaker: Speaker, cancel: bool) -> None:
    question = f"q-{next(NUMBERS)}"
    speaker.said.add(question)
    frame = {"type": "message", "id": question, "data": {"from": speaker.name}}
    if cancel:
        speaker.cancelled.add(question)
    with suppress(ConnectionClosed):
        await speaker.user.socket.send(json.dumps(frame))
        if cancel:
            await speaker.user.socket.send(json.dumps({"type": "cancel", "id": question}))


async def cut(scene: Scene, speaker: Speaker) -> None:
    """The socket goes without a word; the client comes back with what it has read."""
    speaker.user.socket.transport.abort()
    assert speaker.reading is not None
    await speaker.reading
    await speaker.stack.aclose()
    speaker.attempt += 1
    resume = {
        "token": speaker.user.welcome["resume_token"],
        "last_sequence": speaker.position,
        "attempt": speaker.attempt,
    }
    user = await speaker.stack.enter_async_context(scene.sidecar.user(speaker.subject, speaker.tenant, resume=resume))
    assert user.welcome["recovery"] == "full"
    assert user.welcome["connection_id"] == speaker.user.welcome["connection_id"]
    speaker.user = user
    speaker.reading = scene.spawn(read(scene, speaker))


ACTIONS = st.one_of(
    st.tuples(st.just("arrive"), st.integers(0, len(PEOPLE) - 1), st.booleans()),
    st.tuples(st.just("say"), st.integers(0, 50), st.booleans()),
    st.tuples(st.just("say"), st.integers(0, 50), st.just(False)),
    st.tuples(st.just("cut"), st.integers(0, 50), st.booleans()),
)
PROGRAMS = st.lists(st.lists(ACTIONS, min_size=1, max_size=12), min_size=2, max_size=6)


@pytest.mark.timeout(120 + 60 * FACTOR)
@settings(
    max_examples=10 * FACTOR,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(program=PROGRAMS)
async def test_no_agent_and_no_user_hears_another(
    sidecar: RunningSidecar, program: list[list[tuple[str, int, bool]]]
) -> None:
    async with staged(sidecar) as scene:
        for who in range(len(PEOPLE)):
            await arrive(scene, who)
        for step in program:
            await asyncio.gather(*actions_of(scene, step))
        await scene.until_answered()
        for speaker in scene.speakers:
            assert len(speaker.answers) >= len(speaker.accepted - speaker.cancelled)


def actions_of(scene: Scene, step: list[tuple[str, int, bool]]) -> Iterator[Any]:
    """What is done at once: a socket is cut by one at a time, and nobody speaks on it meanwhile."""
    cut_now = {which % len(scene.speakers) for action, which, _ in step if action == "cut"}
    for action, which, flag in step:
        place = which % len(scene.speakers)
        if action == "arrive":
            yield arrive(scene, which)
        elif action == "say" and place not in cut_now:
            yield say(scene, scene.speakers[place], flag)
    yield from (cut(scene, scene.speakers[place]) for place in cut_now)


@asynccontextmanager
async def staged(sidecar: RunningSidecar) -> AsyncIterator[Scene]:
    """An agent for each tenant, attached for the block."""
    async with sidecar.service() as service, grpc.aio.insecure_channel(sidecar.grpc_target) as channel:
        scene = Scene(sidecar, service)
        stub = agent_service_pb2_grpc.AgentServiceStub(channel)
        for tenant in TENANTS:
            worker = await Worker(stub, token_of(tenant), timeout_s=120).register(registration(f"bot-of-{tenant}"))
            scene.begin(scene.attend(worker, tenant))
        try:
            yield scene
        finally:
            for speaker in scene.speakers:
                await speaker.stack.aclose()
            for task in tuple(scene.tasks):
                task.cancel()
            await asyncio.gather(*scene.tasks, return_exceptions=True)
