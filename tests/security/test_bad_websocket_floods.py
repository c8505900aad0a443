"""More frames or bytes than a socket may send in a second: answered up to the rate, then closed 4005 and recorded."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

import pytest
import pytest_asyncio

from tests.security.websocket_watch import (
    Watch,
    at_stage,
    context_closed,
    failed_at,
    opened,
    quiet_sidecar,
    socket_closed,
    watching,
)
from tests.support.raw_websocket import BINARY, CONTINUATION, PING, PONG, TEXT, frame, text
from tests.support.running import RunningSidecar

pytestmark = pytest.mark.asyncio(loop_scope="module")

FRAMES_PER_SECOND, BYTES_PER_SECOND = 100, 1_048_576
RATE_LIMITED = (4005, "rate_limited")
CONTEXT = ("welcomed", "raw")
ANYWHERE = ("before hello", *CONTEXT)


@dataclass(frozen=True)
class Flood:
    """What is sent at once, and how many pongs or errors it may bring at most."""

    name: str
    data: bytes
    answers: int = 0
    stages: tuple[str, ...] = ANYWHERE


FLOODS = [
    # too many frames, in fewer bytes than are too many
    Flood("one ping too many", frame(PING) * (FRAMES_PER_SECOND + 1), FRAMES_PER_SECOND),
    Flood("pings", frame(PING, b"x" * 60) * 10_000, FRAMES_PER_SECOND),
    Flood("empty pings", frame(PING) * 100_000, FRAMES_PER_SECOND),
    Flood("pongs", frame(PONG) * 10_000),
    Flood("empty fragments", frame(TEXT, fin=False) + frame(CONTINUATION, fin=False) * 10_000),
    Flood("fragments of a byte", frame(TEXT, b"[", fin=False) + frame(CONTINUATION, b"[", fin=False) * 10_000),
    Flood("pings within a message", frame(TEXT, b"{", fin=False) + frame(PING) * 1_000, FRAMES_PER_SECOND),
    Flood("messages", text('{"type":"what"}') * 10_000, FRAMES_PER_SECOND, CONTEXT),
    Flood("cancels", text('{"type":"cancel","id":"m"}') * 10_000, 0, CONTEXT),
    # too many bytes, in fewer frames than are too many
    Flood("large messages", frame(TEXT, b'"' + b"x" * 65_000 + b'"') * 80, 0, ("raw",)),
    Flood("binary", frame(BINARY, b"x" * 65_000) * 80, 0, ("raw",)),
]
CASES = [(flood, stage) for flood in FLOODS for stage in flood.stages]


@pytest.fixture(scope="module")
def sidecar(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningSidecar]:
    with quiet_sidecar(tmp_path_factory.mktemp("floods")) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def watch(sidecar: RunningSidecar) -> AsyncIterator[Watch]:
    async with watching(sidecar) as watched:
        yield watched


@pytest.mark.parametrize(("flood", "stage"), CASES, ids=[f"{flood.name}, {stage}" for flood, stage in CASES])
async def test_a_flood_is_answered_up_to_the_rate_and_no_further(watch: Watch, flood: Flood, stage: str) -> None:
    user = watch.new_user()
    async with watch.client() as client:
        await at_stage(watch, client, stage, user)
        client.send(flood.data)
        end = await client.end()
        assert end.close == RATE_LIMITED
        assert len(end.frames) <= flood.answers
        await watch.left(*failed_at(client, stage, user, *RATE_LIMITED))


async def test_as_many_frames_as_may_be(watch: Watch) -> None:
    user = watch.new_user()
    async with watch.client() as client:
        await at_stage(watch, client, "raw", user)
        before = await watch.managers()
        client.send(frame(PING, b"p") * FRAMES_PER_SECOND)
        for _ in range(FRAMES_PER_SECOND):
            assert await client.frame() == (PONG, b"p")
        assert await watch.managers() == before, "a client that kept the rate is still there"
        client.reset()
    await watch.left(*opened(client, user, "raw"), socket_closed(user, 1006), context_closed(user, "socket_lost"))
