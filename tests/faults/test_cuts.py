"""Clients that lose their connections in the middle of anything, and come back: nothing is lost, doubled or rewound."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path
from random import Random

import pytest
from websockets.exceptions import ConnectionClosed

from tests.faults.company import Company, company
from tests.faults.devices import Device
from tests.faults.history import DISK, MEMORY
from tests.support.bystander import bystander
from tests.support.fault_flow import Plan, Spoiling
from tests.support.raw_websocket import JSON_OFFER, RawWebSocket, request
from tests.support.trail import Trail

ALICE, BOB = ("acme", "alice"), ("acme", "bob")

pytestmark = pytest.mark.parametrize("store", [MEMORY, DISK])


async def test_cut_off_again_and_again(store: str, tmp_path: Path) -> None:
    random = Random(1)
    async with company(tmp_path, store, random) as people:
        devices = [await here(people, person) for person in (ALICE, BOB)]
        for place in range(1, 10):
            people.history.at(
                "frames", 40 * place, random.choice((people.websocket.reset_all, people.websocket.cut_all))
            )
        answers, questions = Spoiling(cut_after=3_000), Spoiling(reset_after=30_000)
        people.grpc.plans = iter([Plan(down=answers), Plan(up=questions), Plan(down=answers)])
        sender = people.sender()
        await sender.deliver([sender.attempt(device, named=True) for device in devices * 150])
        await sender.batch([sender.attempt(device, named=True) for device in devices * 50])
        await people.settle()
        assert min(device.seen["full"] for device in devices) >= 2
        assert max(len(attempt.tries) for attempt in people.history.attempts.values()) >= 2


async def here(people: Company, person: tuple[str, str], acknowledges: float = 0.2) -> Device:
    """A device that is welcomed."""
    device = people.device(person, acknowledges=acknowledges)
    await device.welcomed()
    return device


@pytest.mark.parametrize(("way", "step", "places"), [("up", 90, 1), ("down", 700, 3)])
async def test_reset_in_the_middle_of_a_replay(way: str, step: int, places: int, store: str, tmp_path: Path) -> None:
    """Each connection gets a step further: through handshake, hello and welcome, then through the frames."""
    async with company(tmp_path, store, Random(2)) as people:
        alice = await here(people, ALICE, acknowledges=0.5)
        await alice.stay_away()
        sender = people.sender()
        await sender.deliver([sender.attempt(alice, named=True) for _ in range(100)])
        resets = [Spoiling(reset_after=count) for count in range(0, 20 * step, step)]
        people.websocket.plans = iter([Plan(up=one) if way == "up" else Plan(down=one) for one in resets])
        alice.come_back()
        await alice.reached(100)
        people.websocket.calm()
        await people.settle()
        assert alice.seen["not connected"] >= 1
        assert alice.seen["closed 1006"] >= 3
        assert len({attach.claimed for attach in people.history.attaches}) >= places


async def test_one_byte_at_a_time(store: str, tmp_path: Path) -> None:
    async with company(tmp_path, store, Random(3)) as people:
        people.websocket.plan = Plan(up=Spoiling(one_byte=True), down=Spoiling(one_byte=True))
        alice = await here(people, ALICE)
        sender = people.sender()
        await sender.unary([sender.attempt(alice, named=True) for _ in range(5)])
        await alice.reached(5)
        alice.lose()
        await alice.welcomed(2)
        assert alice.seen["full"] == 1


async def test_resume_when_nothing_was_ever_sent(store: str, tmp_path: Path) -> None:
    async with company(tmp_path, store, Random(4)) as people:
        alice = await here(people, ALICE)
        context = alice.context
        for times in (2, 3):
            alice.lose()
            await alice.welcomed(times)
        assert (alice.seen["full"], alice.last, alice.context) == (2, 0, context)
        sender = people.sender()
        await sender.unary([sender.attempt(alice, named=False)])
        await alice.reached(1)


async def test_resume_before_the_loss_is_noticed(store: str, tmp_path: Path) -> None:
    """The first socket has fallen silent and is open still, for all that the sidecar knows: it is fenced."""
    async with company(tmp_path, store, Random(5)) as people:
        alice = await here(people, ALICE)
        sender = people.sender()
        await sender.unary([sender.attempt(alice, named=True) for _ in range(3)])
        await alice.reached(3)
        silent = people.websocket.latest
        silent.stall()
        written = [sender.attempt(alice, named=True) for _ in range(5)]
        await sender.unary(written)
        assert {receipt.state for attempt in written for receipt in attempt.receipts} == {"WRITTEN"}
        alice.lose()
        await alice.welcomed(2)
        assert alice.seen["full"] == 1
        await alice.reached(8)
        first = people.history.attaches[0].attach_id
        await Trail(people.sidecar.running).until("socket_closed", attach_id=first, code=4503)
        silent.resume()
        await silent.over.wait()
        assert people.websocket.latest is not silent


async def test_a_fenced_socket_and_a_stale_attempt(store: str, tmp_path: Path) -> None:
    async with company(tmp_path, store, Random(6)) as people:
        running = people.sidecar.running
        async with running.user("alice", "acme") as first, running.service() as service:
            await service.send(first.isolation_key, first.context_token, b"1")
            assert (await first.frame())["data"] == 1
            resume = {"token": first.welcome["resume_token"], "last_sequence": 0, "attempt": 1}
            async with running.user("alice", "acme", resume=resume) as second:
                assert second.welcome["recovery"] == "full"
                await service.send(first.isolation_key, first.context_token, b"2")
                assert [(await second.frame())["data"] for _ in range(2)] == [1, 2]
                with pytest.raises(ConnectionClosed) as fenced:
                    await first.frame()
                assert fenced.value.rcvd is not None
                assert fenced.value.rcvd.code == 4503
                with pytest.raises(ConnectionClosed) as stale:
                    async with running.user("alice", "acme", resume=resume):
                        pass
                assert stale.value.rcvd is not None
                assert stale.value.rcvd.code == 4503
                assert await second.frames_before_answer_to("probe") == []
                await second.socket.close()


async def test_reset_before_it_was_accepted(store: str, tmp_path: Path) -> None:
    """Whole handshakes, and their senders gone: by the time they are read nobody can say from where they came."""
    async with company(tmp_path, store, Random(8)) as people:
        sidecar = people.sidecar
        await sidecar.freeze()
        for _ in range(5):
            client = await RawWebSocket.open(sidecar.running.websocket_port)
            client.send(request(JSON_OFFER))
            client.reset()
            with suppress(ConnectionError):
                await client.writer.wait_closed()
        sidecar.thaw()
        await here(people, ALICE)


async def test_a_reader_that_stalls_costs_itself(store: str, tmp_path: Path) -> None:
    async with company(tmp_path, store, Random(7), SIDECAR_LIMITS__SLOW_CONSUMER_TIMEOUT_S="1") as people:
        alice = await here(people, ALICE)
        sender = people.sender()
        async with bystander(people.sidecar.running) as other:
            first = people.history.attaches[0].attach_id
            people.websocket.latest.down.stall()
            trail = Trail(people.sidecar.running)
            closed = asyncio.create_task(trail.until("socket_closed", attach_id=first, code=4003))
            while not closed.done():
                await sender.batch([sender.attempt(alice, named=True, filler="x" * 50_000) for _ in range(10)])
                await other.goes_on(1)
            people.websocket.latest.resume()
            await alice.welcomed(2)
            await other.goes_on(2)
